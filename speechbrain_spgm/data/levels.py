"""How loud the sources of a mixture are: the rules of two published recipes.

Axes: T samples, spks sources.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.signal import sosfilt

LIBRIMIX_DB = (-33.0, -25.0)  # loudness of a source
PEAK = 0.9  # of the loudest sample of the mixture or a source
ABSOLUTE_GATE = 10 ** ((-70 + 0.691) / 10)  # the K-weighted power of -70 LUFS


class LevelRule(NamedTuple):
    """How levels are measured and drawn, and what is done about the mixture's peak.

    ``measure`` goes from samples [T] and the rate in Hz to dB, -inf for silence;
    ``draw`` from the number of sources and a generator to levels in dB [spks].
    ``fixed_peak`` turns every mixture up or down to a peak of 0.9, else only what
    exceeds it is turned.
    """

    measure: Callable[[np.ndarray, int], float]
    draw: Callable[[int, np.random.Generator], np.ndarray]
    fixed_peak: bool


def librimix_levels(
    num_spks: int,
    rng: np.random.Generator,
    loudness_db: tuple[float, float] = LIBRIMIX_DB,
) -> np.ndarray:
    """Independent levels, uniform in a range, as LibriMix's loudnesses.

    Example
    -------
    >>> librimix_levels(2, np.random.default_rng(0)).round(1)
    array([-27.9, -30.8])
    """
    return rng.uniform(*loudness_db, num_spks)


def wsj0mix_levels(num_spks: int, rng: np.random.Generator) -> np.ndarray:
    """A normal level for the first source and normal differences to it for the others.

    The numbers are those of SpeechBrain's dynamic mixing for WSJ0-2Mix. (For three
    speakers it leaves the third as it was recorded; here it is drawn like the second.)

    Example
    -------
    >>> wsj0mix_levels(2, np.random.default_rng(0)).round(1)
    array([-27.1, -30. ])
    """
    first = np.clip(rng.normal(-27.43, 2.57), -45, 0)
    others = np.clip(first + rng.normal(-2.51, 2.66, num_spks - 1), -45, 0)
    return np.array([first, *others])


def loudness(samples: np.ndarray, rate: int) -> float:
    """Loudness of samples [T] after ITU-R BS.1770-4 in LUFS, as LibriMix measures it.

    The mean power of K-weighted blocks of 400 ms, every 100 ms, without those below -70
    and those 10 dB below the mean of the others. Less than 400 ms are one block;
    silence has -inf.
    """
    powers = np.square(sosfilt(k_weighting(rate), samples))
    hop = round(rate / 10)
    hops = powers[: len(powers) // hop * hop].reshape(-1, hop).mean(-1)
    if len(hops) < 4:
        hops = np.full(4, powers.mean())
    blocks = np.convolve(hops, np.full(4, 0.25), mode="valid")
    blocks = blocks[blocks > ABSOLUTE_GATE]
    if not len(blocks):
        return -np.inf
    return to_db(blocks[blocks > blocks.mean() / 10].mean()) - 0.691


@cache
def k_weighting(rate: int) -> np.ndarray:
    """The ear's filter of BS.1770: a high shelf and a high-pass, as sections [2, 6].

    Both are the usual bilinear designs, which hold at any rate; the standard prints the
    coefficients for 48 kHz only.
    """
    # Shelf: +4 dB above 1500 Hz, Q = 1 / sqrt(2).
    root = 10 ** (4.0 / 40)
    w = 2 * np.pi * 1500.0 / rate
    cos, alpha = np.cos(w), np.sin(w) / np.sqrt(2)
    slope = 2 * np.sqrt(root) * alpha
    shelf = [
        root * ((root + 1) + (root - 1) * cos + slope),
        -2 * root * ((root - 1) + (root + 1) * cos),
        root * ((root + 1) + (root - 1) * cos - slope),
        (root + 1) - (root - 1) * cos + slope,
        2 * ((root - 1) - (root + 1) * cos),
        (root + 1) - (root - 1) * cos - slope,
    ]
    # High-pass: 38 Hz, Q = 1/2.
    w = 2 * np.pi * 38.0 / rate
    cos, alpha = np.cos(w), np.sin(w)
    half = (1 + cos) / 2
    high_pass = [half, -2 * half, half, 1 + alpha, -2 * cos, 1 - alpha]
    return np.array([np.divide(s, s[3]) for s in (shelf, high_pass)])


def mean_amplitude(samples: np.ndarray, rate: int) -> float:
    """The mean absolute sample in dB, as SpeechBrain's dynamic mixing measures levels.

    Example
    -------
    >>> round(mean_amplitude(np.array([0.1, -0.1, 0.1, 0.1]), 8000), 6)
    -20.0
    """
    return 2 * to_db(np.abs(samples).mean())


def power_db(samples: np.ndarray) -> float:
    """The mean power in dB; -inf for silence.

    Example
    -------
    >>> round(power_db(np.array([0.1, -0.1])), 6)
    -20.0
    """
    return to_db(np.square(samples).mean())


def to_db(power: float) -> float:
    """A power in dB; -inf for none."""
    return float(10 * np.log10(power)) if power > 0 else -np.inf


LEVELS = {
    "librimix": LevelRule(loudness, librimix_levels, fixed_peak=False),
    "wsj0mix": LevelRule(mean_amplitude, wsj0mix_levels, fixed_peak=True),
}
