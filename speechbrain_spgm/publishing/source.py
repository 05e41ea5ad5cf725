"""What a run's output folder or a model folder says about its model.

Only the files named here are read; of a run that is its model, what the test measured,
the command, the versions, the curves and a separated example.
"""

from __future__ import annotations

import json
import re
import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from speechbrain.lobes.models.dual_path import Dual_Path_Model

from speechbrain_spgm.inference.augment import check_views, views_of
from speechbrain_spgm.inference.separation import SPGMSeparation
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.metrics.report import SUMMARY_FILE
from speechbrain_spgm.metrics.scores import METRICS
from speechbrain_spgm.models.config import CONFIG_FILE, FIELDS, config_of
from speechbrain_spgm.models.convert import YAML_FILE
from speechbrain_spgm.models.published import (
    CARD,
    WEIGHTS_FILE,
    ModelError,
    card_of,
    check_inside,
    weights_in,
)
from speechbrain_spgm.models.sources import (
    COMMAND_FILE,
    MODEL_FOLDER,
    SHIPPED_MODELS,
    best_checkpoint,
    is_model,
    is_run,
    shipped_models,
)
from speechbrain_spgm.models.speechbrain import PARTS
from speechbrain_spgm.publishing.privacy import clean_command

PICTURES = ("training_curves.png", "curves.png", "curve.png")
PUBLISHED_EXAMPLE = "examples/mixture.flac"
# Recordings that may be passed on; an example of other data must be asked for.
FREE_DATA = re.compile(r"libri", re.IGNORECASE)
LARGEST = sys.float_info.max
VAGUE = ("", "test", "tt")  # names of a test set that do not say of which corpus


class Measured(NamedTuple):
    """A metric on n mixtures: the mean is known to plus or minus ``ci95``.

    Of a single mixture there is no such interval.
    """

    name: str
    unit: str
    n: int
    mean: float
    ci95: float | None = None

    @property
    def interval(self) -> str:
        """The interval for a text, with a space before it."""
        return "" if self.ci95 is None else f" ± {self.ci95:.2f}"


class Results(NamedTuple):
    """What a test measured: on how many mixtures of what, SI-SDRi first.

    ``views`` is how many of each mixture were taken, if the test says.
    """

    n: int
    test_set: str
    measured: tuple[Measured, ...]
    summary: Mapping[str, Any]
    views: int | None = None


class Source(NamedTuple):
    """A model and what is known about it."""

    home: Path
    model: SPGMSeparation
    config: Mapping[str, Any]
    card: Mapping[str, Any]
    results: Results
    command: str | None
    versions: Mapping[str, str]
    picture: Path | None
    example: Path | None
    notes: str


def read_source(
    folder: str | Path,
    summary: str | Path | None = None,
    example: str | Path | None = None,
) -> Source:
    """Reads a run's output folder or a model folder.

    What the test measured is ``summary``, by default test_summary.json in the folder.
    The ``example`` is a recording to show the model on; by default one of the run's own
    examples, if its data are known to be free.
    """
    folder = Path(folder)
    home, run = find_model(folder)
    places = [place for place in (run, home) if place is not None]
    check_links(places)
    model, config, card = load_home(home)
    results = read_results(home, run, summary)
    views = views_of({CARD: card})
    if results.views not in (None, views):
        raise ModelError(
            f"The results were measured with views {results.views}, but the model's "
            f"card asks for {views}: test it by spgm evaluate --views {views}."
        )
    free = FREE_DATA.search(results.test_set) is not None
    if example is None and run is not None and free:
        example = next(iter(sorted((run / "examples").glob("*_mix.wav"))), None)
    if example is None and (home / PUBLISHED_EXAMPLE).is_file():
        example = home / PUBLISHED_EXAMPLE  # of a model that was published before
    if example is not None and not Path(example).is_file():
        raise ModelError(f"The example {example} does not exist: check its name.")
    return Source(
        home=home,
        model=model,
        config=config,
        card=card,
        results=results,
        command=_command(places, card),
        versions=_versions(run),
        picture=_first(places, PICTURES),
        example=Path(example) if example is not None else None,
        notes=_notes(home),
    )


def check_links(places: list[Path]) -> None:
    """Refuses links out of the folder among all files that may be read or copied."""
    for place in places:
        for path in (place, *place.iterdir(), *place.glob("examples/*")):
            check_inside(places[0], path)


