"""The band above the model's goes back to the voices; nothing else changes."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_spgm.audio import resample
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import band
from speechbrain_spgm.inference.band import UpperBand, find_shares
from speechbrain_spgm.inference.level import scale_to_peak

RATE = 22050


@pytest.fixture
def recording() -> torch.Tensor:
    """Two seconds [T] of noise with an offset."""
    return torch.rand(2 * RATE) - 0.4


def upper_band(samples: torch.Tensor) -> torch.Tensor:
    """What a model at 8000 Hz does not see of [T]."""
    centred = samples - samples.mean()
    low = resample(resample(centred, RATE, 8000), 8000, RATE)
    return centred - low[: len(samples)]


def test_the_parts_sum_to_the_upper_band_however_it_is_cut() -> None:
    T, rate = 3 * RATE, RATE
    mix, voices = torch.randn(T, 1), torch.randn(T, 3)
    band = UpperBand(lambda a, b: mix[a:b], lambda a, b: voices[a:b], T, rate, 8000)
    low = resample(resample(mix.T, rate, 8000), 8000, rate)[:, :T].T
    whole = band.split(0, T)
    assert torch.allclose(whole.sum(1), (mix - low)[:, 0], atol=1e-5)
    cuts = [0, 1, 999, 40000, T]
    parts = torch.cat([band.split(a, b) for a, b in zip(cuts, cuts[1:], strict=False)])
    assert torch.allclose(parts, whole, atol=1e-5)


def test_a_voice_gets_the_band_while_it_is_heard() -> None:
    """A tone of 3 kHz in turns: who has it gets the hiss above."""
    T, rate = 4 * RATE, RATE
    times = torch.arange(T) / rate
    turns = torch.stack([times < 2, times >= 2], -1).float()
    voices = turns * torch.sin(2 * torch.pi * 3000 * times)[:, None]
    mix = voices.sum(1, keepdim=True) + 0.1 * torch.randn(T, 1)
    band = UpperBand(lambda a, b: mix[a:b], lambda a, b: voices[a:b], T, rate, 8000)
    energy = band.split(0, T).square()
    early, late = energy[: int(1.7 * rate)].sum(0), energy[int(2.3 * rate) :].sum(0)
    assert early[0] > 100 * early[1] and late[1] > 100 * late[0]


def test_silent_voices_share_alike_and_any_level_gives_the_same_shares() -> None:
    assert torch.equal(find_shares(torch.zeros(9, 2)), torch.full((9, 2), 0.5))
    energies = torch.rand(99, 2)
    tiny = find_shares(energies * 1e-30)
    assert torch.allclose(find_shares(energies), tiny, atol=1e-4)


@pytest.mark.parametrize("kind", ["exact", "stitched"])
@pytest.mark.parametrize("peak", [1e-38, 1e-25, 1e18, 1e29])
def test_the_shares_do_not_depend_on_the_level(model, recording, kind, peak) -> None:
    how = {"mode": kind, "window": 1.0, "full_band": True}
    recording = recording - recording.mean()
    recording /= recording.abs().max()
    expected = model.separate_audio(recording, RATE, **how)[0]
    scaled = (recording.double() * peak).float()
    found = model.separate_audio(scaled, RATE, **how)[0].double() / peak
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=0)


def test_few_spectra_are_computed_at_a_time(monkeypatch) -> None:
    """At high rates thirty seconds of them took gigabytes."""
    sizes, rfft = [], torch.fft.rfft
    monkeypatch.setattr(
        "torch.fft.rfft", lambda x: sizes.append(x[0].numel()) or rfft(x)
    )
    voices = torch.randn(9 * RATE, 2)
    read = (lambda a, b: voices[a:b, :1], lambda a, b: voices[a:b])
    whole = UpperBand(*read, len(voices), RATE, 8000).shares
    monkeypatch.setattr(band, "SPECTRA", 10_000)
    sizes.clear()
    parts = UpperBand(*read, len(voices), RATE, 8000).shares
    assert torch.equal(parts, whole)
    assert len(sizes) > 70 and max(sizes) <= 10_000


@pytest.mark.parametrize("kind", ["exact", "stitched"])
def test_what_the_model_gives_is_kept(model, recording, kind) -> None:
    """The band is added to the same voices, and sums to the recording's."""
    how = {"mode": kind, "window": 1.0}
    without = model.separate_audio(recording, RATE, **how)[0]
    full = model.separate_audio(recording, RATE, full_band=True, **how)[0]
    added = full - without
    assert torch.allclose(added.sum(1), upper_band(recording), atol=1e-5)
    # Below the band's edge there is only what resampling there and back loses.
    spectra = torch.fft.rfft(added, dim=0).abs()
    below = spectra[: int(3000 / (RATE / 2) * len(spectra))].mean()
    assert below < 0.02 * spectra.mean()
    off = model.separate_audio(recording, RATE, full_band=False, **how)[0]
    assert torch.equal(off, without)


@pytest.mark.parametrize("kind", ["exact", "stitched"])
def test_levels_hold_for_the_full_band(model, recording, kind) -> None:
    how = {"mode": kind, "window": 1.0, "full_band": True}
    plain = model.separate_audio(recording, RATE, **how)[0]
    peak = model.separate_audio(recording, RATE, normalize="peak", **how)[0]
    assert torch.allclose(peak, scale_to_peak(plain), atol=1e-5)
    consistent = model.separate_audio(recording, RATE, consistent=True, **how)[0]
    assert torch.allclose(consistent.sum(1), recording, atol=1e-5)


def test_files_have_the_full_band_unless_told_otherwise(
    model, recording, tmp_path, caplog
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, recording.numpy(), RATE, subtype="FLOAT")
    outputs = [tmp_path / "1.wav", tmp_path / "2.wav"]

    def written(**options: object) -> np.ndarray:
        model.separate_to_files(path, outputs, **options)
        return np.stack([soundfile.read(o, dtype="float32")[0] for o in outputs], -1)

    full = written()
    assert not caplog.records
    assert np.array_equal(full, model.separate_file(path, full_band=True)[0].numpy())
    caplog.clear()
    assert np.array_equal(written(full_band=False), model.separate_file(path)[0])
    assert "content above 4000 Hz is lost; the full band keeps it." in caplog.text


def test_at_the_rate_of_the_model_there_is_nothing_to_add(model, recording) -> None:
    for rate in (8000, 4000):
        plain = model.separate_audio(recording, rate)
        assert torch.equal(model.separate_audio(recording, rate, full_band=True), plain)
    with pytest.raises(UserError, match="full_band is 'yes'"):
        model.separate_audio(recording, RATE, full_band="yes")


@pytest.mark.parametrize("rate", [8001, 44100, 192000])
@pytest.mark.parametrize("T", [1, 2, 300])
def test_the_shortest_recordings_at_odd_rates(model, rate, T) -> None:
    samples = torch.rand(T)
    est = model.separate_audio(samples, rate, full_band=True)
    assert est.shape == (1, T, 2) and est.isfinite().all()
