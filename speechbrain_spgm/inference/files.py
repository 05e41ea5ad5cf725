"""From a file of any length to voices: which way to go, files, report.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from speechbrain_spgm.audio import (
    AudioFileError,
    Heard,
    Recording,
    Source,
    check_form,
    from_array,
    gain_against_clipping,
    stream_audio,
    voice_files,
    write_samples,
    write_voices,
)
from speechbrain_spgm.errors import UserError, writing
from speechbrain_spgm.files import (
    check_writable,
    refuse_special,
    replacing,
    temporary_folder,
)
from speechbrain_spgm.inference.long.spool import Spool
from speechbrain_spgm.inference.long.stitching import Seam, Stitcher
from speechbrain_spgm.inference.memory import (
    SAFE_SHARE,
    estimate_bytes,
    format_bytes,
    free_bytes,
)
from speechbrain_spgm.inference.options import Options
from speechbrain_spgm.inference.progress import Bar
from speechbrain_spgm.inference.separable import Separable
from speechbrain_spgm.lobes.separator import longest_mixture

logger = logging.getLogger(__name__)

BAR_DELAY = 2.0  # seconds without a bar
DOUBT = 0.9  # confidence below which a seam is called doubtful
UNHEARD = 0.999  # a gain above it, 0.01 dB, is not worth a word


class Way(NamedTuple):
    """Exact or stitched; the bytes that the exact mode takes, and may take."""

    mode: str
    estimate: int
    limit: int


def choose_mode(model: Separable, samples: int, rate: int, options: Options) -> Way:
    """Chooses the mode: exact, which has no seams, if it fits or a window holds all."""
    estimate = estimate_bytes(model, samples, rate, options.views or 1)
    limit = options.max_memory
    if limit is None:
        limit = int(SAFE_SHARE * free_bytes(model.device))
    longest = longest_mixture(model.mods.encoder, model.mods.masknet)

    def reaches(seconds: float) -> bool:
        """Whether so much can be separated as one."""
        seconds += (options.views or 1) > 1  # further views are delayed by less
        return math.ceil(seconds * model.sample_rate) <= longest

    reached = reaches(samples / rate)
    if options.mode == "exact" and not reached:
        raise UserError(
            f"the model's positional encoding ends after {longest} samples: use the "
            "stitched mode."
        )
    short = samples <= options.window * rate
    if options.mode == "exact" and estimate > limit:
        raise UserError(
            f"the exact mode would take {format_bytes(estimate)}, but may take "
            f"{format_bytes(limit)}: use the stitched mode or raise max-memory."
        )
    exact = options.mode == "exact" or (short and reached)
    if options.mode == "auto":
        exact |= reached and estimate <= limit
    if not exact and not reaches(options.window):
        raise UserError(
            f"window is {options.window:g} s, but the model's positional encoding ends "
            f"after {longest / model.sample_rate:.0f} s: give a shorter one."
        )
    return Way("exact" if exact else "stitched", estimate, limit)


def separate_to_tensor(
    model: Separable, sound: Sound, name: str, options: Options
) -> Tensor:
    """``SPGMSeparation.separate_file`` with checked options: ``[1, T, spks]``."""
    with (
        temporary_folder() as folder,
        _Source(sound, name, folder, options.channel) as s,
    ):
        way = _choose(model, s, options)
        if way.mode == "exact":
            return _separate_exactly(model, s, options)
        stitcher = Stitcher(model, s.spool, s.rate, s.name, options)
        parts: list[Tensor] = []
        stitcher.run(folder, lambda voices: parts.extend(stitcher.pieces(voices)))
        return torch.cat(parts).unsqueeze(0)


def separate_to_files(
    model: Separable,
    sound: Sound,
    name: str,
    outputs: Sequence[Path],
    options: Options,
    report: Path | None = None,
    reading: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Any]:
    """``SPGMSeparation.separate_to_files`` with checked options.

    The files appear, with the report, when all is done; ``reading`` gives the context
    in which the recording is read.
    """
    spks = model.num_spks
    if len(outputs) != spks:
        raise UserError(f"{len(outputs)} outputs are named, but there are {spks}.")
    if options.full_band is None:
        options = replace(options, full_band=True)
    form = options.form
    make_room([*outputs, *([report] if report else [])])
    home, seams, gain = Path(outputs[0]).parent, [], 1.0
    try:
        with ExitStack() as stack:
            # Beside the outputs: folders for temporary files may lie in memory.
            folder = stack.enter_context(temporary_folder(home))
            source = stack.enter_context(
                _Source(sound, name, folder, options.channel, reading)
            )
            check_form(form, source.rate, outputs[0])
            way = _choose(model, source, options)
            # What is entered later becomes a file earlier: the report comes last.
            target = stack.enter_context(replacing(Path(report))) if report else None
            if way.mode == "exact":
                est = _separate_exactly(model, source, options)
                gain = write_voices(outputs, est[0], source.rate, form)
            else:
                stitcher = Stitcher(
                    model, source.spool, source.rate, source.name, options
                )
                files = stack.enter_context(
                    voice_files(outputs, source.rate, len(source.spool), form)
                )

                def write(voices: Spool) -> None:
                    nonlocal gain
                    pieces = partial(stitcher.pieces, voices)
                    if form.clips:
                        peaks = (float(piece.abs().max()) for piece in pieces())
                        gain = gain_against_clipping(form, max(peaks))
                    for piece in pieces():
                        for file, voice in zip(files, piece.T, strict=True):
                            write_samples(file, voice * gain)

                stitcher.run(folder, write)
                seams = stitcher.seams
            facts = _facts(source, way, options, seams, gain)
            if target:
                target.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or "no rights, or the disk is full"
        raise AudioFileError(f"{outputs[0]} cannot be written: {reason}.") from None
    if gain < UNHEARD:
        logger.warning("%s", explain({**facts, "mode": "exact"})[-1])
    return facts


def make_room(places: Sequence[Path], remedy: str = "give another name") -> None:
    """Makes the folders of files to write, which must be different ones."""
    known = set()
    for place in places:
        real = os.path.join(os.path.realpath(place.parent), place.name)
        if real in known:
            raise UserError(
                f"{place} is named for two files: give each voice, and the report, a "
                "name of its own."
            )
        known.add(real)
        if os.path.isdir(place):
            raise AudioFileError(f"{place} is a folder: give the name of a file.")
        refuse_special(place)
    for place in {place.parent: place for place in reversed(places)}.values():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            check_writable(place.parent)
        except OSError as error:
            raise AudioFileError(
                f"{place} cannot be written: {error.strerror}."
            ) from None
    for place in places:
        with writing(place, remedy), suppress(FileNotFoundError):
            os.lstat(place)  # knows names that are too long


def spare(recording: Source, places: Sequence[Path]) -> None:
    """Refuses to write over the recording that is read, a file or an open one."""
    try:
        path = isinstance(recording, str | Path)
        own = os.stat(recording if path else recording.fileno())
    except (AttributeError, OSError, ValueError):  # not on the disk, or not there
        return
    for place in places:
        with suppress(OSError):
            if os.path.samestat(own, os.stat(place)):
                raise UserError(f"{place} is the recording itself: name another file.")


def _separate_exactly(model: Separable, source: _Source, options: Options) -> Tensor:
    """The whole recording at once, with a bar if that takes long; ``[1, T, spks]``."""
    lock = Lock()
    with Bar(
        options.progress,
        desc=f"chunks of {Path(source.name).name}",
        unit="chunk",
        delay=BAR_DELAY,
    ) as bar:

        def watch(rows: int, total: int) -> None:
            with lock:
                bar.total = total * options.views
                bar.update(rows)

        return model.separate_recording(
            source.recording(),
            options.normalize,
            options.views,
            watch,
            consistent=options.consistent,
            full_band=bool(options.full_band),
            statistics=options.rule(model),
        )


# Hands the samples of one recording to its first argument, block by block [T].
Sound = Callable[..., Heard]


def from_file(source: Source) -> Sound:
    """Samples that come from a file, its content or a file object."""
    return partial(stream_audio, source)


def from_samples(samples: np.ndarray | Tensor, rate: int) -> Sound:
    """Samples that are in memory."""
    return partial(from_array, samples, rate=rate)


class _Source:
    """A recording's samples, one channel, spooled to disk."""

    def __init__(
        self,
        sound: Sound,
        name: str,
        folder: Path,
        channel: int | None = None,
        reading: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.sound, self.name, self.folder = sound, name, folder
        self.channel, self.reading = channel, reading
        self.rate = self.missing = 0
        self.remarks: list[str] = []

    def __enter__(self) -> _Source:
        self.spool = Spool(self.folder / "recording")
        try:
            with self.reading():
                self.rate, self.missing, self.remarks = self.sound(
                    use=self._keep, name=self.name, channel=self.channel
                )
        except BaseException:
            self.spool.file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.spool.file.close()

    def _keep(self, block: np.ndarray) -> None:
        self.spool.append(torch.from_numpy(block).unsqueeze(-1))

    def recording(self) -> Recording:
        """All of it, in memory."""
        samples = self.spool.read(0, len(self.spool))[:, 0]
        return Recording(samples, self.rate, self.name, self.missing)


def _choose(model: Separable, source: _Source, options: Options) -> Way:
    """The mode; what the user should know is logged."""
    way = choose_mode(model, len(source.spool), source.rate, options)
    facts = _facts(source, way, options, [])
    for line in explain({**facts, "mode": "exact"}):
        logger.warning("%s", line)
    if source.rate > model.sample_rate and not options.full_band:
        logger.warning(
            "%s has %d Hz, the model %d Hz: content above %d Hz is lost; the full band "
            "keeps it.",
            source.name,
            source.rate,
            model.sample_rate,
            model.sample_rate // 2,
        )
    logger.info("%s", describe_mode(facts))
    return way


def describe_mode(facts: dict[str, Any]) -> str:
    """One line about the mode.

    Example
    -------
    >>> facts = {"file": "a.wav", "mode": "exact"}
    >>> describe_mode({**facts, "estimated_bytes": 2**20, "limit_bytes": 2**30})
    'a.wav: exact mode; exact takes about 1 MiB of memory, the limit is 1.00 GiB.'
    """
    return (
        f"{facts['file']}: {facts['mode']} mode; exact takes about "
        f"{format_bytes(facts['estimated_bytes'])} of memory, the limit is "
        f"{format_bytes(facts['limit_bytes'])}."
    )


def explain(facts: dict[str, Any]) -> list[str]:
    """What the user of the command line should know about a file, in sentences."""
    lines = []
    if facts["missing_samples"]:
        held, lost = facts["samples"], facts["missing_samples"]
        lines.append(
            f"{facts['file']} is cut off: it holds {held} of {held + lost} samples."
        )
    lines += facts["remarks"]
    if facts["gain"] < UNHEARD:
        lines.append(
            f"the voices of {facts['file']} would clip: they were made quieter by "
            f"{-20 * math.log10(facts['gain']):.1f} dB; the format wav with floats "
            "keeps their level."
        )
    if facts["mode"] == "stitched":
        doubtful = sum(seam["confidence"] < DOUBT for seam in facts["seams"])
        lines.append(
            f"{describe_mode(facts)} {len(facts['seams'])} seams, {doubtful} doubtful."
        )
    return lines


def _facts(
    source: _Source, way: Way, options: Options, seams: list[Seam], gain: float = 1.0
) -> dict[str, Any]:
    return {
        "file": source.name,
        "sample_rate": source.rate,
        "samples": len(source.spool),
        "missing_samples": source.missing,
        "remarks": source.remarks,
        "gain": gain,
        "mode": way.mode,
        "estimated_bytes": way.estimate,
        "limit_bytes": way.limit,
        "window_seconds": options.window,
        "overlap_seconds": options.overlap,
        "views": options.views,
        "statistics": options.statistics,
        "statistics_seconds": options.statistics_seconds,
        "seams": [seam._asdict() for seam in seams],
    }