def find_model(folder: Path) -> tuple[Path, Path | None]:
    """The model's folder, and the run's if there is one."""
    if str(folder) in shipped_models() and not is_model(folder):
        return SHIPPED_MODELS / folder, None
    if not folder.is_dir():
        raise ModelError(f"The folder {folder} does not exist: check its name.")
    if (folder / MODEL_FOLDER).is_dir():
        return folder / MODEL_FOLDER, folder
    if weights_in(folder) is not None or (folder / "masknet.ckpt").is_file():
        # A run's model folder, given by itself, still belongs to the run.
        run = folder.resolve().parent
        of_run = folder.name == MODEL_FOLDER and (run / SUMMARY_FILE).is_file()
        return folder, run if of_run else None
    if is_run(folder):
        best_checkpoint(folder)
        raise ModelError(
            f"The run {folder} is of a recipe of SpeechBrain's own: make it a model by "
            "spgm convert --to published, and publish that."
        )
    if (folder / YAML_FILE).is_file():
        best_checkpoint(folder)  # or says what is missing
    raise ModelError(
        f"The folder {folder} holds no model: give a run's output folder, or one with "
        f"{CONFIG_FILE} and {WEIGHTS_FILE}."
    )


def load_home(folder: Path) -> tuple[SPGMSeparation, dict[str, Any], dict[str, Any]]:
    """A model, the fields of its config.json that describe it, and its card."""
    published = weights_in(folder) is not None
    load = SPGMSeparation.from_pretrained if published else SPGMSeparation.from_hparams
    model = load(folder, run_opts={"device": "cpu"})
    given = getattr(model.hparams, "config", {})
    name = str(given.get("config_name") or folder.resolve().name)
    if published:
        config = {"model_type": "spgm", "config_name": name}
        config |= {field: given[field] for field in FIELDS}
    else:
        parts = {part: model.mods[part] for part in PARTS}
        masknet = parts["masknet"]
        blocks = [part for part in masknet.modules() if isinstance(part, SPGMBlock)]
        if not blocks or not isinstance(masknet, Dual_Path_Model):
            raise ModelError(
                f"The model in {folder} is no SPGM separator: only these can be "
                "published in both layouts."
            )
        config = config_of(**parts, sample_rate=model.sample_rate, name=name)
    return model, config, dict(card_of(given))


def read_results(home: Path, run: Path | None, given: str | Path | None) -> Results:
    """What the test measured: the summary of the model or run, or the one given."""
    places = [home] if run is None else [home, run]
    path = Path(given) if given is not None else _first(places, [SUMMARY_FILE])
    if path is None:
        raise ModelError(
            f"No measured results: there is no {SUMMARY_FILE} in {places[-1]}. Test "
            "the model by spgm evaluate (or train.py --test_only), and give its "
            "summary by --results."
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise ModelError(
            f"No measured results: {path} is no JSON. Test the model again."
        ) from None
    return _results(summary, path, _test_set(run))


def _results(summary: Any, path: Path, test_set: str) -> Results:
    entries = summary if isinstance(summary, Mapping) else {}
    n = entries.get("n")
    kept = {
        key: {name: value[name] for name in ("mean", "ci95", "n") if name in value}
        for key, value in entries.items()
        if isinstance(value, Mapping) and _is_measured(value)
    }
    if type(n) is not int or n < 1 or "si_sdri" not in kept:
        raise ModelError(
            f"No measured results: {path} must hold n, the number of test mixtures, "
            "and the mean and ci95 of si_sdri. Test the model again."
        )
    named = {
        f"{key}{end}": (f"{metric.name}{words}", metric.unit.strip())
        for end, words in (("i", "i"), ("", ""), ("_mix", " of the mixtures"))
        for key, metric in METRICS.items()  # the improvements first
        if f"{key}{end}" in kept
    }
    named |= {key: (key, "") for key in kept if key not in named}
    measured = tuple(Measured(*named[key], **{"n": n, **kept[key]}) for key in named)
    given = _file_name(str(entries.get("test_set") or ""))
    if given not in VAGUE or not test_set:
        test_set = given or "test set"
    about: dict[str, Any] = {"test_set": test_set, "n": n}
    if "views" in entries:
        about["views"] = check_views(entries["views"], f"views in {path}")
    return Results(n, test_set, measured, {**about, **kept}, about.get("views"))


def _is_measured(value: Mapping[str, Any]) -> bool:
    numbers = [value.get("mean"), value.get("n", 1)]
    if "ci95" not in value:
        return False
    numbers += [] if value["ci95"] is None else [value["ci95"]]
    # Whole numbers of JSON may be beyond all floats.
    return all(type(x) in (int, float) and abs(x) <= LARGEST for x in numbers)


def _test_set(run: Path | None) -> str:
    """The name of a run's test list, else of its data folder; empty without a run."""
    found = {}
    for line in _lines(run, YAML_FILE):
        match = re.match(r"(test_list|test_manifest|data_folder):\s*([^#]*)", line)
        value = match[2].strip().strip("'\"") if match else ""
        if value not in ("", "null", "~", "!PLACEHOLDER"):
            found[match[1]] = _file_name(value)
    for name in ("test_manifest", "test_list"):
        if name in found:
            return found[name]
    return f"{found['data_folder']} test" if "data_folder" in found else ""


def _file_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1].removesuffix(".csv")


