"""Ctrl-C and SIGTERM inside a run: a checkpoint, a line, and the same end after all."""

import signal

import pytest
import torch

from speechbrain_spgm.console import exit_code
from speechbrain_spgm.training.brain import SeparationBrain
from tests.training import tiny


def stopped_at(moment: str, number: int) -> type:
    """A brain whose process gets a signal before a batch: 1:4 or 1:valid."""

    class Stopped(SeparationBrain):
        def fit_batch(self, batch):
            if moment == f"{self.epoch}:{self.step}":
                signal.raise_signal(number)
            return super().fit_batch(batch)

        def evaluate_batch(self, batch, stage):
            if moment == f"{self.epoch}:valid":
                signal.raise_signal(number)
            return super().evaluate_batch(batch, stage)

    return Stopped


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return tiny.state(tiny.full_run(folder / "run", workers=0, ckpt_interval_steps=0))


@pytest.mark.parametrize(
    "moment, number",
    [
        ("1:3", signal.SIGINT),
        ("2:9", signal.SIGTERM),  # the last batch of the last epoch
        ("1:valid", signal.SIGINT),
        ("2:valid", signal.SIGTERM),
    ],
)
def test_a_signal_saves_and_the_run_goes_on_exactly(tmp_path, whole, moment, number):
    stopped = stopped_at(moment, number)
    options = {"workers": 0, "ckpt_interval_steps": 0}
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as end:
        tiny.full_run(tmp_path / "run", brain_class=stopped, **options)
    assert str(end.value).startswith(f"Interrupted: epoch {moment[0]}, batch ")
    assert "goes on from there" in str(end.value)
    assert exit_code(end.value) == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    resumed = tiny.state(tiny.full_run(tmp_path / "run", **options))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), (name, moment)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    class Impatient(SeparationBrain):
        def fit_batch(self, batch):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it waited")

    with pytest.raises(KeyboardInterrupt):
        tiny.full_run(tmp_path / "run", brain_class=Impatient, workers=0)
