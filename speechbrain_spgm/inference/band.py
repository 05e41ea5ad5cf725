"""The band above the model's: what the recording has there goes back to its voices.

::

    recording - (recording at the model's rate and back) = upper band
    voices    - energies in the top of the model's band, smoothed -> shares of one
    upper band x shares -> what each voice gets

The shares change slowly and are those of all frequencies: nothing is added to a voice
but what the recording has, nothing of the recording's upper band is lost.

Axes: T samples, F frames, spks sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from speechbrain_spgm.audio import resampled_length
from speechbrain_spgm.inference.long.spool import resampled

# Found on 24 mixtures of voices that are not in docs/full_band.md's table.
HOP, HOPS = 0.008, 4  # seconds from frame to frame; a frame is four times as long
LOW, HIGH = 0.5, 0.95  # of the model's band, whose energy tells who is heard above it
SMOOTHING = 0.25  # seconds to either side
EXPONENT = 0.7  # below 1: in doubt the band is shared
PIECE = 30  # seconds that are computed at a time
SPECTRA = 2**20  # samples in frames whose spectra are computed at a time

# Gives the samples from start to stop, [stop - start, columns].
Reader = Callable[[int, int], Tensor]


class UpperBand:
    """The band of one recording that its model did not see, split between its voices.

    Arguments
    ---------
    recording : callable
        Gives the recording without its mean, ``[stop - start, 1]``, full scale near 1.
    voices : callable
        Gives its voices at its rate and level, ``[stop - start, spks]``; they are read
        once, here.
    T : int
        Samples of the recording.
    rate, model_rate : int
        Those of the recording, and of the model, which is lower, in Hz.
    peak : float
        That of the recording: squares of very loud or quiet voices leave 32-bit floats.
    """

    def __init__(
        self,
        recording: Reader,
        voices: Reader,
        T: int,
        rate: int,
        model_rate: int,
        peak: float = 1.0,
    ) -> None:
        self.recording, self.T = recording, T
        self.rate, self.model_rate = rate, model_rate
        self.hop = max(1, round(HOP * rate))
        # A power of two changes no bit of the shares.
        self.scale = 2.0 ** -math.frexp(peak)[1]
        self.shares = find_shares(self._energies(voices))  # [F, spks]

    def split(self, start: int, stop: int) -> Tensor:
        """What each voice gets, ``[stop - start, spks]``; the sum is ``upper``."""
        upper = self.upper(start, stop)
        parts = upper * self._shares_at(start, stop)
        parts[:, -1:] = upper - parts[:, :-1].sum(1, keepdim=True)
        return parts

    def upper(self, start: int, stop: int) -> Tensor:
        """The recording's upper band, ``[stop - start, 1]``."""
        down, up = (self.rate, self.model_rate), (self.model_rate, self.rate)
        read = partial(resampled, self.recording, self.T, down)
        length = resampled_length(self.T, *down)
        return self.recording(start, stop) - resampled(read, length, up, start, stop)

    def _shares_at(self, start: int, stop: int) -> Tensor:
        """Shares of samples ``[stop - start, spks]`` from those of frames."""
        first, last = start // self.hop, -(-stop // self.hop)
        shares = self.shares[first : last + 1].T.unsqueeze(0)
        size = (last - first) * self.hop + 1
        shares = F.interpolate(shares, size, mode="linear", align_corners=True)[0].T
        return shares[start - first * self.hop :][: stop - start]

    def _energies(self, voices: Reader) -> Tensor:
        """Energies in the top of the band, ``[F, spks]``; frame f is around f * hop."""
        length, count = HOPS * self.hop, -(-self.T // self.hop) + 1
        window = torch.hann_window(length, dtype=torch.float32, device="cpu")
        edges = (LOW * self.model_rate / 2, HIGH * self.model_rate / 2)
        low, high = (round(edge * length / self.rate) for edge in edges)
        step = max(1, PIECE * self.rate // self.hop)
        found = []
        for first in range(0, count, step):
            frames = min(count, first + step) - first
            start = first * self.hop - length // 2
            stop = start + (frames - 1) * self.hop + length
            part = voices(max(0, start), min(self.T, stop)).T.float()
            part = F.pad(part, (max(0, -start), max(0, stop - self.T)))
            for some in part.unfold(1, length, self.hop).split(SPECTRA // length, 1):
                near = (some.double() * self.scale).float()
                spectra = torch.fft.rfft(near * window)
                heard = spectra[..., low : max(high, low + 1)].abs().square()
                found.append(heard.sum(-1).T)
        return torch.cat(found)


def find_shares(energies: Tensor) -> Tensor:
    """The share of each voice in every frame, from ``[F, spks]``; sums are one."""
    reach = round(SMOOTHING / HOP)
    like = {"dtype": energies.dtype, "device": "cpu"}
    kernel = torch.hann_window(2 * reach + 1, periodic=False, **like)
    smooth = F.conv1d(energies.T.unsqueeze(1), kernel.view(1, 1, -1), padding=reach)
    smooth = smooth[:, 0].T.double()
    most = smooth.amax(1, keepdim=True)
    weights = torch.where(most > 0, smooth / most.where(most > 0, 1), 1) ** EXPONENT
    return (weights / weights.sum(1, keepdim=True)).float()


def pieces_of(T: int, rate: int) -> Iterator[tuple[int, int]]:
    """Start and stop of pieces that are computed at a time.

    Example
    -------
    >>> list(pieces_of(T=700, rate=10))
    [(0, 300), (300, 600), (600, 700)]
    """
    step = PIECE * rate
    for start in range(0, T, step):
        yield start, min(T, start + step)
