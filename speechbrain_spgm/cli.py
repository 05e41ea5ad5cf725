"""The command ``spgm``: separate recordings, show what a model is.

Results go to stdout, everything else to stderr. Exit codes: 0 all is well, 2 wrong
input (arguments, model, or at least one of the files), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from speechbrain_spgm import __version__
from speechbrain_spgm.commands import Problem, convert, evaluate, export, publish
from speechbrain_spgm.console import (
    WRONG_INPUT,
    Stream,
    ensure_utf8,
    exit_code,
    surroundings,
)

if TYPE_CHECKING:
    from speechbrain_spgm.inference import SPGMSeparation
    from speechbrain_spgm.inference.long.files import Options

# Modules of speechbrain_spgm.commands, each with add_parser(commands).
COMMANDS = (convert, evaluate, export, publish)


class Job(NamedTuple):
    """A recording to separate and what its outputs' names begin with."""

    source: Path
    target: Path

    def outputs(self, speakers: int) -> list[Path]:
        """``<name>_spk1.wav``, ``<name>_spk2.wav`` and so on."""
        name = self.target.name
        return [
            self.target.with_name(f"{name}_spk{i}.wav") for i in range(1, speakers + 1)
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Arguments
    ---------
    argv : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    code : int
        The exit code.
    """
    if argv is None:
        ensure_utf8()
    try:
        with surroundings():
            return run_command(argv)
    except OSError as error:  # stdout took not all of the output
        Stream(sys.stderr).write(
            f"spgm: the output cannot be written ({error.strerror or error}).\n"
        )
        return WRONG_INPUT


def run_command(argv: Sequence[str] | None) -> int:
    """Runs the command; what its user can put right becomes a sentence."""
    arguments = make_parser().parse_args(argv)
    try:
        with quiet_libraries():
            return arguments.run(arguments)
    except Problem as problem:
        say(f"spgm: {problem}")
        return WRONG_INPUT
    except KeyboardInterrupt as interrupt:
        say("spgm: interrupted; every file written so far is whole.")
        return exit_code(interrupt)
    except Exception as error:
        from speechbrain_spgm.data.errors import UserError

        if not isinstance(error, UserError):
            raise
        say(f"spgm: {error}")
        return WRONG_INPUT


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command; imports nothing heavy, so that help is instant."""
    parser = argparse.ArgumentParser(
        prog="spgm", description="Separate the voices of people who talk at once."
    )
    parser.add_argument(
        "--version", action="version", version=f"speechbrain_spgm {__version__}"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "separate",
        help="write one file per voice",
        description="Write DIR/<name>_spk1.wav, DIR/<name>_spk2.wav, ... for every "
        "recording, at its own sample rate, as 32-bit float WAV. Folders are searched "
        "with all their subfolders, which are kept under DIR; in a folder, files whose "
        "names do not end like those of audio files are passed over. Recordings that "
        "share a name but for the ending keep it: a.mp3_spk1.wav. Existing outputs are "
        "replaced. A file that cannot be separated is reported, the others go on, and "
        "the exit code is 2.",
    )
    command.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="what to separate",
    )
    command.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="where to write"
    )
    add_model_options(command, "--model")
    add_precision_option(command)
    add_views_option(command)
    command.add_argument(
        "--normalize",
        choices=["peak"],
        help="peak: every voice gets peak 1; by default the voices keep the level that "
        "they have in the mixture",
    )
    add_length_options(command)
    command.set_defaults(run=separate)

    command = commands.add_parser(
        "info",
        help="show what a model is",
        description="Show a model's size, sample rate, licence, training data and "
        "measured quality.",
    )
    add_model_options(command, "model")
    command.set_defaults(run=info)
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


def add_model_options(command: argparse.ArgumentParser, name: str) -> None:
    """Which model, and where it runs."""
    extra = {} if name.startswith("-") else {"nargs": "?"}
    command.add_argument(
        name,
        metavar="SOURCE",
        help="a model folder, the name of a shipped model, or a Hub repository "
        "USER/NAME; by default the shipped model",
        **extra,
    )
    command.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda, ...; by default a GPU if there is one",
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
        choices=["fp32", "bf16", "fp16", "int8"],
        help="fp32 (default): exact; int8: on the CPU only, faster for networks of the "
        "paper's size, not for the shipped one; bf16: faster on GPUs and processors "
        "that have it; fp16: faster on GPUs",
    )


