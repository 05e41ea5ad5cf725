"""The learning rate: warm-up, and each kind of scheduler."""

import pytest
import torch
from speechbrain.nnet.schedulers import (
    LinearScheduler,
    NewBobScheduler,
    NoamScheduler,
    ReduceLROnPlateau,
    StepScheduler,
)

from speechbrain_spgm.data import UserError
from speechbrain_spgm.training.schedule import anneal, remember_peak, warm_up


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    remember_peak(optimizer)
    return optimizer


@pytest.mark.parametrize(
    ("scheduler", "losses", "rates"),
    [
        (LinearScheduler(1.0, 0.0, 3), [9, 9, 9], [0.5, 0, 0]),
        (StepScheduler(1.0, 0.5, 2), [9, 9, 9], [0.5, 0.5, 0.25]),
        (NewBobScheduler(1.0, 0.5), [9, 8, 8], [1, 1, 0.5]),
        (ReduceLROnPlateau(0.1, 0.5, 1, 0), [9, 9.5, 9.5], [1, 1, 0.5]),
    ],
)
def test_schedulers_are_called_as_they_want(optimizer, scheduler, losses, rates):
    for epoch, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1):
        anneal(scheduler, optimizer, epoch, loss)
        warm_up(optimizer, step=100, warmup_steps=10)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_a_scheduler_sees_the_rate_without_warm_up(optimizer):
    warm_up(optimizer, step=0, warmup_steps=10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    anneal(ReduceLROnPlateau(0.1, 0.5, 0, 0), optimizer, 1, 1e6)
    warm_up(optimizer, step=4, warmup_steps=10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.5)


def test_the_peak_is_saved_with_the_optimizer(optimizer):
    anneal(LinearScheduler(1.0, 0.0, 3), optimizer, 1, 0)
    warm_up(optimizer, step=0, warmup_steps=10)
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    warm_up(other, step=10, warmup_steps=10)
    assert other.param_groups[0]["lr"] == pytest.approx(0.5)


def test_a_scheduler_per_step_is_refused(optimizer):
    with pytest.raises(UserError, match="NoamScheduler"):
        anneal(NoamScheduler(1.0, 10), optimizer, 1, 0.0)


def test_new_bob_takes_a_falling_loss_in_decibels_for_an_improvement():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    remember_peak(optimizer)
    scheduler = NewBobScheduler(1.0, improvement_threshold=0.01)
    rates = []
    for epoch, loss in enumerate((-5.0, -8.0, -8.01, -9.0), start=1):
        anneal(scheduler, optimizer, epoch, loss)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 0.5, 0.5]
