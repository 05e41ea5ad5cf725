"""The fast path: masks and voices on a CPU in evaluation mode, exactly.

Same mathematics as ``SPGMMaskNet.forward``, arranged for caches and cores:

- A few rows (some megabytes) at a time go through all layers of a block, each such
  step in a single-threaded worker of its own: the state is read and written once per
  block, everything between stays in the core's cache.
- Two tensors ``[S, K, N]`` are all that is held for an utterance: the state x and what
  the intra model made of it. Every result is written into one of them or into the
  worker's scratch memory. The affine maps of the norms are applied where the rows are
  next read.
- What the rows share (two norms and the pooled vector of each block) are sums per row
  in float64, added in the order of the rows as ``statistics`` says. The steps are cut
  the same way whatever the number of workers, so the result has the same bits.
- Encoder, masks and decoder run over a few hundred frames at a time: none of their
  outputs, each as large as the state, ever exists as a whole.
- Utterances of a batch go one after the other: each is as if it were alone.

::

    samples -> encoded frames -> rows x -> [block]* -> frames -> masks -> samples
               `--- a tile at a time ---'              `--- a tile at a time ---'

    block:  local = intra(x)            a step at a time, sums for the norm
            x += norm(local)            a step at a time, sums for the norm, pooled
            x = affine map of x         with the next reading

Axes: B utterances, T samples, L encoder frames, N filters, K frames in a chunk, S rows
(chunks) of one utterance, R rows of a step, spks sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.dual_path import (
    Decoder,
    Dual_Computation_Block,
    Dual_Path_Model,
    Encoder,
    SBTransformerBlock,
)
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoderLayer
from torch import Tensor, nn

from speechbrain_spgm.lobes import intra
from speechbrain_spgm.lobes.chunking import chunk_frames, count_chunks
from speechbrain_spgm.lobes.linears import Linears, Scratch, fold, linears_of
from speechbrain_spgm.lobes.norms import level_free_affine, norm_affine
from speechbrain_spgm.lobes.statistics import Averages, Statistics
from speechbrain_spgm.lobes.workers import count_workers, run, single_threaded

WIDE_ROW = 3 * 2**18  # bytes of a row's widest tensor from which two share its work
STEP_BYTES = 3 * 2**20  # the widest tensor of a step; see _Utterance._steps
TILE_FRAMES = 500
OUT_PROJECTION = nn.modules.linear.NonDynamicallyQuantizableLinear  # PyTorch's own

# Scale and shift: of all rows, each [N], or of every row, each [S, 1, N].
Affine = tuple[Tensor, Tensor]
# Told by the workers, several at a time, whenever so many of an utterance's rows are
# done, and how many there are: chunks times blocks.
Watch = Callable[[int, int], None]


def suits(masknet: Dual_Path_Model, x: Tensor) -> bool:
    """Whether :func:`estimate_masks` computes what the network's own forward does.

    So in evaluation mode where nothing needs gradients, on the CPU, in float32 or
    float64 without autocast, for standard transformers; int8 in float32 only.
    """
    weight = masknet.conv1d.weight

    def learns() -> bool:
        return x.requires_grad or any(p.requires_grad for p in masknet.parameters())

    return (
        not (torch.is_grad_enabled() and learns())
        and not _trains(masknet)
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and (masknet.int8 is None or x.dtype == torch.float32)
        and not torch.is_autocast_enabled("cpu")
        and all(is_plain(block.intra_mdl) for block in masknet.dual_mdl)
    )


def _trains(module: nn.Module) -> bool:
    """Whether any part is in training mode; ``modules()`` takes milliseconds."""
    return module.training or any(map(_trains, module.children()))


def is_plain(block: nn.Module) -> bool:
    """Whether a transformer is standard and its linears are just that.

    Their weights may then be read in place of calling them.
    """
    return intra.is_standard(block) and all(
        [type(part) for part in list(layer.pos_ffn.ffn)[::2]] == [nn.Linear, nn.Dropout]
        and type(layer.pos_ffn.ffn[3]) is nn.Linear
        and len(layer.pos_ffn.ffn) == 4
        and type(layer.self_att.att.out_proj) in (nn.Linear, OUT_PROJECTION)
        for layer in block.mdl.layers
    )


def suits_ends(encoder: nn.Module, decoder: nn.Module) -> bool:
    """Whether :func:`separate` computes what this encoder and decoder do.

    So for SpeechBrain's own with one channel and no bias.
    """
    if type(encoder) is not Encoder or type(decoder) is not Decoder:
        return False
    return (
        encoder.conv1d.weight.shape[1] == decoder.weight.shape[1] == 1
        and encoder.conv1d.bias is None
        and decoder.bias is None
        and decoder.padding == decoder.output_padding == (0,)
        and decoder.dilation == encoder.conv1d.dilation == (1,)
        and encoder.conv1d.padding == (0,)
        and decoder.kernel_size[0] <= TILE_FRAMES // 2 * decoder.stride[0]
    )


def estimate_masks(
    masknet: Dual_Path_Model,
    x: Tensor,
    lengths: Sequence[int],
    statistics: Statistics | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Masks ``[spks, B, N, L]`` of encoder output ``[B, N, L]``, 0 beyond ``lengths``.

    ``masknet`` is one that :func:`suits`; the rest is as in ``SPGMMaskNet.forward``.
    """
    B, N, L = x.shape
    masks = x.new_empty(masknet.num_spks, B, N, L)
    for b, length in enumerate(lengths):
        masks[:, b, :, length:] = 0

        def encoded(start: int, stop: int, b: int = b) -> Tensor:
            return x[b, :, start:stop].t()

        def keep(start: int, stop: int, tile: Tensor, b: int = b) -> None:
            masks[:, b, :, start:stop] = tile.permute(1, 2, 0)

        averages = Averages(statistics)
        _Utterance(masknet, encoded, length, x, averages, watch).estimate(keep)
    return masks


