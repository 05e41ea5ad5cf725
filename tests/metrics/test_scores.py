"""Metrics: hand-computed, as torchmetrics alone, silence, what is written."""

import csv
import json
import math
import sys
import warnings
from types import SimpleNamespace

import pytest
import soundfile
import torch
from torchmetrics.functional.audio import (
    scale_invariant_signal_distortion_ratio,
    signal_distortion_ratio,
)

from speechbrain_spgm.data import Mixture, MixtureBatch
from speechbrain_spgm.errors import MissingPackage, UserError
from speechbrain_spgm.metrics import scores
from speechbrain_spgm.metrics.report import Worst, format_table, write_results
from speechbrain_spgm.metrics.scores import (
    METRICS,
    Metric,
    Score,
    check_metrics,
    match,
    measure_sdr,
    score_batch,
    summarise,
)
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss
from speechbrain_spgm.publishing.source import read_results

LENGTHS = (4000, 2500, 300)  # the last is shorter than SDR's filter


def make_batch(spks=2, lengths=LENGTHS):
    """Noise as sources; estimates with 10 dB SNR, in another order than the sources.

    What lies beyond the lengths is NaN in the estimates and large in the mixtures.
    """
    mixtures = []
    for b, length in enumerate(lengths):
        sources = torch.randn(length, spks)
        mixtures.append(Mixture(str(b), sources.sum(-1), sources))
    batch = MixtureBatch.collate(mixtures)
    estimates = batch.sources + 10**-0.5 * torch.randn_like(batch.sources)
    for b, length in enumerate(lengths):
        estimates[b, length:] = torch.nan
        batch.mix[b, length:] = 99.0
    return batch, estimates.roll(1, dims=2)


def score(batch, estimates, metrics=("si_sdr", "sdr")):
    pit = pit_si_sdr_loss(estimates, batch.sources, batch.lengths)
    return score_batch(estimates, batch, pit, metrics)


@pytest.mark.parametrize("spks", [2, 3])
def test_scores_equal_torchmetrics_on_each_utterance_alone(spks):
    batch, estimates = make_batch(spks)
    scores = score(batch, estimates)
    assert [s.id for s in scores] == ["0", "1", "2"]
    for b, (length, (_, values)) in enumerate(zip(LENGTHS, scores, strict=True)):
        references = batch.sources[b, :length].T
        signals = {
            "_mix": batch.mix[b, :length].expand_as(references),
            "": estimates[b, :length].roll(-1, dims=1).T,
        }
        for ending, signal in signals.items():
            expected = (
                scale_invariant_signal_distortion_ratio(
                    signal, references, zero_mean=True
                )
                .mean()
                .item()
            )
            assert values["si_sdr" + ending] == pytest.approx(expected, abs=1e-4)
            if length >= 512:
                expected = signal_distortion_ratio(signal, references).mean().item()
                assert values["sdr" + ending] == pytest.approx(expected, abs=1e-4)
        for metric in ("si_sdr", "sdr"):
            gain = values[metric] - values[f"{metric}_mix"]
            assert values[f"{metric}i"] == pytest.approx(gain)
        assert values["si_sdr"] == pytest.approx(10, abs=1)
        assert values["sdr"] >= values["si_sdr"]  # the filter forgives more


@pytest.mark.parametrize("gain", [1e-6, 1e-4, 0.3, 1e2])
def test_scores_know_no_level(gain):
    batch, estimates = make_batch()
    batch.sources[0, :, 1] *= 1e-3  # 60 dB below the other, and no silence
    batch.sources[1, :, 1] *= 1e-7  # silence
    batch.mix = batch.sources.sum(-1) + 0.1 * torch.randn_like(batch.mix)

    def scores_at(gain, own):
        scaled = MixtureBatch(
            batch.ids, gain * batch.mix, gain * batch.sources, batch.lengths
        )
        pit = match(own * estimates, scaled)
        return pit, score_batch(own * estimates, scaled, pit, ["si_sdr", "sdr"])

    pit, expected = scores_at(1, 1)
    assert pit.active.tolist() == [[True, True], [True, False], [True, True]]
    for own in (gain, torch.tensor([gain, 1.0])):
        other, found = scores_at(gain, own)
        assert torch.equal(other.active, pit.active)
        assert torch.equal(other.permutation, pit.permutation)
        torch.testing.assert_close(other.loss, pit.loss, atol=1e-3, rtol=0)
        for one, two in zip(found, expected, strict=True):
            assert one.values == pytest.approx(two.values, abs=1e-3)


