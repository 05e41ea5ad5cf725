"""The benchmark compares like with like; nothing is timed here."""

import torch

from benchmarks import inference


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
