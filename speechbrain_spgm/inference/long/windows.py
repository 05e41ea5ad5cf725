"""Overlapping windows of a long recording, and how they fade into each other.

::

    window 0   |==============|
    window 1             |====|=========|
    window 2                       |====|=========|
                         |<-->|    |<-->|             overlaps
               |-------\\                              weights of window 0
                        \\
                     ----\\---
                        /|
                       / the seam is the middle of a fade

Axes: T samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Windows(NamedTuple):
    """Equally long windows that cover a recording, in samples.

    The steps between starts differ by at most one; fades lie in the middle of overlaps.
    """

    starts: tuple[int, ...]
    length: int
    fade: int

    def overlap(self, seam: int) -> int:
        """Samples that windows ``seam`` and ``seam + 1`` have in common."""
        return self.starts[seam] + self.length - self.starts[seam + 1]

    def fade_start(self, seam: int) -> int:
        """The first sample of the recording in a cross-fade."""
        return self.starts[seam + 1] + (self.overlap(seam) - self.fade) // 2

    def seam(self, seam: int) -> int:
        """The sample in the middle of a cross-fade."""
        return self.fade_start(seam) + self.fade // 2

    def used(self, window: int) -> tuple[int, int]:
        """From where to where, in the recording, a window has any weight."""
        last = len(self.starts) - 1
        first = 0 if window == 0 else self.fade_start(window - 1)
        if window == last:
            return first, self.starts[last] + self.length
        return first, self.fade_start(window) + self.fade

    def weights(self, window: int) -> Tensor:
        """The weight of every used sample of a window, float32.

        At every sample of the recording the weights of all windows add up to 1.
        """
        start, stop = self.used(window)
        kind = {"dtype": torch.float32, "device": "cpu"}
        weights = torch.ones(stop - start, **kind)
        rise = (torch.arange(self.fade, **kind) + 0.5) / self.fade
        if window > 0:
            weights[: self.fade] = rise
        if window < len(self.starts) - 1:
            weights[stop - start - self.fade :] = 1 - rise
        return weights


def lay_out(T: int, length: int, overlap: int, grid: int = 1) -> Windows:
    """As few windows as cover T samples, evenly spread; one of all T if it is enough.

    None is shorter than the others: every window gives the network the same context.
    Neighbours share at least ``overlap``, which a cross-fade takes: at most a third of
    a window, so that fades never meet. Starts, length and fade are multiples of
    ``grid``: the last window may end behind T.

    Example
    -------
    >>> lay_out(26, length=9, overlap=3)
    Windows(starts=(0, 6, 11, 17), length=9, fade=3)
    >>> lay_out(8, length=9, overlap=3).starts
    (0,)
    >>> lay_out(26, length=9, overlap=3, grid=2)
    Windows(starts=(0, 8, 16), length=10, fade=2)
    """
    if T <= length:
        return Windows((0,), T, overlap)
    if grid > 1:
        sizes = (-(-T // grid), max(3, -(-length // grid)), max(1, overlap // grid))
        starts, length, fade = lay_out(*sizes)
        return Windows(tuple(grid * s for s in starts), grid * length, grid * fade)
    last = math.ceil((T - length) / (length - overlap))
    starts = tuple((2 * (T - length) * i + last) // (2 * last) for i in range(last + 1))
    return Windows(starts, length, overlap)
