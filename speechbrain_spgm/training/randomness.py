"""Random numbers that a resumed run draws again."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_step(seed: int, epoch: int, step: int, rank: int = 0) -> None:
    """Seeds what one training batch draws, dropout above all.

    With it no generator's state has to be saved: whatever was drawn before, batch
    ``step`` of an epoch draws the same numbers in every run with this seed, and other
    ones on each rank.

    Example
    -------
    >>> seed_step(1, epoch=2, step=3)
    >>> first = torch.rand(4)
    >>> seed_step(1, epoch=2, step=3)
    >>> torch.equal(torch.rand(4), first)
    True
    """
    words = np.random.SeedSequence((seed, epoch, step, rank)).generate_state(4)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))  # all GPUs too
    np.random.seed(words[2])
    random.seed(int(words[3]))
