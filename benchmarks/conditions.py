"""How a model fares with other recordings than those of its test list.

    python -m benchmarks.conditions --list libri2mix_test-clean.csv \\
        --data-folder LibriSpeech

Takes the voices of test mixtures, makes both equally loud, and changes one thing at a
time: level, band, room, noise, length. Separates with the shipped model (or
``--model``) and writes ``docs/conditions.md``: what it is good at, and what not.

Axes: T samples, spks sources.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.evidence import mean
from benchmarks.testlist import made_by, run_study
from speechbrain_spgm.data import Mixture, MixtureList
from speechbrain_spgm.data.augment import (
    filter_rows,
    limit_band,
    match_colour,
    reverberate,
)
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss

PLAIN = "both voices equally loud"

# From equally loud voices [spks, T], their rate and a random generator to the voices
# [spks, T'] as the model hears them, and what else it hears [T'].
Change = Callable[[np.ndarray, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def quieter(decibels: float) -> Change:
    """The second voice is turned down."""

    def change(waves: np.ndarray, *_: object) -> tuple[np.ndarray, np.ndarray]:
        gains = np.ones((len(waves), 1), dtype=waves.dtype)
        gains[1] = 10 ** (-decibels / 20)
        return waves * gains, np.zeros_like(waves[0])

    return change


def band(low: float, high: float) -> Change:
    """Only frequencies between two are left."""

    def change(
        waves: np.ndarray, rate: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        cut = limit_band(waves, rate, rng, hertz=(high, high), low_hertz=(low, low))
        return cut, np.zeros_like(waves[0])

    return change


def one_colour(
    waves: np.ndarray, rate: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The voices as one microphone hears them, which also makes voices more alike."""
    return match_colour(waves, rate, rng, share=(1.0, 1.0)), np.zeros_like(waves[0])


def room(t60_seconds: float, direct_db: float) -> Change:
    """The voices as they sound in a room, which are also what is asked for."""

    def change(
        waves: np.ndarray, rate: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        wet = reverberate(waves, rate, rng, (t60_seconds,) * 2, (direct_db,) * 2)
        return wet, np.zeros_like(waves[0])

    return change


def noisy(snr_db: float) -> Change:
    """Pink noise so many dB below the power of both voices together."""

    def change(
        waves: np.ndarray, rate: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        white = rng.standard_normal((1, waves.shape[1])).astype(waves.dtype)
        pink = filter_rows(white, rate, lambda at: np.maximum(at, 50.0) ** -0.5)[0]
        power = np.square(waves.sum(0)).mean() * 10 ** (-snr_db / 10)
        return waves, pink * np.sqrt(power / np.square(pink).mean())

    return change


def first(seconds: float) -> Change:
    """Only the beginning."""

    def change(
        waves: np.ndarray, rate: int, *_: object
    ) -> tuple[np.ndarray, np.ndarray]:
        cut = waves[:, : round(seconds * rate)]
        return cut, np.zeros_like(cut[0])

    return change


CONDITIONS: dict[str, Change] = {
    PLAIN: quieter(0),
    "the second voice 5 dB quieter": quieter(5),
    "the second voice 10 dB quieter": quieter(10),
    "both voices of one sound colour": one_colour,
    "only below 2.5 kHz": band(1, 2500),
    "only above 100 Hz": band(100, 8000),
    "only above 200 Hz": band(200, 8000),
    "telephone, 300 to 3400 Hz": band(300, 3400),
    "small room, T60 200 ms, direct sound 10 dB louder": room(0.2, 10),
    "room, T60 500 ms, direct sound 3 dB louder": room(0.5, 3),
    "pink noise, SNR 15 dB": noisy(15),
    "pink noise, SNR 5 dB": noisy(5),
    "the first 1.5 s": first(1.5),
}


def improvement(model: SPGMSeparation, waves: np.ndarray, other: np.ndarray) -> float:
    """SI-SDRi in dB, the mean over the voices.

    Arguments
    ---------
    model : SPGMSeparation
        Any.
    waves : np.ndarray
        Voices ``[spks, T]``.
    other : np.ndarray
        What else is heard, ``[T]``.
    """
    sources = torch.from_numpy(waves.T).unsqueeze(0)  # [1, T, spks]
    mix = torch.from_numpy(waves.sum(0) + other).unsqueeze(0)
    lengths = torch.tensor([mix.shape[1]])

    def loss(est: Tensor) -> Tensor:
        return pit_si_sdr_loss(est, sources, lengths).loss

    unchanged = mix.unsqueeze(-1).expand_as(sources)
    return float(loss(unchanged) - loss(model.separate_batch(mix)))


def study(model: SPGMSeparation, mixtures: MixtureList) -> dict[str, list[float]]:
    """SI-SDRi in dB of every mixture in every condition."""
    scores: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    for i in range(len(mixtures)):
        waves = equally_loud(mixtures[i])
        for name, change in CONDITIONS.items():
            changed = change(waves, mixtures.sample_rate, np.random.default_rng(i))
            scores[name].append(improvement(model, *changed))
    return scores


def equally_loud(mixture: Mixture) -> np.ndarray:
    """The voices ``[spks, T]``, each with a root mean square of 0.05."""
    waves = mixture.sources.numpy().T
    return 0.05 * waves / np.sqrt(np.square(waves).mean(1, keepdims=True))


def report(scores: dict[str, list[float]], name: str) -> str:
    """The table in Markdown."""
    count = len(scores[PLAIN])
    lines = [
        "# Other conditions than those of the test list\n",
        f"{made_by('conditions', count)} with {name}, one view of each mixture: "
        f"the voices of {count} test mixtures, with one thing changed at a time. ± is "
        "the 95% confidence interval of the mean (of the difference, paired by "
        "mixture).\n",
        "| condition | SI-SDRi, dB | against the first, dB |",
        "|---|---|---|",
    ]
    for condition, values in scores.items():
        gaps = [a - b for a, b in zip(values, scores[PLAIN], strict=True)]
        gap = "" if condition == PLAIN else mean(gaps)
        lines.append(f"| {condition} | {mean(values)} | {gap} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measures and writes.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    run_study("conditions", argv, study, report)


if __name__ == "__main__":
    main()
