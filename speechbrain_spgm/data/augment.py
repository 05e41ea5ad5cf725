"""Augmentations of mixtures, each a function of waveforms and a generator.

All take the parts of one mixture [rows, T] (its voices, and in the second group its
noise as the last row) and return as many; the mixture is the sum of the rows, before
and after. There are two groups:

- *voices*: ``shift``, ``converse``, ``equalise``, ``match_colour``, ``reverberate``,
  ``invert`` treat every voice differently, as speakers and microphones do. They come
  before the levels are set. The reference of a reverberant voice is the reverberant
  voice: the network learns to separate, and is not asked to remove the room at the same
  time.
- *mixture*: ``limit_band``, ``drop_frequencies``, ``drop_chunks``, ``change_gain``
  treat the finished mixture as one bad line would. They are linear and the same for
  all rows, so what is missing in the mixture is missing in the references too. (To drop
  it in the mixture alone would teach the network to invent what it cannot hear.)

Axes: T samples, F frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.ndimage import uniform_filter1d
from scipy.signal import oaconvolve

from speechbrain_spgm.errors import UserError

FADE_SECONDS = 0.02  # in which a voice comes and goes
SPREAD_SECONDS = 0.05  # how far a filter may smear: room for it after the last sample


def shift(
    waves: np.ndarray, rate: int, rng: np.random.Generator, most_seconds: float = 0.5
) -> np.ndarray:
    """Moves every row earlier or later by its own time; zeros move in.

    Nothing wraps around: a voice begins later or ends earlier.
    """
    most = min(round(most_seconds * rate), waves.shape[-1])
    moved = np.zeros_like(waves)
    for row, by in enumerate(rng.integers(-most, most + 1, len(waves))):
        # 0    by                  T
        # |--0--|--------wave-------|~~~
        if by >= 0:
            moved[row, by:] = waves[row, : waves.shape[-1] - by]
        else:
            moved[row, :by] = waves[row, -by:]
    return moved


def converse(
    waves: np.ndarray,
    rate: int,
    rng: np.random.Generator,
    overlap: tuple[float, float] = (0.1, 0.4),
    turn_seconds: tuple[float, float] = (1.0, 4.0),
    alone: float = 0.2,
) -> np.ndarray:
    """Makes a conversation of voices that talk all the time: they take turns.

    A drawn share of the time the next voice has begun before the last one ends; in the
    share ``alone`` of the draws one voice talks and the others are silent throughout.
    """
    rows, T = waves.shape
    order = rng.permutation(rows)
    if rng.random() < alone:
        return waves * (np.arange(rows) == order[0])[:, None]
    ends = np.cumsum(rng.uniform(*turn_seconds, 1 + int(T / rate / turn_seconds[0])))
    ends = ends[ends * rate < 0.9 * T] * rate
    if not len(ends):
        ends = np.array([rng.uniform(0.2, 0.8) * T])
    both = rng.uniform(*overlap) * T / len(ends)  # samples around each end
    # 0            ends[0]             ends[1]       T
    # |--------------:---|           |---:-----------|    order[0]
    #            |---:---------------:---|                order[1]
    #            |<both>|
    talks = np.zeros((rows, T))
    starts = np.concatenate([[-both], ends]) - both / 2
    stops = np.concatenate([ends, [T]]) + both / 2
    for turn, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        talks[order[turn % rows], max(0, round(start)) : round(stop)] = 1
    return waves * uniform_filter1d(talks, 1 + round(FADE_SECONDS * rate)).astype(
        waves.dtype
    )


def equalise(
    waves: np.ndarray, rate: int, rng: np.random.Generator, most_db: float = 6.0
) -> np.ndarray:
    """Gives every row a sound colour of its own, as another microphone would.

    The response is a line in dB over log frequency through six random points from 50 Hz
    to half the rate, so it has shelves and wide peaks, and no steep edge.
    """
    hertz = np.geomspace(50, rate / 2, 6)
    decibels = rng.uniform(-most_db, most_db, (len(waves), len(hertz)))
    return recolour(waves, rate, hertz, decibels)


def match_colour(
    waves: np.ndarray,
    rate: int,
    rng: np.random.Generator,
    share: tuple[float, float] = (0.5, 1.0),
    most_db: float = 20.0,
) -> np.ndarray:
    """Brings the rows' sound colours nearer to each other, or to the same one.

    Every recording of a corpus has the colour of its own microphone, and a network
    learns to tell voices apart by it. So it fails where one microphone, or one studio,
    recorded them all. A row's colour is its power in eight bands, in dB; it moves the
    drawn share of the way to the mean of all rows, by ``most_db`` at most.
    """
    edges = np.geomspace(50, rate / 2, 9)
    bands = np.digitize(rfftfreq(waves.shape[-1], 1 / rate), edges) - 1  # [F]
    powers = np.square(np.abs(rfft(waves)))  # [rows, F]
    # [rows, 8]; what is 60 dB below the row's loudest band counts as that.
    colours = np.stack([powers[:, bands == b].sum(-1) for b in range(8)], axis=-1)
    loudest = np.maximum(colours.max(-1, keepdims=True), np.finfo(np.float32).tiny)
    colours = 10 * np.log10(np.maximum(colours / loudest, 1e-6))
    heard = powers.sum(-1) > 0  # silence has no colour
    mean = colours[heard].mean(0) if heard.any() else 0
    moves = rng.uniform(*share) * (mean - colours)
    moves = np.clip(moves, -most_db, most_db)
    return recolour(waves, rate, np.sqrt(edges[:-1] * edges[1:]), moves)


def reverberate(
    waves: np.ndarray,
    rate: int,
    rng: np.random.Generator,
    t60_seconds: tuple[float, float] = (0.15, 0.6),
    direct_db: tuple[float, float] = (0.0, 15.0),
) -> np.ndarray:
    """Puts the rows at different places of one synthetic room.

    A room response is the direct sound, then noise that decays by 60 dB in a time drawn
    once for all rows. Every row has noise of its own and its own ratio of direct to
    reverberant energy. The direct sound stays in place and as loud as it was.
    """
    t60 = rng.uniform(*t60_seconds)
    times = np.arange(1, round(t60 * rate)) / rate
    # exp(-6.9 t / T60) in amplitude is a thousandth, -60 dB, at T60.
    tails = rng.standard_normal((len(waves), len(times)))
    tails *= np.exp(-np.log(1000) * times / t60)
    ratios = rng.uniform(*direct_db, (len(waves), 1))
    energies = np.square(tails).sum(-1, keepdims=True)
    tails *= np.sqrt(10 ** (-ratios / 10) / energies)
    tails = tails.astype(waves.dtype)
    late = oaconvolve(waves, tails, axes=-1)[:, : waves.shape[-1] - 1]
    wet = waves.copy()
    wet[:, 1:] += late
    return wet


def invert(waves: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Turns every row's polarity round, or not, with equal chances.

    Nobody hears the polarity of a recording, and every microphone has its own; to a
    network that ends its encoder in a ReLU, it is another waveform.
    """
    signs = 1 - 2 * rng.integers(0, 2, (len(waves), 1))
    return waves * signs.astype(waves.dtype)


