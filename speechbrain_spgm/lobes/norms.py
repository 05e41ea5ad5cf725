"""Global norms and affine maps of packed rows: the mathematics both paths share.

Axes: B utterances, N filters, K frames in a chunk, S chunks of one utterance, C rows =
chunks of all utterances of a batch, packed one after the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEAST_LEVEL = 1e-30  # below counts as silence


def row_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance ``[C, N]`` over the frames of every row ``[C, K, N]``, float64.

    Variances are centred, so nothing cancels, and the sums over an utterance's rows
    lose nothing however long it is.

    Example
    -------
    >>> row_moments(torch.tensor([[[1.0], [3.0]]]))
    (tensor([[2.]], dtype=torch.float64), tensor([[1.]], dtype=torch.float64))
    """
    if x.dtype.itemsize < 4:
        x = x.float()
    mean = x.mean(dim=1)  # torch.var_mean takes seven times as long as these two lines
    var = (x - mean.unsqueeze(1)).square().mean(dim=1)
    return mean.double(), var.double()


def utterance_mean(x: Tensor, chunks: Sequence[int]) -> Tensor:
    """Mean ``[B, N]`` over the rows ``[C, N]`` of every utterance of ``chunks``."""
    return torch.stack([rows.mean(dim=0) for rows in x.split(list(chunks))])


def utterance_moments(
    mean: Tensor, var: Tensor, chunks: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mean and variance ``[B, N]`` of utterances from those of rows ``[C, N]``."""
    mu = utterance_mean(mean, chunks)
    between = utterance_mean((mean - per_row(mu, chunks)).square(), chunks)
    return mu, utterance_mean(var, chunks) + between


def norm_affine(
    norm: nn.Module, mean: Tensor, var: Tensor, c: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and shift ``[B, N]`` that a global norm of ``c * x`` is for each utterance.

    ``norm(c * x) = scale * x + shift``, where the norm's mean and variance are taken
    over all frames and filters of an utterance. ``mean`` and ``var`` are of x, ``[B,
    N]``; ``c`` is the modulation ``[B, N]``, by default ones.
    """
    gamma, beta = norm.weight.flatten(), norm.bias.flatten()
    c = torch.ones_like(mean) if c is None else c.double()
    mu = (c * mean).mean(dim=1, keepdim=True)  # [B, 1]
    each = c.square() * var + (c * mean - mu).square()  # [B, N]
    gain = gamma / torch.sqrt(each.mean(dim=1, keepdim=True) + norm.eps)  # [B, N]
    return (c * gain).to(gamma.dtype), (beta - mu * gain).to(gamma.dtype)


def level_free_affine(
    norm: nn.Module, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`norm_affine` for an x that is first brought to a mean square of 1.

    The norm's epsilon then is a share of the level, and quiet x are as good as loud.
    """
    level = (var + mean.square()).mean(dim=1, keepdim=True).sqrt()  # [G, 1]
    level = level.where(level > LEAST_LEVEL, 1)
    scale, shift = norm_affine(norm, mean / level, var / level.square())
    return (scale / level).to(scale.dtype), shift


def affine(x: Tensor, scale: Tensor, shift: Tensor, chunks: Sequence[int]) -> Tensor:
    """``x * scale + shift``: x ``[C, K, N]``, scale and shift ``[B, N]``."""
    scale, shift = (per_row(v, chunks).unsqueeze(1) for v in (scale, shift))
    return torch.addcmul(shift, x, scale)


def per_row(x: Tensor, chunks: Sequence[int]) -> Tensor:
    """Repeat ``[G, N]`` to ``[C, N]``: each group's vector for all its rows."""
    if len(x) == sum(chunks):  # one row each
        return x
    return torch.cat(
        [v.expand(S, -1) for v, S in zip(x.unsqueeze(1), chunks, strict=True)]
    )
