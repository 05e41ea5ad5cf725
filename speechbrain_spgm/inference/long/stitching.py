"""A recording of any length, window by window, in little memory.

::

    recording --pieces--> mixture at the model's rate        } on disk
              --some windows--> what all chunks share
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
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from speechbrain_spgm.data.errors import UserError
from speechbrain_spgm.inference.audio import AudioFileError
from speechbrain_spgm.inference.level import fit_mixture, mixture_gains
from speechbrain_spgm.inference.long.assignment import (
    MOST_SPEAKERS,
    Timbre,
    assign,
    distances,
    timbre,
)
from speechbrain_spgm.inference.long.spool import Spool, resampled, resampled_length
from speechbrain_spgm.inference.long.windows import Windows, lay_out
from speechbrain_spgm.lobes.averages import Averages
from speechbrain_spgm.lobes.masknet import SPGMMaskNet

if TYPE_CHECKING:
    from speechbrain_spgm.inference.separation import SPGMSeparation

PIECE = 30  # seconds that are resampled at a time
SURVEY = 120  # seconds of windows that tell what the whole recording is like
ROUNDS = 2  # one more lets windows that go astray alone have a better part in it
HEARD = 0.01  # share of the energy that makes a voice active in an overlap


class Seam(NamedTuple):
    """Where two windows meet.

    Arguments
    ---------
    time : float
        The middle of the cross-fade, in seconds.
    permutation : list of int
        Which output of the window behind the seam is which voice.
    confidence : float
        From 0.5 to 1.
    both_active : bool
        Whether every output is heard in the overlap.
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
    """Separates one recording in windows; its files live in one folder.

    Arguments
    ---------
    model : SPGMSeparation
        The separator.
    recording : Spool
        The recording, one column.
    rate : int
        Its sample rate in Hz.
    name : str
        For messages.
    window, overlap : float
        In seconds.
    views : int
        See ``SPGMSeparation.separate_batch``.

    Raises
    ------
    UserError
        If the window is shorter than a second, the overlap longer than a third of it,
        or the model has too many outputs.
    """

    def __init__(
        self,
        model: SPGMSeparation,
        recording: Spool,
        rate: int,
        name: str,
        window: float,
        overlap: float,
        views: int = 1,
    ) -> None:
        check_windows(window, overlap)
        self.model, self.recording, self.rate, self.name = model, recording, rate, name
        self.views = views
        self.T = resampled_length(len(recording), (rate, model.sample_rate))
        length = round(window * model.sample_rate)
        overlap = min(round(overlap * model.sample_rate), length // 3)
        self.windows: Windows = lay_out(self.T, length, overlap)
        self.seams: list[Seam] = []

    def run(self, folder: Path, use: Callable[[Spool], None], progress: bool) -> None:
        """Separates, then hands the voices at the model's rate to ``use``.

        Arguments
        ---------
        folder : Path
            For temporary files, about 8 bytes per sample and voice.
        use : callable
            Gets a spool of T samples and one column per voice.
        progress : bool
            Whether to show a bar.
        """
        with ExitStack() as stack:
            mix = stack.enter_context(Spool(folder / "mixture"))
            outputs = voices = None
            self._resample(mix)
            loudness = self._loudness(mix)
            evidence = _Evidence([], [], [], [])
            last: Tensor | None = None
            count, survey = len(self.windows.starts), self._survey()
            with tqdm(
                total=count + len(survey) * ROUNDS,
                desc=f"windows of {Path(self.name).name}",
                unit="window",
                leave=False,
                disable=None if progress else True,
            ) as bar:
                if survey:
                    averages = self._averages(mix, survey, bar.update)
                    stack.enter_context(averages.ruling())
                for w in range(count):
                    est = self._separate(mix, w)
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
        wanted = math.ceil(SURVEY * self.model.sample_rate / self.windows.length)
        n = min(count, wanted)
        return [(2 * i + 1) * count // (2 * n) for i in range(n)]

    def _averages(
        self, mix: Spool, survey: list[int], done: Callable[[], object]
    ) -> Averages:
        """What all chunks share: alone, some windows come out badly that need not."""
        averages = None
        for _ in range(ROUNDS):
            given, averages = averages, Averages()
            with averages.learning(given):
                for w in survey:
                    self._separate(mix, w)
                    done()
        return averages

    def _resample(self, mix: Spool) -> None:
        step = PIECE * self.model.sample_rate
        rates = (self.rate, self.model.sample_rate)
        for start in range(0, self.T, step):
            stop = min(self.T, start + step)
            read, T = self.recording.read, len(self.recording)
            mix.append(resampled(read, T, rates, start, stop))

    def _loudness(self, mix: Spool) -> float:
        """Mean power, never zero."""
        step = PIECE * self.model.sample_rate
        power = sum(
            float(mix.read(a, min(self.T, a + step)).double().square().sum())
            for a in range(0, self.T, step)
        )
        return max(power / self.T, 1e-20)

    def _separate(self, mix: Spool, w: int) -> Tensor:
        """The outputs of a window at the level of the mixture, ``[T, spks]``."""
        start = self.windows.starts[w]
        samples = mix.read(start, start + self.windows.length)[:, 0]
        est = self.model.separate_batch(samples.unsqueeze(0), views=self.views)
        est = est[0].float().cpu()
        if not est.isfinite().all():
            raise too_loud(self.name, float(samples.abs().max()))
        return fit_mixture(est, samples)

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
        energy = float(mix.read(start, start + overlap).double().square().sum())
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
            voices.append(part[:keep])
            tail = part[keep:]

    def pieces(self, voices: Spool, normalize: str | None) -> Iterator[Tensor]:
        """The voices at the recording's rate and level.

        Arguments
        ---------
        voices : Spool
            From ``run``.
        normalize : str, optional
            As in ``SPGMSeparation.separate_file``.

        Yields
        ------
        piece : torch.Tensor
            ``[n, spks]``, float32; together they are as long as the recording.
        """
        gains = self._gains(voices, normalize)
        for _, piece in self._restored(voices):
            yield (piece.double() * gains).float()

    def _gains(self, voices: Spool, normalize: str | None) -> Tensor:
        spks = voices.columns
        gram = torch.zeros(spks, spks, dtype=torch.float64, device="cpu")
        target, peak = gram[0].clone(), gram[0].clone()
        for start, piece in self._restored(voices):
            mix = self.recording.read(start, start + len(piece))[:, 0].double()
            if not piece.isfinite().all():
                raise too_loud(self.name, float(mix.abs().max()))
            wide = piece.double()
            gram += wide.T @ wide
            target += wide.T @ mix
            peak = torch.maximum(peak, wide.abs().amax(0))
        if normalize:
            return 1 / peak.where(peak > 0, 1)
        return mixture_gains(gram, target)

    def _restored(self, voices: Spool) -> Iterator[tuple[int, Tensor]]:
        T, step = len(self.recording), PIECE * self.rate
        rates = (self.model.sample_rate, self.rate)
        for start in range(0, T, step):
            stop = min(T, start + step)
            yield start, resampled(voices.read, self.T, rates, start, stop)


def check_windows(window: float, overlap: float) -> None:
    """Refuses windows that cannot be stitched.

    Arguments
    ---------
    window, overlap : float
        In seconds.

    Raises
    ------
    UserError
        Naming the value.
    """
    if not 1 <= window < math.inf:
        raise UserError(f"window is {window:g} s, but must be at least 1 s.")
    if not 0 < overlap <= window / 3 + 1e-9:
        raise UserError(
            f"overlap is {overlap:g} s, but must be above 0 and at most a third of "
            f"the window, {window / 3:g} s."
        )


def check_outputs(spks: int) -> None:
    """Refuses models whose outputs cannot be put in order.

    Arguments
    ---------
    spks : int
        Their number.

    Raises
    ------
    UserError
        If there are too many.
    """
    if spks > MOST_SPEAKERS:
        raise UserError(
            f"the model has {spks} outputs, but windows are stitched for at most "
            f"{MOST_SPEAKERS}: use the exact mode."
        )


def too_loud(name: str, peak: float) -> AudioFileError:
    """The sentence about a recording whose numbers overflow in the model."""
    return AudioFileError(
        f"{name} is too loud for the model (peak {peak:.3g}, full scale is 1): "
        "scale it down."
    )