def limit_band(
    waves: np.ndarray,
    rate: int,
    rng: np.random.Generator,
    hertz: tuple[float, float] = (2000.0, 3800.0),
    low_hertz: tuple[float, float] = (50.0, 350.0),
) -> np.ndarray:
    """Cuts what lies above one random frequency and below another, as telephones do.

    The edges are those of Butterworth filters, of order 10 above and 6 below, without
    their delay. The lower frequency is drawn evenly over log frequency.
    """
    cut = rng.uniform(*hertz)
    low = np.exp(rng.uniform(*np.log(low_hertz)))

    def response(at: np.ndarray) -> np.ndarray:
        above = 1 / np.sqrt(1 + (at / cut) ** 20)
        return above / np.sqrt(1 + (low / np.maximum(at, 1e-3)) ** 12)

    return filter_rows(waves, rate, response)


def drop_frequencies(
    waves: np.ndarray,
    rate: int,
    rng: np.random.Generator,
    most: int = 3,
    width_hertz: float = 60.0,
) -> np.ndarray:
    """Removes one to ``most`` narrow bands at random frequencies, the same of all rows.

    A band is a notch in the shape of a bell, about ``width_hertz`` wide at half height.
    """
    centres = rng.uniform(100, rate / 2, rng.integers(1, most + 1))

    def response(at: np.ndarray) -> np.ndarray:
        distance = (at - centres[:, None]) / (width_hertz / 2)
        return (1 - 0.5 ** (distance**2)).prod(0)

    return filter_rows(waves, rate, response)


