"""Puts together what is published, and refuses what must not be.

Every file is written here from what was read, the picture of the curves from its
pixels: nothing of the source folder is copied as it is. So neither optimizer states nor
a run's own hyperparams.yaml nor what a picture says beside its pixels can get in.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from speechbrain.inference.separation import SepformerSeparation
from torch import Tensor, nn

from speechbrain_spgm.audio import read_audio, resample
from speechbrain_spgm.errors import first_line, require
from speechbrain_spgm.files import replacing_folder
from speechbrain_spgm.inference.separation import SPGMSeparation
from speechbrain_spgm.models.config import CONFIG_FILE, show, write_json
from speechbrain_spgm.models.convert import (
    INTERFACE,
    INTERFACE_CLASS,
    YAML_FILE,
    write_speechbrain,
)
from speechbrain_spgm.models.published import (
    CARD,
    WEIGHTS_FILE,
    ModelError,
    save_published,
)
from speechbrain_spgm.models.speechbrain import PARTS
from speechbrain_spgm.publishing.card import Terms, licence_of, listed, write_card
from speechbrain_spgm.publishing.privacy import check_folder
from speechbrain_spgm.publishing.source import (
    NOTES_BEGIN,
    SUMMARY_FILE,
    Source,
    read_source,
)

PICTURE = "training_curves.png"
EXAMPLES = "examples"
LONGEST_EXAMPLE = 20.0  # seconds
OUR_FILES = re.compile(  # all that an assembled folder can hold
    r"README\.md|config\.json|model\.safetensors|hyperparams\.yaml|test_summary\.json|"
    r"training_curves\.png|(?:encoder|masknet|decoder)\.ckpt|"
    r"examples/mixture(?:_spk\d+)?\.flac"
)
RUN_OPTS = {"device": "cpu"}
MOST_PIXELS = 50_000_000
LONGEST_TEST = 10.0  # seconds, of the noise that all ways of loading are compared on


class Assembled(NamedTuple):
    """A folder that is ready to be published, and what the user should know of it."""

    folder: Path
    terms: Terms
    remarks: tuple[str, ...]

    def files(self) -> dict[str, int]:
        """Names and sizes in bytes, sorted."""
        return list_files(self.folder)


def assemble(
    source_folder: str | Path,
    target: str | Path,
    repo: str,
    licence: str | None = None,
    datasets: tuple[str, ...] = (),
    revision: str | None = None,
    private: bool = False,
    summary: str | Path | None = None,
    example: str | Path | None = None,
) -> Assembled:
    """Writes the files of a published model, and checks them.

    Arguments
    ---------
    source_folder : str or Path
        A run's output folder, or a model folder.
    target : str or Path
        An empty folder, one that is made, or what an earlier call wrote for this
        repository, which is replaced.
    repo : str
        ``USER/NAME``, for the card.
    licence : str, optional
        By default what the model's own card says.
    datasets : tuple of str
        The names of the training data on the Hub.
    revision : str, optional
        The branch to publish on; main by default.
    private : bool
        Whether users will need a token.
    summary, example
        See ``read_source``.

    Returns
    -------
    assembled : Assembled

    Raises
    ------
    ModelError
        If there is no model, no measured result or no licence; if the weights are not
        finite or, loaded back in any way, do not give the same output; if a file would
        hold a local path or a secret.
    """
    check_repo(repo)
    check_branch(revision)
    target = Path(target)
    with file_errors(source_folder):
        check_replaceable(target, repo, Path(source_folder))
        source = read_source(source_folder, summary, example)
        terms = Terms(
            repo,
            licence_of(licence, source.card),
            tuple(datasets) or _datasets(source.card),
            revision or "main",
            private,
        )
        with replacing_folder(target) as temporary:
            _write_files(source, terms, temporary)
            check_folder(temporary)
            check_loads(source, temporary)
    return Assembled(target, terms, tuple(_remarks(source, terms)))


@contextmanager
def file_errors(source: str | Path) -> Iterator[None]:
    """Turns what the disk or a text of ``source`` refuses into one sentence."""
    try:
        yield
    except UnicodeEncodeError:
        raise ModelError(
            f"A text in {source} holds half a character (a lone surrogate): write its "
            "card anew."
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(
            f"{error.filename or source} cannot be read or written ({reason}): check "
            "its rights and the space on the disk."
        ) from None


def check_replaceable(target: Path, repo: str, source: Path) -> None:
    """Refuses a folder that holds anything but an earlier assembly for a repository.

    The card of an earlier assembly names it. The source must not be replaced.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ModelError(f"{target} is no folder: give another one.")
    names = set(list_files(target))
    if not target.exists() or not any(target.iterdir()):
        return
    ours = "README.md" in names and all(map(OUR_FILES.fullmatch, names))
    if ours:
        card = (target / "README.md").read_text(encoding="utf-8", errors="replace")
        ours = NOTES_BEGIN in card and f'from_pretrained("{repo}"' in card
    if not ours or source.resolve().is_relative_to(target.resolve()):
        raise ModelError(
            f"The folder {target} is not empty and no earlier output for {repo}: take "
            "another one, or remove it first."
        )


