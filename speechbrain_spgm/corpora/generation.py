"""Writing the mixtures of a corpus: in parallel, once, and never half.

A corpus describes each mixture by a ``Plan``: which parts (sources, noise) it has, and
which mixtures are sums of them. ``generate`` does the rest. Every file is written under
a temporary name, read back, and renamed, so that a kill leaves whole files only and the
next run goes on behind them. A run after that changes nothing.

Layout: ``<folder>/<s1, s2, ..., noise, mix...>/<id>.wav``, 16 bit.

Axes: T samples.
"""

from __future__ import annotations

import csv
import fcntl
import io
import multiprocessing
import os
import re
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from math import gcd
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.signal import resample_poly
from tqdm import tqdm

from speechbrain_spgm.audio import THREADS, AudioFile, read_frames, to_pcm16
from speechbrain_spgm.data.manifests import ManifestRow, write_if_new
from speechbrain_spgm.data.recordings import read_table
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.files import TEMPORARY, replacing

WAV_HEADER = 44  # bytes
PATIENCE = 1800  # seconds without a new file from the other processes of a launch
CHUNK = 8  # mixtures that a worker takes at a time


@dataclass(frozen=True)
class Plan(ABC):
    """One mixture, before it is made. A corpus derives from it and adds ``render``."""

    id: str  # its name, and that of its files without .wav
    folder: Path  # where the folders of the parts and mixtures are
    sample_rate: int  # of all files, in Hz
    samples: int  # length of all files, known beforehand
    made_from: dict[str, str]  # what each part (s1, noise, ...) is made from, as text
    mixtures: dict[str, tuple[str, ...]]  # the parts of each sum (mix, mix_both, ...)

    @abstractmethod
    def render(self) -> dict[str, np.ndarray]:
        """The parts, [T] each; full scale is 1."""

    @property
    def names(self) -> list[str]:
        """Parts and mixtures, in the order in which they are written."""
        return [*self.made_from, *self.mixtures]

    def path(self, name: str) -> Path:
        """The file of a part or mixture."""
        return self.folder / name / f"{self.id}.wav"

    def row(self, mixture: str) -> ManifestRow:
        """The manifest's row of one of the mixtures."""
        parts = self.mixtures[mixture]
        return ManifestRow(
            self.id,
            self.samples / self.sample_rate,
            self.path(mixture),
            tuple(self.path(part) for part in parts if part != "noise"),
            self.path("noise") if "noise" in parts else None,
        )


class Report(NamedTuple):
    """What a run did: files written, mixtures that were there, files that clip."""

    written: int = 0
    kept: int = 0
    clipped: int = 0

    def __str__(self) -> str:
        text = f"{self.written} files written, {self.kept} mixtures were there already"
        if self.clipped:
            text += f", {self.clipped} files clip at full scale"
        return text + "."


def generate(
    plans: Sequence[Plan],
    jobs: int = 1,
    rank: int = 0,
    world_size: int = 1,
    patience: float = PATIENCE,
) -> Report:
    """Writes the files of all plans that are not there yet.

    With ``jobs`` above 1, call it below ``if __name__ == "__main__":``, because worker
    processes import the file that was started.

    Arguments
    ---------
    plans : sequence of Plan
        All mixtures, the same on every process of a launch.
    jobs : int
        Worker processes.
    rank, world_size : int
        Several processes, on one machine or many, share the work: each takes every
        ``world_size``-th mixture. Process 0 returns when the files of all are there.
    patience : float
        How many seconds process 0 waits for the next file of the others.

    Returns
    -------
    Report
        What this process did.

    Raises
    ------
    UserError
        If two plans name the same file, a recording is missing or broken, a folder
        holds mixtures made from something else, or a file cannot be written.
    """
    check_names(plans)
    mine = plans[rank::world_size]
    with ExitStack() as stack:
        for folder in sorted({plan.folder.parent for plan in plans}):
            stack.enter_context(working_in(folder))
        check_origin(plans, write=rank == 0)
        with ThreadPoolExecutor(THREADS) as pool:
            done = list(pool.map(is_done, mine))
        todo = [plan for plan, here in zip(mine, done, strict=True) if not here]
        report = Report(kept=len(mine) - len(todo))
        with tqdm(
            total=len(mine),
            initial=report.kept,
            desc="generating",
            unit="mixture",
            disable=True if rank else None,
        ) as bar:
            results = stack.enter_context(closing(run(make, todo, jobs)))
            for written, clipped in results:
                report = Report(
                    report.written + written, report.kept, report.clipped + clipped
                )
                bar.update()
    if rank == 0:
        others = [plan for i, plan in enumerate(plans) if i % world_size]
        wait_for(others, patience)
    return report


