"""int8: close to float32, and as independent of everything else as float32 is."""

import copy
import pickle

import pytest
import torch
from speechbrain.lobes.models.dual_path import SBRNNBlock, SBTransformerBlock
from torch import Tensor, nn

from speechbrain_spgm.lobes import engine, quantised
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.quantised import Int8Linear, quantise
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.metrics.si_sdr import si_sdr

N = 64


def network(**kwargs: object) -> SPGMMaskNet:
    """Without gradients, as for separating."""
    intra = SBTransformerBlock(2, N, 4, 128, norm_before=True, **kwargs)
    net = SPGMMaskNet(N, N, intra, SPGMBlock(N, "att"), num_layers=2, K=20)
    return net.eval().requires_grad_(False)


def similarity(a: Tensor, b: Tensor) -> float:
    """SI-SDR in dB."""
    return float(si_sdr(a.reshape(1, -1, 1), b.reshape(1, -1, 1)))


@torch.no_grad()
def test_linear_is_what_rounding_by_hand_gives() -> None:
    linear = nn.Linear(64, 8)
    x = torch.randn(5, 64)
    step = (max(x.max(), 0) - min(x.min(), 0)) / 254
    zero = (-x.min() / step).ceil()
    rounded = ((x / step + zero).round() - zero) * step
    scales = linear.weight.abs().amax(1, keepdim=True) / 127
    weight = (linear.weight / scales).round() * scales
    wanted = rounded @ weight.t() + linear.bias
    int8 = Int8Linear(linear.weight, linear.bias)
    if int8.levels == 255:
        torch.testing.assert_close(
            int8.of(x, engine.Scratch(x)), wanted, rtol=0, atol=1e-4
        )
    assert similarity(int8.of(x, engine.Scratch(x)), linear(x)) > 30
    torch.testing.assert_close(
        int8.relu_of(x, engine.Scratch(x)), int8.of(x, engine.Scratch(x)).relu()
    )
    out = x[:, :8].clone()
    int8.add(x, out, engine.Scratch(x))
    torch.testing.assert_close(out, x[:, :8] + int8.of(x, engine.Scratch(x)))


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-40, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("low", [-1.0, -0.5, 0.0, 0.3, -(2**-20)])
def test_no_activation_falls_outside_the_levels(low: float, scale: float) -> None:
    x = torch.cat([torch.tensor([low, 1.0]), torch.rand(998) * (1 - low) + low]) * scale
    for some in (x, -x, x[:1], torch.zeros(4)):
        for levels in (127, 255):
            rounded, step, zero = quantised._round(
                some.view(1, -1), levels, engine.Scratch(x)
            )
            assert rounded.max() <= levels
            error = (rounded.double() - zero) * step - some.double()
            assert error.abs().max() <= step * 0.501


@torch.no_grad()
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    linear = nn.Linear(64, 8)
    x = torch.randn(5, 64)
    x[2, 3] = bad
    assert (
        not Int8Linear(linear.weight, linear.bias)
        .of(x, engine.Scratch(x))
        .isfinite()
        .any()
    )


@torch.no_grad()
@pytest.mark.parametrize("kwargs", [{}, {"activation": "gelu"}])
def test_masks_are_close_to_float32(kwargs: dict) -> None:
    net, x = network(**kwargs), torch.randn(1, N, 300)
    before = net(x)
    int8 = quantise(net)
    assert similarity(int8(x), before) > 25
    assert not torch.equal(int8(x), before)
    assert torch.equal(net(x), before)  # the network itself stays as it is
    twin = copy.deepcopy(int8)
    assert torch.equal(twin(x), int8(x))
    for each in (int8, twin):
        assert torch.equal(pickle.loads(pickle.dumps(each))(x), int8(x))
    assert int8.state_dict().keys() == net.state_dict().keys()


@torch.no_grad()
def test_batch_padding_and_workers_change_no_bit(monkeypatch) -> None:
    int8 = quantise(network())
    x = torch.randn(3, N, 700)
    frames = torch.tensor([700, 130, 1])
    x[1, :, 130:] = 1e6  # never read: the scales of activations must not see it
    x[2] *= 1e3
    masks = int8(x, frames)
    for b, length in enumerate(frames.tolist()):
        alone = int8(x[b : b + 1, :, :length])
        assert torch.equal(masks[:, b : b + 1, :, :length], alone)
    threads = torch.get_num_threads()
    for workers in (1, 2, 3):
        monkeypatch.setattr(engine, "count_workers", lambda workers=workers: workers)
        torch.set_num_threads(workers)  # a lone worker is the calling thread
        assert torch.equal(int8(x, frames), masks)
    torch.set_num_threads(threads)


def test_what_cannot_be_in_int8_is_refused(monkeypatch) -> None:
    rnn = SPGMMaskNet(N, N, SBRNNBlock(N, N, 1), SPGMBlock(N, "att"), K=20)
    for other in (nn.Identity(), rnn):
        with pytest.raises(ValueError, match="int8 needs an SPGMMaskNet"):
            quantise(other)
    with pytest.raises(ValueError, match="float32 model on the CPU"):
        quantise(network().double())
    int8, x = quantise(network()), torch.randn(1, N, 50)
    with pytest.raises(ValueError, match="evaluation mode"):
        int8.train()(x)
    with (
        pytest.raises(ValueError, match="without autocast"),
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
    ):
        int8.eval()(x)

    def fail(*_: object) -> None:
        raise RuntimeError("not registered on this processor")

    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", fail)
    quantised._saturates.cache_clear()
    with pytest.raises(ValueError, match="no int8 linears for this processor"):
        quantise(network())
