"""What one of two processes does in test_ranks.py.

python tests/training/ranks.py FOLDER
"""

import os
import sys
import time
from pathlib import Path

import torch

from speechbrain_spgm.metrics import pictures
from speechbrain_spgm.training.experiment import join_processes
from speechbrain_spgm.training.ranks import part, rank
from tests.training.tiny import Tones, fit, make_brain


class Broken(Tones):
    """Tones, of which one is not a number."""

    def __getitem__(self, index):
        mixture = super().__getitem__(index)
        return mixture._replace(mix=mixture.mix / 0) if index == 3 else mixture


def one_step(folder: Path, batch_size: int, **options) -> torch.nn.Module:
    """The networks after one step on two mixtures of unequal length."""
    brain = make_brain(
        folder, epochs=1, optimizer=torch.optim.SGD, max_grad_norm=-1, **options
    )
    fit(brain, train_set=Tones(seed=1, number=2), batch_size=batch_size)
    assert brain.optimizer_step == 1
    return brain


def several_steps(folder: Path, batch_size: int, **options):
    """A run of two epochs with a mixture that is not finite, tested at the end."""
    brain = make_brain(
        folder,
        hparams={"ema_decay": 0.5, "average_checkpoints": 2, "num_examples": 1},
        grad_accumulation_factor=2,
        ckpt_interval_steps=1,
        **options,
    )
    fit(brain, train_set=Broken(seed=1, number=8), batch_size=batch_size)
    brain.learned = {k: v.clone() for k, v in brain.networks.state_dict().items()}
    brain.evaluate(Tones(seed=3), "si_sdri", test_loader_kwargs={"batch_size": 3})
    return brain


def slow_replace(*args, replace=os.replace):
    """Leaves the other process alone for a while whenever a file gets its name."""
    time.sleep(0.05)
    replace(*args)


def touch(figure, path):
    """Stands for the saving of a picture, which takes seconds."""
    Path(path).touch()


def main() -> None:
    """What the tests compare, as one file of each process."""
    folder = Path(sys.argv[1])
    join_processes({"distributed_backend": "gloo"})
    os.replace = slow_replace
    pictures.save = touch
    options = {"distributed_backend": "gloo"}
    step = one_step(folder / "step", 1, **options)
    steps = several_steps(folder / "steps", 1, **options)
    result = {
        "step": step.networks.state_dict(),
        "learned": steps.learned,
        "tested": steps.networks.state_dict(),
        "scores": [(score.id, score.si_sdri) for score in steps.scores],
        "history": steps.progress.history,
    }
    torch.save(result, folder / f"{rank()}.pt")


if __name__ == "__main__":
    main()
    part()
