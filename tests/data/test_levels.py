"""Level rules: the loudness is the standard's, the draws are the recipes'."""

import numpy as np
import pytest
import torch
from torchaudio.functional import loudness as torchaudio_loudness

from speechbrain_spgm.data.levels import LEVELS, loudness


@pytest.mark.parametrize("rate", [8000, 16000])
def test_loudness_is_that_of_the_standard(rate):
    rng = np.random.default_rng(0)
    pauses = np.repeat(rng.uniform(0, 1, 30) ** 4, rate // 10)  # some blocks are gated
    samples = 0.1 * pauses * rng.standard_normal(3 * rate)
    expected = torchaudio_loudness(torch.from_numpy(samples)[None], rate).item()
    assert loudness(samples, rate) == pytest.approx(expected, abs=1e-6)
    assert loudness(10 * samples, rate) == pytest.approx(expected + 20, abs=1e-6)


def test_silence_and_short_pieces_have_a_loudness():
    assert loudness(np.zeros(8000), 8000) == -np.inf
    short = 0.1 * np.random.default_rng(0).standard_normal(1600)
    long = np.tile(short, 10)
    assert loudness(short, 8000) == pytest.approx(loudness(long, 8000), abs=0.5)


def test_levels_are_drawn_as_in_the_recipes():
    rng = np.random.default_rng(0)
    uniform = np.array([LEVELS["librimix"].draw(2, rng) for _ in range(2000)])
    assert -33 <= uniform.min() < -32.9 and -25.1 < uniform.max() <= -25
    assert abs(np.corrcoef(uniform.T)[0, 1]) < 0.1
    normal = np.array([LEVELS["wsj0mix"].draw(3, rng) for _ in range(4000)])
    differences = normal[:, 1:] - normal[:, :1]
    assert normal[:, 0].mean() == pytest.approx(-27.43, abs=0.2)
    assert normal[:, 0].std() == pytest.approx(2.57, abs=0.2)
    assert differences.mean(0) == pytest.approx([-2.51, -2.51], abs=0.2)
    assert differences.std(0) == pytest.approx([2.66, 2.66], abs=0.2)
