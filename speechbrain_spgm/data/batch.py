"""One mixture, and several of unequal length as one batch.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence


class Mixture(NamedTuple):
    """One training or test example: id, mix [T] and sources [T, spks]."""

    id: str
    mix: torch.Tensor
    sources: torch.Tensor


@dataclass
class MixtureBatch:
    """Mixtures padded with zeros to the longest one.

    Arguments
    ---------
    ids : list of str
        One per utterance.
    mix : torch.Tensor
        Mixtures [B, T].
    sources : torch.Tensor
        Their sources [B, T, spks].
    lengths : torch.Tensor
        Samples of each utterance [B], int64.
    """

    ids: list[str]
    mix: torch.Tensor
    sources: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def collate(cls, mixtures: list[Mixture]) -> MixtureBatch:
        """Builds a batch; the ``collate_fn`` of a DataLoader.

        Example
        -------
        >>> short = Mixture("short", torch.ones(3), torch.ones(3, 2))
        >>> long = Mixture("long", torch.ones(5), torch.ones(5, 2))
        >>> batch = MixtureBatch.collate([short, long])
        >>> batch.sources.shape, batch.lengths
        (torch.Size([2, 5, 2]), tensor([3, 5]))
        """
        ids, mixes, sources = zip(*mixtures, strict=True)
        return cls(
            ids=list(ids),
            mix=pad_sequence(mixes, batch_first=True),
            sources=pad_sequence(sources, batch_first=True),
            lengths=torch.tensor([len(mix) for mix in mixes], device="cpu"),
        )

    def to(self, device: str | torch.device) -> MixtureBatch:
        """The same batch on ``device``; copies from pinned memory do not block."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> MixtureBatch:
        """The same batch in page-locked memory, as the DataLoader asks for it."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, move: Callable[[torch.Tensor], torch.Tensor]) -> MixtureBatch:
        tensors = (self.mix, self.sources, self.lengths)
        return MixtureBatch(self.ids, *map(move, tensors))
