"""From a file of any length to voices: which way to go, files, report.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from speechbrain_spgm.audio import (
    AudioFileError,
    Heard,
    Recording,
    Source,
    check_writable,
    find_format,
    from_array,
    gain_against_clipping,
    stream_audio,
    write_voices,
    writing,
)
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.files import replacing, temporary_folder
from speechbrain_spgm.inference.augment import check_views
from speechbrain_spgm.inference.level import check_levels
from speechbrain_spgm.inference.long.spool import Spool
from speechbrain_spgm.inference.long.stitching import (
    Seam,
    Stitcher,
    check_outputs,
    check_windows,
)
from speechbrain_spgm.inference.memory import (
    SAFE_SHARE,
    estimate_bytes,
    format_bytes,
    free_bytes,
    parse_bytes,
)

if TYPE_CHECKING:
    from speechbrain_spgm.inference.separation import SPGMSeparation

logger = logging.getLogger(__name__)

MODES = ("auto", "exact", "stitched")
WINDOW = 15.0  # seconds
BAR_DELAY = 2.0  # seconds without a bar
DOUBT = 0.9  # confidence below which a seam is called doubtful


class Options(NamedTuple):
    """How to separate; see ``SPGMSeparation.separate_file``."""

    normalize: str | None = None
    mode: str = "auto"
    max_memory: int | str | None = None
    window: float = WINDOW
    overlap: float | None = None  # by default a third of the window
    views: int | None = None  # by default what the model's card asks for
    progress: bool = False
    consistent: bool = False
    channel: int | None = None  # from 1; by default the mean of all
    format: str | None = None  # by default what the outputs' names say
    subtype: str | None = None


class Plan(NamedTuple):
    """How a recording is separated.

    Arguments
    ---------
    mode : str
        ``"exact"`` or ``"stitched"``.
    estimate : int
        Bytes that the exact mode takes.
    limit : int
        Bytes that it may take.
    """

    mode: str
    estimate: int
    limit: int


def make_plan(model: SPGMSeparation, samples: int, rate: int, options: Options) -> Plan:
    """Chooses the mode: exact, which has no seams, if it fits.

    Arguments
    ---------
    model : SPGMSeparation
        The separator.
    samples, rate : int
        Length of the recording and its rate in Hz.
    options : Options
        What the user wants.

    Returns
    -------
    plan : Plan
        A recording no longer than a window is always separated exactly.

    Raises
    ------
    UserError
        If the exact mode is asked for and does not fit.
    """
    estimate = estimate_bytes(model, samples, rate, options.views or 1)
    limit = options.max_memory
    if isinstance(limit, str):
        limit = parse_bytes(limit)
    if limit is None:
        limit = int(SAFE_SHARE * free_bytes(model.device))
    short = samples <= options.window * rate
    if options.mode == "exact" and estimate > limit:
        raise UserError(
            f"the exact mode would take {format_bytes(estimate)}, but may take "
            f"{format_bytes(limit)}: use the stitched mode or raise max-memory."
        )
    exact = options.mode == "exact" or short
    if options.mode == "auto":
        exact |= estimate <= limit
    return Plan("exact" if exact else "stitched", estimate, limit)


def check_options(model: SPGMSeparation, options: Options) -> Options:
    """Refuses wrong values before anything is read; fills in what is left open."""
    check_levels(options.normalize, options.consistent)
    if options.mode not in MODES:
        raise UserError(f"mode is {options.mode!r}, but must be {', '.join(MODES)}.")
    if isinstance(options.max_memory, str):
        parse_bytes(options.max_memory)
    channel = options.channel
    if channel is not None and (type(channel) is not int or channel < 1):
        raise UserError(f"channel is {channel!r}, but must be a whole number from 1.")
    find_format(options.format, options.subtype)
    overlap = options.window / 3 if options.overlap is None else options.overlap
    check_windows(options.window, overlap)
    if options.mode == "stitched":
        check_outputs(model.num_spks)
    views = model.views if options.views is None else check_views(options.views)
    return options._replace(overlap=overlap, views=views)


def separate_to_tensor(
    model: SPGMSeparation, sound: Sound, name: str, options: Options
) -> Tensor:
    """``SPGMSeparation.separate_file``.

    Arguments
    ---------
    model : SPGMSeparation
        The separator.
    sound : callable
        What hands over the samples; see ``from_file``.
    name : str
        For messages.
    options : Options
        How.

    Returns
    -------
    est : torch.Tensor
        ``[1, T, spks]``.
    """
    options = check_options(model, options)
    with (
        temporary_folder() as folder,
        _Source(sound, name, folder, options.channel) as s,
    ):
        plan = _plan(model, s, options)
        if plan.mode == "exact":
            return _separate_exactly(model, s, options)
        stitcher = _stitcher(model, s, options)
        parts: list[Tensor] = []
        stitcher.run(
            folder,
            lambda voices: parts.extend(
                stitcher.pieces(voices, options.normalize, options.consistent)
            ),
            options.progress,
        )
        return torch.cat(parts).unsqueeze(0)


def separate_to_files(
    model: SPGMSeparation,
    sound: Sound,
    name: str,
    outputs: Sequence[Path],
    options: Options,
    report: Path | None = None,
    reading: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Any]:
    """``SPGMSeparation.separate_to_files``.

    Arguments
    ---------
    model : SPGMSeparation
        The separator.
    sound : callable
        What hands over the samples; see ``from_file``.
    name : str
        For messages.
    outputs : sequence of Path
        One file per voice; they appear, with the report, when all is done.
    options : Options
        How.
    report : Path, optional
        A JSON file.
    reading : callable
        Gives the context in which the file is read.

    Returns
    -------
    facts : dict
        What the report holds.
    """
    options = check_options(model, options)
    spks = model.num_spks
    if len(outputs) != spks:
        raise UserError(f"{len(outputs)} outputs are named, but there are {spks}.")
    form = find_format(options.format, options.subtype, outputs[0])
    home, seams, gain = Path(outputs[0]).parent, [], 1.0
    try:
        home.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            # Beside the outputs: folders for temporary files may lie in memory.
            folder = stack.enter_context(temporary_folder(home))
            source = stack.enter_context(
                _Source(sound, name, folder, options.channel, reading)
            )
            check_writable(form, source.rate, outputs[0])
            plan = _plan(model, source, options)
            # What is entered later becomes a file earlier: the report comes last.
            target = stack.enter_context(replacing(Path(report))) if report else None
            if plan.mode == "exact":
                est = _separate_exactly(model, source, options)
                gain = write_voices(outputs, est[0], source.rate, form)
            else:
                stitcher = _stitcher(model, source, options)
                files = stack.enter_context(
                    writing(outputs, source.rate, len(source.spool), form)
                )

                def write(voices: Spool) -> None:
                    nonlocal gain
                    wanted = options.normalize, options.consistent
                    pieces = partial(stitcher.pieces, voices, *wanted)
                    if form.clips:
                        peaks = (float(piece.abs().max()) for piece in pieces())
                        gain = gain_against_clipping(form, max(peaks))
                    for piece in pieces():
                        for file, voice in zip(files, piece.T, strict=True):
                            file.write((voice * gain).contiguous().numpy())

                stitcher.run(folder, write, options.progress)
                seams = stitcher.seams
            facts = _facts(source, plan, options, seams, gain)
            if target:
                target.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or "no rights, or the disk is full"
        raise AudioFileError(f"{outputs[0]} cannot be written: {reason}.") from None
    if gain < 1:
        logger.warning("%s", explain({**facts, "mode": "exact"})[-1])
    return facts


def _separate_exactly(
    model: SPGMSeparation, source: _Source, options: Options
) -> Tensor:
    """The whole recording at once, with a bar if that takes long; ``[1, T, spks]``."""
    lock = Lock()
    with tqdm(
        desc=f"chunks of {Path(source.name).name}",
        unit="chunk",
        leave=False,
        delay=BAR_DELAY,
        disable=None if options.progress else True,
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


def _plan(model: SPGMSeparation, source: _Source, options: Options) -> Plan:
    """The plan; what the user should know is logged."""
    plan = make_plan(model, len(source.spool), source.rate, options)
    facts = _facts(source, plan, options, [])
    for line in explain({**facts, "mode": "exact"}):
        logger.warning("%s", line)
    if source.rate > model.sample_rate:
        logger.warning(
            "%s has %d Hz, the model %d Hz: content above %d Hz is lost.",
            source.name,
            source.rate,
            model.sample_rate,
            model.sample_rate // 2,
        )
    logger.info("%s", describe_plan(facts))
    return plan


def describe_plan(facts: dict[str, Any]) -> str:
    """One line about the mode.

    Arguments
    ---------
    facts : dict
        From ``separate_to_files``.

    Example
    -------
    >>> facts = {"file": "a.wav", "mode": "exact"}
    >>> describe_plan({**facts, "estimated_bytes": 2**20, "limit_bytes": 2**30})
    'a.wav: exact mode; exact takes about 1 MiB of memory, the limit is 1.00 GiB.'
    """
    return (
        f"{facts['file']}: {facts['mode']} mode; exact takes about "
        f"{format_bytes(facts['estimated_bytes'])} of memory, the limit is "
        f"{format_bytes(facts['limit_bytes'])}."
    )


def explain(facts: dict[str, Any]) -> list[str]:
    """What the user of the command line should know about a file, in sentences.

    Arguments
    ---------
    facts : dict
        From ``separate_to_files``.
    """
    lines = []
    if facts["missing_samples"]:
        held, lost = facts["samples"], facts["missing_samples"]
        lines.append(
            f"{facts['file']} is cut off: it holds {held} of {held + lost} samples."
        )
    lines += facts["remarks"]
    if facts["gain"] < 1:
        lines.append(
            f"the voices of {facts['file']} would clip: they were made quieter by "
            f"{-20 * math.log10(facts['gain']):.1f} dB; the format wav with floats "
            "keeps their level."
        )
    if facts["mode"] == "stitched":
        doubtful = sum(seam["confidence"] < DOUBT for seam in facts["seams"])
        lines.append(
            f"{describe_plan(facts)} {len(facts['seams'])} seams, {doubtful} doubtful."
        )
    return lines


def _stitcher(model: SPGMSeparation, source: _Source, options: Options) -> Stitcher:
    return Stitcher(
        model,
        source.spool,
        source.rate,
        source.name,
        options.window,
        options.overlap,
        options.views,
    )


def _facts(
    source: _Source,
    plan: Plan,
    options: Options,
    seams: list[Seam],
    gain: float = 1.0,
) -> dict[str, Any]:
    return {
        "file": source.name,
        "sample_rate": source.rate,
        "samples": len(source.spool),
        "missing_samples": source.missing,
        "remarks": source.remarks,
        "gain": gain,
        "mode": plan.mode,
        "estimated_bytes": plan.estimate,
        "limit_bytes": plan.limit,
        "window_seconds": options.window,
        "overlap_seconds": options.overlap,
        "views": options.views,
        "seams": [seam._asdict() for seam in seams],
    }