def check_names(plans: Sequence[Plan]) -> None:
    """Refuses ids that are no file names, and two mixtures with one name."""
    seen = set()
    for plan in plans:
        if plan.id in ("", ".", "..") or re.search(r"[/\\\0\n]", plan.id):
            raise UserError(
                f"The mixture id {plan.id!r} cannot be a file name: change it."
            )
        if (plan.folder, plan.id) in seen:
            raise UserError(
                f"Two mixtures would be written to {plan.path('mix').name} in "
                f"{plan.folder}: each needs an id of its own."
            )
        seen.add((plan.folder, plan.id))


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Holds a share of a folder of splits; the first removes what a kill left over.

    Where the file system knows no locks, leftovers stay: nobody can tell whether
    another machine is still writing them.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made ({error.strerror}): take another one."
        ) from None
    try:
        with suppress(OSError):  # others are at work here, or there are no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for depth in ("", "*/", "*/*/"):  # manifests, records, recordings
                for path in folder.glob(f"{depth}.*.part"):
                    if TEMPORARY.fullmatch(path.name):
                        path.unlink(missing_ok=True)
        with suppress(OSError):  # no locks
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def origin_path(folder: Path) -> Path:
    """The file that says what the mixtures in ``folder`` are made from."""
    return folder.parent / "metadata" / f"{folder.name}_sources.csv"


def check_origin(plans: Sequence[Plan], write: bool) -> None:
    """Refuses to mix with what an earlier run made from other recordings or gains.

    The record holds one row per mixture; a part that was not wanted so far is empty.
    It binds a mixture as long as one of its files is there.
    """
    by_folder: dict[Path, list[Plan]] = {}
    for plan in plans:
        by_folder.setdefault(plan.folder, []).append(plan)
    for folder, members in by_folder.items():
        path = origin_path(folder)
        record: dict[str, dict[str, str]] = {}
        if path.is_file():
            record = {row["id"]: row for row in read_table(path, ["id"])}
        for plan in members:
            row = record.setdefault(plan.id, {"id": plan.id})
            for part, text in plan.made_from.items():
                if row.setdefault(part, "") not in ("", text) and has_files(plan):
                    raise UserError(
                        f"The mixture {plan.id} in {folder} was made from {row[part]}, "
                        f"not from {text}: remove that folder, or choose another "
                        "output folder."
                    )
                row[part] = text
        if write:
            write_origin(path, record)


def has_files(plan: Plan) -> bool:
    """Whether any file of a plan is there."""
    return any(plan.path(name).exists() for name in plan.names)


def write_origin(path: Path, record: dict[str, dict[str, str]]) -> None:
    """Writes the record, unless it already says the same."""
    parts = sorted({part for row in record.values() for part in row} - {"id"})
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", *parts], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(record[id] for id in sorted(record))
    write_if_new(path, text.getvalue())


