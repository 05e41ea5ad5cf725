"""Poolings that turn the K frames of a chunk into one vector (paper, section 2.2).

Axes: C chunks (rows), K frames of a chunk, N filters.

A pooling maps ``[C, K, N]`` to ``[C, N]``; it may be a function, or a module if it has
parameters. A new one is an entry in ``POOLINGS``, where everything else finds it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def average_pooling(x: Tensor) -> Tensor:
    """Mean over the frames, ``[C, K, N]`` to ``[C, N]``."""
    return x.mean(dim=1)


def max_pooling(x: Tensor) -> Tensor:
    """Largest value over the frames, ``[C, K, N]`` to ``[C, N]``."""
    return x.amax(dim=1)


def last_element_pooling(x: Tensor) -> Tensor:
    """The last frame, ``[C, K, N]`` to ``[C, N]``."""
    return x[:, -1]


def no_pooling(x: Tensor) -> Tensor:
    """Nothing of the frames, ``[C, K, N]`` to zeros ``[C, N]``: the control."""
    return x.new_zeros(x.shape[0], x.shape[2])


def attend(scores: Tensor, x: Tensor) -> Tensor:
    """Sum ``[C, N]`` of x ``[C, K, N]`` by the softmax of scores ``[C, K, 1]``."""
    weights = F.softmax(scores, dim=1).transpose(1, 2)  # [C, 1, K]
    return torch.bmm(weights, x).squeeze(1)  # [C, N]


class AttentionPooling(nn.Module):
    """Attention pooling: a linear score per frame, softmax, weighted sum."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(n_embd, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``[C, K, N]`` to ``[C, N]``."""
        return attend(self.linear1(x), x)


class AttentionFeedForwardPooling(nn.Module):
    """Attention pooling whose score passes a hidden layer of ``att_h`` units."""

    def __init__(self, n_embd: int, att_h: int, att_dropout: float = 0.0) -> None:
        super().__init__()
        self.linear1 = nn.Linear(n_embd, att_h)
        self.linear2 = nn.Linear(att_h, 1)
        self.dropout = nn.Dropout(att_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``[C, K, N]`` to ``[C, N]``."""
        hidden = self.dropout(F.relu(self.linear1(x)))
        return attend(self.linear2(hidden), x)


def attention(
    n_embd: int, att_h: int | None = None, att_dropout: float = 0.0
) -> nn.Module:
    """Attention pooling, with a hidden layer if it is to have a width."""
    if att_h is None:
        return AttentionPooling(n_embd)
    return AttentionFeedForwardPooling(n_embd, att_h, att_dropout)


class Kind(NamedTuple):
    """A kind of pooling.

    ``build`` goes from ``(n_embd, att_h, att_dropout)`` to the pooling. ``modulates``:
    what is pooled is used; without, a block has no other parameters either. ``hidden``:
    ``att_h`` and ``att_dropout`` mean something to it.
    """

    build: Callable[[int, int | None, float], Callable[[Tensor], Tensor]]
    modulates: bool = True
    hidden: bool = False


def _plain(pooling: Callable[[Tensor], Tensor], modulates: bool = True) -> Kind:
    """A pooling that is one function, whatever the sizes."""
    return Kind(lambda *_: pooling, modulates)


POOLINGS: dict[str, Kind] = {
    "att": Kind(attention, hidden=True),
    "avg": _plain(average_pooling),
    "max": _plain(max_pooling),
    "lem": _plain(last_element_pooling),
    "none": _plain(no_pooling, modulates=False),
}


def find_pooling(pool: str) -> Kind:
    """The kind of pooling that has this name.

    Example
    -------
    >>> [name for name in POOLINGS if not find_pooling(name).modulates]
    ['none']
    """
    if pool not in POOLINGS:
        names = ", ".join(POOLINGS)
        raise ValueError(f"pool is {pool!r}, but it must be one of {names}.")
    return POOLINGS[pool]


def build_pooling(
    pool: str, n_embd: int, att_h: int | None = None, att_dropout: float = 0.0
) -> Callable[[Tensor], Tensor]:
    """Find a pooling by its name.

    Arguments
    ---------
    pool : str
        An entry of ``POOLINGS``: ``"att"`` (attention), ``"avg"``, ``"max"``, ``"lem"``
        (last element), ``"none"``.
    n_embd : int
        Number of filters N.
    att_h : int, optional
        Width of attention's hidden layer; ``None``: no hidden layer.
    att_dropout : float
        Dropout rate after attention's hidden layer.

    Returns
    -------
    pooling : Callable
        From ``[C, K, N]`` to ``[C, N]``.

    Raises
    ------
    ValueError
        If no pooling has that name.

    Example
    -------
    >>> build_pooling("max", 2)(torch.tensor([[[1.0, 6.0], [3.0, 2.0]]]))
    tensor([[3., 6.]])
    """
    return find_pooling(pool).build(n_embd, att_h, att_dropout)
