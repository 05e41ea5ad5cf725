"""The benchmarks compare like with like; nothing is timed here."""

from pathlib import Path

import pytest
import torch

from benchmarks import band, bulk, inference, levels, live, training
from speechbrain_spgm.audio import write_audio
from speechbrain_spgm.data import Mixture, MixtureBatch
from speechbrain_spgm.data.manifests import ManifestRow
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss, reorder


@torch.no_grad()
def test_contestants_have_the_same_weights_and_give_the_same_voices() -> None:
    mix = inference.noise(0.2)
    ours, parts = inference.load("tiny", "ours")
    theirs, _ = inference.load("tiny", "speechbrain")
    assert type(parts["masknet"]).__name__ == "SPGMMaskNet"
    torch.testing.assert_close(ours(mix), theirs(mix), rtol=1e-4, atol=1e-5)
    sepformer, others = inference.load("tiny", "sepformer")
    assert sepformer(mix).shape == (1, 1600, 2)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (parts, others)]
    assert 0.8 < sizes[0] / sizes[1] < 1.25


def test_table_shows_ratios_of_the_same_turn() -> None:
    runs = {
        inference.REFERENCE: [(2.0, 100), (6.0, 100)],
        inference.OURS: [(1.0, 10), (2.0, 20)],
    }
    turns = {
        name: [inference.Measure(*run, flops=1e9) for run in both]
        for name, both in runs.items()
    }
    text = inference.table({4.0: turns}, {4.0: {inference.OURS: 1e-7}}, peak=2e9)
    row = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert row[:2] == ["4 s", inference.OURS]
    assert row[3:] == ["0.250", "2.50 (2.00 to 3.00)", "0", "0.200", "50%", "1.0e-07"]
    del turns[inference.REFERENCE]  # too long for it
    row = inference.table({300.0: turns}, {}, peak=2e9).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[5:8]] == ["", "0", ""]


def test_training_takes_the_same_step_from_a_batch_of_one_utterance() -> None:
    """With more, SpeechBrain's modules mix utterances and padding."""
    batch = training.make_batch([0.3])
    trainers = {
        name: training.Trainer("tiny", contestant)
        for name, contestant in training.CONTESTANTS.items()
    }
    for trainer in trainers.values():
        assert trainer.parts.training
    losses = {name: trainer.step(batch) for name, trainer in trainers.items()}
    reference = trainers.pop(training.REFERENCE)
    for name, trainer in trainers.items():
        assert losses[name] == pytest.approx(losses[training.REFERENCE], abs=1e-3)
        grads = [p.grad for p in trainer.parts.parameters()]
        wanted = [p.grad for p in reference.parts.parameters()]
        for grad, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, want, rtol=1e-2, atol=1e-3)


def test_training_batches_and_their_padding() -> None:
    seconds = [4.0, 1.0, 4.0, 1.0]
    assert training.draw_epoch(seconds, 2, bucketed=False) == [[4.0, 1.0]] * 2
    bucketed = training.draw_epoch(seconds, 2, bucketed=True)
    assert sorted(bucketed) == [[1.0, 1.0], [4.0, 4.0]]
    assert training.padding(bucketed) == 0
    assert training.padding([[4.0, 1.0]]) == pytest.approx(3 / 8)


def test_training_table_shows_ratios_and_what_does_not_fit() -> None:
    base, packed, *_ = training.CONTESTANTS
    runs = {
        base: training.Result([2.0, 6.0], 200 * 2**20),
        packed: training.Result([1.0, 2.0], 20 * 2**20),
        "too large": training.Result([0.0, 0.0], None),
    }
    text = training.table({("tiny", 4, 0.25): runs})
    ours, large = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()[-2:]
    ]
    assert ours[:4] == ["tiny", "4", "25%", packed]
    assert ours[5:] == ["2.50 (2.00 to 3.00)", "20", "0.10"]
    assert large[4:] == ["", "", "more than there is", ""]


