"""Levels and offsets of recordings leave no trace in how they are separated."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from speechbrain_spgm.audio import AudioFileError, Recording
from speechbrain_spgm.cli import main
from speechbrain_spgm.data import MixtureList
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import SPGMSeparation, level
from speechbrain_spgm.inference.level import LEVEL, TOP, bring_to_level, frame_powers
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss
from tests.inference.test_separation import LENGTHS, assert_same, padded_batch

RATE = 8000
CHANGES = [(1e-4, 0.0), (1e2, 0.0), (1.0, 0.1), (1.0, -0.03), (0.01, 0.1)]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def precise(request: pytest.FixtureRequest, published: Path) -> SPGMSeparation:
    precision = request.param
    return SPGMSeparation.from_pretrained(published, device="cpu", precision=precision)


def talk(T: int) -> Tensor:
    """Noise that swells and pauses, ``[T]``."""
    swell = torch.sin(torch.arange(T) * 2 * torch.pi / RATE).clamp(min=0)
    return 0.1 * torch.randn(T) * swell


def exact(model: SPGMSeparation, mix: Tensor, folder: Path) -> Tensor:
    return model.separate_recording(Recording(mix, RATE, "a mixture"))[0]


def batched(model: SPGMSeparation, mix: Tensor, folder: Path) -> Tensor:
    padded = torch.stack([mix, torch.full_like(mix, torch.nan)])
    padded[1, :900] = mix[:900]
    return model.separate_batch(padded, [len(mix), 900], level=True)[0]


def stitched(model: SPGMSeparation, mix: Tensor, folder: Path) -> Tensor:
    soundfile.write(folder / "a.wav", mix.numpy(), RATE, subtype="FLOAT")
    return model.separate_file(folder / "a.wav", mode="stitched", window=1)[0]


@pytest.mark.parametrize("way", [exact, batched, stitched])
def test_voices_depend_on_neither_level_nor_offset(
    precise: SPGMSeparation, tmp_path: Path, way
) -> None:
    mix = talk(2 * RATE)
    wanted = way(precise, mix, tmp_path)
    for gain, offset in CHANGES:
        est = way(precise, gain * mix + offset, tmp_path) / gain
        # Rounding of samples far below their offset; int8 rounds at every product.
        allowed = 1e-4 + 1e-6 * offset / gain + 0.02 * (precise.precision == "int8")
        error = (est - wanted).norm() / wanted.norm()
        assert error < allowed, (gain, offset, error)


def test_without_it_a_batch_is_as_it_is(model: SPGMSeparation) -> None:
    """What the test above would miss if levels made no difference to the network."""
    mix = talk(RATE)[None]
    wanted = model.separate_batch(mix)
    for changed in (1e-4 * mix, mix + 0.1):
        est = model.separate_batch(changed)
        scale = (est * wanted).sum() / est.square().sum()
        assert (est * scale - wanted).norm() > 0.02 * wanted.norm()


@pytest.mark.parametrize("views", [1, 2])
def test_alone_equals_batched(model: SPGMSeparation, views: int) -> None:
    batch, _ = padded_batch(model)
    batch *= torch.tensor([[1e-4], [1.0], [30.0], [0.01]])
    options = {"views": views, "level": True}
    alone = [
        model.separate_batch(row[None, :n], **options)[0]
        for row, n in zip(batch, LENGTHS, strict=True)
    ]
    assert_same(model.separate_batch(batch, LENGTHS, **options), alone)


def test_pauses_and_clicks_do_not_count() -> None:
    speech = torch.randn(4 * RATE)
    pause = 1e-4 * torch.randn(40 * RATE)
    click = torch.cat([speech, speech])
    click[RATE : RATE + 40] = 1000
    for mix in (speech, torch.cat([speech, pause]), click):
        levelled, _ = bring_to_level(mix[None], [len(mix)])
        heard = levelled[0, : RATE // 2].square().mean().sqrt()
        assert LEVEL / 1.2 < heard < LEVEL * 1.2


def knock(T: int, at: int) -> Tensor:
    """A bump of full scale, gone after a tenth of a second, ``[T]``."""
    bump = torch.randn(800) * torch.exp(-torch.arange(800) / 160)
    return torch.nn.functional.pad(bump, (at, T - at - 800))


def test_what_is_lowered_is_raised_again(model: SPGMSeparation) -> None:
    mix = torch.stack([talk(2 * RATE), talk(2 * RATE)])
    mix[1] += knock(2 * RATE, 9000)
    levelled, levels = bring_to_level(mix, [2 * RATE - 77, 2 * RATE])
    assert frame_powers(levelled[0]).max() <= TOP * LEVEL**2
    assert frame_powers(levelled[1]).max() < 1.1 * TOP * LEVEL**2
    assert frame_powers(mix[1]).max() > 10 * TOP * frame_powers(mix[0]).mean()
    assert levels[0].min() == levels[0].max()
    assert levels[1, :8000].max() == levels[1].min() < 0.5 * levels[1, 9000]
    wanted = mix[1].double() - mix[1].double().mean()
    torch.testing.assert_close(levelled[1] * levels[1], wanted, rtol=1e-9, atol=1e-12)
    batch = model.separate_batch(mix, level=True)
    alone = [model.separate_batch(row[None], level=True)[0] for row in mix]
    assert_same(batch, alone)


@pytest.mark.parametrize("mode", ["exact", "stitched"])
def test_knocks_do_not_rule_a_recording(shared, tmp_path, monkeypatch, mode) -> None:
    """Without a limiter they cost what is between them more than 3 dB."""
    voices = shared / "voices"
    lists = voices / "LibriMix-metadata" / "libri2mix_test-clean.csv"
    mixtures = MixtureList(lists, voices / "LibriSpeech", num_spks=2, sample_rate=RATE)
    model, gains = SPGMSeparation.from_pretrained(device="cpu"), []
    for number in (2, 3):
        sources = mixtures[number].sources[: 8 * RATE]
        mix = sources.sum(1)
        mix *= 10 ** (-30 / 20) / mix.square().mean().sqrt()
        for at in (20_000, 32_000):
            mix += knock(len(mix), at)
        soundfile.write(tmp_path / "a.wav", mix.numpy(), RATE, subtype="FLOAT")
        quiet = torch.ones(len(mix), dtype=torch.bool)
        quiet[20_000:22_000] = quiet[32_000:34_000] = False
        scores = []
        for top in (TOP, torch.inf):
            monkeypatch.setattr(level, "TOP", top)
            est = model.separate_file(tmp_path / "a.wav", mode=mode, views=1)[0]
            loss = pit_si_sdr_loss(est[quiet][None], sources[quiet][None]).loss
            scores.append(-float(loss))
        gains.append(scores[0] - scores[1])
    assert sum(gains) / len(gains) > 3


@pytest.mark.parametrize("normalize", [None, "peak"])
@pytest.mark.parametrize("mode", ["exact", "stitched"])
@pytest.mark.parametrize("value", [0.0, 0.5, -1e-3, 1e-45, 3e20])
def test_an_offset_alone_is_silence(model, tmp_path, normalize, mode, value) -> None:
    samples = np.full(2 * RATE, value, np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    options = {"normalize": normalize, "mode": mode, "window": 1}
    assert not model.separate_file(tmp_path / "a.wav", **options).any()


@pytest.mark.parametrize("peak", [1e-45, 1e-38, 1e-30, 1e18, 1e29])
def test_extreme_levels(model: SPGMSeparation, tmp_path: Path, peak: float) -> None:
    """Squares of such samples underflow or overflow in 32 bits."""
    mix = talk(2 * RATE).double()
    mix = (mix * peak / mix.abs().max()).float()
    assert mix.any()
    soundfile.write(tmp_path / "a.wav", mix.numpy(), RATE, subtype="FLOAT")
    for mode in ("exact", "stitched"):
        options = {"mode": mode, "window": 1}
        est = model.separate_file(tmp_path / "a.wav", **options)
        assert est.isfinite().all() and est.abs().max() < 10 * peak
        est = model.separate_file(tmp_path / "a.wav", normalize="peak", **options)
        torch.testing.assert_close(est.abs().amax(1), torch.ones(1, 2))


@pytest.mark.parametrize("mode", ["exact", "stitched"])
def test_what_does_not_fit_says_what_to_do(model, tmp_path, mode) -> None:
    loud = np.linspace(-3e38, 3e38, 2 * RATE)
    soundfile.write(tmp_path / "a.wav", loud, RATE, subtype="FLOAT")
    words = r"too loud for the model \(peak 3e\+38.*: divide its samples by their peak"
    with pytest.raises(AudioFileError, match=words):
        model.separate_file(tmp_path / "a.wav", mode=mode, window=1)


@pytest.mark.parametrize("mode", ["exact", "stitched"])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_consistent_voices_sum_to_the_mixture(model, tmp_path, mode, rate) -> None:
    stereo = torch.stack([talk(2 * rate) + 0.05, 1e-3 * talk(2 * rate)], 1).numpy()
    soundfile.write(tmp_path / "a.wav", stereo, rate, subtype="FLOAT")
    options = {"mode": mode, "window": 1}
    plain = model.separate_file(tmp_path / "a.wav", **options)[0]
    est = model.separate_file(tmp_path / "a.wav", consistent=True, **options)[0]
    mix = torch.from_numpy(stereo.mean(1))
    assert (est.double().sum(1) - mix).abs().max() < 3e-7 * mix.abs().max()
    rest = (mix - plain.sum(1)) / 2
    assert rest.abs().max() > 0.01
    torch.testing.assert_close(est, plain + rest[:, None], atol=1e-6, rtol=0)


def test_consistent_on_the_command_line(published, tmp_path, capsys) -> None:
    mix = talk(RATE).numpy()
    soundfile.write(tmp_path / "a.wav", mix, RATE, subtype="FLOAT")
    command = ["separate", str(tmp_path / "a.wav"), "--output", str(tmp_path)]
    command += ["--model", str(published), "--device", "cpu", "--consistent"]
    assert main([*command, "--normalize", "peak"]) == 2
    assert "leave out either normalize or consistent" in capsys.readouterr().err
    assert main(command) == 0
    voices = [soundfile.read(tmp_path / f"a_spk{k}.wav")[0] for k in (1, 2)]
    assert abs(sum(voices) - mix).max() < 3e-7 * abs(mix).max()


def test_a_recording_without_samples_is_one_sentence(model: SPGMSeparation) -> None:
    with pytest.raises(AudioFileError, match="^x holds no samples: copy or record it"):
        model.separate_recording(Recording(torch.zeros(0), RATE, "x"))


@pytest.mark.parametrize("options", [{}, {"level": True}, {"views": 2, "level": True}])
def test_gradients_on_request(model: SPGMSeparation, options: dict) -> None:
    parts = {name: deepcopy(part).double() for name, part in model.mods.items()}
    wide = SPGMSeparation(parts, {}, {"device": "cpu"})
    mix = torch.randn(2, 400, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 400, 2, dtype=torch.float64)
    lengths = [400, 250]

    def loss(mix: Tensor) -> Tensor:
        est = wide.separate_batch(mix, lengths, grad=True, **options)
        return (est * target).sum()

    (slope,) = torch.autograd.grad(loss(mix), mix)
    assert not slope[1, 250:].any()
    with torch.no_grad():
        step = 1e-6 * torch.randn_like(mix)
        wanted = (loss(mix + step) - loss(mix - step)) / 2
        assert not loss(mix).requires_grad  # the caller's word counts
    torch.testing.assert_close((slope * step).sum(), wanted, rtol=1e-4, atol=0)
    assert not wide.separate_batch(mix).requires_grad


def test_gradients_of_weights_and_of_silence(model: SPGMSeparation) -> None:
    parts = {name: deepcopy(part) for name, part in model.mods.items()}
    for part in parts.values():
        part.requires_grad_()
    free = SPGMSeparation(parts, {}, {"device": "cpu"}, freeze_params=False)
    mix = torch.stack([talk(400), torch.zeros(400)]).requires_grad_()
    free.separate_batch(mix, level=True, grad=True).square().sum().backward()
    grads = [weight.grad for weight in free.mods.parameters()]
    assert mix.grad.isfinite().all() and mix.grad[0].any()
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_int8_has_no_gradients(published: Path) -> None:
    int8 = SPGMSeparation.from_pretrained(published, device="cpu", precision="int8")
    with pytest.raises(UserError, match="int8 has no gradients: take precision fp32"):
        int8.separate_batch(torch.zeros(1, 100), grad=True)
