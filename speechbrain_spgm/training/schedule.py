"""The learning rate: a linear warm-up, then a SpeechBrain scheduler per epoch.

The rate without warm-up is kept in the optimizer itself, as ``peak_lr`` of each
parameter group, so that it is saved and recovered with it.
"""

from __future__ import annotations

from speechbrain.nnet.schedulers import (
    LinearScheduler,
    NewBobScheduler,
    ReduceLROnPlateau,
    StepScheduler,
    update_learning_rate,
)
from torch.optim import Optimizer

from speechbrain_spgm.errors import UserError

Scheduler = LinearScheduler | NewBobScheduler | ReduceLROnPlateau | StepScheduler


def remember_peak(optimizer: Optimizer) -> None:
    """Takes the optimizer's present rate as the one to warm up to."""
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]


def warm_up(optimizer: Optimizer, step: int, warmup_steps: int) -> None:
    """Sets the rate of optimizer step ``step`` (the first is 0)."""
    share = min(1.0, (step + 1) / max(1, warmup_steps))
    for group in optimizer.param_groups:
        group["lr"] = share * group["peak_lr"]


def anneal(scheduler: Scheduler, optimizer: Optimizer, epoch: int, loss: float) -> None:
    """Lets a SpeechBrain scheduler choose ``peak_lr`` after an epoch, counted from 1.

    LinearScheduler and StepScheduler are called with the epoch, NewBobScheduler with
    the validation loss in dB, ReduceLROnPlateau with both; others are refused.
    """
    check_scheduler(scheduler)
    # The scheduler must see the rate without warm-up.
    warm_up(optimizer, step=0, warmup_steps=0)
    if isinstance(scheduler, ReduceLROnPlateau):
        _, new = scheduler([optimizer], epoch, loss)
    elif isinstance(scheduler, NewBobScheduler):
        _, new = scheduler(noise_to_signal(loss))
    else:
        _, new = scheduler(epoch)
    update_learning_rate(optimizer, new)
    remember_peak(optimizer)


def check_scheduler(scheduler: object) -> None:
    """Refuses what ``anneal`` cannot ask, before an epoch is lost."""
    if not isinstance(scheduler, Scheduler):
        raise UserError(
            f"lr_annealing is a {type(scheduler).__name__}, but must be a "
            "LinearScheduler, StepScheduler, NewBobScheduler or ReduceLROnPlateau."
        )


def noise_to_signal(loss: float) -> float:
    """A loss in dB as a ratio of powers.

    NewBobScheduler divides by the last loss and takes it to be positive; a negative one
    would turn every improvement into a setback.

    Example
    -------
    >>> noise_to_signal(-10.0)
    0.1
    """
    return 10 ** (loss / 10)
