"""The command ``spgm``: separate recordings, show what a model is.

Results go to stdout, everything else to stderr. Exit codes: 0 all is well, 2 wrong
input (arguments, model, or at least one of the files), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from speechbrain_spgm import __version__
from speechbrain_spgm.commands import (
    SOURCE,
    Problem,
    convert,
    evaluate,
    export,
    publish,
)
from speechbrain_spgm.console import (
    WRONG_INPUT,
    Stream,
    ensure_utf8,
    exit_code,
    surroundings,
)
from speechbrain_spgm.errors import shown

if TYPE_CHECKING:
    from speechbrain_spgm.inference import SPGMSeparation
    from speechbrain_spgm.inference.files import Options

STDIN = Path("-")
# Modules of speechbrain_spgm.commands, each with add_parser(commands).
COMMANDS = (convert, evaluate, export, publish)


class Job(NamedTuple):
    """A recording to separate and what its outputs' names begin with."""

    source: Path
    target: Path

    def outputs(self, speakers: int, ending: str = "wav") -> list[Path]:
        """``<name>_spk1.wav``, ``<name>_spk2.wav`` and so on."""
        name = self.target.name
        return [
            self.target.with_name(f"{name}_spk{i}.{ending}")
            for i in range(1, speakers + 1)
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
        from speechbrain_spgm.errors import UserError

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
        "names do not end like those of audio files are passed over, and counted. With "
        "PyAV (pip install av) whatever FFmpeg reads is separated, the sound of videos "
        "too. Recordings that "
        "share a name but for the ending keep it: a.mp3_spk1.wav. Existing outputs are "
        "replaced. A file that cannot be separated is reported, the others go on, and "
        "the exit code is 2.",
    )
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE_OR_FOLDER",
        help="what to separate; - reads a recording from standard input",
    )
    command.add_argument(
        "--output", required=True, metavar="DIR", help="where to write"
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
    command.add_argument(
        "--consistent",
        action="store_true",
        help="the voices sum exactly to the mixture: what they lack is shared out",
    )
    add_file_options(command)
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
        help=f"{SOURCE}; by default the shipped model",
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


def add_file_options(command: argparse.ArgumentParser) -> None:
    """What is taken from a file, and what files are written."""
    command.add_argument(
        "--channel",
        type=int,
        metavar="N",
        help="the one channel to take, counted from 1; by default the mean of all",
    )
    command.add_argument(
        "--format",
        choices=["wav", "flac", "ogg", "opus", "mp3", "aiff", "caf", "w64", "au"],
        default="wav",
        help="what to write, by default wav; above 4 GiB it becomes RF64",
    )
    command.add_argument(
        "--subtype",
        choices=["float", "double", "16", "24", "32"],
        help="floats, or bits per sample; by default float, 24 in FLAC. Where samples "
        "beyond full scale cannot be written, voices that would clip are made quieter",
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

    from speechbrain_spgm.errors import UserError, shown
    from speechbrain_spgm.inference.files import Options, check_options

    if "" in (*arguments.inputs, arguments.output):
        raise Problem("a path is empty: name a file or a folder, . for this one.")
    output = Path(arguments.output)
    jobs, failures, unread = find_jobs(arguments.inputs, output)
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
            consistent=arguments.consistent,
            channel=arguments.channel,
            format=arguments.format,
            subtype=arguments.subtype,
        ),
    )
    check_outputs(jobs, model.num_spks, arguments.format)
    make_folder(output)

    failed, lowered = 0, 0
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
                line = f"{job.source} failed ({type(error).__name__}: {reason})."
                bar.write(f"spgm: {shown(line)}", file=sys.stderr)
    if lowered:
        say(
            f"spgm: {count(lowered, 'file')} had a higher rate than the model: content "
            f"above {model.sample_rate // 2} Hz is lost."
        )
    done = count(len(jobs) - failed, "file")
    failed += unread
    print(f"Separated {done} into {output}; {failed} failed.")
    return WRONG_INPUT if failed else 0


def separate_one(
    model: SPGMSeparation, job: Job, options: Options, report: bool
) -> int:
    """Separates one file, writes all its voices or none; returns its sample rate."""
    from speechbrain_spgm.inference.files import (
        explain,
        from_file,
        separate_to_files,
    )

    make_folder(job.target.parent)
    stdin = job.source == STDIN
    facts = separate_to_files(
        model,
        from_file(sys.stdin.buffer if stdin else job.source),
        "standard input" if stdin else str(job.source),
        job.outputs(model.num_spks, options.format),
        options,
        job.target.with_name(f"{job.target.name}_report.json") if report else None,
        reading=quiet_streams,
    )
    for line in explain(facts):
        say(f"spgm: {line}")
    return facts["sample_rate"]


def info(arguments: argparse.Namespace) -> int:
    """``spgm info``."""
    model = load_model(arguments.model, arguments.device, arguments.trust_remote_code)

    from speechbrain_spgm.commands.info import describe
    from speechbrain_spgm.errors import UserError, shown

    try:
        facts = describe(model)
    except UserError as error:
        raise Problem(error) from None
    facts = {shown(label, 60): shown(value) for label, value in facts.items()}
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
    from speechbrain_spgm.errors import UserError
    from speechbrain_spgm.inference import SPGMSeparation
    from speechbrain_spgm.models.published import WrongLayout
    from speechbrain_spgm.models.sources import (
        has_speechbrain_layout,
        is_url,
        locate,
    )

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


