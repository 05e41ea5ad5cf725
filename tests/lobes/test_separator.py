"""Waveform in, waveforms out: lengths, padding, networks without frame counts."""

import pytest
import torch
from speechbrain.lobes.models.dual_path import (
    Decoder,
    Dual_Path_Model,
    Encoder,
    SBTransformerBlock,
)

from speechbrain_spgm.lobes import separator
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.separator import count_frames, separate
from speechbrain_spgm.lobes.spgm import SPGMBlock


def parts(kernel: int, packed: bool, num_spks: int = 2):
    torch.manual_seed(0)
    masknet = (SPGMMaskNet if packed else Dual_Path_Model)(
        16,
        16,
        SBTransformerBlock(1, 16, 4, 32, dropout=0.0, use_positional_encoding=True),
        SPGMBlock(16, "att"),
        K=10,
        num_spks=num_spks,
        linear_layer_after_inter_intra=False,
    )
    encoder = Encoder(kernel, 16)
    return encoder, masknet, Decoder(16, 1, kernel, stride=kernel // 2, bias=False)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kernel", [2, 9, 16])
@torch.no_grad()
def test_batched_equals_alone(kernel: int, packed: bool) -> None:
    model = parts(kernel, packed)
    samples = [300, 1, 15, 123]
    mix = torch.full((4, 300), float("nan"))
    for utterance, T in zip(mix, samples, strict=True):
        utterance[:T] = torch.randn(T)
    est = separate(*model, mix, torch.tensor(samples))
    assert est.shape == (4, 300, 2)
    for b, T in enumerate(samples):
        alone = separate(*model, mix[b : b + 1, :T])[0]
        torch.testing.assert_close(est[b, :T], alone, rtol=1e-5, atol=1e-6)
        assert not est[b, T:].any()


@torch.no_grad()
def test_short_input_is_as_if_zero_padded() -> None:
    model = parts(16, packed=True)
    mix = torch.randn(1, 5)
    padded = torch.cat([mix, torch.zeros(1, 11)], dim=1)
    torch.testing.assert_close(separate(*model, mix), separate(*model, padded)[:, :5])


@pytest.mark.parametrize("kernel", [2, 9, 16])
def test_count_frames_is_the_encoders(kernel: int) -> None:
    encoder = Encoder(kernel, 4)
    for T in range(kernel, 5 * kernel):
        frames = encoder(torch.zeros(1, T)).shape[-1]
        assert count_frames(T, kernel, kernel // 2) == frames


@pytest.mark.parametrize("learning", [0, 2])
def test_an_end_alone_learns_from_long_mixtures(learning: int, monkeypatch) -> None:
    monkeypatch.setattr(separator, "DECODED_AT_ONCE", 10)
    model = parts(16, packed=True)
    for part in model:
        part.eval().requires_grad_(False)
    model[learning].requires_grad_()
    separate(*model, torch.randn(1, 400)).square().sum().backward()
    (weight,) = model[learning].parameters()
    assert weight.grad.isfinite().all() and weight.grad.any()


@torch.no_grad()
def test_three_speakers() -> None:
    assert separate(*parts(16, True, num_spks=3), torch.randn(2, 99)).shape == (
        2,
        99,
        3,
    )