def test_a_metric_is_one_entry(monkeypatch, tmp_path):
    def loudness(signals, references, lengths, sample_rate):
        return signals.square().sum(-1) / lengths

    monkeypatch.setitem(METRICS, "power", Metric("Power", " W", loudness, None, (8,)))
    with pytest.raises(UserError, match="Power is defined at 8 Hz, not at 9 Hz"):
        check_metrics(["si_sdr", "power"], 9)
    check_metrics(["si_sdr", "power"], 8)
    batch, estimates = make_batch()
    scores = score(batch, estimates, ["si_sdr", "power"])
    write_results(scores, tmp_path, groups={"all": {s.id: "x" for s in scores}})
    table = (tmp_path / "test_results.md").read_text()
    assert (
        "| Power, mix    |  2." in table and "| all | n | SI-SDRi | Poweri |" in table
    )
    assert "power_mix,power,poweri" in (tmp_path / "test_results.csv").read_text()
    results = read_results(tmp_path, None, None)
    named = {(one.name, one.unit) for one in results.measured}
    assert {("Poweri", "W"), ("Power of the mixtures", "W")} <= named


def test_si_sdr_by_hand():
    reference = torch.tensor([1.0, -1, 1, -1]).repeat(2)
    other = torch.tensor([1.0, 1, -1, -1]).repeat(2)
    sources = torch.stack([reference, other], dim=-1)
    batch = MixtureBatch.collate([Mixture("a", sources.sum(-1), sources)])
    # Orthogonal: the mixture has 0 dB, a tenth of the other voice leaves 20 dB.
    (result,) = score(batch, (sources + 0.1 * sources.flip(-1))[None], ["si_sdr"])
    assert result.values == pytest.approx(
        {"si_sdr_mix": 0, "si_sdr": 20, "si_sdri": 20}, abs=1e-3
    )


def test_silent_references_do_not_count():
    batch, estimates = make_batch()
    batch.sources[0, :, 1] = 0
    batch.sources[1] = 0
    estimates[0] = batch.sources[0].roll(1, dims=1) + 0.1
    scores = score(batch, estimates)
    assert [s.id for s in scores] == ["0", "2"]
    alone = signal_distortion_ratio(estimates[0, :, 1], batch.sources[0, :, 0])
    assert scores[0].values["sdr"] == pytest.approx(alone.item(), abs=1e-3)
    batch.sources[:] = 0
    assert score(batch, estimates) == []


def test_tones_constants_and_perfect_or_silent_estimates_have_a_finite_sdr():
    times = torch.arange(2000) / 8000
    hertz = torch.tensor([300.0, 1000.0])
    tones = torch.sin(2 * torch.pi * hertz * times.unsqueeze(1))
    mixed = tones + 0.1 * tones.flip(-1)
    for sources, estimates in [
        (tones, mixed),
        (tones, tones),
        (torch.randn(2000, 2), torch.zeros(2000, 2)),
        (torch.ones(2000, 2) + 1e-4 * tones, mixed),
    ]:
        batch = MixtureBatch.collate([Mixture("a", sources.sum(-1), sources)])
        (result,) = score(batch, estimates[None])
        assert all(map(math.isfinite, result.values.values()))


def test_a_singular_reference_leaves_the_others_as_they_are():
    references = torch.randn(3, 2000)
    references[1] = 0  # the solver raises
    signals = references + torch.randn(3, 2000)
    batched = measure_sdr(signals, references)
    for b in (0, 2):
        alone = signal_distortion_ratio(signals[b], references[b])
        assert batched[b] == pytest.approx(alone.item(), abs=1e-6)
    assert batched[1].isfinite()