def _write_files(source: Source, terms: Terms, target: Path) -> None:
    _write_model(source, terms, target)
    write_json(target / SUMMARY_FILE, source.results.summary)
    if source.picture is not None:
        copy_picture(source.picture, target / PICTURE)
    if source.example is not None:
        _write_example(source.model, source.example, target / EXAMPLES)
    card = write_card(source, terms, [*list_files(target)])
    (target / "README.md").write_text(card, encoding="utf-8")


def copy_picture(source: Path, target: Path) -> None:
    """Writes the pixels of a PNG, without its texts, EXIF and further frames."""
    image = require("PIL.Image", "pillow", "The picture of the training curves")
    try:
        with image.open(source, formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError("too many pixels")
            pixels = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise ModelError(
            f"{source} is damaged or no PNG picture ({first_line(error)}): take it "
            "out of the folder, or plot it again."
        ) from None
    image.frombytes(pixels.mode, pixels.size, pixels.tobytes()).save(target, "PNG")


def check_repo(repo: str) -> None:
    """Refuses what cannot be a repository of a user on the Hub."""
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ModelError(
            f"{repo} is no name of a Hub repository: give USER/NAME, of letters, "
            "digits, '-', '_' and '.'."
        )


def check_branch(revision: str | None) -> None:
    """Refuses what cannot be a branch to publish on."""
    if revision is None:
        return
    is_commit = re.fullmatch(r"[0-9a-f]{40}", revision) is not None
    if is_commit or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", revision):
        raise ModelError(
            f"The revision {revision} is no branch: give a name such as main or v2."
        )


def list_files(folder: Path) -> dict[str, int]:
    """The files below a folder by their relative names, with their sizes in bytes."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _datasets(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The data sets of the Hub that a card names."""
    given = card.get("datasets") or []
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list):
        raise ModelError(
            f"The card's datasets is {show(given)}, but must be a name or a list of "
            f"names: correct it in {CONFIG_FILE}."
        )
    return tuple(str(name) for name in given)


def _remarks(source: Source, terms: Terms) -> Iterator[str]:
    if source.command is None:
        yield "The training command was not recorded by the run: the card says so."
    if source.picture is None:
        yield "There is no picture of the training curves: none is published."
    if source.example is None:
        yield (
            "No example is published: give --example MIXTURE.wav, a recording that you "
            "may pass on."
        )
    if not terms.datasets:
        yield "No data set of the Hub is named: give --datasets if there is one."


