"""What a network is: its shape and size."""

from __future__ import annotations

from torch import nn


def count_parameters(modules: list[nn.Module]) -> int:
    """How many numbers the modules have learned together.

    Example
    -------
    >>> count_parameters([nn.Linear(3, 2), nn.ReLU()])
    8
    """
    return sum(p.numel() for p in nn.ModuleList(modules).parameters())
