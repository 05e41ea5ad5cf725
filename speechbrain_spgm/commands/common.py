"""What several subcommands share: options, the model, and words to the user."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from speechbrain_spgm.choices import PRECISIONS, STATISTICS
from speechbrain_spgm.errors import UserError, shown

if TYPE_CHECKING:
    from speechbrain_spgm.inference import SPGMSeparation

SOURCE = (  # what a model may be named by
    "a model folder or a run's output folder; the name of a shipped model; spgm-base "
    "or spgm-opt, the authors' models; or a Hub repository USER/NAME"
)


def add_model_options(command: argparse.ArgumentParser, name: str) -> None:
    """Which model, and where it runs."""
    extra = {} if name.startswith("-") else {"nargs": "?"}
    command.add_argument(
        name, metavar="SOURCE", help=f"{SOURCE}; by default the shipped model", **extra
    )
    add_device_options(command)


def add_device_options(command: argparse.ArgumentParser) -> None:
    """Where a model runs, and whether its code does."""
    command.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda, ...; by default a CUDA GPU if there is one, else the CPU",
    )
    command.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run whatever the model's hyperparams.yaml names; without it only known "
        "parts of networks are built",
    )


def add_precision_option(command: argparse.ArgumentParser) -> None:
    """How exactly the model computes."""
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="fp32 (default): exact; int8: on the CPU only, faster for networks of the "
        "paper's size, not for the shipped one; bf16: faster on GPUs and processors "
        "that have it; fp16: faster on GPUs",
    )


def add_separation_options(command: argparse.ArgumentParser) -> None:
    """Which model, how exactly, from how many views, and what its averages are over."""
    add_model_options(command, "--model")
    add_precision_option(command)
    command.add_argument(
        "--views",
        type=int,
        metavar="N",
        help="test-time augmentation: a mean over N delays and both polarities of a "
        "mixture, from 1 to 8: more is better and takes N times as long; by default "
        "what the model's card asks for, or 1",
    )
    command.add_argument(
        "--statistics",
        choices=STATISTICS,
        default=STATISTICS[0],
        help="what SPGM's averages are over: the whole recording (default, as in the "
        "paper), for each moment all that was heard so far, or the seconds around it",
    )
    command.add_argument(
        "--statistics-seconds",
        type=float,
        metavar="SECONDS",
        help="of the window, by default 8; or after which running averages count the "
        "past a third, by default never",
    )


def refuse_given(
    arguments: argparse.Namespace, names: Iterable[str], reason: str
) -> None:
    """Refuses options that would have no effect; ``default_of`` tells what is given."""
    for name in names:
        value = getattr(arguments, name)
        if value != arguments.default_of(name):
            option = f"--{'no-' * (value is False)}{name.replace('_', '-')}"
            raise UserError(f"{option} {reason}: leave it out.")


def some_path(text: str) -> Path:
    """The type of an argument that must name a file or a folder."""
    if not text:
        raise argparse.ArgumentTypeError("a path is empty: name a file or a folder")
    return Path(text)


def add_channel_option(command: argparse.ArgumentParser) -> None:
    """One channel of several."""
    command.add_argument(
        "--channel",
        type=int,
        metavar="N",
        help="the one channel to take, counted from 1; by default the mean of all",
    )


def load_model(arguments: argparse.Namespace) -> SPGMSeparation:
    """Loads a model in either layout; runs code of its source only if trusted."""
    from speechbrain_spgm.inference import SPGMSeparation
    from speechbrain_spgm.models.published import WrongLayout
    from speechbrain_spgm.models.sources import has_speechbrain_layout, is_url, locate

    source, device = arguments.model, arguments.device
    if device == "":
        raise UserError("a device is empty: name one, such as cpu, or leave it out.")
    precision = getattr(arguments, "precision", None)
    try:
        place = locate(source)
        in_hparams = is_url(place) or (
            isinstance(place, Path) and has_speechbrain_layout(place)
        )
        if not in_hparams:
            try:
                return SPGMSeparation.from_pretrained(
                    source, device=device, precision=precision
                )
            except WrongLayout:
                if isinstance(place, Path):
                    raise
        run_opts = {"device": device} if device else None
        return SPGMSeparation.from_hparams(
            source,
            run_opts=run_opts,
            trust_remote_code=arguments.trust_remote_code,
            precision=precision,
        )
    except UserError:
        raise
    except Exception as error:  # a trusted yaml may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"the model {source} cannot be loaded ({type(error).__name__}: {reason})."
        ) from None


def make_folder(folder: Path) -> None:
    """Makes an output folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the output folder {folder} cannot be made ({error.strerror}): "
            "take another one."
        ) from None


def standard_input() -> BinaryIO:
    """What comes in, as bytes."""
    if not hasattr(sys.stdin, "buffer"):  # a notebook's has none
        raise UserError("standard input is closed: send sound into it.")
    return sys.stdin.buffer


def say(line: str) -> None:
    """Tells the user something that is not a result."""
    print(shown(line, longest=None), file=sys.stderr)
