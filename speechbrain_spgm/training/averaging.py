"""Weights for testing: a moving average over the steps, a mean over checkpoints."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.training.checkpoints import WholeCheckpointer, load_average


def moving_average(modules: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of parameters; it starts at the first update.

    ``decay``, from 0 to below 1, is the share of the old average in the new one.

    Example
    -------
    >>> net = nn.Linear(1, 1)
    >>> average = moving_average(net, decay=0.75)
    >>> for value in (0.0, 4.0):
    ...     _ = nn.init.constant_(net.weight, value)
    ...     average.update_parameters(net)
    >>> average.module.weight.item()
    1.0
    """
    if not 0 <= decay < 1:
        raise UserError(f"The ema_decay is {decay}, but must be from 0 to below 1.")
    average = AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return average.eval().requires_grad_(False)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copies parameters and buffers in place, between modules of the same structure."""
    target.load_state_dict(source.state_dict())


def load_best_average(
    checkpointer: WholeCheckpointer,
    modules: dict[str, nn.Module],
    number: int,
    max_key: str | None = None,
    min_key: str | None = None,
) -> int:
    """Gives modules the mean of their parameters in the best checkpoints.

    Checkpoints inside epochs, which nothing has scored, do not count. Returns how many
    of at most ``number`` were averaged; with 0 the modules stay.
    """
    found = checkpointer.find_checkpoints(
        max_key=max_key,
        min_key=min_key,
        max_num_checkpoints=number,
        ckpt_predicate=lambda checkpoint: checkpoint.meta["end-of-epoch"],
    )
    if found:
        load_average(found, modules)
    return len(found)
