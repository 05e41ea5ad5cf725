"""int8 linears for the engine: weights rounded once, activations at every product.

The four linears of every transformer layer hold 85% of the work of spgm-base. Each gets
weights in 8 bits with a scale per output, and rounds what comes in to 8 bits with one
scale per step of the engine (a few chunks of one utterance). Attention, norms, pooling,
residuals, encoder, masks and decoder stay in float32.

The engine cuts an utterance into the same steps whatever the batch, the padding and the
number of workers are, so those play no part in the result, as in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn

from speechbrain_spgm.lobes import engine
from speechbrain_spgm.lobes.linears import Linears, Scratch, linears_of
from speechbrain_spgm.lobes.masknet import SPGMMaskNet


class Int8Linear:
    """A linear in 8 bits, in place of ``linears.Linear``.

    A ValueError says that PyTorch has none for this processor.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        rounded = (weight / self.scales.unsqueeze(1)).round().to(torch.int8)
        self.zeros = torch.zeros(len(weight), dtype=torch.long, device="cpu")
        self.bias = bias
        try:
            self.packed = torch.ops.onednn.qlinear_prepack(rounded, None)
            self.levels = 127 if _saturates() else 255
        except (AttributeError, RuntimeError) as error:
            raise ValueError(
                "PyTorch has no int8 linears for this processor (oneDNN's): take "
                "precision fp32."
            ) from error

    def of(self, x: Tensor, scratch: Scratch) -> Tensor:
        """``linear(x)``, ``[M, in]`` to ``[M, out]``."""
        return self._product(x, "none", scratch)

    def relu_of(self, x: Tensor, scratch: Scratch) -> Tensor:
        """``relu(linear(x))``."""
        return self._product(x, "relu", scratch)

    def add(self, x: Tensor, out: Tensor, scratch: Scratch) -> None:
        """``out += linear(x)``."""
        rounded, step, zero = _round(x, self.levels, scratch)
        torch.ops.onednn.qlinear_pointwise.binary(
            *(rounded, step, zero, self.packed, self.scales, self.zeros),
            *(out.view(len(x), -1), self.bias, 1.0, 0, torch.float32),
            *(1.0, 0, "sum", 1.0, "none", [], ""),
        )

    def _product(self, x: Tensor, after: str, scratch: Scratch) -> Tensor:
        rounded, step, zero = _round(x, self.levels, scratch)
        return torch.ops.onednn.qlinear_pointwise(
            *(rounded, step, zero, self.packed, self.scales, self.zeros, self.bias),
            *(1.0, 0, torch.float32, after, [], ""),
        )


class Int8Layers(dict[nn.Module, Linears]):
    """The linears of transformer layers in 8 bits, by layer.

    Packed weights can be neither copied nor pickled: a copy shares them, as nothing in
    them changes, and a pickle holds the layers, of whose weights they are made again.
    """

    def __init__(self, layers: Iterable[nn.Module] = ()) -> None:
        for layer in layers:
            linears = linears_of(layer)[:4]
            self[layer] = Linears(
                *(
                    Int8Linear(part.weight.detach(), part.bias.detach())
                    for part in linears
                )
            )

    def __deepcopy__(self, memo: dict) -> Int8Layers:
        twin = Int8Layers()
        twin.update((deepcopy(layer, memo), self[layer]) for layer in self)
        return twin

    def __reduce__(self) -> tuple:
        return Int8Layers, (list(self),)


def _round(x: Tensor, levels: int, scratch: Scratch) -> tuple[Tensor, float, int]:
    """x as 0 to ``levels`` in uint8, the step between them, and which of them is 0."""
    low, high = (bound.item() for bound in x.aminmax())
    low, high = min(low, 0.0), max(high, 0.0)
    # One level less than there are: with zero rounded up, none falls outside.
    step = max((high - low) / (levels - 1), 1e-30)
    if not math.isfinite(step):
        step, low = math.nan, 0.0  # and so is the product, as in float32
    zero = math.ceil(-low / step) if low else 0
    # A float32 from 2**23 on has no digits after the point, and the whole number in its
    # lowest bits: one addition rounds and moves it there.
    shifted = scratch.take("shifted", *x.shape)
    bias = torch.tensor(2.0**23 + zero, dtype=torch.float32, device=x.device)
    torch.add(bias, x, alpha=1 / step, out=shifted)
    return shifted.view(torch.int32).to(torch.uint8), step, zero


@cache
def _saturates() -> bool:
    """Whether 8-bit products are added in 16 bits, as before VNNI: two can overflow."""
    largest = torch.full((1, 64), 255, dtype=torch.uint8, device="cpu")
    weight = torch.full((8, 64), 127, dtype=torch.int8, device="cpu")
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales = torch.ones(8, dtype=torch.float32, device="cpu")
    zeros = torch.zeros(8, dtype=torch.long, device="cpu")
    product = torch.ops.onednn.qlinear_pointwise(
        *(largest, 1.0, 0, packed, scales, zeros),
        *(None, 1.0, 0, torch.float32, "none", [], ""),
    )
    return bool((product / (64 * 255 * 127) - 1).abs().max() > 0.01)


def quantise(masknet: nn.Module) -> SPGMMaskNet:
    """A mask network in int8, on the parameters of one in float32 on the CPU.

    Later changes to the parameters do not reach the linears that are in 8 bits. It is
    for evaluation without gradients. It is a ValueError if the network has other than
    SpeechBrain's standard transformers, or this processor has no int8 linears.
    """
    if not isinstance(masknet, SPGMMaskNet) or not all(
        engine.is_plain(block.intra_mdl) for block in masknet.dual_mdl
    ):
        raise ValueError(
            "int8 needs an SPGMMaskNet with SpeechBrain's own transformers, but the "
            f"model has a {type(masknet).__name__} with other parts: take precision "
            "fp32 or bf16."
        )
    weight = masknet.conv1d.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise ValueError(
            f"int8 needs a float32 model on the CPU, but this one is {weight.dtype} on "
            f"{weight.device}: take precision bf16, or the device cpu."
        )
    masknet = SPGMMaskNet.from_dual_path(masknet, masknet.rows_per_step)
    masknet.int8 = Int8Layers(
        layer for block in masknet.dual_mdl for layer in block.intra_mdl.mdl.layers
    )
    return masknet
