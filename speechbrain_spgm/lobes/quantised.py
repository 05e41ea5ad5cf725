"""int8 linears for the engine: weights rounded once, activations at every product.

The four linears of every transformer layer hold 85% of the work of spgm-base. Each gets
weights in 8 bits with a scale per output, and rounds what comes in to 8 bits with one
scale per step of the engine (a few chunks of one utterance). Attention, norms, pooling,
residuals, encoder, masks and decoder stay in float32.

The engine cuts an utterance into the same steps whatever the batch, the padding and the
number of workers are, so those play no part in the result, as in float32.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from speechbrain_spgm.lobes import engine
from speechbrain_spgm.lobes.masknet import SPGMMaskNet


class Int8Linear:
    """A linear in 8 bits, in place of ``engine.Linear``.

    Arguments
    ---------
    weight : torch.Tensor
        ``[out, in]``, float32.
    bias : torch.Tensor
        ``[out]``.

    Raises
    ------
    ValueError
        If PyTorch has no int8 linears for this processor.

    Example
    -------
    >>> linear = nn.Linear(64, 32)
    >>> x = torch.rand(100, 64)
    >>> y = Int8Linear(linear.weight.detach(), linear.bias.detach()).of(x, None)
    >>> torch.allclose(y, linear(x), atol=0.02)
    True
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        scales = weight.abs().amax(dim=1).clamp(min=1e-12).double() / 127
        zeros = torch.zeros(len(weight), dtype=torch.long, device="cpu")
        weight = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        try:
            self.packed = torch.ops.quantized.linear_prepack(weight, bias)
        except RuntimeError as error:
            raise ValueError(
                "PyTorch has no int8 linears for this processor (quantised engine "
                f"{torch.backends.quantized.engine}): take precision fp32."
            ) from error
        self.saturates = _saturates()

    def of(self, x: Tensor, scratch: engine.Scratch | None) -> Tensor:
        """``linear(x)``, ``[M, in]`` to ``[M, out]``."""
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.saturates)

    def relu_of(self, x: Tensor, scratch: engine.Scratch | None) -> Tensor:
        """``relu(linear(x))``."""
        return torch.ops.quantized.linear_relu_dynamic(x, self.packed, self.saturates)

    def add(self, x: Tensor, out: Tensor) -> None:
        """``out += linear(x)``."""
        out.view(len(x), -1).add_(self.of(x, None))


@cache
def _saturates() -> bool:
    """Whether this processor adds 8-bit products in 16 bits, where two can overflow.

    Processors before VNNI do. Activations then get 7 bits.
    """
    largest = torch.full((1, 64), 255.0)
    weight = torch.quantize_per_tensor(torch.full((8, 64), 127.0), 1, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, torch.zeros(8))
    product = torch.ops.quantized.linear_dynamic(largest, packed, False)
    return bool((product / (64 * 255 * 127) - 1).abs().max() > 0.01)


def quantise(masknet: nn.Module) -> SPGMMaskNet:
    """A mask network in int8, on the parameters of one in float32.

    Later changes to the parameters do not reach the linears that are in 8 bits.

    Arguments
    ---------
    masknet : SPGMMaskNet
        In float32 on the CPU, with SpeechBrain's standard transformers; stays as it is.

    Returns
    -------
    masknet : SPGMMaskNet
        For evaluation mode, without gradients.

    Raises
    ------
    ValueError
        If it is another network, or this processor has no int8 linears.

    Example
    -------
    >>> from speechbrain.lobes.models.dual_path import SBTransformerBlock
    >>> from speechbrain_spgm.lobes.spgm import SPGMBlock
    >>> net = SPGMMaskNet(64, 64, SBTransformerBlock(1, 64, 8), SPGMBlock(64, "att"))
    >>> x = torch.rand(1, 64, 300)
    >>> with torch.no_grad():
    ...     torch.allclose(quantise(net.eval())(x), net(x), atol=0.05)
    True
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
    masknet.int8 = {
        layer: engine.Linears(
            *(
                Int8Linear(linear.weight.detach(), linear.bias.detach())
                for linear in engine.linears_of(layer)[:4]
            )
        )
        for block in masknet.dual_mdl
        for layer in block.intra_mdl.mdl.layers
    }
    return masknet
