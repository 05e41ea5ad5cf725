"""Mixtures on disk that differ in every epoch: speeds and augmentations.

Axes: T samples, spks sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from speechbrain_spgm.audio import change_rate, frames_needed
from speechbrain_spgm.data.augment import Augmentations
from speechbrain_spgm.errors import UserError

MOST_GAIN = np.float32(4)  # 12 dB


class Variation:
    """Gives the sources of a mixture other speeds and augments it.

    What the mixture holds beside its sources (noise, rounding) stays as it is until the
    augmentations of the whole mixture. Augmentations of single voices keep the power of
    each. The result is not longer than the original. Speeds are per cent, one is drawn
    for each source; [100] leaves the speed alone. Augmentations: see ``Augmentations``.

    Example
    -------
    >>> sources = torch.rand(8000, 2)
    >>> variation = Variation(speeds=[125])
    >>> rng = np.random.default_rng(0)
    >>> mix, sources = variation(sources.sum(-1), sources, 8000, rng)
    >>> sources.shape, torch.allclose(mix, sources.sum(-1), atol=1e-5)
    (torch.Size([6400, 2]), True)
    """

    def __init__(
        self,
        speeds: Iterable[int] = (100,),
        augmentations: Mapping[str, float] | Iterable[str] | None = None,
    ) -> None:
        self.speeds = check_speeds(speeds)
        self.augmentations = Augmentations(augmentations or {})

    def __call__(
        self,
        mix: torch.Tensor,
        sources: torch.Tensor,
        rate: int,
        rng: np.random.Generator,
        most: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws a variation of a mixture [T] and its sources [T, spks], cut to most."""
        if self.speeds != [100]:
            rest = mix - sources.sum(-1)
            waves = [
                change_rate(wave.contiguous(), rate, rate, int(rng.choice(self.speeds)))
                for wave in sources.T
            ]
            length = min(len(wave) for wave in (mix, *waves))
            sources = torch.stack([wave[:length] for wave in waves], dim=-1)
            mix = sources.sum(-1) + rest[:length]
        mix, sources = mix[:most], sources[:most]
        if self.augmentations.probabilities:
            rest = (mix - sources.sum(-1)).numpy()
            voices = sources.T.contiguous().numpy()
            augmented = self.augmentations.voices(voices, rate, rng)
            parts = np.vstack([keep_power(augmented, voices), rest])
            parts = torch.from_numpy(self.augmentations.mixture(parts, rate, rng))
            mix, sources = parts.sum(0), parts[:-1].T
        return mix, sources

    def frames_for(self, samples: int, rate: int) -> int:
        """How many samples to pass to get ``samples``, whatever speeds are drawn.

        Example
        -------
        >>> Variation(speeds=[95, 105]).frames_for(8000, 8000)
        8400
        """
        return frames_needed(samples, rate, rate, max(100, *self.speeds))


def keep_power(waves: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Rows as loud as those of another array, as far as ``MOST_GAIN`` brings them.

    A silent row stays silent; what is left of a voice may be a pause, whose noise is no
    voice.
    """
    old, new = (np.square(rows).sum(-1, keepdims=True) for rows in (like, waves))
    return waves * np.minimum(np.sqrt(old / np.where(new > 0, new, 1)), MOST_GAIN)


def check_speeds(speeds: Iterable[int]) -> list[int]:
    """At least one speed above 0, or a sentence that says what is wrong."""
    speeds = list(speeds)
    if not speeds or min(speeds) < 1:
        raise UserError(f"The speeds are {speeds}, but must be per cent above 0.")
    return speeds
