"""Scores without references tell good voices from bad ones."""

import importlib.util

import pytest
import torch

from speechbrain_spgm.metrics.reference_free import (
    REFERENCE_FREE,
    Heard,
    check_scores,
    measure_all,
)

OURS = [name for name, entry in REFERENCE_FREE.items() if not entry.packages]


def talk(seed: int) -> torch.Tensor:
    """Tones that come and go, ``[16000]``."""
    draw = torch.Generator().manual_seed(seed)
    times = torch.arange(16000) / 8000
    parts = []
    for _ in range(8):
        hertz = float(torch.randint(200, 3000, (1,), generator=draw))
        gate = torch.rand(20, generator=draw).round().repeat_interleave(800)
        parts.append(gate * torch.sin(2 * torch.pi * hertz * times))
    return 0.1 * torch.stack(parts).sum(0)


@pytest.mark.parametrize("name", OURS)
def test_leakage_makes_each_score_worse(name):
    sources = torch.stack([talk(1), talk(2)], -1)
    mix = sources.sum(-1)
    values = []
    for leak in (0.0, 0.2, 0.45):
        voices = (1 - leak) * sources + leak * sources.flip(-1)
        if name == "residual":
            voices = voices * (1 - leak)
        # A network that is the less sure the more it leaks.
        again = voices + leak * torch.randn(16000, 2)
        heard = Heard(mix, voices, 8000, lambda m, x=again: -x[-len(m) :].flip(-1))
        values.append(measure_all([name], heard)[0][name])
    better = REFERENCE_FREE[name].better
    assert better * values[0] > better * values[1] > better * values[2]


@pytest.mark.parametrize("T", [1, 300, 16000])
def test_silence_and_short_recordings_have_scores(T):
    silent = Heard(
        torch.zeros(T), torch.zeros(T, 3), 8000, lambda m: torch.zeros(len(m), 3)
    )
    for voice in measure_all(OURS, silent):
        assert all(abs(value) <= 60 for value in voice.values())


def test_dnsmos_is_that_of_its_authors():
    if not all(map(importlib.util.find_spec, ("speechmos", "onnxruntime"))):
        pytest.skip("needs DNSMOS: pip install speechmos onnxruntime")
    names = check_scores([name for name in REFERENCE_FREE if "mos" in name])
    voice = talk(3)[:, None].repeat(5, 1)  # 10 s
    found = measure_all(names, Heard(voice[:, 0], voice, 8000))[0]
    # What speechmos 0.0.1.1 itself says of this signal, resampled by torchaudio.
    assert found == pytest.approx(
        {"dnsmos": 1.0654, "dnsmos_signal": 1.1505, "dnsmos_background": 1.1563},
        abs=0.001,
    )
