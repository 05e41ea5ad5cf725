"""``spgm separate``: one file per voice."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from speechbrain_spgm.choices import FORMATS, MODES, SUBTYPES
from speechbrain_spgm.commands.common import (
    add_channel_option,
    add_separation_options,
    load_model,
    make_folder,
    refuse_given,
    say,
    standard_input,
)
from speechbrain_spgm.commands.corpus import (
    OF_CORPUS,
    add_corpus_options,
    run_corpus,
)
from speechbrain_spgm.commands.jobs import STDIN, Job, check_outputs, find_jobs
from speechbrain_spgm.console import WRONG_INPUT
from speechbrain_spgm.errors import UserError, count, shown

if TYPE_CHECKING:
    from speechbrain_spgm.inference import SPGMSeparation
    from speechbrain_spgm.inference.options import Options


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the arguments of ``spgm separate``."""
    command = commands.add_parser(
        "separate",
        help="write one file per voice",
        description="Write DIR/<name>_spk1.wav, DIR/<name>_spk2.wav, ... for every "
        "recording, at its own sample rate and with its full band, as 32-bit float "
        "WAV. Folders are searched with all their subfolders, which are kept under "
        "DIR; in a folder, files whose names do not end like those of audio files are "
        "passed over, and counted. With PyAV (pip install av) whatever FFmpeg reads is "
        "separated, the sound of videos too. Recordings that share a name but for the "
        "ending keep it: a.mp3_spk1.wav. Existing outputs are replaced. A file that "
        "cannot be separated is reported, the others go on, and the exit code is 2.",
    )
    command.add_argument(
        "inputs",
        nargs="*",
        metavar="FILE_OR_FOLDER",
        help="what to separate; - reads a recording from standard input",
    )
    command.add_argument(
        "--output", required=True, metavar="DIR", help="where to write"
    )
    add_separation_options(command)
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
    add_corpus_options(command)
    command.set_defaults(run=run, default_of=command.get_default)


def add_file_options(command: argparse.ArgumentParser) -> None:
    """What is taken from a file, and what files are written."""
    add_channel_option(command)
    command.add_argument(
        "--full-band",
        action=argparse.BooleanOptionalAction,
        help="give voices what a recording of a higher rate has above the model's "
        "band, each the share that fits what it has below (default), or leave it out",
    )
    command.add_argument(
        "--format",
        choices=FORMATS,
        help="what to write, by default wav, of a manifest flac; WAV above 4 GiB "
        "becomes RF64",
    )
    command.add_argument(
        "--subtype",
        choices=SUBTYPES,
        help="floats, or bits per sample; by default float, 24 in FLAC. Where samples "
        "beyond full scale cannot be written, voices that would clip are made quieter",
    )


def add_length_options(command: argparse.ArgumentParser) -> None:
    """What is done about long recordings."""
    command.add_argument(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="exact: each file as a whole; stitched: in overlapping windows, in little "
        "memory and 4.5 (a minute) to 1.6 times (an hour) the time; auto (default): "
        "exact where it fits, as that has no seams",
    )
    command.add_argument(
        "--max-memory",
        metavar="BYTES",
        help="what the exact mode may take, such as 4G; by default half of the "
        "memory that is free; with --manifest 4G",
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


def run(arguments: argparse.Namespace) -> int:
    """Separates; returns the exit code."""
    from tqdm import tqdm

    from speechbrain_spgm.inference.options import Options

    if "" in (*arguments.inputs, arguments.output):
        raise UserError("a path is empty: name a file or a folder, . for this one.")
    if arguments.mode == "exact":
        refuse_given(arguments, ["window"], "has no effect in the exact mode")
    if arguments.mode == "stitched":
        refuse_given(arguments, ["max_memory"], "has no effect in the stitched mode")
    if arguments.manifest is not None:
        return run_corpus(arguments)
    refuse_given(arguments, OF_CORPUS, "goes with --manifest")
    if not arguments.inputs:
        raise UserError("nothing is named to separate: give files, or --manifest.")
    arguments.format = arguments.format or "wav"
    output = Path(arguments.output)
    jobs, failures, unread = find_jobs(arguments.inputs, output)
    for failure in failures:
        say(f"spgm: {failure}")
    if not jobs:
        raise UserError(
            "there is nothing to separate: give audio files or their folder."
        )
    model = load_model(arguments)
    chosen = {name: vars(arguments).get(name) for name in Options.names()}
    options = Options.of({**chosen, "progress": True}).checked(model)
    check_outputs(jobs, model.num_spks, arguments.format)
    make_folder(output)

    failed, lowered = 0, 0
    written: set[tuple[int, int]] = set()
    with tqdm(jobs, desc="separating", unit="file", disable=None) as bar:
        for job in bar:
            try:
                rate = separate_one(model, job, options, arguments.report, written)
                higher = rate > model.sample_rate
                lowered += higher and options.full_band is False
            except UserError as error:
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
    model: SPGMSeparation,
    job: Job,
    options: Options,
    report: bool,
    written: set[tuple[int, int]],
) -> int:
    """Separates one file, writes all its voices or none; returns its sample rate.

    ``written`` gets the identities of the files.
    """
    from speechbrain_spgm.inference.files import (
        explain,
        from_file,
        separate_to_files,
        spare,
    )

    make_folder(job.target.parent)
    stdin = job.source == STDIN
    source = standard_input() if stdin else job.source
    outputs = job.outputs(model.num_spks, options.format)
    spare(source, outputs)
    for path in outputs:
        if written & identities(path):
            raise UserError(
                f"{job.source} would be separated into {path}, which is a voice of "
                "another recording by now (a link, or a disk that takes A for a): take "
                "another output folder."
            )
    facts = separate_to_files(
        model,
        from_file(source),
        "standard input" if stdin else str(job.source),
        outputs,
        options,
        job.target.with_name(f"{job.target.name}_report.json") if report else None,
        reading=quiet_streams,
    )
    written |= identities(*outputs)
    for line in explain(facts):
        say(f"spgm: {line}")
    return facts["sample_rate"]


def identities(*paths: Path) -> set[tuple[int, int]]:
    """By what the system knows those files that are there, whatever they are called."""
    found = set()
    for path in paths:
        with suppress(OSError):
            facts = os.lstat(path)
            found.add((facts.st_dev, facts.st_ino))
    return found


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
