"""The optimizers that a yaml may name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from speechbrain_spgm.errors import UserError

OPTIMIZERS = ("adam", "muon")


class MuonAdam(Optimizer):
    """Muon for the weights that are matrices, Adam for all others.

    Muon (K. Jordan et al., 2024) makes the singular values of a matrix's step equal.
    Its steps are scaled to the size of Adam's (J. Liu et al., arXiv 2502.16982), so one
    learning rate is right for both.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        # SpeechBrain's groups differ in the weight decay, which is none here.
        groups = [p["params"] if isinstance(p, dict) else [p] for p in params]
        params = [p for group in groups for p in group]
        matrices = [p for p in params if p.ndim == 2]
        others = [p for p in params if p.ndim != 2]
        self.parts = (
            torch.optim.Muon(
                matrices, lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.Adam(others, lr),
        )
        super().__init__([part.param_groups[0] for part in self.parts], {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        """Moves every weight along its gradient."""
        # Loading a checkpoint replaces state and groups of this optimizer only.
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state
            part.step()


def make_optimizer(
    params: Iterable[nn.Parameter], name: str = "adam", lr: float = 0.001
) -> Optimizer:
    """The optimizer of that name.

    Arguments
    ---------
    params : iterable of torch.nn.Parameter
        Of the network.
    name : str
        ``adam``, or ``muon`` (see ``MuonAdam``).
    lr : float
        Learning rate.

    Returns
    -------
    torch.optim.Optimizer
        Without weight decay.

    Raises
    ------
    UserError
        If there is no such optimizer, or this PyTorch has no Muon.

    Example
    -------
    >>> type(make_optimizer(nn.Linear(3, 2).parameters(), "adam", 0.01)).__name__
    'Adam'
    """
    if name not in OPTIMIZERS:
        raise UserError(
            f"There is no optimizer {name}: take {' or '.join(OPTIMIZERS)}."
        )
    if name == "adam":
        return torch.optim.Adam(params, lr)
    if not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"PyTorch {torch.__version__} has no Muon: install 2.9 or newer, or take "
            "the optimizer adam."
        )
    return MuonAdam(params, lr)
