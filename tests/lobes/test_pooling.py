"""Poolings against values worked out by hand."""

import math

import pytest
import torch
from speechbrain.lobes.models.dual_path import Dual_Path_Model, SBTransformerBlock
from torch import Tensor, nn

from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.pooling import POOLINGS, Kind, build_pooling
from speechbrain_spgm.lobes.spgm import SPGMBlock

X = torch.tensor([[[1.0, 6.0], [3.0, 2.0], [5.0, 4.0]]])  # [C=1, K=3, N=2]


@pytest.mark.parametrize(
    ("pool", "expected"), [("avg", [3, 4]), ("max", [5, 6]), ("lem", [5, 4])]
)
def test_without_parameters(pool: str, expected: list[float]) -> None:
    pooled = build_pooling(pool, 2)(X)
    torch.testing.assert_close(pooled, torch.tensor([expected]).float())


@pytest.mark.parametrize("att_h", [None, 1])
def test_attention_weighs_frames_by_their_softmax(att_h: int | None) -> None:
    pooling = build_pooling("att", 2, att_h)
    scores = [1.0, 3.0, 5.0]  # first filter of each frame; ReLU keeps them
    with torch.no_grad():
        for layer, row in [(pooling.linear1, [1.0, 0.0]), ("linear2", [1.0])]:
            if layer == "linear2" and att_h is None:
                continue
            layer = pooling.linear2 if layer == "linear2" else layer
            layer.weight.copy_(torch.tensor([row]))
            layer.bias.zero_()
    total = sum(math.exp(s) for s in scores)
    weights = torch.tensor([math.exp(s) / total for s in scores])
    torch.testing.assert_close(pooling(X)[0], weights @ X[0])


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'median'.*att, avg, max, lem, none"):
        build_pooling("median", 2)


class Power(nn.Module):
    """A pooling of a user's own, with a parameter."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x.square().mean(dim=1)


@torch.no_grad()
def test_one_entry_is_all_that_a_new_pooling_takes(monkeypatch) -> None:
    monkeypatch.setitem(POOLINGS, "power", Kind(lambda N, *_: Power(N)))
    intra = SBTransformerBlock(1, 16, 4, 32, norm_before=True)
    block = SPGMBlock(16, "power", chunk_size=12)
    reference = Dual_Path_Model(16, 16, intra, block, num_layers=2, K=12).eval()
    net, x = SPGMMaskNet.from_dual_path(reference), torch.randn(1, 16, 100)
    assert "dual_mdl.1.inter_mdl.pool.model.gain" in net.state_dict()
    torch.testing.assert_close(net(x), reference(x), rtol=0, atol=1e-5)
    POOLINGS["power"] = Kind(lambda N, *_: Power(N), modulates=False)
    assert SPGMBlock(16, "power").s_lin is None
    with pytest.raises(ValueError, match="lem, none, power"):
        build_pooling("median", 2)
