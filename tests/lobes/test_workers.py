"""Single-threaded workers: failures, thread settings, exit and fork."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch

from speechbrain_spgm.lobes import workers as module
from speechbrain_spgm.lobes.workers import (
    count_cores,
    count_workers,
    run,
    single_threaded,
    start_threads,
)


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


def test_a_short_call_need_not_wait_for_a_long_one() -> None:
    workers = max(2, count_cores())  # all there are
    begun, asked, ended = (threading.Event() for _ in range(3))
    done, busy, clashes = [], [0] * workers, []

    def long_step(item: int, worker: int) -> None:
        busy[worker] += 1
        clashes.append(busy[worker] > 1)
        begun.set()
        asked.wait(60)
        ended.wait(0.01)
        done.append(item)
        busy[worker] -= 1

    long = threading.Thread(target=run, args=(long_step, range(2000), workers))
    long.start()
    assert begun.wait(60)
    asked.set()
    short = []
    run(lambda item, worker: short.append(item), range(5), workers)
    before = len(done)
    ended.set()
    long.join()
    assert sorted(short) == list(range(5))
    assert before < 1500
    assert sorted(done) == list(range(2000))
    assert not any(clashes)
    assert not module._pool.waiting[module.SHARED]


def test_a_failure_stops_workers_that_wait_for_their_turn() -> None:
    begun, failing, done = threading.Event(), threading.Event(), []

    def step(item: int, worker: int) -> None:
        begun.set()
        failing.wait(60)
        if item == 50:
            raise ZeroDivisionError("item 50")
        done.append(item)

    def fail() -> None:
        with pytest.raises(ZeroDivisionError, match="item 50"):
            run(step, range(1000), count_cores() + 2)  # more than there are threads
        done.append("raised")

    caller = threading.Thread(target=fail)
    caller.start()
    assert begun.wait(60)
    failing.set()
    caller.join(60)
    assert done[-1] == "raised" and len(done) < 900


def test_an_interrupt_while_workers_are_called_leaves_none_writing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(lambda item, worker: None, range(2), 2)  # the threads are there
    get, calls, begun = module._pool.get, [], threading.Event()
    running, done = set(), []

    def interrupted(name: str) -> object:
        calls.append(name)
        if len(calls) == 2:
            assert begun.wait(60)
            raise KeyboardInterrupt
        return get(name)

    def step(item: int, worker: int) -> None:
        running.add(worker)
        begun.set()
        time.sleep(0.05)
        done.append(item)
        running.discard(worker)

    monkeypatch.setattr(module._pool, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(step, range(1000), 3)
    assert not running
    assert len(done) < 1000
    assert not module._pool.waiting[module.SHARED]


def test_a_call_that_is_over_holds_nothing() -> None:
    class Step:
        def __call__(self, item: int, worker: int) -> None:
            pass

    step = Step()
    held = weakref.ref(step)
    gc.disable()
    try:
        run(step, range(20), count_cores() + 2)  # some wait for their turn
        del step
        end = time.monotonic() + 60
        while held() is not None and time.monotonic() < end:  # its threads let it go
            time.sleep(0.001)
        assert held() is None
    finally:
        gc.enable()


def test_where_no_thread_can_be_started_the_caller_does_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("_1"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(module, "_pool", module._Pool())
    monkeypatch.setattr(module, "count_cores", lambda: 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            start_threads(2, "spgm-few")
        seen = []
        run(lambda item, worker: seen.append(torch.get_num_threads()), range(5), 2)
        assert seen == [1] * 5
        assert single_threaded(torch.get_num_threads)() == 1
        assert torch.get_num_threads() == 2
        left = [each.name for each in threading.enumerate()]
        assert not [name for name in left if name.endswith("_0") and "few" in name]
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen[5:] == [2]
    finally:
        torch.set_num_threads(before)


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


def test_pools_that_are_started_at_a_time_keep_the_number_of_others() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        callers = [
            threading.Thread(target=lambda: start_threads(2, "spgm-more").shutdown())
            for _ in range(20)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        later = []
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert later == [2]
    finally:
        torch.set_num_threads(before)


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


AT_THE_END = """
import atexit
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from speechbrain_spgm.lobes.workers import run, single_threaded

torch.set_num_threads(2)

def work():
    done, threads = [], set()
    def step(item, worker):
        done.append(item)
        threads.add(torch.get_num_threads())
    run(step, range(50), workers=2)
    assert sorted(done) == list(range(50))
    assert threads == {single_threaded(torch.get_num_threads)()} == {1}
    assert torch.get_num_threads() == 2

def outlive():
    try:
        while True:
            probe.submit(int)
            time.sleep(0.001)
    except RuntimeError:  # the interpreter ends
        work()
        print("thread")

WARM
probe = ThreadPoolExecutor(1)
atexit.register(lambda: (work(), print("atexit")))
threading.Thread(target=outlive).start()
"""


@pytest.mark.parametrize("warm", ["", "work()"])
def test_work_goes_on_where_the_interpreter_ends(warm: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AT_THE_END.replace("WARM", warm)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout) == (0, "thread\natexit\n"), result.stderr