def add_views_option(command: argparse.ArgumentParser) -> None:
    """How often the model looks at a mixture."""
    command.add_argument(
        "--views",
        type=int,
        metavar="N",
        help="the mean over N delays and both polarities of a mixture, from 1 to 8: "
        "more is better and takes N times as long; by default what the model's card "
        "asks for, or 1",
    )


def add_length_options(command: argparse.ArgumentParser) -> None:
    """What is done about long recordings."""
    command.add_argument(
        "--mode",
        choices=["auto", "exact", "stitched"],
        default="auto",
        help="exact: each file as a whole; stitched: in overlapping windows, in little "
        "memory and more than twice the time; auto (default): exact where it fits, as "
        "that has no seams",
    )
    command.add_argument(
        "--max-memory",
        metavar="BYTES",
        help="what the exact mode may take, such as 4G; by default half of the "
        "memory that is free",
    )
    command.add_argument(
        "--window",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="length of a window, by default 15; neighbours share a third of it",
    )
    command.add_argument(
        "--report",
        action="store_true",
        help="write DIR/<name>_report.json: mode, estimated memory, and the time, "
        "permutation and confidence of every seam",
    )


def separate(arguments: argparse.Namespace) -> int:
    """``spgm separate``."""
    from tqdm import tqdm

    from speechbrain_spgm.data.errors import UserError
    from speechbrain_spgm.inference.long.files import Options, check_options

    jobs, failures = find_jobs(arguments.inputs, arguments.output)
    for failure in failures:
        say(f"spgm: {failure}")
    if not jobs:
        raise Problem("there is nothing to separate: give audio files or their folder.")
    model = load_model(
        arguments.model,
        arguments.device,
        arguments.trust_remote_code,
        arguments.precision,
    )
    options = check_options(
        model,
        Options(
            normalize=arguments.normalize,
            mode=arguments.mode,
            max_memory=arguments.max_memory,
            window=arguments.window,
            views=arguments.views,
            progress=True,
        ),
    )
    check_outputs(jobs, model.mods.masknet.num_spks)
    make_folder(arguments.output)

    failed, lowered = len(failures), 0
    with tqdm(jobs, desc="separating", unit="file", disable=None) as bar:
        for job in bar:
            try:
                rate = separate_one(model, job, options, arguments.report)
                lowered += rate > model.sample_rate
            except (UserError, Problem) as error:
                failed += 1
                bar.write(f"spgm: {error}", file=sys.stderr)
            except Exception as error:  # the other files must go on
                failed += 1
                reason = (str(error).splitlines() or [""])[0]
                bar.write(
                    f"spgm: {job.source} failed ({type(error).__name__}: {reason}).",
                    file=sys.stderr,
                )
    if lowered:
        say(
            f"spgm: {count(lowered, 'file')} had a higher rate than the model: content "
            f"above {model.sample_rate // 2} Hz is lost."
        )
    done = count(len(jobs) + len(failures) - failed, "file")
    print(f"Separated {done} into {arguments.output}; {failed} failed.")
    return WRONG_INPUT if failed else 0


def separate_one(
    model: SPGMSeparation, job: Job, options: Options, report: bool
) -> int:
    """Separates one file, writes all its voices or none; returns its sample rate."""
    from speechbrain_spgm.inference.long.files import explain, separate_to_files

    make_folder(job.target.parent)
    facts = separate_to_files(
        model,
        job.source,
        str(job.source),
        job.outputs(model.mods.masknet.num_spks),
        options,
        job.target.with_name(f"{job.target.name}_report.json") if report else None,
        reading=quiet_stderr,
    )
    for line in explain(facts):
        say(f"spgm: {line}")
    return facts["sample_rate"]


def info(arguments: argparse.Namespace) -> int:
    """``spgm info``."""
    model = load_model(arguments.model, arguments.device, arguments.trust_remote_code)

    from speechbrain_spgm.data.errors import UserError
    from speechbrain_spgm.inference.info import describe

    try:
        facts = describe(model)
    except UserError as error:
        raise Problem(error) from None
    width = max(map(len, facts))
    for label, value in facts.items():
        print(f"{label:<{width}}  {value}")
    return 0