def test_sdr_is_measured_by_one_thread(monkeypatch):
    """With more, PyTorch's solver gives wrong results for batches, or never ends."""
    threads = []

    def count(signals, references, **_):
        threads.append(torch.get_num_threads())
        return signals.mean(-1)

    monkeypatch.setattr(scores, "signal_distortion_ratio", count)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        measure_sdr(*torch.randn(2, 4, 800))
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_missing_package_and_an_unknown_metric_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(MissingPackage, match="PESQ needs pesq: run pip install pesq"):
        check_metrics(["si_sdr", "pesq"], 8000)
    with pytest.raises(UserError, match="no metric 'snr': take some of si_sdr, sdr"):
        check_metrics(["si_sdr", "snr"], 8000)


def test_what_pesq_cannot_measure_is_left_out_of_its_mean():
    scores = [Score("a", {"pesq": 2.0}), Score("b", {"pesq": None})]
    assert summarise(scores) == {"n": 2, "pesq": {"mean": 2.0, "ci95": None, "n": 1}}


def test_results_on_disk(tmp_path):
    batch, estimates = make_batch()
    estimates = estimates.nan_to_num()
    estimates[1] *= 0.01
    estimates[1] += torch.randn_like(estimates[1])  # the worst
    pit = pit_si_sdr_loss(estimates, batch.sources, batch.lengths)
    scores = score_batch(estimates, batch, pit)
    worst = Worst(1)
    worst.add(scores, estimates, batch, pit)
    kept, stale = tmp_path / "worst" / "notes.txt", tmp_path / "worst" / "2_old.png"
    kept.parent.mkdir()
    kept.touch()
    stale.touch()
    write_results(
        scores,
        tmp_path,
        about={"test_set": "noise"},
        groups={"genders": {"0": "F+M", "1": "F+M"}},
        worst=worst.examples,
    )

    with (tmp_path / "test_results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    summary = json.loads((tmp_path / "test_summary.json").read_text())
    mean = sum(float(row["si_sdri"]) for row in rows) / 3
    assert summary["si_sdri"]["mean"] == pytest.approx(mean, abs=1e-3)
    assert summary["test_set"] == "noise"
    assert summary["groups"]["genders"]["F+M"]["n"] == 2
    assert format_table(scores) in (tmp_path / "test_results.md").read_text()
    assert (tmp_path / "test_results.png").stat().st_size > 1000

    names = {path.name for path in kept.parent.iterdir()}
    parts = ("_mix.wav", "_est1.wav", "_est2.wav", "_ref1.wav", "_ref2.wav", ".png")
    assert names == {"notes.txt", *(f"1_1{part}" for part in parts)}
    mix, rate = soundfile.read(kept.with_name("1_1_mix.wav"), dtype="float32")
    assert rate == 8000
    expected = batch.mix[1, : LENGTHS[1]]
    correlation = torch.corrcoef(torch.stack([torch.from_numpy(mix), expected]))[0, 1]
    assert correlation == pytest.approx(1)


def test_too_little_speech_has_no_stoi(monkeypatch):
    def stoi(*given):
        warnings.warn("Not enough STFT frames to compute", RuntimeWarning, stacklevel=2)
        return 1e-5

    monkeypatch.setitem(sys.modules, "pystoi", SimpleNamespace(stoi=stoi))
    sources = torch.randn(800, 1)
    batch = MixtureBatch.collate([Mixture("a", sources[:, 0], sources)])
    pit = pit_si_sdr_loss(sources[None], sources[None])
    (result,) = score_batch(sources[None], batch, pit, ["stoi"], 8000)
    assert result.values["stoi"] is None


@pytest.mark.parametrize(("metric", "best"), [("pesq", 4.5), ("stoi", 1.0)])
def test_speech_metrics_of_a_perfect_estimate(shared, metric, best):
    pytest.importorskip({"pesq": "pesq", "stoi": "pystoi"}[metric])
    path = next((shared / "voices" / "LibriSpeech" / "test-clean").rglob("*.flac"))
    voice, rate = soundfile.read(path, dtype="float32", frames=48000)
    sources = torch.from_numpy(voice).unsqueeze(1)
    batch = MixtureBatch.collate([Mixture("a", sources[:, 0], sources)])
    pit = pit_si_sdr_loss(sources[None], sources[None])
    (result,) = score_batch(sources[None], batch, pit, [metric], rate)
    assert result.values[metric] == pytest.approx(best, abs=0.2)