def run(
    work: Callable[[Plan], tuple[int, int]], plans: Sequence[Plan], jobs: int
) -> Iterator[tuple[int, int]]:
    """The results of ``work``, here or in worker processes, as they come.

    After an error or Ctrl-C, workers end what they have begun and nothing else.
    """
    if min(jobs, len(plans)) <= 1:
        yield from map(work, plans)
        return
    # One process imports all that workers need, and they are copies of it: quicker than
    # spawned ones, and without the threads of this process, unlike forked ones.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chunk = min(CHUNK, -(-len(plans) // jobs))
    with ProcessPoolExecutor(
        min(jobs, len(plans)), mp_context=context, initializer=start_worker
    ) as pool:
        try:
            yield from pool.map(work, plans, chunksize=chunk)
        except BrokenProcessPool:
            raise UserError(
                "A worker process was killed, perhaps for want of memory: start again "
                "with fewer jobs, finished files are kept."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def make(plan: Plan) -> tuple[int, int]:
    """Writes the files of a plan that are not there; returns (written, clipped)."""
    signals = plan.render()
    for name, parts in plan.mixtures.items():
        signals[name] = sum(signals[part] for part in parts)
    stored = {name: to_pcm16(signals[name]) for name in plan.names}
    check_sums(plan, stored)
    missing = [name for name in plan.names if not holds(plan.path(name), stored[name])]
    for name in missing:
        write(plan.path(name), stored[name], plan.sample_rate)
    clipped = sum(bool(np.abs(signals[name]).max() > 1) for name in missing)
    return len(missing), clipped


def check_sums(plan: Plan, stored: dict[str, np.ndarray]) -> None:
    """Makes sure of the lengths, and that parts add up to mixtures.

    n parts and their sum are rounded by half a bit each, so they differ by (n + 1) / 2
    bits at most, but where something clips.
    """
    for name, samples in stored.items():
        if samples.shape != (plan.samples,):
            raise RuntimeError(f"{plan.path(name)}: {samples.shape}, {plan.samples}")
    for name, parts in plan.mixtures.items():
        every = [stored[part].astype(np.int64) for part in (*parts, name)]
        clips = np.any([(x == -(2**15)) | (x == 2**15 - 1) for x in every], 0)
        error = np.abs(sum(every[:-1]) - every[-1])[~clips]
        if error.max(initial=0) > (len(parts) + 1) / 2:
            raise RuntimeError(f"{plan.path(name)} is off by {error.max()} bits")


def write(path: Path, samples: np.ndarray, rate: int) -> None:
    """Writes 16-bit samples [T], reads them back, and only then gives the name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            soundfile.write(temporary, samples, rate, format="WAV", subtype="PCM_16")
            if not holds(temporary, samples):
                raise UserError(
                    f"The file {path} does not keep what is written to it: is the "
                    "disk full?"
                )
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"The file {path} cannot be written: {error}.") from None


def holds(path: Path, samples: np.ndarray) -> bool:
    """Whether a file has exactly these samples [T]."""
    try:
        return np.array_equal(soundfile.read(path, dtype="int16")[0], samples)
    except (OSError, soundfile.LibsndfileError):
        return False


def is_done(plan: Plan) -> bool:
    """Whether every file of a plan is whole, by its size and header."""
    return all(is_right(plan.path(name), plan) for name in plan.names)


def is_right(path: Path, plan: Plan) -> bool:
    """Whether a file has the plan's rate and length, and all its bytes."""
    try:
        if path.stat().st_size < WAV_HEADER + 2 * plan.samples:
            return False
        info = soundfile.info(path)
    except (OSError, soundfile.LibsndfileError):
        return False
    found = (info.frames, info.samplerate, info.channels, info.subtype)
    return found == (plan.samples, plan.sample_rate, 1, "PCM_16")


def wait_for(plans: Sequence[Plan], patience: float) -> None:
    """Returns when other processes have written all files of these plans."""
    left = list(reversed(plans))
    news = time.monotonic()
    while left:
        if is_done(left[-1]):
            left.pop()
            news = time.monotonic()
        elif time.monotonic() - news < patience:
            time.sleep(min(1.0, patience))
        else:
            raise UserError(
                f"The mixture {left[-1].id} in {left[-1].folder} is due from another "
                f"process and did not come in {patience:.0f} s: start all processes "
                "again."
            )


def resample(samples: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    """Samples [T] at another rate, by the filter that the corpora were made with."""
    if rate == target_rate:
        return samples
    divisor = gcd(rate, target_rate)
    return resample_poly(samples, target_rate // divisor, rate // divisor)


def fit(samples: np.ndarray, length: int) -> np.ndarray:
    """Samples [T] cut or padded with zeros at the end."""
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def load(file: AudioFile) -> np.ndarray:
    """All samples of a recording [T], float64."""
    samples = read_frames(file).astype(np.float64)
    if len(samples) != file.frames or not np.isfinite(samples).all():
        raise UserError(f"The audio file {file.path} is damaged: replace it.")
    return samples
