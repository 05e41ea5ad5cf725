"""A recording of any length, window by window, in little memory.

::

    recording --pieces--> its mean and its peak
              --pieces--> mixture at the model's rate        } on disk
              --pieces--> one level for all windows
              --some windows--> what all chunks share, or those behind each window
              --windows-> outputs of every window            } on disk
              --assignment of all windows, cross-fades-> voices at the model's rate
              --pieces--> voices at the recording's rate and level

Axes: T samples, W windows, spks sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from speechbrain_spgm.audio import resampled_length
from speechbrain_spgm.inference.band import PIECE, UpperBand, pieces_of
from speechbrain_spgm.inference.level import (
    FRAME,
    check_peak,
    check_voices,
    find_centre,
    find_level,
    fit_mixture,
    frame_powers,
    mixture_gains,
    share_rest,
)
from speechbrain_spgm.inference.long.assignment import Timbre, assign, distances, timbre
from speechbrain_spgm.inference.long.spool import Spool, resampled
from speechbrain_spgm.inference.long.windows import Windows, lay_out
from speechbrain_spgm.inference.options import Options
from speechbrain_spgm.inference.progress import Bar
from speechbrain_spgm.inference.separable import Separable
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.statistics import Placed, Shared, Statistics, Survey

SURVEY = 120  # seconds of windows that tell what the whole recording is like
ROUNDS = 2  # one more lets windows that go astray alone have a better part in it
HEARD = 0.01  # share of the energy that makes a voice active in an overlap


class Seam(NamedTuple):
    """Where two windows meet.

    The middle of the cross-fade in seconds, which output of the window behind it is
    which voice, the confidence from 0.5 to 1, whether every output is heard in the
    overlap.
    """

    time: float
    permutation: list[int]
    confidence: float
    both_active: bool


class _Evidence(NamedTuple):
    """What the assignment needs to know; small, whatever the windows' length."""

    pairs: list[Tensor]
    energies: list[float]
    active: list[bool]
    timbres: list[Timbre]