def load_model(
    source: str | None,
    device: str | None,
    trust_remote_code: bool = False,
    precision: str | None = None,
) -> SPGMSeparation:
    """Loads a model in either layout; runs code of its source only if trusted."""
    from speechbrain_spgm.data.errors import UserError
    from speechbrain_spgm.inference import SPGMSeparation
    from speechbrain_spgm.inference.remote import WrongLayout, is_repo_id
    from speechbrain_spgm.inference.separation import has_speechbrain_layout

    try:
        in_hparams = source is not None and has_speechbrain_layout(source)
        if not in_hparams:
            try:
                return SPGMSeparation.from_pretrained(
                    source, device=device, precision=precision
                )
            except WrongLayout:
                if not is_repo_id(source):
                    raise
        run_opts = {"device": device} if device else None
        return SPGMSeparation.from_hparams(
            source,
            run_opts=run_opts,
            trust_remote_code=trust_remote_code,
            precision=precision,
        )
    except UserError as error:
        raise Problem(error) from None
    except Exception as error:  # a trusted yaml may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise Problem(
            f"the model {source} cannot be loaded ({type(error).__name__}: {reason})."
        ) from None


def find_jobs(inputs: Sequence[Path], output: Path) -> tuple[list[Job], list[str]]:
    """The recordings to separate, each once, and a sentence for each input without any.

    What lies under the output folder counts as output of an earlier run, not as input,
    unless that folder is given as an input itself.
    """
    names: dict[Path, tuple[Path, Path]] = {}  # resolved -> (source, relative name)
    failures = []
    for given in inputs:
        if not given.exists():
            failures.append(f"{given} does not exist: check its name.")
            continue
        found = [(given, Path(given.name))]
        if given.is_dir():
            paths = search(given, output)
            found = [(path, path.relative_to(given)) for path in paths]
            if not found:
                failures.append(f"the folder {given} holds no audio files: check it.")
        for source, name in found:
            names.setdefault(source.resolve(), (source, name))

    users = Counter(name.with_suffix("") for _, name in names.values())
    jobs = []
    for source, name in names.values():
        stem = name.with_suffix("")
        jobs.append(Job(source, output / (name if users[stem] > 1 else stem)))
    return jobs, failures


def search(folder: Path, output: Path) -> list[Path]:
    """All audio files in a folder and its subfolders, but hidden ones and outputs."""
    from speechbrain_spgm.inference.audio import EXTENSIONS

    skip = output.resolve()
    if folder.resolve().is_relative_to(skip):
        skip = None
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (skip and path.resolve().is_relative_to(skip))
    )


def check_outputs(jobs: Sequence[Job], speakers: int) -> None:
    """Refuses to write two voices to one file, or a voice over an input."""
    inputs = {job.source.resolve() for job in jobs}
    writers: dict[Path, Path] = {}
    for job in jobs:
        for path in job.outputs(speakers):
            if path.resolve() in inputs:
                raise Problem(
                    f"{job.source} would be separated into {path}, which is an input "
                    "itself: take another output folder."
                )
            if path in writers:
                raise Problem(
                    f"{writers[path]} and {job.source} would both be separated into "
                    f"{path}: give their common folder, or separate them one by one."
                )
            writers[path] = job.source


def make_folder(folder: Path) -> None:
    """Makes an output folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(
            f"the output folder {folder} cannot be made ({error.strerror}): "
            "take another one."
        ) from None


def count(number: int, noun: str) -> str:
    """A number of things.

    Example
    -------
    >>> count(1, "file"), count(2, "file")
    ('1 file', '2 files')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def say(line: str) -> None:
    """Tells the user something that is not a result."""
    print(line, file=sys.stderr)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the warnings of libraries from the user; they are back afterwards."""
    # Those of our own part for long recordings come as sentences of this command.
    names = ("speechbrain", "speechbrain_spgm.inference.long")
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore")
            for logger in levels:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Mutes what C libraries print: the MP3 decoder comments on every odd file."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