def _command(places: list[Path], card: Mapping[str, Any]) -> str | None:
    """How the model was trained, without local paths."""
    path = _first(places, [COMMAND_FILE])
    lines = []
    if path is not None:
        lines = _text(path).splitlines()
    elif isinstance(card.get("command"), str):
        lines = card["command"].splitlines()
    commands = [clean_command(line) for line in lines if line.strip()]
    # A run that was interrupted and started again repeats its command.
    commands = list(dict.fromkeys(commands))
    training = [command for command in commands if "--test_only" not in command]
    return "\n".join(training or commands) or None


def _versions(run: Path | None) -> dict[str, str]:
    """The versions that SpeechBrain noted when the run began."""
    found = {}
    for line in _lines(run, "env.log"):
        match = re.fullmatch(r"(torch|speechbrain|speechbrain[-_]spgm)==(\S+)", line)
        if match:
            found[match[1].replace("-", "_")] = match[2]
        elif re.match(r"\d+\.\d+\.\d+ .*\[", line):
            found["Python"] = line.split()[0]
    # The list is that of the pip on the path, which may be another Python's.
    return found if "torch" in found else {}


def _lines(folder: Path | None, name: str) -> Iterator[str]:
    if folder is not None and (folder / name).is_file():
        yield from _text(folder / name).splitlines()


def _text(path: Path) -> str:
    """A text of UTF-8 or, as Windows PowerShell writes it, of UTF-16."""
    content = path.read_bytes()
    wide = content.startswith((BOM_UTF16_BE, BOM_UTF16_LE))
    text = content.decode("utf-16" if wide else "utf-8", errors="replace")
    if "\0" in text:
        raise ModelError(f"{path} holds a zero byte: save it as text of UTF-8.")
    return text


def _first(places: list[Path], names: tuple[str, ...] | list[str]) -> Path | None:
    paths = (place / name for place in places for name in names)
    return next((path for path in paths if path.is_file()), None)


NOTES_BEGIN = "<!-- notes of the author -->"
NOTES_END = "<!-- end of the notes -->"


def _notes(folder: Path) -> str:
    """The author's own words in a README.md: all of one that no program wrote."""
    text = "\n".join(_lines(folder, "README.md"))
    if NOTES_BEGIN in text:
        return text.split(NOTES_BEGIN, 1)[1].split(NOTES_END, 1)[0].strip()
    body = re.sub(r"\A\s*---\n.*?\n---[ \t]*(\n|\Z)", "", text, flags=re.DOTALL)
    return lower_headings(body).strip()


def lower_headings(markdown: str) -> str:
    """Headings one level lower, so that a card can stand inside another.

    Example
    -------
    >>> print(lower_headings("# A\\n```\\n# comment\\n```\\n## B"))
    ## A
    ```
    # comment
    ```
    ### B
    """
    lines, in_code = [], False
    for line in markdown.splitlines():
        in_code ^= line.lstrip().startswith("```")
        heading = not in_code and re.match(r"#{1,5} ", line)
        lines.append(f"#{line}" if heading else line)
    return "\n".join(lines)