def find_jobs(inputs: Sequence[str], output: Path) -> tuple[list[Job], list[str], int]:
    """The recordings to separate, each once; sentences, and how many are unread.

    What lies under the output folder counts as output of an earlier run, not as input,
    unless that folder is given as an input itself.
    """
    from speechbrain_spgm.audio import AudioFileError, check_file

    names: dict[str, tuple[Path, Path]] = {}  # real path -> (source, relative name)
    failures: list[str] = []
    unread = 0
    for given in map(Path, inputs):
        found = [(given, Path(given.name))]
        if given == STDIN:
            found = [(STDIN, Path("stdin"))]
        elif os.path.isdir(given):
            files, problems, passed_over, lacking = search(given, output)
            found = [(file, file.relative_to(given)) for file in files]
            if not (found or problems or lacking):
                problems.append(f"the folder {given} holds no audio files: check it.")
            failures += problems + passed_over
            unread += len(problems) + lacking
        else:
            try:
                check_file(given)
            except AudioFileError as error:
                failures.append(str(error))
                unread += 1
                continue
        for source, name in found:
            real = os.path.realpath(source)
            known = names.setdefault(real, (source, name))
            if known[0].is_symlink() and not source.is_symlink():
                names[real] = source, name  # a file's own name, not that of a link

    targets = {name: name.with_suffix("") for _, name in names.values()}
    while shared := {t for t, n in Counter(targets.values()).items() if n > 1}:
        clear = {name: name for name, t in targets.items() if t in shared}
        if clear.items() <= targets.items():
            break
        targets |= clear
    jobs = [Job(source, output / targets[name]) for source, name in names.values()]
    return jobs, failures, unread


def search(folder: Path, output: Path) -> tuple[list[Path], list[str], list[str], int]:
    """Audio files in a folder and its subfolders, but hidden ones and outputs.

    Links are followed, each folder is entered once, if it can be by its own name. Also
    what cannot be looked at, what is passed over, and how many files lack PyAV.
    """
    from speechbrain_spgm import audio, media

    skip = os.path.realpath(output)
    if Path(os.path.realpath(folder)).is_relative_to(skip):
        skip = None
    readable = audio.EXTENSIONS | (media.EXTENSIONS if media.is_installed() else set())
    found: list[Path] = []
    problems: list[str] = []
    refused: dict[str, None] = {}
    others: Counter[str] = Counter()
    entered, roots = set(), [str(folder)]
    for start in roots:  # grows
        for root, folders, files in os.walk(
            start, onerror=lambda error: refused.setdefault(error.filename)
        ):
            real = os.path.realpath(root)
            if real in entered or (skip and Path(real).is_relative_to(skip)):
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = [os.path.join(root, name) for name in folders]
            roots += filter(os.path.islink, paths)
            for path in (Path(root, name) for name in files if name[0] != "."):
                try:
                    regular = stat.S_ISREG(path.stat().st_mode)
                except PermissionError:
                    refused.setdefault(root)
                    continue
                except OSError:
                    problems.append(f"{path} is a link to nothing or to itself.")
                    continue
                if regular and path.suffix.lower() in readable:
                    found.append(path)
                else:
                    others[path.suffix.lower() or "without an ending"] += 1
    problems += [f"{path} may not be entered: change its rights." for path in refused]
    if not others:
        return sorted(found), problems, [], 0
    lacking = sorted(others.keys() & media.EXTENSIONS - readable)
    remedy = "name a file itself to have it separated"
    if lacking:
        remedy = f"pip install av to read {', '.join(lacking)}"
    endings = ", ".join(f"{n} {ending}" for ending, n in sorted(others.items()))
    total = count(sum(others.values()), "file")
    line = f"{folder}: passed over {total} ({endings}); {remedy}."
    return sorted(found), problems, [line], sum(others[ending] for ending in lacking)


def check_outputs(jobs: Sequence[Job], speakers: int, ending: str = "wav") -> None:
    """Refuses to write two voices to one file, or a voice over an input."""
    inputs = {os.path.realpath(job.source) for job in jobs}
    writers: dict[Path, Path] = {}
    for job in jobs:
        for path in job.outputs(speakers, ending):
            if os.path.realpath(path) in inputs:
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
    print(shown(line, longest=None), file=sys.stderr)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the warnings of libraries from the user; they are back afterwards."""
    # Those of our own part for long recordings come as sentences of this command.
    names = ("speechbrain", "speechbrain_spgm.inference")
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
def quiet_streams() -> Iterator[None]:
    """Mutes what C libraries print: the MP3 decoder comments on every odd file."""
    kept, nowhere = {}, os.open(os.devnull, os.O_WRONLY)
    try:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            with suppress(OSError, AttributeError, ValueError):  # closed
                stream.flush()
                kept[number] = os.dup(number)
                os.dup2(nowhere, number)
        yield
    finally:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).fflush(None)  # C keeps what it prints to a file or pipe
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
