"""Where a model is: a folder, a shipped or a short name, the Hub or the web."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speechbrain_spgm.models.published import (
    YAML_FILE,
    ModelError,
    is_model,
    weights_in,
)

SHIPPED_MODELS = Path(__file__).resolve().parents[1] / "pretrained"
DEFAULT_MODEL = "spgm-small-8k"
MODEL_FOLDER = "model"  # of a run's output folder
CHECKPOINTS = "save"  # likewise
COMMAND_FILE = "command.txt"  # likewise: how the run was started
LONGEST_META = 10_000  # letters of a checkpoint's CKPT.yaml
REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_PAGE = re.compile(rf"https?://(?:huggingface\.co|hf\.co)/({REPO_ID.pattern})/?")

# The authors' models: a short name, the repository, and the SI-SDRi of its card.
SHORT_NAMES = {
    "spgm-base": ("yipjiaqi/spgm-base", "22.7 dB"),
    "spgm-opt": ("yipjiaqi/spgm-opt", "23.0 dB"),
}
REPORTED: dict[str, dict[str, Any]] = {  # their own cards, for ``spgm info``
    repo: {
        "licence": f"see the card of {repo} on the Hub",
        "training_data": "WSJ0-2Mix with dynamic mixing, as its authors report",
        "quality": f"{si_sdri} SI-SDRi on WSJ0-2Mix, as its authors report",
    }
    for repo, si_sdri in SHORT_NAMES.values()
}


def locate(source: object = None) -> Path | str:
    """Where a model is: an existing folder as a Path, another place as a str.

    In this order: a model folder, or a run's output folder with ``model`` in it; the
    name of a shipped model; a short name of the authors' models; any other folder; a
    web address; a Hub repository ``USER/NAME``. By default the shipped
    ``DEFAULT_MODEL``. What is none of these is a ModelError.
    """
    if source is None:
        return SHIPPED_MODELS / DEFAULT_MODEL
    text = str(source)
    folder = Path(text)
    if text and is_model(folder):
        return folder
    if text and is_model(folder / MODEL_FOLDER):
        return folder / MODEL_FOLDER
    if text in shipped_models():
        return SHIPPED_MODELS / text
    if text in SHORT_NAMES:
        return SHORT_NAMES[text][0]
    if text and folder.is_dir():
        return folder
    page = HUB_PAGE.fullmatch(text)
    if page:
        return page[1]
    if is_url(source) or is_repo_id(source):  # a Path is a folder
        return text
    if folder.is_file():
        raise ModelError(f"{text} is a file, no model: give the folder that it is in.")
    names = ", ".join([*shipped_models(), *SHORT_NAMES])
    raise ModelError(
        f"{text or 'An empty name'} is no folder, no model that goes by a name ({names}"
        "), no web address and no Hub repository USER/NAME: check its name."
    )


def is_run(folder: Path) -> bool:
    """Whether a folder is the output of a SpeechBrain recipe, with its checkpoints."""
    return (folder / YAML_FILE).is_file() and (folder / CHECKPOINTS).is_dir()


def best_checkpoint(run: Path) -> Path:
    """The folder of a run's best checkpoint that holds encoder, masknet and decoder.

    The run is of a recipe of SpeechBrain's own: the best has the lowest ``si-snr``,
    which is a loss there, or is the last if they have none. (Ours write ``model`` at
    the end; what counts of their checkpoints may be a moving average.)
    """
    found = []
    for path in sorted((run / CHECKPOINTS).glob("CKPT*")):
        ours = (path / "progress.ckpt").is_file()
        needed = (path / "CKPT.yaml", path / "masknet.ckpt")
        if not ours and all(file.is_file() for file in needed):
            meta = _meta(path / "CKPT.yaml")
            found.append((meta("si-snr", math.inf), -meta("unixtime", 0), path))
    if not found:
        raise ModelError(
            f"The run {run} has no folder {MODEL_FOLDER}: test it by train.py "
            "--test_only, which writes it."
        )
    return min(found)[2]


def _meta(path: Path) -> Callable[[str, float], float]:
    """The numbers that a checkpoint's CKPT.yaml states, by name."""
    text = path.read_text(encoding="utf-8", errors="replace")[:LONGEST_META]
    numbers = dict(re.findall(r"^([\w-]+): ([-+.\de]+)$", text, re.MULTILINE))

    def number(name: str, other: float) -> float:
        try:
            return float(numbers[name])
        except (KeyError, ValueError):
            return other

    return number


def has_speechbrain_layout(folder: str | Path) -> bool:
    """Whether a folder can only be loaded by from_hparams."""
    folder = Path(folder)
    return (folder / YAML_FILE).is_file() and weights_in(folder) is None


def shipped_models() -> list[str]:
    """The names of the models that are part of this package."""
    return sorted(config.parent.name for config in SHIPPED_MODELS.glob("*/config.json"))


def is_url(source: object) -> bool:
    """Whether a source is a web address."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def is_repo_id(source: object) -> bool:
    """Whether a source may name a repository on the Hub.

    Example
    -------
    >>> [is_repo_id(name) for name in ("user/model", "/user/model", "./model", "a/b/c")]
    [True, False, False, False]
    """
    return isinstance(source, str) and bool(REPO_ID.fullmatch(source))
