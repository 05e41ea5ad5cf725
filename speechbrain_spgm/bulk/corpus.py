"""A corpus: rows in; voices, their list and what failed out.

::

    manifest -> rows that are not done -> threads: read, separate, write, measure
             -> journal -> out.jsonl, failed.jsonl in the manifest's order

Axes: T samples, spks sources.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from speechbrain_spgm.audio import BLOCK, Cut, Recording, read_audio, stream_audio
from speechbrain_spgm.bulk.desk import BatchDesk, Desk, Stopped
from speechbrain_spgm.bulk.ledger import Ledger, Voices
from speechbrain_spgm.bulk.manifest import ALL, Manifest, Row, Shard
from speechbrain_spgm.errors import UserError, first_line, shown, writing
from speechbrain_spgm.files import check_writable
from speechbrain_spgm.inference.files import explain, separate_to_files
from speechbrain_spgm.inference.options import Options
from speechbrain_spgm.inference.separable import Separable
from speechbrain_spgm.inference.separation import SPGMSeparation
from speechbrain_spgm.lobes.workers import count_workers, start_threads
from speechbrain_spgm.metrics.reference_free import Heard, check_scores, measure_all

EXACT_BYTES = 4 * 2**30  # not what happens to be free: a row depends on no machine
SCORED = 60.0  # seconds of a recording, at most
AHEAD = 2  # threads for each that computes: the others read and write meanwhile
BATCH_SIZE, BATCH_SECONDS = 32, 240.0  # of a GPU
MOST_WORKERS = 256  # each has several files open
LEVELLED = frozenset(["residual", "shared_energy"])  # scores that levels decide

# The key of a row that is finished, and why it failed, if it did.
Result = tuple[str, str | None]
# Separates rows, and writes those that are done into the ledger.
Engine = Callable[[Ledger, "Orders", Iterator[Row]], Iterable[Result]]


class Orders(NamedTuple):
    """What is to be done with each row: how it is separated, and its scores."""

    options: Options
    scores: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """How many rows there were, how many of them were done before, and what failed."""

    rows: int
    before: int
    failures: dict[str, str]


def separate_corpus(
    model: SPGMSeparation,
    manifest: Manifest,
    folder: Path,
    options: Options,
    shard: Shard = ALL,
    *,
    scores: Iterable[str] = (),
    resume: bool = True,
    engine: Engine | None = None,
) -> Outcome:
    """Separates the rows of a manifest into a folder.

    A run that is killed loses no more than the recordings it was at: the next one goes
    on, and ends with the same files.

    Arguments
    ---------
    model : SPGMSeparation
        The separator.
    manifest : Manifest
        What to separate.
    folder : Path
        Where voices, ``out.jsonl`` and ``failed.jsonl`` go.
    options : Options
        How; as for single files, but for ``max_memory``, 4 GiB by default.
    shard : Shard
        The only rows to do; a run over all of them writes ``out.jsonl``.
    scores : iterable of str
        Names in ``REFERENCE_FREE``, to be measured of each voice.
    resume : bool
        Whether rows that are done are left out.
    engine : callable, optional
        Who does the work; by default ``Threads(model)``.

    Returns
    -------
    outcome : Outcome
        What became of the rows.

    Raises
    ------
    UserError
        If the manifest, the folder or an option cannot be used.
    """
    engine = engine or Threads(model)
    orders = Orders(prepared(options, model), check_scores(scores))
    if options.normalize is not None and LEVELLED.intersection(orders.scores):
        raise UserError(
            f"normalize is {options.normalize!r}, but {' and '.join(sorted(LEVELLED))} "
            "are of voices at their own levels: leave one out."
        )
    ledger = Ledger(folder)
    for place in {*ledger.lists(shard), *ledger.lists(ALL)}:
        if os.path.realpath(place) == os.path.realpath(manifest.path):
            raise UserError(
                f"the manifest {manifest.path} would be replaced by the list of "
                "voices: take another output folder."
            )
    count = sum(1 for _ in manifest)
    if not count:
        raise UserError(f"the manifest {manifest.path} has no rows.")
    ledger.settle(settings_of(model, manifest, orders), count, model.num_spks)
    with ledger.locked(shard):
        keys = {row.key for row in manifest.shard(shard)}
        if resume:
            ledger.load(keys)
        before = len(ledger.places)
        failures = {}
        with tqdm(
            total=len(keys),
            initial=before,
            desc="separating",
            unit="recording",
            disable=None if options.progress else True,
        ) as bar:
            for key, failure in engine(ledger, orders, _todo(manifest, shard, ledger)):
                if failure is not None:
                    failures[key] = failure
                bar.update()
        ledger.write(manifest, shard, failures)
    return Outcome(len(keys), before, failures)


def prepared(options: Options, model: Separable) -> Options:
    """Checked options with which a row comes out the same wherever it is separated."""
    options = options.checked(model)
    limit = EXACT_BYTES if options.max_memory is None else options.max_memory
    return replace(options, max_memory=limit, progress=False)


def settings_of(
    model: SPGMSeparation, manifest: Manifest, orders: Orders
) -> dict[str, Any]:
    """What the voices in a folder have in common."""
    chosen = asdict(orders.options)
    del chosen["progress"]
    return {
        "manifest": manifest.name,
        "model": fingerprint(model),
        "precision": model.precision,
        **chosen,
        "scores": orders.scores,
    }


def fingerprint(model: SPGMSeparation) -> str:
    """What a model's weights are known by."""
    digest = hashlib.sha256(str(model.sample_rate).encode())
    for name, value in model.mods.state_dict().items():
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]


