"""Which recordings ``spgm separate`` takes, and where their voices go."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from speechbrain_spgm.errors import UserError, count

STDIN = Path("-")


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


def find_jobs(inputs: Sequence[str], output: Path) -> tuple[list[Job], list[str], int]:
    """The recordings to separate, each once; sentences, and how many are unread.

    What lies under the output folder counts as output of an earlier run, not as input,
    unless that folder is given as an input itself.
    """
    from speechbrain_spgm.audio import AudioFileError, check_file

    names: dict[str, tuple[Path, Path]] = {}  # real path -> (source, relative name)
    failures: list[str] = []
    unread = 0
    for text in inputs:
        given = Path(text)
        if given == STDIN and text != "-":  # ./- is a file of this name
            given = given.absolute()
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
            real = "" if source == STDIN else os.path.realpath(source)
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
                raise UserError(
                    f"{job.source} would be separated into {path}, which is an input "
                    "itself: take another output folder."
                )
            if path in writers:
                raise UserError(
                    f"{writers[path]} and {job.source} would both be separated into "
                    f"{path}: give their common folder, or separate them one by one."
                )
            writers[path] = job.source
