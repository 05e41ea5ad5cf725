"""Signals that wait on disk, and resampling them piece by piece.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechbrain_spgm.audio import periods, resample, resampled_length

PIECE = 2**18  # samples that are resampled at once


class Spool:
    """A temporary file of float32 values ``[T, columns]`` that grows at its end.

    It is read and written, not mapped: mapped pages would count as resident memory.

    Example
    -------
    >>> with Spool(getfixture("tmp_path") / "a", columns=2) as spool:
    ...     spool.append(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    ...     len(spool), spool.read(1, 2)
    (2, tensor([[3., 4.]]))
    """

    def __init__(self, path: Path, columns: int = 1) -> None:
        self.columns, self.length = columns, 0
        self.file = path.open("w+b")

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __len__(self) -> int:
        return self.length

    def append(self, values: Tensor) -> None:
        """Adds ``[T, columns]``."""
        self.file.seek(0, 2)
        self.file.write(values.float().cpu().contiguous().numpy().tobytes())
        self.length += len(values)

    def read(self, start: int, stop: int) -> Tensor:
        """The samples from ``start`` to ``stop``, ``[stop - start, columns]``."""
        self.file.seek(start * self.columns * 4)
        values = np.fromfile(self.file, np.float32, (stop - start) * self.columns)
        return torch.from_numpy(values).view(-1, self.columns)


def resampled(
    read: Callable[[int, int], Tensor],
    T: int,
    rates: tuple[int, int],
    start: int,
    stop: int,
) -> Tensor:
    """A piece of a resampled signal, as resampling the whole would give it.

    The piece is cut out at multiples of the ratio of the rates, where the filters
    repeat, and with so much to either side that no cut is felt. ::

        units of old/gcd samples   |----|====|====|----|      read
        resampled                       |====|====|
        the piece                         |-----|

    ``read(start, stop)`` gives ``[stop - start, columns]`` of T samples at the first of
    the two rates; the piece ``[stop - start, columns]`` is in samples of the second.
    """
    if rates[0] == rates[1]:
        return read(start, stop)
    old, new, margin = periods(*rates)
    first = max(0, start // new - margin)
    last = math.ceil(stop / new) + margin
    samples = read(first * old, min(T, last * old))
    piece = resample(samples.T.contiguous(), *rates).T
    return piece[start - first * new : stop - first * new]


def resample_in_pieces(signal: Tensor, rates: tuple[int, int]) -> Tensor:
    """What ``resample`` makes of ``[..., T]``, without its tables of the whole."""
    rows = signal.reshape(-1, signal.shape[-1])
    T = rows.shape[-1]
    length = resampled_length(T, *rates)
    if length <= PIECE:
        return resample(signal, *rates)
    result = rows.new_empty(len(rows), length)
    for start in range(0, length, PIECE):
        stop = min(length, start + PIECE)
        piece = resampled(lambda a, b: rows[:, a:b].T, T, rates, start, stop)
        result[:, start:stop] = piece.T
    return result.reshape(*signal.shape[:-1], length)
