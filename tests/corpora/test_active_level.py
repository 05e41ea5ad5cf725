"""The active level: what it must not depend on, and the Recommendation word by word."""

from math import exp, log10
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_spgm.corpora.active_level import active_level, band_pass


def decibels(power: float) -> float:
    return 10 * log10(power)


@pytest.fixture
def speech() -> np.ndarray:
    """Bursts of noise of unequal loudness with short pauses, 6 s at 8 kHz."""
    rng = np.random.default_rng(0)
    loudness = np.repeat([1, 0, 0.3, 0.7, 0, 0, 0.5, 0.1, 0, 1, 0.2, 0], 4000)
    return 0.1 * loudness * rng.standard_normal(48000)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("hertz", [300, 1000, 3000])
def test_a_steady_tone_has_its_own_level(rate, hertz):
    tone = 0.2 * np.sin(2 * np.pi * hertz * np.arange(20 * rate) / rate)
    # The hangover counts 0.2 s of 20 s too much: less than 0.1 dB.
    assert decibels(active_level(tone, rate)) == pytest.approx(
        decibels(0.2**2 / 2), abs=0.1
    )


def test_what_is_not_speech_does_not_count(speech):
    hum = np.sin(2 * np.pi * 50 * np.arange(48000) / 8000)
    level = decibels(active_level(speech, 8000))
    assert decibels(active_level(speech + 0.1 * hum + 0.1, 8000)) == pytest.approx(
        level, abs=0.2
    )


def test_pauses_do_not_lower_the_level(speech):
    level = decibels(active_level(speech, 8000))
    pause = np.zeros(100000)
    longer = np.concatenate([pause, speech, pause])
    assert decibels(active_level(longer, 8000)) == pytest.approx(level, abs=1e-6)
    rms, active = decibels(np.square(longer).mean()), active_level(longer, 8000)
    assert decibels(active) - rms > 6


@pytest.mark.parametrize("gain, error", [(0.25, 1e-9), (0.7, 0.2), (30.0, 0.2)])
def test_a_gain_moves_the_level_by_itself(speech, gain, error):
    moved = active_level(gain * speech, 8000) / active_level(speech, 8000)
    assert decibels(moved) == pytest.approx(20 * log10(gain), abs=error)


def test_silence_has_no_power():
    assert active_level(np.zeros(8000), 8000) == active_level(np.zeros(0), 8000) == 0


def slow(samples: np.ndarray, rate: int) -> float:
    """P.56, 6.1: p, q, a_j and h_j sample by sample, thresholds a factor 2 apart."""
    samples = band_pass(np.concatenate([samples, np.zeros(-(-35 * rate // 100))]), rate)
    g, hangover = exp(-1 / (rate * 0.03)), rate // 5
    thresholds = 2.0 ** np.arange(-30, 1)  # of the power of the envelope
    active, idle = np.zeros(31), np.full(31, hangover + 1)
    p = q = 0.0
    for x in np.abs(samples):
        p = g * p + (1 - g) * x
        q = g * q + (1 - g) * p
        idle = np.where(q * q >= thresholds, 0, idle + 1)
        active += idle <= hangover
    reached = active > 0
    levels = 10 * np.log10(np.square(samples).sum() / active[reached])
    margins = levels - 10 * np.log10(thresholds[reached]) - 15.9
    # Louder thresholds come last: the margin falls through 0.
    return 10 ** (np.interp(0, margins[::-1], levels[::-1]) / 10)


def test_the_fast_way_gives_what_the_recommendation_says(speech):
    assert active_level(speech[:16000], 8000) == pytest.approx(
        slow(speech[:16000], 8000), rel=1e-6
    )


def test_real_voices_follow_the_recommendation(shared: Path):
    paths = sorted((shared / "voices" / "LibriSpeech").glob("dev-clean/*/*/*.flac"))
    assert paths
    samples, rate = soundfile.read(paths[0])
    expected = slow(samples[: 2 * rate], rate)
    assert active_level(samples[: 2 * rate], rate) == pytest.approx(expected, rel=1e-6)
