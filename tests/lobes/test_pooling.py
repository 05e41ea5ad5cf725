"""Poolings against values worked out by hand."""

import math

import pytest
import torch

from speechbrain_spgm.lobes.pooling import build_pooling

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