def test_levels_table_shows_the_spread_of_improvements() -> None:
    sources = torch.randn(800, 2)
    mixture = Mixture("a", sources.sum(-1), sources)
    batch = MixtureBatch.collate([mixture])
    mixed = mixture.mix[None, :, None].expand(1, -1, 2)
    assert levels.improvements(mixed, batch) == pytest.approx([0], abs=1e-4)
    est = sources.flip(-1) + 0.1 * sources
    (gain,) = levels.improvements(est[None], batch)
    assert gain == pytest.approx(20, abs=1)
    row = {change: [7.0, 8.0] for change in levels.CHANGES}
    row["plus 0.1"] = [7.0, 7.5]
    text = levels.report({("fp32", "exact"): row}, "a model")
    cells = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert cells == ["fp32", "exact", "7.500", "7.500", "7.500", "7.250", "0.250"]
    assert "--mixtures 2" in text


def test_the_full_band_is_measured_against_the_models_alone(model, tmp_path, capsys):
    voices = torch.randn(16000, 2)
    for i, wave in enumerate([voices.sum(1), *voices.T]):
        write_audio(tmp_path / f"{i}.wav", wave, 16000)
    files = [tmp_path / f"{i}.wav" for i in range(3)]
    row = ManifestRow("a", 1.0, files[0], tuple(files[1:]))
    rate, plain, full = band.compare(model, row)
    est = model.separate_audio(voices.sum(1), 16000, full_band=True)
    order = pit_si_sdr_loss(est, voices[None]).permutation
    assert rate == 16000
    scores = band.measure(reorder(est, order)[0], voices, rate, 8000)
    assert full == pytest.approx(scores, abs=0.01)
    assert full.whole > plain.whole and full.distance < plain.distance
    assert band.spectral_distance(voices, voices, 16000).abs().max() == 0
    # Ten times the level is 20 dB everywhere.
    loud = band.spectral_distance(10 * voices, voices, 16000)
    assert loud == pytest.approx([20, 20], abs=0.1)
    table = band.format_row("16 kHz", [plain], [full])
    assert table.count("1 of 1") == 2


def test_live_table_shows_differences_of_the_same_mixtures(tmp_path: Path) -> None:
    gains = {"a": (7.0, 6.0), "b": (5.0, 5.5), "c": (9.0, None)}
    results = [
        live.Result("8 s", name, way, gain)
        for name, both in gains.items()
        for way, gain in zip(("whole", "running"), both, strict=True)
        if gain is not None
    ]
    page = tmp_path / "stream.md"
    page.write_text("before\n{}\n{}\nafter\n".format(*live.MARKS))
    for _ in range(2):  # what was there is replaced
        live.write(page, live.report(results, "a model", "test-clean"))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    (row,) = [line for line in text.splitlines() if line.startswith("| running")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:3] == ["running", "2", "5.75 ± 3.18"]
    assert cells[3].startswith("-0.25 ±") and cells[4:] == ["-0.25", "-1.0", "+0.5"]
    results.insert(0, live.Result("8 s", "d", "window 8 s", 6.0))  # in another run
    rows = live.table(results).splitlines()
    assert rows[2] == "| window 8 s | 1 | 6.00 ± nan |  |  |  |  |"
    assert "| -0.25 | -1.0 | +0.5 |" in rows[-1]


def test_a_corpus_beside_one_long_recording_and_after_a_kill(tmp_path, capsys) -> None:
    torch.manual_seed(0)
    for name in "ab":
        write_audio(tmp_path / f"{name}.flac", torch.rand(1600) - 0.5, bulk.RATE)
    common = ["--data-folder", str(tmp_path), "--short"]
    bulk.main(["speed", *common, "--turns", "1", "--rows", "1", "--views", "1"])
    assert "1 turns, " in capsys.readouterr().out
    bulk.main(["kills", *common, "--rows", "6", "--kills", "1"])
    assert "1 kills" in (text := capsys.readouterr().out)
    assert "13 files, equal, byte for byte." in text
