"""Random draws that depend on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from speechbrain_spgm.errors import writing


class SeededDataset(Dataset):
    """A map-style dataset whose random items can be drawn again.

    Item ``index`` of epoch ``epoch`` is the same in every run with this seed, however
    many workers and ranks share the epoch and wherever a resumed run starts in it.

    Example
    -------
    >>> dataset = SeededDataset(seed=7)
    >>> dataset.set_epoch(2)
    >>> first = dataset.generator(5).integers(1000)
    >>> bool(dataset.generator(5).integers(1000) == first)
    True
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        # Shared memory, so that persistent workers see a new epoch as well.
        with writing("the memory of processes (/dev/shm)", "make room in it"):
            epoch = torch.zeros((), dtype=torch.int64, device="cpu")
            self._epoch = epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose items are drawn from now on."""
        self._epoch.fill_(epoch)

    def generator(self, index: int) -> np.random.Generator:
        """The source of all randomness in item ``index`` of this epoch."""
        return np.random.default_rng((self.seed, int(self._epoch), index))
