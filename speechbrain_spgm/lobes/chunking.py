r"""Frames to overlapping chunks and back, utterance by utterance.

Axes: L frames of one utterance, K frames of a chunk, P = K // 2, S chunks of one
utterance, C chunks of all utterances (packed rows), N filters.

Two streams of K-frame chunks, the second K - P later than the first, cover the padded
utterance, so that every frame lies in exactly one chunk of each::

    padded   |-- P zeros --|------- L frames -------|-- gap zeros --|-- P zeros --|
    stream 0 |<---- row 0 ---->|<---- row 2 ---->|<---- row 4 ---->|
    stream 1               |<---- row 1 ---->|<---- row 3 ---->|<---- row 5 ---->|

    frame t: position P + t of stream 0 and position t of stream 1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def count_chunks(L: int, K: int) -> int:
    """Number of chunks S of an utterance of L frames; always even.

    The gap is at least one frame, as in SpeechBrain's ``Dual_Path_Model``.

    Example
    -------
    >>> count_chunks(L=7, K=4)  # 2 zeros + 7 frames + 3 of gap = 3 chunks a stream
    6
    >>> count_chunks(L=6, K=4)  # 2 + 6 is full, so a whole chunk of gap
    6
    """
    return 2 * ((K // 2 + L) // K + 1)


def row_seconds(K: int, stride: int, sample_rate: int) -> float:
    """From one chunk to the next, in the mean: P frames and K - P in turn.

    Example
    -------
    >>> row_seconds(K=250, stride=16, sample_rate=8000)
    0.25
    """
    return K * stride / 2 / sample_rate


def chunk_frames(row: int, K: int, L: int) -> tuple[int, int, int]:
    """The frames of an utterance of L that its chunk number ``row`` holds.

    Frames ``start:stop`` stand at ``offset`` in the chunk; what is around them is
    padding. With ``start >= stop`` all is.

    Example
    -------
    >>> [chunk_frames(row, K=4, L=7) for row in range(6)]
    [(0, 2, 2), (0, 4, 0), (2, 6, 0), (4, 7, 0), (6, 7, 0), (8, 7, 0)]
    """
    first = row // 2 * K - (0 if row % 2 else K // 2)
    start = max(0, first)
    return start, min(first + K, L), start - first


def segment(frames: Sequence[Tensor], K: int) -> tuple[Tensor, list[int]]:
    """Cuts utterances, ``[L, N]`` each, into chunks of K >= 2 frames, packed as rows.

    Returns the rows ``[C, K, N]``, utterance after utterance, and the number of chunks
    S of each.
    """
    P = K // 2
    rows, chunks = [], []
    for utterance in frames:
        L, N = utterance.shape
        S = count_chunks(L, K)
        stream = S // 2 * K  # frames in a stream: P + L + gap
        padded = F.pad(utterance, (0, 0, P, stream - L))  # [P + L + gap + P, N]
        streams = torch.stack([padded[:stream], padded[P:]])  # [2, S/2 * K, N]
        rows.append(streams.view(2, S // 2, K, N).transpose(0, 1).reshape(S, K, N))
        chunks.append(S)
    return (rows[0] if len(rows) == 1 else torch.cat(rows)), chunks


def overlap_add(
    rows: Tensor, chunks: Sequence[int], lengths: Sequence[int]
) -> list[Tensor]:
    """Adds the two chunks that cover each frame: twice the inverse of segment.

    From rows ``[C, K, N]``, chunks S and frames L of every utterance to ``[L, N]``
    each.
    """
    K, N = rows.shape[1:]
    P = K // 2
    frames = []
    for utterance, L in zip(rows.split(list(chunks)), lengths, strict=True):
        streams = utterance.view(-1, 2, K, N)  # [S/2, 2, K, N]
        first = streams[:, 0].reshape(-1, N)[P : P + L]
        second = streams[:, 1].reshape(-1, N)[:L]
        frames.append(first + second)
    return frames