def _write_model(source: Source, terms: Terms, target: Path) -> None:
    results = source.results
    modules = {part: source.model.mods[part] for part in PARTS}
    si_sdri = next(metric for metric in results.measured if metric.name == "SI-SDRi")
    card = {key: value for key, value in source.card.items() if key != "license"}
    card["licence"] = terms.licence
    if source.versions:
        card["trained_with"] = listed(source.versions)
    if source.command:
        card["command"] = source.command
    card["quality"] = {
        "SI-SDRi": f"{si_sdri.mean:.2f} dB{si_sdri.interval}"
        + (" (95% CI)" if si_sdri.interval else ""),
        "mixtures": results.n,
    }
    config = {**source.config, CARD: card}
    save_published(target, **modules, config=config)
    # Writes config.json once more, with the name of SpeechBrain's class in it.
    fields = {**config, INTERFACE: INTERFACE_CLASS}
    write_speechbrain(target, nn.ModuleDict(modules).state_dict(), fields)


def _write_example(model: SPGMSeparation, path: Path, folder: Path) -> None:
    """The mixture and its voices, afresh: no tags of the file, one gain for all."""
    recording = read_audio(path)
    rate = model.sample_rate
    mix = resample(recording.samples, recording.sample_rate, rate)
    mix = mix[: int(LONGEST_EXAMPLE * rate)]
    est = model.separate_recording(recording._replace(samples=mix, sample_rate=rate))
    waves = {"mixture": mix}
    waves |= {f"mixture_spk{k + 1}": est[0, :, k] for k in range(est.shape[2])}
    gain = 0.9 / max(0.9, *(wave.abs().max().item() for wave in waves.values()))
    folder.mkdir()
    for name, wave in waves.items():
        wave = (wave * gain).numpy()
        soundfile.write(folder / f"{name}.flac", wave, rate, "PCM_16")


def check_loads(source: Source, target: Path) -> None:
    """Refuses an assembled folder that is not, to the last bit, the model.

    It is loaded in each of the ways that its card names.
    """
    mix = _noise(source.config)
    expected = source.model.separate_batch(mix)
    if not expected.isfinite().all():
        raise ModelError(
            "The model gives NaN or infinity for white noise: take another checkpoint."
        )
    facts = {"num_spks": source.config["masknet_numspks"]}
    # SpeechBrain's class does the same in other steps, so the last bits may differ.
    stock = SepformerSeparation(dict(source.model.mods), facts, RUN_OPTS)
    references = {
        SPGMSeparation: expected,
        SepformerSeparation: stock.separate_batch(mix),
    }
    for way, load in _ways(source.home, target).items():
        try:
            model = load()
            got = model.separate_batch(mix)
        except ModelError:
            raise
        except Exception as error:  # SpeechBrain's own loader may raise anything
            raise ModelError(
                f"The weights do not load back by {way} ({first_line(error)})."
            ) from None
        if not torch.equal(got, references[type(model)]):
            raise ModelError(
                f"The weights do not load back to the same output by {way}: take a "
                "model folder that a run or spgm convert wrote, and do not edit it."
            )


def _ways(home: Path, target: Path) -> dict[str, Callable[[], SepformerSeparation]]:
    """How the assembled model, and the given one, can be loaded."""
    ways = {
        "SPGMSeparation.from_pretrained": lambda: SPGMSeparation.from_pretrained(
            target, run_opts=RUN_OPTS
        ),
        "SPGMSeparation.from_hparams": lambda: SPGMSeparation.from_hparams(
            target, run_opts=RUN_OPTS
        ),
        "SpeechBrain's SepformerSeparation": lambda: SepformerSeparation.from_hparams(
            str(target), run_opts=RUN_OPTS
        ),
    }
    if (home / WEIGHTS_FILE).is_file() and (home / YAML_FILE).is_file():
        # A model in both layouts must be the same in both.
        ways[f"{home / YAML_FILE}"] = lambda: SPGMSeparation.from_hparams(
            home, run_opts=RUN_OPTS
        )
    return ways


def _noise(config: Mapping[str, Any]) -> Tensor:
    """White noise ``[1, T]``: a bit more than three chunks, if these are not huge."""
    kernel = config["encoder_kernel_size"]
    chunks = 3 * config["masknet_chunksize"] * (kernel // 2) + kernel + 3
    T = min(chunks, int(LONGEST_TEST * config["sample_rate"]))
    return 0.1 * torch.randn(1, T, generator=torch.Generator().manual_seed(0))
