"""What the rooms around a separator may ask of it.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from speechbrain_spgm.audio import Recording
from speechbrain_spgm.lobes.engine import Watch
from speechbrain_spgm.lobes.statistics import Statistics


class Separable(Protocol):
    """A separator whose ``mods`` are encoder, masknet and decoder: SPGMSeparation's."""

    mods: nn.ModuleDict
    device: str
    precision: str

    @property
    def sample_rate(self) -> int:
        """In Hz."""

    @property
    def num_spks(self) -> int:
        """How many voices."""

    @property
    def views(self) -> int:
        """What its card asks for."""

    @property
    def row_seconds(self) -> float | None:
        """From one chunk of SPGM to the next; None of another network."""

    def separate_batch(
        self, mix: Tensor, *, views: int, statistics: Statistics | None
    ) -> Tensor:
        """Mixtures ``[B, T]`` to voices ``[B, T, spks]``."""

    def separate_recording(
        self,
        recording: Recording,
        normalize: str | None,
        views: int | None,
        watch: Watch | None,
        *,
        consistent: bool,
        full_band: bool,
        statistics: Statistics | None,
    ) -> Tensor:
        """A recording to voices ``[1, T, spks]`` at its rate and level."""
