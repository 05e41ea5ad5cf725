"""Every condition changes what its name says, and the score is an improvement."""

import numpy as np
import pytest
import torch

from benchmarks import conditions

RATE = 8000


@pytest.fixture
def waves() -> np.ndarray:
    voices = np.random.default_rng(0).standard_normal((2, 2 * RATE))
    return 0.05 * voices.astype(np.float32)


def changed(
    change: conditions.Change, waves: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return change(waves, RATE, np.random.default_rng(1))


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(np.square(a).mean() / np.square(b).mean())


def test_conditions_do_what_they_say(waves: np.ndarray) -> None:
    voices, other = changed(conditions.quieter(10), waves)
    assert decibels(voices[0], voices[1]) == pytest.approx(10, abs=0.2)
    assert not other.any()
    voices, other = changed(conditions.noisy(5), waves)
    assert np.array_equal(voices, waves)
    assert decibels(voices.sum(0), other) == pytest.approx(5, abs=0.01)
    voices, _ = changed(conditions.band(300, 3400), waves)
    kept = np.square(np.abs(np.fft.rfft(voices)))
    hertz = np.fft.rfftfreq(voices.shape[1], 1 / RATE)
    inside = (hertz > 250) & (hertz < 3600)
    assert kept[:, inside].sum() > 0.98 * kept.sum()
    assert changed(conditions.first(1.5), waves)[0].shape == (2, 1.5 * RATE)


@pytest.mark.parametrize("name", conditions.CONDITIONS)
def test_the_score_is_the_improvement_over_the_mixture(
    waves: np.ndarray, name: str
) -> None:
    voices, other = changed(conditions.CONDITIONS[name], waves)

    class Model:
        """Leaves a tenth of the other voice and no noise."""

        def separate_batch(self, mix: torch.Tensor) -> torch.Tensor:
            assert np.allclose(mix[0], voices.sum(0) + other)
            est = voices[::-1] + 0.1 * voices  # in the other order
            return torch.from_numpy(est.T.copy()).unsqueeze(0)

    better = conditions.improvement(Model(), voices, other)
    assert better > 18 if other.any() else better == pytest.approx(20, abs=0.5)


def test_the_table_compares_with_equally_loud_voices() -> None:
    scores = {conditions.PLAIN: [5.0, 7.0], "other": [4.0, 6.0]}
    text = conditions.report(scores, "a model")
    assert f"| {conditions.PLAIN} | 6.00 ± 12.71 |  |" in text
    assert "| other | 5.00 ± 12.71 | -1.00 ± 0.00 |" in text
