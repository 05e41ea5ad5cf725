"""Augmentations: each does what it says, linearly and the same for the same draws."""

from math import log10

import numpy as np
import pytest
from scipy.fft import rfft, rfftfreq

from speechbrain_spgm.data.augment import (
    MIXTURE,
    VOICES,
    Augmentations,
    change_gain,
    converse,
    drop_chunks,
    drop_frequencies,
    equalise,
    invert,
    limit_band,
    match_colour,
    reverberate,
    shift,
)
from speechbrain_spgm.data.vary import keep_power

RATE = 8000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(rows: int = 2, seconds: float = 2.0) -> np.ndarray:
    """White noise [rows, T]."""
    samples = rng(7).standard_normal((rows, round(seconds * RATE)))
    return (0.1 * samples).astype(np.float32)


def gains_db(unit, seed: int, **options) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies [F] and a filter's gains [rows, F], from its answer to impulses."""
    impulses = np.zeros((2, RATE), dtype=np.float32)
    impulses[:, RATE // 2] = 1
    answer = unit(impulses, RATE, rng(seed), **options)
    return rfftfreq(RATE, 1 / RATE), 20 * np.log10(np.abs(rfft(answer)) + 1e-6)


@pytest.mark.parametrize("unit", (VOICES | MIXTURE).values())
@pytest.mark.parametrize("rows", [1, 3])
def test_units_are_linear_keep_the_shape_and_repeat(unit, rows):
    waves = noise(rows)
    before = waves.copy()
    changed = unit(waves, RATE, rng(1))
    assert changed.shape == waves.shape and changed.dtype == np.float32
    assert np.array_equal(waves, before)
    assert np.array_equal(changed, unit(waves, RATE, rng(1)))
    if rows > 1 or unit not in (converse, match_colour):  # nothing to be changed
        assert not np.allclose(changed, unit(waves, RATE, rng(2)), atol=1e-4)
    np.testing.assert_allclose(2 * changed, unit(2 * waves, RATE, rng(1)), atol=1e-5)
    assert not unit(np.zeros_like(waves), RATE, rng(1)).any()


@pytest.mark.parametrize("unit", MIXTURE.values())
def test_the_mixture_stays_the_sum(unit):
    waves = noise(3)
    summed = unit(waves.sum(0, keepdims=True), RATE, rng(1))
    np.testing.assert_allclose(unit(waves, RATE, rng(1)).sum(0), summed[0], atol=1e-6)


@pytest.mark.parametrize("unit", [shift, equalise, reverberate, invert])
def test_voices_are_treated_differently(unit):
    waves = np.repeat(noise(1), 2, axis=0)
    first, second = unit(waves, RATE, rng(1))
    assert not np.allclose(first, second, atol=1e-3)


def colours_db(waves: np.ndarray) -> np.ndarray:
    """Powers per octave [rows, 6] in dB, from 63 Hz up, with mean 0."""
    powers = np.square(np.abs(rfft(waves)))
    hertz = rfftfreq(waves.shape[-1], 1 / RATE)
    octaves = [(hertz >= low) & (hertz < 2 * low) for low in 62.5 * 2.0 ** np.arange(6)]
    colours = 10 * np.log10([powers[:, octave].mean(-1) for octave in octaves]).T
    return colours - colours.mean(-1, keepdims=True)


def test_match_colour_makes_two_microphones_one():
    waves = equalise(noise(seconds=4), RATE, rng(5), most_db=9)
    gap = np.abs(np.diff(colours_db(waves), axis=0)).max()
    matched = match_colour(waves, RATE, rng(1), share=(1.0, 1.0))
    half = match_colour(waves, RATE, rng(1), share=(0.5, 0.5))
    assert gap > 5
    assert np.abs(np.diff(colours_db(matched), axis=0)).max() < 0.2 * gap
    np.testing.assert_allclose(
        colours_db(half).mean(0), colours_db(waves).mean(0), atol=1
    )
    np.testing.assert_allclose(
        np.diff(colours_db(half), axis=0),
        np.diff(colours_db(waves), axis=0) / 2,
        atol=1,
    )
    alone = noise(1)
    np.testing.assert_allclose(match_colour(alone, RATE, rng(1)), alone, atol=1e-5)
    silent = waves * np.array([[1], [0]], dtype=np.float32)
    np.testing.assert_allclose(match_colour(silent, RATE, rng(1)), silent, atol=1e-5)


def test_what_is_left_of_a_voice_is_not_raised_without_end():
    voice = noise(1)
    for left, gain in ((0.5, 2), (1e-4, 4), (0, 0)):
        loud = np.abs(keep_power(left * voice, voice)).max() / np.abs(voice).max()
        assert loud == pytest.approx(left * gain, rel=1e-5)


def test_shift_moves_in_both_directions_and_fills_with_zeros():
    wave = np.arange(1, 41, dtype=np.float32)
    expected = {by: np.pad(wave, 8)[8 - by : 48 - by].tolist() for by in range(-8, 9)}
    moves = set()
    for seed in range(30):
        (moved,) = shift(wave[None], RATE, rng(seed), most_seconds=0.001)
        moves.update(by for by in expected if expected[by] == moved.tolist())
        assert moved.tolist() in expected.values()
    assert min(moves) < -4 and max(moves) > 4


def test_a_conversation_has_turns_and_some_overlap():
    ones = np.ones((2, 6 * RATE), dtype=np.float32)
    talks = [converse(ones, RATE, rng(seed)) for seed in range(200)]
    alone = [t for t in talks if not t.any(1).all()]
    assert 20 <= len(alone) <= 60 and all((t.sum(0) == 1).all() for t in alone)
    turns = [t for t in talks if t.any(1).all()]
    shares = [(t.sum(0) > 1.5).mean() for t in turns]
    assert 0.08 < min(shares) < 0.15 and 0.35 < max(shares) < 0.42
    assert all(t.max(0).min() > 0.49 for t in turns)  # somebody talks all the time
    assert len({t[:, 0].argmax() for t in turns}) == 2  # either begins
    assert max(np.abs(np.diff(t)).max() for t in turns) < 0.01  # no clicks


def test_invert_turns_every_voice_round_half_of_the_time():
    waves = noise()
    signs = []
    for seed in range(200):
        inverted = invert(waves, RATE, rng(seed))
        signs.append(np.sign((inverted * waves).sum(-1)))
        np.testing.assert_array_equal(inverted, waves * signs[-1][:, None])
    np.testing.assert_allclose(np.mean(signs, axis=0), 0, atol=0.25)
    assert abs(np.prod(signs, axis=1).mean()) < 0.25  # one voice without the other


def test_equalise_is_gentle_and_within_its_range():
    curves = []
    for seed in range(5):
        hertz, gains = gains_db(equalise, seed, most_db=6.0)
        inside = gains[:, (hertz > 60) & (hertz < 3900)]
        assert np.abs(inside).max() < 6.5
        assert np.abs(np.diff(inside)).max() < 0.5  # dB from one hertz to the next
        curves.append(inside.std())
    assert min(curves) > 1


def test_a_room_decays_as_its_t60_says():
    impulses = np.zeros((2, 2 * RATE), dtype=np.float32)
    impulses[:, 0] = 1
    room = reverberate(
        impulses, RATE, rng(), t60_seconds=(0.4, 0.4), direct_db=(3.0, 3.0)
    )
    assert room[:, 0] == pytest.approx(1)
    energy = np.square(room[:, 1:])
    assert 10 * log10(1 / energy[0].sum()) == pytest.approx(3, abs=0.01)
    # 60 dB in 400 ms are 7.5 dB in 50 ms, of noise whose energy fluctuates.
    blocks = energy[:, : 5 * 400].sum(0).reshape(5, 400).sum(-1)
    assert np.diff(10 * np.log10(blocks)) == pytest.approx([-7.5] * 4, abs=1.0)


def test_the_band_ends_at_the_cuts():
    cuts = {"hertz": (2500.0, 2500.0), "low_hertz": (200.0, 200.0)}
    hertz, gains = gains_db(limit_band, 0, **cuts)
    assert np.abs(gains[:, (hertz > 300) & (hertz < 2000)]).max() < 0.1
    assert gains[0, hertz == 2500] == pytest.approx(-3, abs=0.1)
    assert gains[0, hertz == 200] == pytest.approx(-3, abs=0.1)
    assert gains[:, hertz > 3500].max() < -25
    assert gains[:, hertz < 100].max() < -35


def test_narrow_bands_are_dropped():
    for seed in range(5):
        hertz, gains = gains_db(drop_frequencies, seed, most=3, width_hertz=100.0)
        assert np.array_equal(gains[0], gains[1])
        dropped = (gains[0] < -6).mean() * 4000
        assert 40 < dropped < 310  # one to three bands of 100 Hz
        assert gains.min() < -35
        assert np.median(np.abs(gains)) < 0.1


def test_the_same_spans_of_all_rows_are_silent():
    waves = noise(3)
    for seed in range(10):
        kept = drop_chunks(waves, RATE, rng(seed), most=2, seconds=(0.1, 0.2)) != 0
        assert (kept == kept[0]).all()
        assert 0 < (~kept[0]).mean() <= 0.2  # 2 s; a span may run over the end


def test_gain_turns_down_by_decibels():
    waves = noise()
    np.testing.assert_allclose(
        change_gain(waves, RATE, rng(), decibels=(-20, -20)), waves / 10, rtol=1e-5
    )


def test_probabilities_are_kept():
    waves = noise(2, seconds=0.5)
    augmentations = Augmentations({"drop_chunks": 0.25})
    draws = [augmentations.mixture(waves, RATE, rng(seed)) for seed in range(200)]
    changed = sum(not np.array_equal(draw, waves) for draw in draws)
    assert 30 < changed < 70  # 50 expected, standard deviation 6
    assert augmentations.voices(waves, RATE, rng()) is waves
