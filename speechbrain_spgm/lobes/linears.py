"""The linears of a transformer layer as the engine uses them, in float.

``quantised.Int8Linear`` is another kind of them.

Axes: N filters, M rows of a matrix.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoderLayer
from torch import Tensor, nn


class Scratch:
    """Memory of one worker, taken once and used again in every step."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.parts = like, {}

    def take(self, name: str, *shape: int) -> Tensor:
        """The memory of that name with whatever it holds; grows as needed."""
        size = math.prod(shape)
        if name not in self.parts or self.parts[name].numel() < size:
            self.parts[name] = self.like.new_empty(size)
        return self.parts[name][:size].view(shape)


class Linear(NamedTuple):
    """A linear, weight ``[out, in]``; ``quantised.Int8Linear`` is another."""

    weight: Tensor
    bias: Tensor | None

    def of(self, x: Tensor, scratch: Scratch) -> Tensor:
        """``linear(x)``, ``[M, in]`` to ``[M, out]``, until scratch is used again."""
        out = scratch.take("wide", len(x), len(self.weight))
        if self.bias is None:
            return torch.mm(x, self.weight.t(), out=out)
        return torch.addmm(self.bias, x, self.weight.t(), out=out)

    def relu_of(self, x: Tensor, scratch: Scratch) -> Tensor:
        """``relu(linear(x))``, likewise."""
        return self.of(x, scratch).relu_()

    def add(self, x: Tensor, out: Tensor, scratch: Scratch) -> None:
        """``out += linear(x)``: the product is added where the residual stands."""
        out.add_(self.bias).view(len(x), -1).addmm_(x, self.weight.t())


class Floored(NamedTuple):
    """A linear without its bias b, and ``max(linear(x), -b)`` in place of its ReLU."""

    weight: Tensor
    floor: Tensor

    def relu_of(self, x: Tensor, scratch: Scratch) -> Tensor:
        """``relu(linear(x) + b) - b``, until scratch is used again."""
        out = Linear(self.weight, None).of(x, scratch)
        return torch.maximum(out, self.floor, out=out)


class Linears(NamedTuple):
    """The four linears of a transformer layer, in the order of their use.

    ``queries`` ``[N]`` is what the queries still lack after ``qkv``.
    """

    qkv: Linear
    heads: Linear
    rise: Linear
    fall: Linear
    queries: Tensor | None = None


def linears_of(layer: TransformerEncoderLayer) -> Linears:
    """The linears of a layer in its own precision."""
    att, (rise, _, _, fall) = layer.self_att.att, layer.pos_ffn.ffn
    return Linears(
        Linear(att.in_proj_weight, att.in_proj_bias),
        *(Linear(part.weight, part.bias) for part in (att.out_proj, rise, fall)),
    )


def fold(linears: Linears, activation: nn.Module) -> Linears:
    """Moves biases to where they cost least; what the layer computes is the same.

    A bias of a wide product takes up to an eighth of the product's time. But a bias of
    the keys adds the same to all scores of a query, which the softmax does not see. The
    weights of attention add up to one: a bias of the values becomes one of the heads'
    output. And ``relu(z + b) = max(z, -b) + b``: the last b becomes a bias of the next
    linear.
    """
    qkv, heads, rise, fall, _ = linears
    queries, _, values = qkv.bias.chunk(3)
    heads = Linear(heads.weight, torch.mv(heads.weight, values) + heads.bias)
    if type(activation) is nn.ReLU:
        fall = Linear(fall.weight, torch.mv(fall.weight, rise.bias) + fall.bias)
        rise = Floored(rise.weight, -rise.bias)
    return Linears(Linear(qkv.weight, None), heads, rise, fall, queries)
