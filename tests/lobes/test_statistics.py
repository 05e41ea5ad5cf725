"""Averages over the whole, a survey, the chunks so far or those around each."""

import pytest
import torch
from speechbrain.lobes.models.dual_path import SBTransformerBlock
from torch import Tensor, nn

from speechbrain_spgm.lobes.chunking import count_chunks, overlap_add, segment
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.lobes.statistics import (
    Running,
    Shared,
    Statistics,
    Survey,
    Window,
    statistics_of,
)

N, K = 16, 10


def network(linear: bool) -> SPGMMaskNet:
    """Random, in evaluation mode."""
    net = SPGMMaskNet(
        N,
        N,
        SBTransformerBlock(2, N, 4, 32, norm_before=True, dropout=0.0),
        SPGMBlock(N, "att"),
        num_layers=2,
        K=K,
        linear_layer_after_inter_intra=linear,
    ).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize("grad", [False, True], ids=["engine", "plain path"])
@pytest.mark.parametrize("linear", [False, True], ids=["", "linear layers"])
def test_a_window_equals_its_part_of_the_recording(grad: bool, linear: bool) -> None:
    net = network(linear)
    x = torch.rand(1, N, 100) * torch.linspace(0.1, 2, 100)
    window, inner = slice(30, 70), slice(30 + K, 70 - K)  # frames of whole chunks only

    with torch.set_grad_enabled(grad):
        survey = Survey()
        whole = net(x, statistics=survey)
        again = Survey(given=survey)  # the same utterance: they stay what they are
        shared_whole = net(x, statistics=again)
        shared = net(x[..., window], statistics=Shared(survey))
        batch = net(x[..., window].expand(2, -1, -1), statistics=Shared(survey))
        alone = net(x[..., window])
        halves = Survey()
        net(torch.cat([x[..., :50], x[..., 50:]]), statistics=halves)
        assert torch.equal(whole, net(x))  # a survey changes nothing

    expected = whole[..., inner]
    for masks in (shared, batch[:, :1], batch[:, 1:]):
        assert torch.allclose(masks[..., K:-K], expected, atol=1e-5)
    assert not torch.allclose(alone[..., K:-K], expected, atol=1e-2)
    assert torch.allclose(shared_whole, whole, atol=1e-5)
    for (a, n), (b, m) in zip(again.sums, survey.sums, strict=True):
        assert n == m and torch.allclose(a, b)
    (sums, weight), (whole_sums, whole_weight) = halves.sums[0], survey.sums[0]
    assert weight == whole_weight == 100  # of the first norm: the same frames
    assert torch.allclose(sums, whole_sums)


def by_the_rule(net: SPGMMaskNet, x: Tensor, weights: Tensor) -> Tensor:
    """Masks of one utterance if row r counts ``weights[s, r]`` for row s."""
    L = x.shape[-1]
    rows, _ = segment([x[0].t()], K)
    valid, _ = segment([torch.ones(L, 1).to(x)], K)
    ones = torch.ones_like(valid)

    def norm(layer: nn.Module, x: Tensor, valid: Tensor, c: Tensor = 1) -> Tensor:
        count = weights @ valid.sum(1)
        mean, power = (
            ((weights @ (v * valid).sum(1)) / count).unsqueeze(1) for v in (x, x * x)
        )
        mean, power = (c * mean).mean(-1, True), (c * c * power).mean(-1, True)
        x = (c * x - mean) / (power - mean * mean + layer.eps).sqrt()
        return x * layer.weight.flatten() + layer.bias.flatten()

    x = norm(net.norm, rows, valid) * valid @ net.conv1d.weight.squeeze(-1).t()
    for block in net.dual_mdl:
        local, linear = block.intra_mdl(x), block.linear_layer_after_inter_intra
        local = block.intra_linear(local) if linear else local
        x = x + norm(block.intra_norm, local, ones)
        p = weights @ block.inter_mdl.pool(x) / weights.sum(1, keepdim=True)
        c = block.inter_mdl.modulation(p).unsqueeze(1)
        out = (block.inter_linear(c * x), 1) if linear else (x, c)
        x = x + norm(block.inter_norm, out[0], ones, out[1])
    added = overlap_add(net.prelu(x), [len(rows)], [L])[0]
    return net.masks(added).unsqueeze(1)


RULES = {
    "whole": (Statistics(), lambda s, r, S: torch.ones_like(s * r)),
    "running": (Running(), lambda s, r, S: r <= s),
    "warm-up": (Running(5), lambda s, r, S: r <= s.clamp(min=min(4, S - 1))),
    "horizon": (Running(1, 0.7), lambda s, r, S: 0.7 ** (s - r) * (r <= s)),
    "window": (
        Window(6),
        lambda s, r, S: (
            (r >= (s - 3).clamp(0, max(0, S - 6)))
            & (r < (s - 3).clamp(0, max(0, S - 6)) + 6)
        ),
    ),
}


@pytest.mark.parametrize("grad", [False, True], ids=["engine", "plain path"])
@pytest.mark.parametrize("linear", [False, True], ids=["", "linear layers"])
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_what_it_says(rule: str, linear: bool, grad: bool) -> None:
    net, (statistics, counts) = network(linear).double(), RULES[rule]
    x = torch.rand(1, N, 97).double() * torch.linspace(0.1, 2, 97)
    frames = torch.tensor([97, 23])
    with torch.set_grad_enabled(grad):
        masks = net(x.expand(2, -1, -1), frames, statistics)
    for b, L in enumerate(frames.tolist()):
        S = count_chunks(L, K)
        s, r = torch.arange(S).unsqueeze(1), torch.arange(S)
        wanted = by_the_rule(net, x[..., :L], counts(s, r, S).double())
        torch.testing.assert_close(masks[:, b : b + 1, :, :L], wanted)


def test_a_network_can_learn_with_running_averages() -> None:
    net = network(False)
    net(torch.rand(2, N, 60), statistics=Running(2, 0.9)).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_wrong_numbers_are_refused() -> None:
    for wrong in ((0, 1.0), (1, 0.0), (1, 1.1)):
        with pytest.raises(ValueError, match="warm_up is .* and keep"):
            Running(*wrong)
    with pytest.raises(ValueError, match="chunks is 0"):
        Window(0)
    with pytest.raises(ValueError, match="'median', but must be whole"):
        statistics_of("median", 0.25)
