"""A window with the averages of the recording comes out as within the recording."""

import pytest
import torch
from speechbrain.lobes.models.dual_path import SBTransformerBlock
from torch import nn

from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.lobes.statistics import Shared, Survey

N, K = 16, 10


@pytest.mark.parametrize("grad", [False, True], ids=["engine", "plain path"])
@pytest.mark.parametrize("linear", [False, True], ids=["", "linear layers"])
def test_a_window_equals_its_part_of_the_recording(grad: bool, linear: bool) -> None:
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