def separate(
    encoder: Encoder,
    masknet: Dual_Path_Model,
    decoder: Decoder,
    mix: Tensor,
    samples: Sequence[int],
    frames: Sequence[int],
    statistics: Statistics | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Voices ``[B, T, spks]`` of mixtures ``[B, T]``, 0 beyond the valid ``samples``.

    The networks are ones that :func:`suits` and :func:`suits_ends` accept; ``frames``
    are the valid encoder frames. The rest is as in ``SPGMMaskNet.forward``.
    """
    B, T = mix.shape
    (kernel,), (stride,) = decoder.kernel_size, decoder.stride
    filters = encoder.conv1d.weight.flatten(1)  # [N, kernel of the encoder]
    # Decoded frames add up in rows of one stride; the last kernel may end beyond T.
    rows = max(max(frames) + math.ceil(kernel / stride), math.ceil(T / stride))
    est = mix.new_zeros(B, masknet.num_spks, rows, stride)

    for b in range(B):
        width = filters.shape[1]
        voice = F.pad(mix[b, : samples[b]], (0, max(0, width - samples[b])))
        windows = voice.unfold(0, width, encoder.conv1d.stride[0])  # [L, width]

        def encoded(start: int, stop: int, windows: Tensor = windows) -> Tensor:
            return F.linear(windows[start:stop], filters).relu_()

        def decode(
            start: int, stop: int, tile: Tensor, windows: Tensor = windows, b: int = b
        ) -> None:
            tile *= F.linear(windows[start:stop], filters).relu_().unsqueeze(1)
            pieces = tile @ decoder.weight.squeeze(1)  # [n, spks, kernel]
            for i, piece in enumerate(pieces.split(stride, dim=-1)):
                rows = est[b, :, start + i : stop + i, : piece.shape[-1]]
                rows += piece.transpose(0, 1)

        averages = Averages(statistics)
        _Utterance(masknet, encoded, frames[b], mix, averages, watch).estimate(decode)
        est[b].flatten(1)[:, samples[b] :] = 0
    return est.flatten(2)[:, :, :T].transpose(1, 2)


def advance(
    masknet: Dual_Path_Model, rows: Tensor, valid: Tensor, averages: Averages
) -> Tensor:
    """The blocks on some chunks of an utterance; see ``SPGMMaskNet.advance``.

    Each chunk is a step, and a wide one in halves, which two workers share if it comes
    alone: neither how many come at a time nor how many workers there are changes a bit.
    """
    net = _Rows(masknet, len(rows), rows, averages, rows_per_step=1)
    net.halves = net.row_bytes(masknet.dual_mdl[0].intra_mdl) >= WIDE_ROW
    return net.pass_through(rows, valid)


class _Rows:
    """Consecutive chunks, S rows, of one utterance on their way through the blocks."""

    def __init__(
        self,
        net: Dual_Path_Model,
        S: int,
        like: Tensor,
        averages: Averages,
        watch: Watch | None = None,
        rows_per_step: int | None = None,
    ) -> None:
        N, _, _ = net.conv1d.weight.shape
        self.net, self.K, self.S = net, net.K, S
        self.x = like.new_empty(S, net.K, N)  # the state
        self.local = torch.empty_like(self.x)  # what the intra model makes of it
        self.pending: Affine | None = None  # still to be applied to the state
        self.pooled = like.new_empty(S, N)
        self.sums = _Sums(S, N)
        self.averages, self.watch = averages, watch
        self.rows_per_step, self.halves = rows_per_step, False
        self.workers = count_workers()
        self.scratch = [Scratch(like) for _ in range(self.workers)]

    @single_threaded  # OpenMP's threads would wait on the workers' cores
    def pass_through(self, rows: Tensor, valid: Tensor) -> Tensor:
        """From encoder frames ``[S, K, N]`` to the state behind all blocks."""
        self.embed(rows, valid)
        for block in self.net.dual_mdl:
            self.block(block)
        if self.pending is None:
            return self.x
        return _affine(self.x, self.pending, out=self.x)

    def embed(self, rows: Tensor, valid: Tensor) -> None:
        """Level, norm and 1x1 convolution of encoder frames ``[S, K, N]``."""
        self.sums.put(slice(0, self.S), rows)
        counts = valid.sum((1, 2)).int().tolist()
        moments = self.averages.moments_of(self.sums.sums, [self.S], counts)
        norm = _by_row(level_free_affine(self.net.norm, *moments))
        weight = self.net.conv1d.weight.squeeze(-1).t()

        def fill(row: int, worker: int) -> None:
            frames = _affine(rows[row], _of(norm, row))
            frames *= valid[row]
            torch.mm(frames, weight, out=self.x[row])

        run(fill, range(self.S), self.workers)

    def block(self, block: Dual_Computation_Block) -> None:
        """One dual computation block; see ``SPGMMaskNet._block`` for the formulas."""
        x, local, pending, sums = self.x, self.local, self.pending, self.sums
        spgm = block.inter_mdl
        steps = self._steps(block.intra_mdl)
        linears = [self._linears(layer) for layer in block.intra_mdl.mdl.layers]

        def moments() -> tuple[Tensor, Tensor]:
            ones = [1] * self.S
            return self.averages.moments_of(sums.sums, [self.S], ones, self.K)

        def attend(step: slice, worker: int) -> None:
            if pending is not None:
                _affine(x[step], _of(pending, step), out=x[step])
            parts = block.intra_mdl, x[step], local[step]
            if self.halves:
                shared = self.scratch if alone else self.scratch[worker : worker + 1]
                transform_in_halves(*parts, shared, linears)
            else:
                transform(*parts, self.scratch[worker], linears)
            if block.linear_layer_after_inter_intra:
                local[step] = block.intra_linear(local[step])
            sums.put(step, local[step])
            if self.watch is not None:
                self.watch(step.stop - step.start, self.S * len(self.net.dual_mdl))

        alone = self.halves and len(steps) == 1
        run(attend, steps, 1 if alone else self.workers)
        norm = _by_row(norm_affine(block.intra_norm, *moments()))

        def combine(step: slice, worker: int) -> None:
            scaled = _of(norm, step)
            if block.skip_around_intra:
                x[step] += _affine(local[step], scaled, out=local[step])
            else:
                _affine(local[step], scaled, out=x[step])
            self.pooled[step] = spgm.pool(x[step])
            sums.put(step, x[step])

        run(combine, steps, self.workers)
        pooled = self.averages.mean(self.pooled.double(), [self.S])
        pooled = pooled.to(x.dtype).split(1)  # a product of many has other bits
        c = torch.cat([spgm.modulation(vector) for vector in pooled])
        if not block.linear_layer_after_inter_intra:
            norm = norm_affine(block.inter_norm, *moments(), c)
            self.pending = _by_row((1 + norm[0], norm[1]))
            return

        factors = _by_row((c, c))

        def mix(step: slice, worker: int) -> None:
            local[step] = block.inter_linear(x[step] * _of(factors, step)[0])
            sums.put(step, local[step])

        run(mix, steps, self.workers)
        norm = _by_row(norm_affine(block.inter_norm, *moments()))

        def add(step: slice, worker: int) -> None:
            x[step] += _affine(local[step], _of(norm, step), out=local[step])

        run(add, steps, self.workers)
        self.pending = None

    def _linears(self, layer: TransformerEncoderLayer) -> Linears:
        if self.net.int8 is not None:
            return self.net.int8[layer]
        return fold(linears_of(layer), layer.pos_ffn.ffn[1])

    def _steps(self, block: SBTransformerBlock) -> list[slice]:
        """The rows that go through a block together."""
        # More rows read a layer's weights less often, fewer fit the cache: of spgm-base
        # three are best, of narrow layers more: then Python's share stays small.
        wanted = self.rows_per_step
        wanted = self.net.rows_per_step if wanted is None else wanted
        if wanted is not None:
            return _split(self.S, wanted or self.S)
        return _taper(self.S, max(1, STEP_BYTES // self.row_bytes(block)))

    def row_bytes(self, block: SBTransformerBlock) -> int:
        """Of the widest tensor of a row in a block."""
        _, K, N = self.x.shape
        return K * intra.widest(block, N) * self.x.element_size()


class _Utterance(_Rows):
    """All chunks of an utterance, from L frames ``encoded(start, stop)`` to masks."""

    def __init__(
        self,
        net: Dual_Path_Model,
        encoded: Callable[[int, int], Tensor],
        L: int,
        like: Tensor,
        averages: Averages,
        watch: Watch | None,
    ) -> None:
        super().__init__(net, count_chunks(L, net.K), like, averages, watch)
        self.encoded, self.L = encoded, L

    def estimate(self, use: Callable[[int, int, Tensor], None]) -> None:
        """Hands every tile's masks ``[n, spks, N]`` to ``use(start, stop, masks)``."""
        self._segment()
        for block in self.net.dual_mdl:
            self.block(block)
        del self.local
        tiles = _split(self.L, max(1, TILE_FRAMES // self.K) * self.K)

        def tail(tile: slice, worker: int) -> None:
            use(tile.start, tile.stop, self._masks(tile, self.scratch[worker]))

        # No two neighbours are in use at a time: their decoded samples overlap.
        run(tail, tiles[0::2], self.workers)
        run(tail, tiles[1::2], self.workers)

    def _segment(self) -> None:
        """Norm, 1x1 convolution and chunks: fills the state."""
        if self.averages.statistics.per_chunk:
            parts = [chunk_frames(row, self.K, self.L)[:2] for row in range(self.S)]
            chunks = [self.S]
        else:  # every frame once
            parts = [(t.start, t.stop) for t in _split(self.L, TILE_FRAMES)]
            chunks = [len(parts)]
        sums = _Sums(len(parts), self.net.conv1d.in_channels)

        def measure(i: int, worker: int) -> None:
            start, stop = parts[i]
            sums.put(slice(i, i + 1), self.encoded(start, max(start, stop))[None])

        run(measure, range(len(parts)), self.workers)
        counts = [max(0, stop - start) for start, stop in parts]
        moments = self.averages.moments_of(sums.sums, chunks, counts)
        norm = _by_row(norm_affine(self.net.norm, *moments))
        weight = self.net.conv1d.weight.squeeze(-1).t()

        def fill(row: int, worker: int) -> None:
            start, stop, offset = chunk_frames(row, self.K, self.L)
            chunk = self.x[row]
            chunk[:offset] = 0
            if start < stop:
                frames = _affine(self.encoded(start, stop), _of(norm, row))
                torch.mm(frames, weight, out=chunk[offset : offset + stop - start])
            chunk[offset + max(0, stop - start) :] = 0

        run(fill, range(self.S), self.workers)

    def _masks(self, tile: slice, scratch: Scratch) -> Tensor:
        """Overlap-add and masks of some frames, ``[n, spks, N]``."""
        net, n, N = self.net, tile.stop - tile.start, self.x.shape[-1]
        added = scratch.take("added", n, N).zero_()
        first = tile.start // self.K * 2
        for row in range(first, min(self.S, tile.stop // self.K * 2 + 3)):
            start, stop, offset = chunk_frames(row, self.K, self.L)
            offset -= start
            start, stop = max(start, tile.start), min(stop, tile.stop)
            if start < stop:
                frames = self.x[row, start + offset : stop + offset]
                if self.pending is not None:
                    frames = _affine(frames, _of(self.pending, row))
                added[start - tile.start : stop - tile.start] += net.prelu(frames)

        each = scratch.take("wide", n, net.num_spks * N)
        weight = net.conv2d.weight.flatten(1).t()
        torch.addmm(net.conv2d.bias, added, weight, beta=2, out=each)
        each = each.view(-1, N)
        output = _pointwise(net.output, each, scratch.take("output", *each.shape))
        output *= _pointwise(net.output_gate, each, scratch.take("gate", *each.shape))
        masks = scratch.take("masks", len(each), net.end_conv1x1.out_channels)
        torch.mm(output, net.end_conv1x1.weight.squeeze(-1).t(), out=masks)
        return net.activation(masks).view(n, net.num_spks, -1)


class _Sums:
    """Sums of x and x² over the frames of every row, ``[S, N]`` in float64."""

    def __init__(self, S: int, N: int) -> None:
        self.sums = torch.empty(2, S, N, dtype=torch.float64, device="cpu")

    def put(self, rows: slice, x: Tensor) -> None:
        """Takes the rows' frames, ``[R, K, N]``."""
        wide = x.double()  # squares of float32 are exact, and nothing cancels
        torch.sum(wide, dim=1, out=self.sums[0, rows])
        wide = wide.square_() if wide is not x else wide.square()
        torch.sum(wide, dim=1, out=self.sums[1, rows])


def transform(
    block: SBTransformerBlock,
    x: Tensor,
    out: Tensor,
    scratch: Scratch,
    linears: Sequence[Linears],
) -> None:
    """``intra.transform`` of rows x ``[R, K, N]`` into ``out``, by these linears."""
    if block.use_positional_encoding:
        torch.add(x, block.pos_enc(x), out=out)
    else:
        out.copy_(x)
    for layer, parts in zip(block.mdl.layers, linears, strict=True):
        _layer(layer, parts, out, scratch)
    out.copy_(block.mdl.norm(out))


def transform_in_halves(
    block: SBTransformerBlock,
    x: Tensor,
    out: Tensor,
    scratch: Sequence[Scratch],
    linears: Sequence[Linears],
) -> None:
    """The transformer on one row, each half of its frames for itself where it can be.

    ``x`` and ``out`` are ``[1, K, N]``; the work is shared by one worker per scratch.
    """
    _, K, N = x.shape
    torch.add(x, block.pos_enc(x) if block.use_positional_encoding else 0, out=out)
    qkv = scratch[0].take("qkv", K, 3 * N)
    for layer, parts in zip(block.mdl.layers, linears, strict=True):
        _layer_in_halves(layer, parts, out[0], qkv, scratch)
    out.copy_(block.mdl.norm(out))


def _layer_in_halves(
    layer: TransformerEncoderLayer,
    linears: Linears,
    x: Tensor,
    qkv: Tensor,
    scratch: Sequence[Scratch],
) -> None:
    """One layer on frames ``[K, N]``, in place; ``qkv`` holds ``[K, 3 N]``."""
    K, N = x.shape
    num_heads, activation = layer.self_att.att.num_heads, layer.pos_ffn.ffn[1]
    workers, halves = min(2, len(scratch)), _split(K, -(-K // 2))

    def project(half: slice, worker: int) -> None:
        part = layer.norm1(x[half]) if layer.normalize_before else x[half]
        qkv[half] = linears.qkv.of(part, scratch[worker])
        if linears.queries is not None:
            qkv[half, :N] += linears.queries

    def attend(half: slice, worker: int) -> None:
        part, mine = x[half], scratch[worker]
        q, k, v = qkv.view(1, K, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q[:, :, half], k, v)  # [1, H, n, D]
        linears.heads.add(heads.transpose(1, 2).reshape(-1, N), part, mine)
        if layer.normalize_before:
            _add_feed_forward(linears, activation, layer.norm2(part), part, mine)
        else:
            part.copy_(layer.norm1(part))
            _add_feed_forward(linears, activation, part, part, mine)
            part.copy_(layer.norm2(part))

    run(project, halves, workers)
    run(attend, halves, workers)


def _layer(
    layer: TransformerEncoderLayer, linears: Linears, x: Tensor, scratch: Scratch
) -> None:
    """One layer, in place."""
    heads, activation = layer.self_att.att.num_heads, layer.pos_ffn.ffn[1]
    if layer.normalize_before:
        _add_attention(linears, heads, layer.norm1(x), x, scratch)
        _add_feed_forward(linears, activation, layer.norm2(x), x, scratch)
    else:
        _add_attention(linears, heads, x, x, scratch)
        x.copy_(layer.norm1(x))
        _add_feed_forward(linears, activation, x, x, scratch)
        x.copy_(layer.norm2(x))


def _add_attention(
    linears: Linears, num_heads: int, x: Tensor, out: Tensor, scratch: Scratch
) -> None:
    R, K, N = x.shape
    qkv = linears.qkv.of(x.view(-1, N), scratch)
    if linears.queries is not None:
        qkv[:, :N] += linears.queries
    q, k, v = qkv.view(R, K, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    heads = F.scaled_dot_product_attention(q, k, v)  # [R, H, K, D]
    linears.heads.add(heads.transpose(1, 2).reshape(-1, N), out, scratch)


def _add_feed_forward(
    linears: Linears, activation: nn.Module, x: Tensor, out: Tensor, scratch: Scratch
) -> None:
    x = x.view(-1, x.shape[-1])
    if type(activation) is nn.ReLU:
        hidden = linears.rise.relu_of(x, scratch)
    else:
        hidden = activation(linears.rise.of(x, scratch))
    linears.fall.add(hidden, out, scratch)


def _pointwise(layers: nn.Sequential, x: Tensor, out: Tensor) -> Tensor:
    """A 1x1 ``Conv1d`` and its activation on the last axis."""
    conv, activation = layers
    torch.addmm(conv.bias, x, conv.weight.squeeze(-1).t(), out=out)
    return activation(out)


def _affine(x: Tensor, affine: Affine, out: Tensor | None = None) -> Tensor:
    scale, shift = affine
    return torch.addcmul(shift, x, scale, out=out)


def _by_row(affine: Affine) -> Affine:
    """Scale and shift of the only utterance from ``[G, N]``."""
    scale, shift = affine
    if len(scale) == 1:
        return scale[0], shift[0]
    return scale.unsqueeze(1), shift.unsqueeze(1)


def _of(affine: Affine, rows: slice | int) -> Affine:
    """The part of an affine map for some rows."""
    scale, shift = affine
    return affine if scale.ndim == 1 else (scale[rows], shift[rows])


def _split(count: int, size: int) -> list[slice]:
    """Slices of ``size`` that cover ``range(count)``; the last may be shorter.

    Example
    -------
    >>> _split(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def _taper(count: int, size: int) -> list[slice]:
    """Likewise, ever shorter at the end: then all workers, however many, end together.

    But single rows, which take more time each, come at the very end only.

    Example
    -------
    >>> [part.stop - part.start for part in _taper(16, 3)]
    [3, 3, 2, 2, 2, 2, 1, 1]
    """
    slices, start = [], 0
    while start < count:
        left = count - start
        stop = start + min(size, max(1, min(2, left // 2), left // 4))
        slices.append(slice(start, stop))
        start = stop
    return slices
