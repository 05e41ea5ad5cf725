"""One single-threaded worker per core.

The steps of the engine are many small matrix products. Splitting each of them over the
cores (OpenMP) costs a barrier per product, and stalls whenever another program takes a
core; a whole step per thread needs none of that. PyTorch releases Python's lock while
it computes, so threads are enough.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Item = TypeVar("Item")
Given, Result = ParamSpec("Given"), TypeVar("Result")


def count_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_workers() -> int:
    """Number of workers of a call from this thread.

    The cores that the process may use, but no more than the threads that PyTorch has
    here: ``torch.set_num_threads`` and ``OMP_NUM_THREADS`` are respected.

    Example
    -------
    >>> 1 <= count_workers() <= torch.get_num_threads()
    True
    """
    return min(count_cores(), torch.get_num_threads())


def run(step: Callable[[Item, int], None], items: Iterable[Item], workers: int) -> None:
    """Calls ``step(item, worker)`` for every item, each worker in a thread of its own.

    Each worker takes the next item when it is done with one, so nobody waits for a
    slow core. The threads belong to the process: calls from several threads share them
    and none ever computes with more threads than there are cores.

    No two running steps of a call share a ``worker``, a number below ``workers``; with
    1, the calling thread does everything. Gradients are off, and the order is open. The
    first error of a step is raised when no step is running any more.

    Example
    -------
    >>> squares = [0] * 4
    >>> run(lambda i, worker: squares.__setitem__(i, i * i), range(4), workers=2)
    >>> squares
    [0, 1, 4, 9]
    """
    todo = iter(list(items))  # shared: each worker takes what is next
    inference = torch.is_inference_mode_enabled()  # a mode of the thread

    def work(worker: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            try:
                for item in todo:
                    step(item, worker)
            finally:
                drain(todo)  # after a failure the others need not go on

    if workers == 1:
        work(0)
        return
    futures = [_pool.get().submit(work, worker) for worker in range(workers)]
    try:
        wait(futures)
    finally:  # Ctrl-C comes here too: nobody may still write when the caller goes on
        drain(todo)
        wait(futures)
    for future in futures:
        future.result()


def single_threaded(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """A function in which PyTorch's operators take one thread.

    It runs in a thread that has only one, for a number that is set, be it for a moment,
    is also that of all threads which begin meanwhile, for good.

    Example
    -------
    >>> single_threaded(torch.get_num_threads)()
    1
    """

    @wraps(work)
    def alone(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if torch.get_num_threads() == 1:
            return work(*args, **kwargs)
        # Modes of the thread.
        inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

        def there() -> Result:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                return work(*args, **kwargs)

        future = _pool.get("spgm-alone").submit(there)  # no worker: it waits for them
        try:
            return future.result()
        except BaseException:  # Ctrl-C, say: nobody may still write
            wait([future])
            raise

    return alone


def drain(items: Iterator) -> None:
    """Takes all that is left of an iterator."""
    deque(items, maxlen=0)


class _Pool:
    """The worker threads of this process: started when needed, again after a fork."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.executors: dict[str, ThreadPoolExecutor] = {}

    def get(self, name: str = "spgm") -> ThreadPoolExecutor:
        with self.lock:
            if name not in self.executors:
                self.executors[name] = _start_threads(count_cores(), name)
            return self.executors[name]


def _start_threads(count: int, name: str) -> ThreadPoolExecutor:
    """An executor whose threads run PyTorch's operators single-threaded."""
    # torch.set_num_threads holds for its thread and for those that PyTorch has not seen
    # yet. So each worker is seen, then sets itself to 1; a thread that was seen before
    # gives the others back what they would have had.
    keeper = ThreadPoolExecutor(1)
    threads = keeper.submit(torch.get_num_threads).result()
    started = threading.Barrier(count + 1)

    def settle() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    executor = ThreadPoolExecutor(count, thread_name_prefix=name)
    for _ in range(count):  # each waits for all, so each has a thread of its own
        executor.submit(settle)
    started.wait()
    keeper.submit(torch.set_num_threads, threads).result()
    keeper.shutdown()
    return executor


_pool = _Pool()


def _forget_threads() -> None:
    """A forked child has none of its parent's threads."""
    _pool.__init__()
    torch.set_num_threads(1)  # OpenMP would wait for the others for ever


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
