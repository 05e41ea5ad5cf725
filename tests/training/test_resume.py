"""A run with everything on, killed by SIGKILL inside an epoch and started again."""

import os
import random
import signal
import subprocess
import sys
import time

import torch

from tests.training import tiny


def test_a_killed_process_is_continued_exactly(tmp_path):
    """Dynamic mixing, 2 workers, dropout, accumulation, warm-up, new-bob and EMA."""
    whole = tiny.full_run(tmp_path / "whole", workers=0)

    rng = random.Random(time.time_ns())  # another moment in every run
    batch = f"{rng.choice((1, 2))}:{rng.randint(1, 9)}"
    pause = rng.uniform(0, 0.03)
    with subprocess.Popen(
        [sys.executable, tiny.__file__, tmp_path / "killed"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        for line in process.stdout:
            if line.strip() == batch:
                break
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
    assert process.returncode == -signal.SIGKILL

    resumed = tiny.full_run(tmp_path / "killed", workers=0)
    end = tiny.state(resumed)
    for name, value in tiny.state(whole).items():
        assert torch.equal(value, end[name]), (name, batch, pause)