def _todo(manifest: Manifest, shard: Shard, ledger: Ledger) -> Iterator[Row]:
    """Rows that are not done, each once."""
    begun = set()
    for row in manifest.shard(shard):
        if row.key not in begun and row.key not in ledger.places:
            begun.add(row.key)
            yield row


class Threads:
    """Separates rows in threads of this process.

    On a CPU ``workers`` recordings are in the network at a time, by default one a core.
    ``batch`` is how many, and seconds of them, go as one: by default 32 and 240 on a
    GPU, none on a CPU.
    """

    def __init__(
        self,
        model: SPGMSeparation,
        workers: int | None = None,
        batch: tuple[int, float] | None = None,
    ) -> None:
        if workers is not None and not 1 <= workers <= MOST_WORKERS:
            raise UserError(
                f"workers is {workers}, but must be from 1 to {MOST_WORKERS}."
            )
        self.model = model
        self.workers = workers or min(count_workers(), MOST_WORKERS)
        if batch is None and torch.device(model.device).type != "cpu":
            batch = BATCH_SIZE, BATCH_SECONDS
        self.batch = batch

    def __call__(
        self, ledger: Ledger, orders: Orders, rows: Iterator[Row]
    ) -> Iterator[Result]:
        """Yields each row's result; they are written down by then."""
        many = AHEAD * (self.batch[0] if self.batch else self.workers)
        allow_files(8 * many)
        with ExitStack() as stack:
            pool = stack.enter_context(start_threads(many, "spgm-corpus"))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            desk = (
                BatchDesk(self.model, *self.batch)
                if self.batch
                else Desk(self.model, self.workers)
            )
            stack.callback(desk.close)
            running: set[Future[Result]] = set()
            for row in rows:
                running.add(pool.submit(finish_row, desk, row, ledger, orders))
                if len(running) > 2 * many:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)


def allow_files(number: int) -> None:
    """Lets this process have so many files open, as far as the system does."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < number:
            wanted = number if hard < 0 else min(number, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def finish_row(model: Separable, row: Row, ledger: Ledger, orders: Orders) -> Result:
    """Separates a row and writes down that it is done, or tells why it cannot be.

    It is a UserError if the output folder refuses: then no row can be done.
    """
    if row.problem is not None:
        return row.key, row.problem
    try:
        ledger.add(row.key, separate_row(model, row, ledger, orders))
    except Stopped:
        raise
    except Exception as error:
        with writing(f"The output folder {ledger.folder}", "make room"):
            check_writable(ledger.folder)
        if isinstance(error, UserError):
            return row.key, str(error)
        reason = f"{type(error).__name__}: {first_line(error)}"
        return row.key, shown(f"{row.name} failed ({reason}).")
    return row.key, None


def separate_row(model: Separable, row: Row, ledger: Ledger, orders: Orders) -> Voices:
    """Writes the voices of a row, and says what they are."""
    paths = ledger.outputs(row.key, model.num_spks, orders.options.format)
    outputs = [ledger.folder / path for path in paths]
    sound = partial(stream_audio, row.path, cut=row.cut)
    facts = separate_to_files(model, sound, row.name, outputs, orders.options)
    seams = [seam["confidence"] for seam in facts["seams"]]
    remarks = explain({**facts, "mode": "exact"})
    scores = score_row(model, row, outputs, facts, orders)
    return [
        {
            "path": path,
            "bytes": output.stat().st_size,
            "duration": round(facts["samples"] / facts["sample_rate"], 6),
            "sample_rate": facts["sample_rate"],
            "speaker": speaker,
            "mode": facts["mode"],
            "seam_confidence": round(min(seams), 4) if seams else None,
            "level": level_of(output),
            **scores[speaker - 1],
            **({"remarks": remarks} if remarks else {}),
        }
        for speaker, (path, output) in enumerate(zip(paths, outputs, strict=True), 1)
    ]


def score_row(
    model: Separable,
    row: Row,
    outputs: list[Path],
    facts: dict[str, Any],
    orders: Orders,
) -> list[dict[str, float]]:
    """The scores of each voice; of a long recording, those of its middle."""
    if not orders.scores:
        return [{} for _ in outputs]
    rate = facts["sample_rate"]
    length = min(facts["samples"], round(SCORED * rate))
    start = (facts["samples"] - length) // 2
    cut = Cut(row.cut.offset + start / rate, length / rate)
    mix = read_audio(row.path, row.name, orders.options.channel, cut=cut).samples
    voices = [
        soundfile.read(
            os.fsencode(path), length, start, dtype="float32", always_2d=True
        )[0]
        for path in outputs
    ]

    def separate(mix: torch.Tensor) -> torch.Tensor:
        recording = Recording(mix, rate, row.name)
        full_band = orders.options.full_band is not False  # as the files have it
        return model.separate_recording(
            recording, None, 1, None, consistent=False, full_band=full_band
        )[0]

    est = torch.from_numpy(np.concatenate(voices, axis=1)) / facts["gain"]
    n = min(len(mix), len(est))  # lossy formats may add a little
    return measure_all(orders.scores, Heard(mix[:n], est[:n], rate, separate))


def level_of(path: Path) -> float | None:
    """The root mean square of a file in dB of full scale, None if it is silent."""
    power = count = 0
    with soundfile.SoundFile(os.fsencode(path)) as file:
        for block in file.blocks(BLOCK, dtype="float64"):
            power += float(np.square(block).sum())
            count += len(block)
    return round(10 * math.log10(power / count), 2) if power else None
