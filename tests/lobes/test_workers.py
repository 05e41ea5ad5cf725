"""Single-threaded workers: failures, thread settings, exit and fork."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from speechbrain_spgm.lobes.workers import count_workers, run, single_threaded


def test_every_item_is_done_once_and_no_worker_twice_at_a_time() -> None:
    done, busy, clashes = [], [False] * 3, []

    def step(item: int, worker: int) -> None:
        clashes.append(busy[worker])
        busy[worker] = True
        time.sleep(0.001)
        done.append(item)
        busy[worker] = False

    run(step, range(40), workers=3)
    assert sorted(done) == list(range(40))
    assert not any(clashes)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_reaches_the_caller_and_stops_the_others(workers: int) -> None:
    running, done = set(), []

    def step(item: int, worker: int) -> None:
        if item == 3:
            raise ZeroDivisionError("item 3")
        running.add(worker)
        time.sleep(0.005)
        done.append(item)
        running.discard(worker)

    with pytest.raises(ZeroDivisionError, match="item 3"):
        run(step, range(1000), workers)
    assert not running
    assert len(done) < 20
    run(step, [0], workers)  # and the workers still work


def test_steps_have_one_thread_and_leave_everybody_else_theirs() -> None:
    seen, later = [], []
    before = torch.get_num_threads()
    run(lambda item, worker: seen.append(torch.get_num_threads()), range(20), 2)
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert set(seen) == {1}
    assert torch.get_num_threads() == before
    assert later == [before]


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.enable_grad, torch.inference_mode]
)
def test_single_threaded_work_is_as_if_the_caller_did_it(mode) -> None:
    def work(x: torch.Tensor, fails: bool = False) -> tuple[bool, bool, int]:
        if fails:
            raise ZeroDivisionError("as asked")
        x.add_(1)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return *modes, torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with mode():
            x = torch.zeros(1)
            wanted = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), 1
            assert single_threaded(work)(x) == wanted and x == 1
            with pytest.raises(ZeroDivisionError, match="as asked"):
                single_threaded(work)(x, fails=True)
    finally:
        torch.set_num_threads(before)


def test_a_callers_thread_count_is_a_bound() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert count_workers() == 1
    finally:
        torch.set_num_threads(before)


def test_steps_may_write_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.zeros(4)
        run(lambda i, worker: x[i].add_(i), range(4), workers=2)
    assert x.tolist() == [0, 1, 2, 3]


PROGRAM = """
import os
import threading

import torch
from speechbrain_spgm.lobes.workers import run, single_threaded

torch.set_num_threads(2)

def work():
    done = []
    run(lambda item, worker: done.append(item), range(50), workers=2)
    assert sorted(done) == list(range(50))
    assert single_threaded(torch.get_num_threads)() == 1
    torch.ones(10**7).add_(1)  # OpenMP's threads: a child that waits for them hangs

work()
child = os.fork()
work()
if child:
    assert torch.get_num_threads() == 2
    assert os.waitpid(child, 0)[1] == 0
    print("both done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_the_interpreter_exits_and_a_forked_child_has_workers_of_its_own() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout) == (0, "both done\n"), result.stderr
