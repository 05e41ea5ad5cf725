"""Less memory for more time: activations computed again instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from speechbrain.lobes.models.dual_path import Dual_Path_Model
from torch import nn
from torch.utils.checkpoint import checkpoint

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.lobes.masknet import SPGMMaskNet


def checkpoint_activations(masknet: nn.Module) -> None:
    """Lets every dual block keep its input only until the backward pass, in place.

    The block then runs a second time, with the same dropout, so results and gradients
    stay as they are. Training takes about a third longer; of a network of n blocks
    the activations of one are in memory at a time.

    Example
    -------
    >>> from speechbrain.lobes.models.dual_path import SBTransformerBlock
    >>> from speechbrain_spgm.lobes.spgm import SPGMBlock
    >>> net = SPGMMaskNet(64, 64, SBTransformerBlock(1, 64, 8), SPGMBlock(64, "att"))
    >>> checkpoint_activations(net)
    >>> net(torch.rand(1, 64, 300)).shape
    torch.Size([2, 1, 64, 300])
    """
    # A partial, unlike a closure, is copied together with the module it belongs to.
    if isinstance(masknet, SPGMMaskNet):  # which never calls its blocks' forward
        masknet._block = partial(recomputed, masknet._block)
    elif isinstance(masknet, Dual_Path_Model):
        for block in masknet.dual_mdl:
            block.forward = partial(recomputed, block.forward)
    else:
        raise UserError(
            f"activation_checkpointing knows no blocks of a {type(masknet).__name__}: "
            "set it to False."
        )


def recomputed(function: Callable, *args: Any) -> Any:
    """Calls a function whose activations are computed again for the backward pass."""
    if not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False)
