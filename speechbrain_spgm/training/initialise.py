"""Fresh parameters for training from scratch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def initialise(modules: Mapping[str, nn.Module]) -> None:
    """Draws the parameters of every layer anew.

    Dual_Path_Model copies one built block, so all its blocks start with the same
    weights. SpeechBrain's separation recipes reset each layer before training for this
    reason, and so do we. Call it only when training from scratch: a checkpoint that is
    recovered later still replaces the parameters.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        Changed in place. Layers without a reset of their own stay as they are.

    Example
    -------
    >>> import copy, torch
    >>> block = nn.Linear(4, 4)
    >>> stack = nn.ModuleList([copy.deepcopy(block) for _ in range(2)])
    >>> initialise({"stack": stack})
    >>> torch.equal(stack[0].weight, stack[1].weight)
    False
    """
    for module in modules.values():
        # Children first: attention sets its output layer after that layer's own reset.
        for layer in reversed(list(module.modules())):
            reset = getattr(layer, "reset_parameters", None)
            reset = reset or getattr(layer, "_reset_parameters", None)
            if reset is not None:
                reset()
