"""A separator as an ONNX file, for programs without PyTorch.

Axes: T samples, L encoder frames, N filters, K frames of a chunk, P = K // 2, S chunks,
spks sources. There is one utterance: a batch would need the lengths of its utterances.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.dual_path import Dual_Computation_Block
from torch import Tensor, nn

from speechbrain_spgm.console import errors_only
from speechbrain_spgm.files import replacing, scratch
from speechbrain_spgm.inference.separation import SPGMSeparation, packed
from speechbrain_spgm.lobes import intra
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.models.published import CARD, ModelError

OPSET = 18
INPUT, OUTPUT = "mix", "est"
TRACED_SECONDS = 1.7
CHECKED_SECONDS = (1.0, 2.9, 7.3, 15.0, 30.0)
TOLERANCE = 1e-4  # of a voice's sample, for a mixture with peak 1


class PlainSeparator(nn.Module):
    """Separates one mixture in operations that ONNX has, whatever its length."""

    def __init__(
        self, encoder: nn.Module, masknet: SPGMMaskNet, decoder: nn.Module
    ) -> None:
        super().__init__()
        self.encoder, self.masknet, self.decoder = encoder, masknet, decoder

    def forward(self, mix: Tensor) -> Tensor:
        """Mixture ``[1, T]``, at least an encoder kernel long, to ``[1, T, spks]``."""
        T = mix.shape[1]
        mix_w = F.relu(self.encoder.conv1d(mix.unsqueeze(1)))  # [1, N, L]
        masks = self.masks(mix_w)  # [spks, N, L]
        est = nn.ConvTranspose1d.forward(self.decoder, masks * mix_w)  # [spks, 1, T']
        est = F.pad(est.squeeze(1), (0, T - est.shape[-1]))
        return est.t().unsqueeze(0)

    def masks(self, mix_w: Tensor) -> Tensor:
        """Encoder output ``[1, N, L]`` to masks ``[spks, N, L]`` (paper, figure 1)."""
        net, L = self.masknet, mix_w.shape[-1]
        x = whole_norm(net.norm, mix_w.permute(2, 0, 1)).squeeze(1)  # [L, N]
        rows = self.segment(F.linear(x, net.conv1d.weight.squeeze(-1)))  # [S, K, N]
        for block in net.dual_mdl:
            rows = self.block(block, rows)
        x = self.overlap_add(net.prelu(rows), L)  # [L, N]
        # The 1x1 conv2d comes after the overlap-add of two chunks: twice its bias.
        x = F.linear(x, net.conv2d.weight.flatten(1), 2 * net.conv2d.bias)
        x = x.unflatten(1, (net.num_spks, -1)).permute(1, 2, 0)  # [spks, N, L]
        return net.activation(net.end_conv1x1(net.output(x) * net.output_gate(x)))

    def segment(self, x: Tensor) -> Tensor:
        """Frames ``[L, N]`` to chunks ``[S, K, N]``, see ``lobes/chunking.py``."""
        (L, N), K = x.shape, self.masknet.K
        P, n = K // 2, (K // 2 + L) // K + 1  # S = 2 n
        padded = F.pad(x, (0, 0, P, n * K - L))  # [P + n K, N]
        first = padded.narrow(0, 0, n * K).reshape(n, K, N)
        second = padded.narrow(0, P, n * K).reshape(n, K, N)
        return torch.stack([first, second], dim=1).flatten(0, 1)

    def overlap_add(self, rows: Tensor, L: int) -> Tensor:
        """Chunks ``[S, K, N]`` to frames ``[L, N]``: the two that cover each, added."""
        N, P = rows.shape[-1], self.masknet.K // 2
        streams = rows.unflatten(0, (-1, 2))
        first = streams[:, 0].reshape(-1, N)
        second = streams[:, 1].reshape(-1, N)
        return first.narrow(0, P, L) + second.narrow(0, 0, L)

    def block(self, block: Dual_Computation_Block, x: Tensor) -> Tensor:
        """One dual computation block, ``[S, K, N]`` to ``[S, K, N]``."""
        standard = intra.is_standard(block.intra_mdl)
        local = intra.transform(block.intra_mdl, x) if standard else block.intra_mdl(x)
        if block.linear_layer_after_inter_intra:
            local = block.intra_linear(local)
        local = whole_norm(block.intra_norm, local)
        x = local + x if block.skip_around_intra else local
        p = block.inter_mdl.pool(x).mean(dim=0, keepdim=True)  # [1, N]
        out = block.inter_mdl.modulation(p) * x
        if block.linear_layer_after_inter_intra:
            out = block.inter_linear(out)
        return x + whole_norm(block.inter_norm, out)


def whole_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """A global norm, with one mean and variance over all of ``[S, K, N]``.

    The sums end in float64: onnxruntime adds float32 numbers one after the other, which
    half a minute of audio would make inexact.
    """
    x = x - x.mean(dim=1).double().mean().to(x.dtype)
    variance = x.square().mean(dim=1).double().mean().to(x.dtype)
    scale = norm.weight.flatten() / torch.sqrt(variance + norm.eps)
    return x * scale + norm.bias.flatten()


def export_onnx(model: SPGMSeparation, path: str | Path) -> dict[float, float]:
    """Writes a model as an ONNX file and compares it with PyTorch.

    Input ``mix`` is ``[1, samples]``, output ``est`` ``[1, samples, speakers]``, both
    float32 at the model's rate, of any length from two encoder frames on. The file's
    metadata hold the sample rate, the number of speakers and the model's card.

    Returns the largest difference of a sample, by the length in seconds, for noise of
    peak 1. Above ``TOLERANCE`` it is a ModelError, and there is no file.
    """
    require_onnx()
    masknet = model.mods.masknet
    if not isinstance(masknet, SPGMMaskNet):
        raise ModelError(
            f"ONNX files are made of SPGM models, but this one is a "
            f"{type(masknet).__name__}."
        )
    model = deepcopy(model)  # the caller's stays what and where it is
    model.precision = "fp32"  # as the file computes
    model.mods["masknet"] = packed(model.mods.masknet)
    mods = model.mods.float().cpu().eval()
    plain = PlainSeparator(mods.encoder, mods.masknet, mods.decoder).eval()
    program = trace(plain, model.sample_rate)
    program.model.metadata_props.update(metadata(model))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with quiet():
            program.save(temporary)
        errors = compare(temporary, model)
        worst = max(errors, key=errors.__getitem__)
        if not errors[worst] <= TOLERANCE:
            raise ModelError(
                f"The ONNX file gives other voices than the model: they differ by "
                f"{errors[worst]:.1e} at {worst} s, more than {TOLERANCE:.0e}."
            )
    return errors


def require_onnx() -> None:
    """Says how to install what the export needs, if it is not there."""
    missing = [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ModelError(
            f"The ONNX export needs {' and '.join(missing)}: "
            f"run pip install {' '.join(missing)}."
        )


def trace(plain: PlainSeparator, rate: int) -> torch.onnx.ONNXProgram:
    """The separator as an ONNX program whose length is free."""
    conv = plain.encoder.conv1d
    shortest = conv.kernel_size[0] + conv.stride[0]
    length = max(shortest + 1, int(TRACED_SECONDS * rate))
    samples = torch.export.Dim("samples", min=shortest)
    scratch()  # the exporter needs one, and blames the model without
    try:
        with quiet():
            return torch.onnx.export(
                plain,
                (torch.zeros(1, length),),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamic_shapes=({1: samples},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # of PyTorch's exporter
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"The model cannot be expressed in ONNX: {reason}") from None


def metadata(model: SPGMSeparation) -> dict[str, str]:
    """What a program needs to know to use the file, and the card, as texts."""
    config: Mapping[str, Any] = getattr(model.hparams, "config", {})
    return {
        "sample_rate": str(model.sample_rate),
        "num_spks": str(model.num_spks),
        "name": str(config.get("config_name", "")),
        CARD: json.dumps(config.get(CARD, {}), ensure_ascii=False),
    }


def compare(
    path: Path, model: SPGMSeparation, seconds: Sequence[float] = CHECKED_SECONDS
) -> dict[float, float]:
    """The largest difference of a sample from the model's, on noise, by its seconds."""
    onnxruntime = importlib.import_module("onnxruntime")  # of the extra onnx
    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for length in seconds:
        samples = int(length * model.sample_rate)
        mix = 2 * torch.rand(1, samples, generator=generator) - 1
        est = torch.from_numpy(session.run([OUTPUT], {INPUT: mix.numpy()})[0])
        errors[length] = (est - model.separate_batch(mix)).abs().max().item()
    return errors


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's messages on other packages and its own future to itself."""
    with warnings.catch_warnings(), errors_only("torch.onnx"):
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield
