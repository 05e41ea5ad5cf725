"""The packed mask network: SepFormer's dual path with SPGM, utterances kept apart.

Axes: B utterances, L encoder frames, N filters, K frames in a chunk, S chunks of one
utterance, C rows = chunks of all utterances of a batch, packed one after the other,
spks sources.

A chunk meets the others of its utterance only in two norms and the global vector, so
the state is a plain ``[C, K, N]`` tensor and those three are sums per row, then per
utterance. Nothing is spent on padding and nothing leaks between utterances.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.dual_path import (
    DPTNetBlock,
    Dual_Computation_Block,
    Dual_Path_Model,
    GlobalLayerNorm,
)
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from torch import Tensor, nn

from speechbrain_spgm.lobes import engine, intra
from speechbrain_spgm.lobes.chunking import overlap_add, segment
from speechbrain_spgm.lobes.linears import Linears
from speechbrain_spgm.lobes.norms import (
    affine,
    level_free_affine,
    norm_affine,
    row_moments,
)
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.lobes.statistics import Averages, Statistics

# What the intra transformer may hold at once without gradients: the caches of a few
# cores on a CPU, a fraction of the memory on a GPU.
STEP_BYTES = {"cpu": 4 * 2**20, "cuda": 2**30}


class SPGMMaskNet(Dual_Path_Model):
    """SpeechBrain's ``Dual_Path_Model`` with SPGM blocks, computed on packed rows.

    Same arguments, parameters and state names as ``Dual_Path_Model``, same masks as
    each utterance has there alone; ``inter_model`` must be an
    :class:`~speechbrain_spgm.lobes.spgm.SPGMBlock` and ``intra_model`` must treat its
    rows independently, as transformers and RNNs do.

    Arguments
    ---------
    in_channels : int
        Number of encoder filters.
    out_channels : int
        Number of filters N of the intra and inter blocks.
    intra_model : torch.nn.Module
        Model within chunks, ``[C, K, N]`` to ``[C, K, N]``; copied to every block.
    inter_model : SPGMBlock
        Global modulation; copied to every block.
    num_layers : int
        Number of blocks.
    norm : str
        ``"ln"`` or ``"gln"``: one mean and variance per utterance.
    K : int
        Frames in a chunk, at least 2.
    num_spks : int
        Number of sources.
    skip_around_intra : bool
        Skip connection around the intra model.
    linear_layer_after_inter_intra : bool
        Linear layer after the intra and the inter model.
    use_global_pos_enc : bool
        Must be False.
    max_length : int
        Unused, as ``use_global_pos_enc`` is False.
    rows_per_step : int, optional
        Chunks that go through the intra model at a time when no gradient is needed
        (bounds the memory, changes no result). ``None``: what fits the cache;
        0: all. Training uses all rows.

    Raises
    ------
    ValueError
        For anything above that the packed network cannot represent.

    Example
    -------
    >>> from speechbrain.lobes.models.dual_path import SBTransformerBlock
    >>> intra_model = SBTransformerBlock(1, 64, 8, norm_before=True, dropout=0.0)
    >>> net = SPGMMaskNet(64, 64, intra_model, SPGMBlock(64, "att"), K=50)
    >>> x = torch.rand(2, 64, 300)
    >>> masks = net(x, frames=torch.tensor([300, 120]))
    >>> masks.shape
    torch.Size([2, 2, 64, 300])
    >>> alone = net(x[1:, :, :120])
    >>> torch.allclose(masks[:, 1:, :, :120], alone, atol=1e-5)
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        intra_model: nn.Module,
        inter_model: nn.Module,
        num_layers: int = 1,
        norm: str = "ln",
        K: int = 200,
        num_spks: int = 2,
        skip_around_intra: bool = True,
        linear_layer_after_inter_intra: bool = True,
        use_global_pos_enc: bool = False,
        max_length: int = 20000,
        rows_per_step: int | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            intra_model,
            inter_model,
            num_layers,
            norm,
            K,
            num_spks,
            skip_around_intra,
            linear_layer_after_inter_intra,
            use_global_pos_enc,
            max_length,
        )
        check_representable(self)
        self.transform = intra.transform  # or compiled
        self.rows_per_step = _check_rows(rows_per_step)
        self.int8: dict[nn.Module, Linears] | None = None  # see quantised.py

    @classmethod
    def from_dual_path(
        cls, model: Dual_Path_Model, rows_per_step: int | None = None
    ) -> SPGMMaskNet:
        """The packed network on the parameters of a built ``Dual_Path_Model``.

        Arguments
        ---------
        model : Dual_Path_Model
            A model whose inter models are ``SPGMBlock``; its parameters are shared,
            not copied.
        rows_per_step : int, optional
            See the class.

        Returns
        -------
        masknet : SPGMMaskNet
            In the same mode (training or evaluation) as ``model``.

        Raises
        ------
        ValueError
            If the packed network cannot represent something in ``model``.
        """
        if type(model).forward not in (Dual_Path_Model.forward, cls.forward):
            raise ValueError(
                f"{type(model).__name__} has a forward of its own; "
                "SPGMMaskNet can only take over a plain Dual_Path_Model."
            )
        check_representable(model)
        packed = cls.__new__(cls)
        nn.Module.__init__(packed)
        packed.K, packed.num_spks = model.K, model.num_spks
        packed.num_layers, packed.use_global_pos_enc = model.num_layers, False
        for name, child in model.named_children():
            packed.add_module(name, child)
        packed.transform = intra.transform
        packed.rows_per_step, packed.int8 = _check_rows(rows_per_step), None
        packed.training = model.training  # the children keep the mode they are in
        return packed

    def forward(
        self,
        x: Tensor,
        frames: Tensor | None = None,
        statistics: Statistics | None = None,
        watch: engine.Watch | None = None,
    ) -> Tensor:
        """Estimate one mask per source (paper, figure 1).

        Arguments
        ---------
        x : torch.Tensor
            Encoder output, ``[B, N, L]``.
        frames : torch.Tensor, optional
            Valid frames of every utterance, ``[B]``; ``None``: all L. What x holds
            beyond them is never read.
        statistics : Statistics, optional
            Over which chunks averages are taken; by default over the whole of every
            utterance.
        watch : callable, optional
            ``watch(rows, total)`` is called, by several threads at a time, whenever so
            many of an utterance's ``total`` rows (chunks times blocks) are done; only
            on the fast path of the CPU.

        Returns
        -------
        masks : torch.Tensor
            ``[spks, B, N, L]``, zero beyond the valid frames.

        Raises
        ------
        ValueError
            If ``frames`` is not B counts from 1 to L, or the network is in int8
            and cannot run like that.
        """
        B, _, L = x.shape
        lengths = _check_frames(frames, B, L)
        if engine.suits(self, x):
            return engine.estimate_masks(self, x, lengths, statistics, watch)
        self.check_float()
        averages = Averages(statistics)
        rows, chunks = self._embed(x, lengths, averages)  # [C, K, N]
        for block in self.dual_mdl:
            rows = self._block(block, rows, chunks, averages)
        added = overlap_add(self.prelu(rows), chunks, lengths)
        masks = [self.masks(utterance) for utterance in added]  # [spks, N, L_b]

        padded = [F.pad(mask, (0, L - mask.shape[-1])) for mask in masks]
        return torch.stack(padded, dim=1)

    def advance(self, rows: Tensor, valid: Tensor, averages: Averages) -> Tensor:
        """The dual path on the next chunks of a stream, one utterance without end.

        From encoder output ``[R, K, N]`` and ``valid`` ``[R, K, 1]``, 1 where there are
        frames and 0 where padding, to rows ``[R, K, N]``, of which overlap-add makes
        what :meth:`masks` takes. As in :meth:`forward` with the statistics of
        ``averages``, which move on, but the result does not depend on the level, and
        nothing on how many chunks come at a time.
        """
        averages.rewind()
        if engine.suits(self, rows):
            return self.prelu(engine.advance(self, rows, valid, averages))
        self.check_float()
        x = self._embed_rows(rows, valid, [len(rows)], averages, level_free=True)
        for block in self.dual_mdl:
            x = self._block(block, x, [len(x)], averages)
        return self.prelu(x)

    def check_float(self) -> None:
        """Refuses to compute with the float weights of a network in int8."""
        if self.int8 is not None:
            raise ValueError(
                "A network in int8 runs on the CPU, in evaluation mode, in float32, "
                "without gradients and without autocast only: take precision fp32."
            )

    def _embed(
        self, x: Tensor, lengths: Sequence[int], averages: Averages
    ) -> tuple[Tensor, list[int]]:
        """Norm, 1x1 convolution and chunks: ``[B, N, L]`` to ``[C, K, N]``."""
        frames = [x[b, :, :length].t() for b, length in enumerate(lengths)]
        if averages.statistics.per_chunk:
            rows, chunks = segment(frames, self.K)
            valid, _ = segment([torch.ones_like(f[:, :1]) for f in frames], self.K)
            return self._embed_rows(rows, valid, chunks, averages), chunks
        each = [row_moments(f.unsqueeze(0)) for f in frames]
        mean, var = (torch.cat(moments) for moments in zip(*each, strict=True))
        moments = averages.moments(mean, var, [1] * len(frames), lengths)
        maps = norm_affine(self.norm, *moments)
        weight = self.conv1d.weight.squeeze(-1)
        embedded = [
            F.linear(torch.addcmul(shift, f.to(shift.dtype), scale), weight)
            for f, scale, shift in zip(frames, *maps, strict=True)
        ]
        return segment([_widened(f) for f in embedded], self.K)

    def _embed_rows(
        self,
        rows: Tensor,
        valid: Tensor,
        chunks: Sequence[int],
        averages: Averages,
        level_free: bool = False,
    ) -> Tensor:
        """Likewise, each row alone; ``valid`` ``[C, K, 1]`` is 1 at its frames."""
        wide = rows.double()
        sums = torch.stack([wide.sum(1), wide.square().sum(1)])
        counts = valid.sum((1, 2)).int().tolist()
        moments = averages.moments_of(sums, chunks, counts)
        maps = (level_free_affine if level_free else norm_affine)(self.norm, *moments)
        rows = affine(rows, *maps, [1] * len(rows)) * valid
        return _widened(F.linear(rows, self.conv1d.weight.squeeze(-1)))

    def _block(
        self,
        block: Dual_Computation_Block,
        x: Tensor,
        chunks: Sequence[int],
        averages: Averages,
    ) -> Tensor:
        """One dual computation block, ``[C, K, N]`` to ``[C, K, N]``."""
        # With c the modulation, and mu and sigma of c*x over the utterance, all behind
        # intra is one map: x * (1 + c * gamma / sigma) + beta - mu * gamma / sigma.
        groups = averages.groups(chunks)

        def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
            return averages.moments(*row_moments(rows), chunks)

        local = self._intra(block, x)
        scale, shift = norm_affine(block.intra_norm, *moments(local))
        x = affine(local, scale, shift, groups) + (x if block.skip_around_intra else 0)

        with torch.autocast(x.device.type, enabled=False):  # statistics in float32
            pooled = averages.mean(block.inter_mdl.pool(x), chunks)
            c = block.inter_mdl.modulation(pooled)  # [G, N]
        if block.linear_layer_after_inter_intra:
            mixed = block.inter_linear(affine(x, c, torch.zeros_like(c), groups))
            scale, shift = norm_affine(block.inter_norm, *moments(mixed))
            return x + affine(mixed, scale, shift, groups)
        scale, shift = norm_affine(block.inter_norm, *moments(x), c)
        return affine(x, 1 + scale, shift, groups)

    def _intra(self, block: Dual_Computation_Block, x: Tensor) -> Tensor:
        """The intra model, a few rows at a time where no gradient is needed."""

        def step(rows: Tensor) -> Tensor:
            if intra.is_standard(block.intra_mdl):
                rows = self.transform(block.intra_mdl, rows)
            else:
                rows = block.intra_mdl(rows)
            if block.linear_layer_after_inter_intra:
                rows = block.intra_linear(rows)
            return rows.to(x.dtype)

        if torch.is_grad_enabled():
            return step(x)
        out, size = torch.empty_like(x), self._step_rows(block, x)
        for rows, slot in zip(x.split(size), out.split(size), strict=True):
            slot.copy_(step(rows))
        return out

    def _step_rows(self, block: Dual_Computation_Block, x: Tensor) -> int:
        C, K, N = x.shape
        if self.rows_per_step is not None:
            return self.rows_per_step or C
        row_bytes = K * intra.widest(block.intra_mdl, N) * x.element_size()
        return max(1, STEP_BYTES.get(x.device.type, 2**30) // row_bytes)

    def masks(self, x: Tensor) -> Tensor:
        """Masks of frames that two chunks were added up to, one by one.

        ``[L, N]`` to ``[spks, N, L]``.

        The 1x1 conv2d comes after the overlap-add, which adds two chunks, so its bias
        counts twice; the largest tensor of the dual path then never exists.
        """
        L, N = x.shape
        x = F.linear(x, self.conv2d.weight.flatten(1), 2 * self.conv2d.bias)
        x = x.view(L, self.num_spks, N)
        x = _pointwise(self.output, x) * _pointwise(self.output_gate, x)
        x = F.linear(x, self.end_conv1x1.weight.squeeze(-1))
        return self.activation(x).permute(1, 2, 0)  # [spks, N, L]


def _widened(rows: Tensor) -> Tensor:
    """Under autocast only matrix products are short: the residual stream is float32."""
    return rows.float() if torch.is_autocast_enabled(rows.device.type) else rows


def _check_rows(rows_per_step: int | None) -> int | None:
    if rows_per_step is not None and rows_per_step < 0:
        raise ValueError(
            f"rows_per_step is {rows_per_step}, but it must be None, 0 (all) or more."
        )
    return rows_per_step


def _pointwise(layers: nn.Sequential, x: Tensor) -> Tensor:
    """A 1x1 ``Conv1d`` and its activation on the last axis: a matrix product."""
    conv, activation = layers
    return activation(F.linear(x, conv.weight.squeeze(-1), conv.bias))


def _check_frames(frames: Tensor | None, B: int, L: int) -> list[int]:
    if frames is None:
        return [L] * B
    lengths = frames.tolist()
    if frames.shape != (B,) or not all(1 <= length <= L for length in lengths):
        raise ValueError(
            f"frames is {lengths}, but it must hold {B} counts from 1 to {L}, "
            "one per utterance."
        )
    return [int(length) for length in lengths]


def check_representable(model: Dual_Path_Model) -> None:
    """Refuse a dual-path model that :class:`SPGMMaskNet` would compute wrongly."""
    if model.use_global_pos_enc:
        raise ValueError("SPGMMaskNet needs use_global_pos_enc=False, but it is True.")
    if model.K < 2:
        raise ValueError(f"SPGMMaskNet needs chunks of K >= 2 frames, but K={model.K}.")
    norms = [model.norm]
    for block in model.dual_mdl:
        _check_block(block, model.K)
        norms += [block.intra_norm, block.inter_norm]
    for norm in norms:
        one_group = isinstance(norm, nn.GroupNorm) and norm.num_groups == 1
        if not one_group and not isinstance(norm, GlobalLayerNorm):
            raise ValueError(
                'SPGMMaskNet needs norm "ln" or "gln", one mean and variance per '
                f"utterance, but the model has a {type(norm).__name__}."
            )


def _check_block(block: Dual_Computation_Block, K: int) -> None:
    if type(block).forward is not Dual_Computation_Block.forward:
        raise ValueError(
            f"{type(block).__name__} has a forward of its own; "
            "SPGMMaskNet can only take over a plain Dual_Computation_Block."
        )
    inter = block.inter_mdl
    if type(inter) is not SPGMBlock:
        raise ValueError(
            "SPGMMaskNet needs an SPGMBlock as inter_model, but the model has a "
            f"{type(inter).__name__}; use Dual_Path_Model for it."
        )
    if inter.chunk_size not in (None, K):
        raise ValueError(
            f"SPGMBlock has chunk_size={inter.chunk_size}, but the model has K={K}; "
            "give both the same value."
        )
    if block.norm is None:
        raise ValueError('SPGMMaskNet needs norm "ln" or "gln", but norm is None.')
    if not isinstance(block.intra_mdl, nn.Module):
        return
    for module in block.intra_mdl.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, DPTNetBlock)):
            raise ValueError(
                "SPGMMaskNet needs an intra_model whose rows are independent, but "
                f"{type(block.intra_mdl).__name__} has a {type(module).__name__}."
            )
        if isinstance(module, PositionalEncoding) and K > module.max_len:
            raise ValueError(
                f"The intra_model's positional encoding ends at {module.max_len} "
                f"frames, but K={K}; use a smaller K or no positional encoding."
            )
