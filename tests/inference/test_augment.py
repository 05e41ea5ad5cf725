"""Test-time augmentation: delays undone, voices in one order, others not heard."""

import json
import math
from pathlib import Path

import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from speechbrain_spgm.cli import main
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.inference.augment import doubts_of, separate_augmented
from speechbrain_spgm.inference.memory import estimate_bytes
from tests.inference.test_separation import padded_batch

RATE = 8000


@pytest.fixture
def asks_for_two(published: Path, tmp_path: Path) -> Path:
    """A model whose card asks for two views."""
    return with_views(published, tmp_path / "model", 2)


def with_views(published: Path, folder: Path, views: object) -> Path:
    folder.mkdir()
    config = json.loads((published / "config.json").read_text())
    config["speechbrain_spgm"]["views"] = views
    (folder / "config.json").write_text(json.dumps(config))
    weights = (published / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.mark.parametrize("spks", [1, 2, 3])
def test_delay_polarity_and_order_are_undone(spks: int) -> None:
    """What a network does alike in all views is what comes out, in the first order."""
    mix, lengths = torch.randn(4, 500), torch.tensor([500, 20, 1, 499])
    seen, averages_of = [], []

    def network(mix: Tensor, lengths: Tensor, view: int) -> Tensor:
        seen.append((mix, lengths))
        averages_of.append(view)
        parts = [mix.roll(1 + k, 1) * (k + 1) for k in range(spks)]
        rows = [torch.stack(parts, -1)[b][:, torch.randperm(spks)] for b in range(4)]
        beyond = torch.arange(mix.shape[1]) >= lengths.unsqueeze(1)
        return torch.stack(rows).masked_fill(beyond.unsqueeze(-1), 0)

    torch.manual_seed(3)
    first = network(mix, lengths, 0)
    torch.manual_seed(3)
    found = separate_augmented(network, mix, lengths, views=5, period=400)
    # The first samples come from before the mixture, which a delayed view knows.
    torch.testing.assert_close(found[:, spks:], first[:, spks:])
    assert [int(more[0]) - 500 for _, more in seen[1:]] == [0, 80, 160, 240, 320]
    assert averages_of[1:] == [0, 1, 2, 3, 4]
    assert torch.equal(seen[2][0][:, 80:], -mix)
    assert torch.equal(seen[3][0][:, 160:], mix)


@pytest.mark.parametrize("level", [1.0, -30.0])
def test_a_view_counts_the_less_the_more_its_voices_have_in_common(
    level: float,
) -> None:
    """At any level of its voices, whatever lies beyond the end."""
    voices = torch.randn(2, 500, 2) * torch.tensor([1.0, 0.2])
    voices[1, 300:] = 0
    mix, lengths = voices.sum(-1), torch.tensor([500, 300])
    mix[1, 300:] = math.nan
    mixed = voices.sum(-1, keepdim=True).repeat(1, 1, 2)
    views = [0.9 * mixed + 0.1 * voices, voices, voices]

    def network(mix: Tensor, lengths: Tensor, view: int) -> Tensor:
        est = level * views[view] * (-1) ** view
        return F.pad(est, (0, 0, mix.shape[1] - 500, 0))

    found = separate_augmented(network, mix, lengths, views=3, period=30)
    assert (found / level - voices).norm() < 1e-3 * voices.norm()
    doubts = doubts_of(views[0], voices.sum(-1))
    assert (0.3 < doubts).all() and (doubts < 0.6).all()
    assert doubts_of(torch.zeros(1, 9, 2), torch.ones(1, 9)) == 1


@pytest.mark.parametrize("views", [2, 3])
def test_alone_equals_batched(model: SPGMSeparation, views: int) -> None:
    batch, _ = padded_batch(model)
    lengths = [800, 3, 511, 16]
    est = model.separate_batch(batch, lengths, views)
    assert not torch.equal(est, model.separate_batch(batch, lengths))
    for row, mix, T in zip(est, batch, lengths, strict=True):
        alone = model.separate_batch(mix[None, :T], views=views)[0]
        assert (row[:T] - alone).norm() <= 1e-5 * alone.norm()
        assert not row[T:].any()


def test_the_card_speaks_for_recordings_not_for_batches(
    asks_for_two: Path, tmp_path: Path
) -> None:
    """A batch gets the network's own output, as from SpeechBrain."""
    model = SPGMSeparation.from_pretrained(asks_for_two, device="cpu")
    mix = 0.1 * torch.randn(1, 6 * RATE)
    soundfile.write(tmp_path / "a.wav", mix[0].numpy(), RATE, subtype="FLOAT")
    batch = model.separate_batch(mix)
    assert torch.equal(batch, model.separate_batch(mix, views=1))
    for mode in ("exact", "stitched"):
        by_default, two, one = (
            model.separate_file(tmp_path / "a.wav", mode=mode, window=2, **views)
            for views in ({}, {"views": 2}, {"views": 1})
        )
        assert torch.equal(by_default, two) and not torch.equal(by_default, one)

    command = ["--output", str(tmp_path), "--report", "--model", str(asks_for_two)]
    for options, views in [([], 2), (["--views", "3"], 3)]:
        assert main(["separate", str(tmp_path / "a.wav"), *command, *options]) == 0
        assert json.loads((tmp_path / "a_report.json").read_text())["views"] == views


@pytest.mark.parametrize(("card", "views"), [(1, 1), (2, 2), (4, 2)])
def test_a_stream_follows_the_card_as_far_as_it_can(
    published: Path, tmp_path: Path, card: int, views: int
) -> None:
    """More than two views would wait for one another."""
    folder = with_views(published, tmp_path / "model", card)
    model = SPGMSeparation.from_pretrained(folder, device="cpu")
    assert [model.stream(views=n).views for n in (None, 1, 2)] == [views, 1, 2]


@pytest.mark.parametrize("views", [0, -1, 9, 10**9, 2.0, True, "2", None])
def test_wrong_numbers_are_one_sentence(
    model: SPGMSeparation, published: Path, tmp_path: Path, views: object, capsys
) -> None:
    words = f"views is {views!r}, but must be a whole number from 1 to 8"
    with pytest.raises(UserError, match=words):
        model.separate_batch(torch.zeros(1, 100), views=views)
    soundfile.write(tmp_path / "a.wav", torch.zeros(100).numpy(), RATE)
    folder = with_views(published, tmp_path / "model", views)
    command = ["separate", str(tmp_path / "a.wav"), "--model", str(folder)]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    assert "views in config.json is" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "out"), "--views", "2"]) == 0


def test_more_views_need_more_memory(model: SPGMSeparation) -> None:
    one, two = (estimate_bytes(model, 10**7, RATE, views) for views in (1, 2))
    assert one < two < 2 * one