def drop_chunks(
    waves: np.ndarray,
    rate: int,
    rng: np.random.Generator,
    most: int = 3,
    seconds: tuple[float, float] = (0.02, 0.25),
) -> np.ndarray:
    """Silences one to ``most`` random spans, the same of all rows."""
    kept = np.ones(waves.shape[-1], dtype=waves.dtype)
    for _ in range(rng.integers(1, most + 1)):
        start = rng.integers(len(kept))
        kept[start : start + round(rng.uniform(*seconds) * rate)] = 0
    return waves * kept


def change_gain(
    waves: np.ndarray,
    rate: int,
    rng: np.random.Generator,
    decibels: tuple[float, float] = (-20.0, 0.0),
) -> np.ndarray:
    """Turns the whole mixture down by a random number of dB."""
    return waves * np.float32(10 ** (rng.uniform(*decibels) / 20))


def recolour(
    waves: np.ndarray, rate: int, hertz: np.ndarray, decibels: np.ndarray
) -> np.ndarray:
    """Filters rows [rows, T] by curves in dB that are linear over log frequency.

    ``hertz`` [P] are the curves' points, ``decibels`` [rows, P] their gains; beyond the
    first and last they stay as they are there.
    """

    def response(at: np.ndarray) -> np.ndarray:
        places = np.log(np.maximum(at, 1.0))
        curves = [np.interp(places, np.log(hertz), row) for row in decibels]
        return 10 ** (np.stack(curves) / 20)

    return filter_rows(waves, rate, response)


def filter_rows(
    waves: np.ndarray, rate: int, response: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Multiplies the spectra of rows [rows, T] by real gains: no delay, no phase.

    ``response`` goes from frequencies [F] in Hz to gains [F] or [rows, F].
    """
    samples = waves.shape[-1]
    # 0                      T          padded
    # |---------wave---------|----zeros----|     what smears over an end lands in zeros
    padded = next_fast_len(samples + round(SPREAD_SECONDS * rate), real=True)
    gains = response(rfftfreq(padded, 1 / rate)).astype(waves.dtype)
    return irfft(rfft(waves, padded) * gains, padded)[:, :samples]


VOICES = {
    unit.__name__: unit
    for unit in (shift, converse, equalise, match_colour, reverberate, invert)
}
MIXTURE = {
    unit.__name__: unit
    for unit in (limit_band, drop_frequencies, drop_chunks, change_gain)
}


# Not drawn for unless asked: runs from before they existed keep their mixtures.
LATER = {"converse", "match_colour", "invert"}


class Augmentations:
    """Applies named augmentations, each with its probability.

    The order is fixed, whatever the order of the names, which are those of ``VOICES``
    and ``MIXTURE``; a list of them means always.
    """

    def __init__(self, probabilities: Mapping[str, float] | Iterable[str]) -> None:
        if not isinstance(probabilities, Mapping):
            probabilities = dict.fromkeys(probabilities, 1.0)
        known = VOICES | MIXTURE
        for name, probability in probabilities.items():
            if name not in known:
                raise UserError(
                    f"There is no augmentation {name}: choose from {', '.join(known)}."
                )
            if not 0 <= probability <= 1:
                raise UserError(
                    f"The probability of {name} is {probability}, but must be from 0 "
                    "to 1."
                )
        self.probabilities = dict(probabilities)

    def voices(
        self, waves: np.ndarray, rate: int, rng: np.random.Generator
    ) -> np.ndarray:
        """What happens to every voice [spks, T] on its own, before levels are set."""
        return self._apply(VOICES, waves, rate, rng)

    def mixture(
        self, waves: np.ndarray, rate: int, rng: np.random.Generator
    ) -> np.ndarray:
        """What happens to all parts [rows, T] of a finished mixture alike."""
        return self._apply(MIXTURE, waves, rate, rng)

    def _apply(
        self,
        units: Mapping[str, Callable[..., np.ndarray]],
        waves: np.ndarray,
        rate: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        for name, unit in units.items():
            if name in LATER and name not in self.probabilities:
                continue
            if rng.random() < self.probabilities.get(name, 0.0):
                waves = unit(waves, rate, rng)
        return waves
