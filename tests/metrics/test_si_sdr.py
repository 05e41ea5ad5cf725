"""The loss: right values, every permutation, silence, lengths, precision."""

from itertools import permutations

import pytest
import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from speechbrain_spgm.metrics import si_sdr as losses
from speechbrain_spgm.metrics.si_sdr import (
    best_permutation,
    pit_si_sdr_leak_loss,
    pit_si_sdr_loss,
    reorder,
    si_sdr,
    training_loss,
)


def signals(B=3, T=4000, spks=2, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """References [B, T, spks], and estimates that each have a little of all others."""
    generator = torch.Generator().manual_seed(seed)
    references = torch.randn(B, T, spks, generator=generator)
    leak = references.sum(-1, keepdim=True) - references
    noise = torch.randn(B, T, spks, generator=generator)
    return references, 0.7 * references + 0.2 * leak + 0.1 * noise + 0.05


def test_values_computed_by_hand():
    reference = torch.tensor([1.0, -1, 1, -1]).view(1, 4, 1)
    orthogonal = torch.tensor([1.0, 1, -1, -1]).view(1, 4, 1)
    # Energy of the target 4a^2, of the noise 4b^2: 20 log10(a / b), at any scale
    # and with any offset.
    for a, b, decibels in ((1, 0.1, 20), (-3, 0.3, 20), (1, 1, 0), (0.1, 1, -20)):
        value = si_sdr(a * reference + b * orthogonal + 5, 2 * reference - 3)
        assert value.item() == pytest.approx(decibels, abs=1e-4)


def test_agrees_with_torchmetrics():
    references, estimates = signals(spks=3)
    theirs = scale_invariant_signal_distortion_ratio(
        estimates.transpose(1, 2), references.transpose(1, 2), zero_mean=True
    )
    torch.testing.assert_close(si_sdr(estimates, references), theirs)
    result = pit_si_sdr_loss(estimates, references)
    torch.testing.assert_close(result.loss, -theirs.mean(-1))


@pytest.mark.parametrize("spks", [1, 2, 3, 4])
def test_every_permutation_is_found(spks):
    references, estimates = signals(B=1, spks=spks)
    sorted_loss = pit_si_sdr_loss(estimates, references).loss
    for order in permutations(range(spks)):
        result = pit_si_sdr_loss(estimates[..., list(order)], references)
        torch.testing.assert_close(result.loss, sorted_loss)
        restored = reorder(estimates[..., list(order)], result.permutation)
        assert torch.equal(restored, estimates)


def test_many_speakers_by_linear_assignment(monkeypatch):
    references, estimates = signals(B=2, spks=6)
    order = [4, 0, 5, 2, 1, 3]
    result = pit_si_sdr_loss(estimates[..., order], references)
    assert torch.equal(reorder(estimates[..., order], result.permutation), estimates)

    scores = torch.randn(50, 4, 4, generator=torch.Generator().manual_seed(0))
    tried = best_permutation(scores)
    monkeypatch.setattr(losses, "TRIED_UP_TO", 0)
    assert torch.equal(best_permutation(scores), tried)


@pytest.mark.parametrize("spks", [2, 3, 5])
def test_a_silent_reference_takes_part_in_no_pair(spks):
    references, estimates = signals(B=1, spks=spks)
    references[..., 1] = 1e-6 * torch.randn(1, references.shape[1])
    estimates.requires_grad_()
    result = pit_si_sdr_loss(estimates, references)
    assert result.active.tolist() == [[j != 1 for j in range(spks)]]
    assert result.permutation.sort().values.tolist() == [list(range(spks))]
    others = [j for j in range(spks) if j != 1]
    alone = si_sdr(estimates[..., others], references[..., others])
    torch.testing.assert_close(result.loss, -alone.mean(-1))
    (gradient,) = torch.autograd.grad(result.loss.sum(), estimates)
    assert gradient.isfinite().all()
    assert not gradient[..., 1].any() and gradient[..., others].any()


def test_a_leak_into_a_silent_reference_is_asked_for_less():
    """Half of 10 dB for a tenth of the power; nothing beyond the floor."""
    references, estimates = signals(B=1)
    both = pit_si_sdr_leak_loss(estimates, references)
    assert torch.equal(both.loss, pit_si_sdr_loss(estimates, references).loss)
    references[..., 0] = 0

    def loss(leak: float) -> torch.Tensor:
        outputs = torch.stack([references[..., 1], leak * estimates[..., 0]], dim=-1)
        result = pit_si_sdr_leak_loss(outputs, references)
        assert result.permutation.tolist() == [[1, 0]]
        return result.loss

    steps = [float(loss(10.0**-k) - loss(10.0 ** -(k + 0.5))) for k in (1, 4)]
    assert steps == pytest.approx([5, 0], abs=0.4)


@pytest.mark.parametrize("criterion", [pit_si_sdr_loss, pit_si_sdr_leak_loss])
def test_only_silence_gives_zero_loss_and_gradient(criterion):
    _, estimates = signals(B=2)
    references = signals(B=2, seed=1)[0]
    references[0] = 0
    estimates.requires_grad_()
    loss = criterion(estimates, references).loss
    (gradient,) = torch.autograd.grad(loss.sum(), estimates)
    assert loss[0] == 0 and loss[1] != 0
    assert not gradient[0].any() and gradient.isfinite().all()


@pytest.mark.parametrize("criterion", [pit_si_sdr_loss, pit_si_sdr_leak_loss])
def test_a_silent_estimate_has_a_finite_gradient(criterion):
    references, _ = signals()
    estimates = torch.zeros_like(references, requires_grad=True)
    loss = criterion(estimates, references).loss
    loss.sum().backward()
    assert loss.isfinite().all() and estimates.grad.isfinite().all()


@pytest.mark.parametrize("criterion", [pit_si_sdr_loss, pit_si_sdr_leak_loss])
def test_padding_never_enters(criterion):
    lengths = torch.tensor([4000, 1234, 57])
    references, estimates = signals()
    for b, length in enumerate(lengths):
        references[b, length:], estimates[b, length:] = float("nan"), float("inf")
    before = references.clone(), estimates.clone()
    result = criterion(estimates.requires_grad_(), references, lengths)
    for b, length in enumerate(lengths):
        alone = criterion(estimates[b : b + 1, :length], references[b : b + 1, :length])
        torch.testing.assert_close(result.loss[b], alone.loss[0], atol=1e-4, rtol=0)
        assert torch.equal(result.permutation[b], alone.permutation[0])
    (gradient,) = torch.autograd.grad(result.loss.sum(), estimates)
    assert gradient.isfinite().all()
    for now, then in zip((references, estimates), before, strict=True):
        assert torch.equal(now.nan_to_num(), then.nan_to_num())


def test_autocast_does_not_lower_the_precision():
    references, _ = signals()
    estimates = references + 1e-3 * torch.randn_like(references)
    expected = pit_si_sdr_loss(estimates, references).loss
    with torch.autocast("cpu", torch.bfloat16):
        result = pit_si_sdr_loss(estimates, references).loss
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


def test_good_enough_utterances_are_dropped():
    values = torch.tensor([-40.0, -10.0, -20.0], requires_grad=True)
    loss = training_loss(values, threshold=-30)
    loss.backward()
    assert loss == -15 and values.grad.tolist() == [0, 0.5, 0.5]
    assert training_loss(values).item() == pytest.approx(-70 / 3)
    assert training_loss(values, threshold=0) == 0
