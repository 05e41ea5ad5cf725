"""SpeechBrain's transformer block on independent rows, without attention weights.

Axes: C rows (chunks), K frames of a chunk, N filters, H heads, D = N / H.
"""

import torch
import torch.nn.functional as F
from speechbrain.lobes.models.dual_path import SBTransformerBlock
from speechbrain.lobes.models.transformer.Transformer import TransformerEncoderLayer
from speechbrain.nnet.attention import MultiheadAttention, PositionalwiseFeedForward
from torch import Tensor, nn


def is_standard(block: nn.Module) -> bool:
    """Whether :func:`transform` computes what this module's own forward computes.

    So for an ``SBTransformerBlock`` of plain attention and feed-forward layers.

    Example
    -------
    >>> is_standard(SBTransformerBlock(1, 64, 8)), is_standard(nn.Identity())
    (True, False)
    """
    return (
        type(block) is SBTransformerBlock
        and block.mdl.layerdrop_prob == 0
        and not block.mdl.output_hidden_states
        and all(_is_standard_layer(layer) for layer in block.mdl.layers)
    )


def _is_standard_layer(layer: nn.Module) -> bool:
    return (
        type(layer) is TransformerEncoderLayer
        and type(layer.self_att) is MultiheadAttention
        and type(layer.pos_ffn) is PositionalwiseFeedForward
        and type(layer.self_att.att) is nn.MultiheadAttention
        and layer.self_att.att.in_proj_weight is not None
        and layer.self_att.att.in_proj_bias is not None
        and layer.self_att.att.bias_k is None
        and not layer.self_att.att.add_zero_attn
    )


def transform(block: SBTransformerBlock, x: Tensor) -> Tensor:
    """A standard block's forward of rows ``[C, K, N]``, which do not see each other.

    By ``scaled_dot_product_attention``.
    """
    if block.use_positional_encoding:
        x = x + block.pos_enc(x)
    for layer in block.mdl.layers:
        x = _layer(layer, x)
    return block.mdl.norm(x)


def _layer(layer: TransformerEncoderLayer, x: Tensor) -> Tensor:
    if layer.normalize_before:
        x = x + layer.dropout1(_attention(layer.self_att.att, layer.norm1(x)))
        return x + layer.dropout2(layer.pos_ffn.ffn(layer.norm2(x)))
    x = layer.norm1(x + layer.dropout1(_attention(layer.self_att.att, x)))
    return layer.norm2(x + layer.dropout2(layer.pos_ffn.ffn(x)))


def _attention(att: nn.MultiheadAttention, x: Tensor) -> Tensor:
    C, K, N = x.shape
    qkv = F.linear(x, att.in_proj_weight, att.in_proj_bias)  # [C, K, 3N]
    q, k, v = (
        part.unflatten(-1, (att.num_heads, -1)).transpose(1, 2)  # [C, H, K, D]
        for part in qkv.chunk(3, dim=-1)
    )
    dropout = att.dropout if att.training else 0.0
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # There its gradient takes twice as long in bf16 as in float32.
        q, k, v = q.float(), k.float(), v.float()
        with torch.autocast("cpu", enabled=False):
            heads = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        heads = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return att.out_proj(heads.transpose(1, 2).reshape(C, K, N))


def widest(block: object, N: int) -> int:
    """Most values per frame that an intra model holds at once, at least 3 N.

    Example
    -------
    >>> widest(SBTransformerBlock(1, 64, 8, d_ffn=1024), 64)
    1024
    """
    modules = block.modules() if isinstance(block, nn.Module) else ()
    widths = [m.out_features for m in modules if isinstance(m, nn.Linear)]
    return max([3 * N, *widths])