class Stitcher:
    """Separates one recording, a spool of one column, in windows, as options say."""

    def __init__(
        self, model: Separable, recording: Spool, rate: int, name: str, options: Options
    ) -> None:
        self.model, self.recording, self.rate, self.name = model, recording, rate, name
        self.options = options
        self.full_band = bool(options.full_band) and rate > model.sample_rate
        self.T = resampled_length(len(recording), rate, model.sample_rate)
        length = round(options.window * model.sample_rate)
        overlap = max(1, round(options.overlap * model.sample_rate))
        overlap = min(overlap, length // 3)
        self.rule = options.rule(model)
        # With averages of their own, chunks of a window are those of the recording.
        grid = (
            1 if self.rule is None else round(2 * model.row_seconds * model.sample_rate)
        )
        self.windows: Windows = lay_out(self.T, length, overlap, grid)
        self.centre = find_centre(
            recording.read(*piece) for piece in pieces_of(len(recording), rate)
        )
        check_peak(name, self.centre)
        self.seams: list[Seam] = []

    def run(self, folder: Path, use: Callable[[Spool], None]) -> None:
        """Separates; ``use`` gets a spool ``[T, spks]`` of voices at the model's rate.

        ``folder`` is for temporary files, about 8 bytes per sample and voice.
        """
        with ExitStack() as stack:
            mix = stack.enter_context(Spool(folder / "mixture"))
            outputs = voices = None
            loudness = self._resample(mix)
            evidence = _Evidence([], [], [], [])
            last: Tensor | None = None
            count, survey = len(self.windows.starts), self._survey()
            rounds = ROUNDS if self.rule is None else 1
            with Bar(
                self.options.progress,
                total=count + len(survey) * rounds,
                desc=f"windows of {Path(self.name).name}",
                unit="window",
            ) as bar:
                statistics = self._statistics(mix, survey, bar.update)
                for w in range(count):
                    if isinstance(statistics, Placed):
                        self._place(mix, w, statistics, survey, bar.update)
                    est = self._separate(mix, w, statistics)
                    if outputs is None:
                        spks = est.shape[1]
                        outputs = stack.enter_context(Spool(folder / "outputs", spks))
                        voices = stack.enter_context(Spool(folder / "voices", spks))
                    outputs.append(est)
                    self._learn(evidence, w, last, est, mix, loudness)
                    last = est
                    bar.update()
            orders = self._assign(evidence, loudness)
            self._blend(outputs, orders, voices)
            use(voices)

    def _survey(self) -> list[int]:
        """Windows from everywhere in the recording; none if they share nothing."""
        if not isinstance(self.model.mods.masknet, SPGMMaskNet):
            return []
        count = len(self.windows.starts)
        if self.rule is not None:  # those that are looked at ahead
            return list(range(count)) if self.rule.ahead else []
        wanted = math.ceil(SURVEY * self.model.sample_rate / self.windows.length)
        n = min(count, wanted)
        return [(2 * i + 1) * count // (2 * n) for i in range(n)]

    def _statistics(
        self, mix: Spool, windows: list[int], done: Callable[[], object]
    ) -> Statistics | None:
        """What all chunks share: alone, some windows come out badly that need not."""
        if self.rule is not None:
            return Placed(self.rule)
        if not windows:
            return None
        survey = None
        for _ in range(ROUNDS):
            survey = Survey(given=survey)
            for w in windows:
                self._separate(mix, w, survey)
                done()
        return Shared(survey)

    def _place(
        self,
        mix: Spool,
        w: int,
        placed: Placed,
        survey: list[int],
        done: Callable[[], object],
    ) -> None:
        """Gets ready for a window: looks ahead at the one behind it, if need be."""
        period = self.model.row_seconds * self.model.sample_rate

        def first(w: int) -> int:
            return round(self.windows.starts[w] / period)

        for other in survey[w and w + 1 : w + 2]:
            placed.look(first(other))
            self._separate(mix, other, placed)
            done()
        placed.move(first(w))

    def _resample(self, mix: Spool) -> float:
        """The recording without its mean at the model's rate, and its level."""
        step = PIECE * self.model.sample_rate // FRAME * FRAME  # cuts no frame
        rates = (self.rate, self.model.sample_rate)

        powers = []
        for start in range(0, self.T, step):
            stop = min(self.T, start + step)
            piece = resampled(self._centred, len(self.recording), rates, start, stop)
            powers.append(frame_powers(piece[:, 0]))
            mix.append(piece)
        powers = torch.cat(powers)
        self.level = find_level(powers)
        gain, lowered = self.level
        powers *= gain.square() if lowered is None else (gain * lowered).square()
        return max(float(powers.mean()), 1e-20)

    def _mixture(self, mix: Spool, start: int, length: int) -> Tensor:
        """A part of the mixture as the network gets it, ``[T]``, up to its end."""
        part = mix.read(start, start + length)[:, 0]
        limits = self.level.limits(start, start + len(part))
        return (part.double() * (self.level.gain * limits)).float()

    def _separate(self, mix: Spool, w: int, statistics: Statistics | None) -> Tensor:
        """The outputs of a window at the level of the mixture, ``[T, spks]``."""
        samples = self._mixture(mix, self.windows.starts[w], self.windows.length)
        rest = self.windows.length - len(samples)  # of the last window
        est = self.model.separate_batch(
            samples.unsqueeze(0), views=self.options.views, statistics=statistics
        )
        est = est[0].float().cpu()
        check_voices(self.name, est)
        return F.pad(fit_mixture(est, samples), (0, 0, 0, rest))

    def _learn(
        self,
        evidence: _Evidence,
        w: int,
        before: Tensor | None,
        est: Tensor,
        mix: Spool,
        loudness: float,
    ) -> None:
        evidence.timbres.append(timbre(est, loudness))
        if before is None:
            return
        overlap, start = self.windows.overlap(w - 1), self.windows.starts[w]
        evidence.pairs.append(distances(before[-overlap:], est[:overlap]))
        energy = float(self._mixture(mix, start, overlap).double().square().sum())
        evidence.energies.append(energy)
        parts = est[:overlap].double().square().sum(0)
        heard = (parts > HEARD * parts.sum()) & (parts > 1e-4 * loudness * overlap)
        evidence.active.append(bool(heard.all()))

    def _assign(self, evidence: _Evidence, loudness: float) -> list[list[int]]:
        if not evidence.pairs:
            return [list(range(len(evidence.timbres[0].share)))]
        found = assign(
            evidence.pairs,
            evidence.energies,
            loudness * self.windows.overlap(0),
            evidence.timbres,
        )
        self.seams = [
            Seam(
                self.windows.seam(w) / self.model.sample_rate,
                found.orders[w + 1],
                found.confidence[w],
                evidence.active[w],
            )
            for w in range(len(evidence.pairs))
        ]
        return found.orders

    def _blend(self, outputs: Spool, orders: list[list[int]], voices: Spool) -> None:
        """Cross-fades the windows into one signal per voice."""
        windows, tail = self.windows, None
        for w, order in enumerate(orders):
            start, stop = windows.used(w)
            offset = w * windows.length - windows.starts[w]
            part = outputs.read(start + offset, stop + offset)[:, order]
            part *= windows.weights(w).unsqueeze(-1)
            if tail is not None:
                part[: len(tail)] += tail
            keep = len(part) - (windows.fade if w < len(orders) - 1 else 0)
            limits = self.level.limits(start, start + keep).unsqueeze(-1)
            voices.append((part[:keep] / limits).float())
            tail = part[keep:]

    def pieces(self, voices: Spool) -> Iterator[Tensor]:
        """The voices at the recording's rate and level, in pieces ``[n, spks]``."""
        means, gains = self._levels(voices)
        band = self._band(voices, means, gains) if self.full_band else None

        def levelled() -> Iterator[tuple[int, Tensor]]:
            for start, piece in self._restored(voices):
                piece = (piece.double() - means) * gains
                if band:
                    piece += band.split(start, start + len(piece)) * self.centre.peak
                yield start, piece

        peaks = torch.ones((), device="cpu")
        if band and self.options.normalize:
            highest = [piece.abs().amax(0) for _, piece in levelled()]
            peaks = torch.stack(highest).amax(0)
            peaks = peaks.where(peaks > 0, 1)
        for start, piece in levelled():
            if self.options.consistent:
                mix = self.recording.read(start, start + len(piece))[:, 0]
                piece = share_rest(piece, mix)
            yield (piece / peaks).float()

    def _band(self, voices: Spool, means: Tensor, gains: Tensor) -> UpperBand:
        """The band above the model's, shared out by voices at the model's rate."""
        T, rate, slow = len(self.recording), self.rate, self.model.sample_rate

        def read(start: int, stop: int) -> Tensor:
            piece = resampled(voices.read, self.T, (slow, rate), start, stop)
            return (piece.double() - means) * gains

        return UpperBand(self._centred, read, T, rate, slow, float(self.centre.peak))

    def _centred(self, start: int, stop: int) -> Tensor:
        """The recording without its mean, near 1, ``[stop - start, 1]``."""
        return self.centre.of(self.recording.read(start, stop)).float()

    def _levels(self, voices: Spool) -> tuple[Tensor, Tensor]:
        """The voices' means and gains, as ``restore_level`` has them, ``[spks]``."""
        spks = voices.columns
        gram = torch.zeros(spks, spks, dtype=torch.float64, device="cpu")
        means, target, low, high = torch.zeros(
            4, spks, dtype=torch.float64, device="cpu"
        )
        for start, piece in self._restored(voices):
            mix = self.recording.read(start, start + len(piece))[:, 0]
            wide = piece.double()
            gram += wide.T @ wide
            target += wide.T @ self.centre.of(mix)
            means += wide.sum(0) / len(self.recording)
            low, high = low.minimum(wide.amin(0)), high.maximum(wide.amax(0))
        if self.options.normalize and not self.full_band:
            peaks = (high - means).maximum(means - low)
            return means, 1 / peaks.where(peaks > 0, 1)
        gram -= len(self.recording) * means.outer(means)
        return means, mixture_gains(gram, target) * self.centre.peak

    def _restored(self, voices: Spool) -> Iterator[tuple[int, Tensor]]:
        rates = (self.model.sample_rate, self.rate)
        for start, stop in pieces_of(len(self.recording), self.rate):
            yield start, resampled(voices.read, self.T, rates, start, stop)
