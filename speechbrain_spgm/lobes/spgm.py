"""The SPGM block: global modulation in place of SepFormer's inter transformer.

Axes: B utterances, K frames of a chunk, S chunks of one utterance, C chunks of all
utterances of a batch, N filters.
"""

import torch
from torch import Tensor, nn

from speechbrain_spgm.lobes.pooling import build_pooling, find_pooling


class Pooling(nn.Module):
    """Gives a pooling its name in published checkpoints (``pool.model``)."""

    def __init__(
        self, pool: str, n_embd: int, att_h: int | None = None, att_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.name, self.att_h, self.att_dropout = pool, att_h, att_dropout
        self.model = build_pooling(pool, n_embd, att_h, att_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``[C, K, N]`` to ``[C, N]``."""
        return self.model(x)


class SPGMBlock(nn.Module):
    """Single-Path Global Modulation (paper, section 2 and figure 1).

    The K frames of every chunk are pooled to one vector and the S chunks averaged;
    the global vector p modulates every frame of its utterance:
    ``out = (sigmoid(s_lin(p)) + g_lin(p)) * x``.

    It is the ``inter_model`` of SpeechBrain's ``Dual_Path_Model``. That model passes no
    batch size on, so without ``chunk_size`` the utterances of a batch share one global
    vector, as in the published code; with ``chunk_size`` each has its own.

    Arguments
    ---------
    n_embd : int
        Number of filters N.
    pool : str
        ``"att"``, ``"avg"``, ``"max"``, ``"lem"`` (last element), or ``"none"``: no
        modulation (c = 1) and no parameters, the control that shows what SPGM adds.
    att_h : int, optional
        Width of attention's hidden layer; ``None``: no hidden layer.
    att_dropout : float
        Dropout rate after attention's hidden layer.
    chunk_size : int, optional
        K of the surrounding ``Dual_Path_Model``: keeps utterances apart.

    Example
    -------
    >>> block = SPGMBlock(32, "att", chunk_size=24)
    >>> x = torch.rand(2 * 24, 7, 32)  # [B*K, S, N]
    >>> block(x).shape
    torch.Size([48, 7, 32])
    >>> torch.allclose(block(x)[:24], block(x[:24]), atol=1e-6)
    True
    """

    def __init__(
        self,
        n_embd: int,
        pool: str,
        att_h: int | None = None,
        att_dropout: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}, but it must be at least 1.")
        self.chunk_size = chunk_size
        self.pool = Pooling(pool, n_embd, att_h, att_dropout)
        modulates = find_pooling(pool).modulates
        self.s_lin = nn.Linear(n_embd, n_embd) if modulates else None
        self.g_lin = nn.Linear(n_embd, n_embd) if modulates else None

    def forward(self, x: Tensor) -> Tensor:
        """Modulate a dual-path tensor.

        Arguments
        ---------
        x : torch.Tensor
            ``[B*K, S, N]``, as ``Dual_Path_Model`` passes it to its inter model.

        Returns
        -------
        out : torch.Tensor
            ``[B*K, S, N]``.

        Raises
        ------
        ValueError
            If the first axis is no multiple of ``chunk_size``.
        """
        if self.s_lin is None:
            return x
        K = self.chunk_size or x.shape[0]
        if x.shape[0] % K:
            raise ValueError(
                f"The input has {x.shape[0]} rows, no multiple of chunk_size {K}: "
                "give SPGMBlock the chunk size K of its Dual_Path_Model."
            )
        x = x.unflatten(0, (-1, K))  # [B, K, S, N]
        B, K, S, N = x.shape
        chunks = x.transpose(1, 2).reshape(B * S, K, N)
        p = self.pool(chunks).view(B, S, N).mean(dim=1)  # [B, N]
        c = self.modulation(p).view(B, 1, 1, N)
        return (c * x).flatten(0, 1)  # [B*K, S, N]

    def modulation(self, p: Tensor) -> Tensor:
        """The factors ``sigmoid(s_lin(p)) + g_lin(p)`` (paper, equation 2).

        Arguments
        ---------
        p : torch.Tensor
            Global vectors, ``[B, N]``.

        Returns
        -------
        c : torch.Tensor
            One factor per utterance and filter, ``[B, N]``; ones without modulation.
        """
        if self.s_lin is None:
            return torch.ones_like(p)
        return torch.sigmoid(self.s_lin(p)) + self.g_lin(p)
