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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial, wraps
from operator import length_hint
from typing import ParamSpec, TypeVar

import torch

Item = TypeVar("Item")
Given, Result = ParamSpec("Given"), TypeVar("Result")

SHARED, ALONE = "spgm", "spgm-alone"  # the pools of `run` and of `single_threaded`


def count_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_workers() -> int:
    """Number of workers of a call from this thread.

    The cores that the process may use, but no more than the threads that PyTorch has
    here: ``torch.set_num_threads`` and ``OMP_NUM_THREADS`` are respected.
    """
    return min(count_cores(), torch.get_num_threads())


def run(step: Callable[[Item, int], None], items: Iterable[Item], workers: int) -> None:
    """Calls ``step(item, worker)`` for every item, each worker in a thread of its own.

    Each worker takes the next item when it is done with one, so nobody waits for a
    slow core. The threads belong to the process: calls from several threads share them,
    an item in turn, and none ever computes with more threads than there are cores.

    No two running steps of a call share a ``worker``, a number below ``workers``; with
    1, the calling thread does everything, and so it does when there can be no threads
    (the interpreter ends, say). Gradients are off, and the order is open. The first
    error of a step is raised when no step is running any more.
    """
    todo = iter(list(items))  # shared: each worker takes what is next
    inference = torch.is_inference_mode_enabled()  # a mode of the thread

    def work(worker: int, others_wait: Callable[[], bool]) -> bool:
        with torch.inference_mode(inference), torch.no_grad():
            for item in todo:
                step(item, worker)
                if others_wait() and length_hint(todo):
                    return False
        return True

    if workers == 1:
        work(0, _never)
        return
    works = [partial(work, worker) for worker in range(workers)]
    _Call(SHARED, works, partial(drain, todo)).finish()


def single_threaded(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """A function in which PyTorch's operators take one thread.

    It runs in a thread that has only one, for a number that is set, be it for a moment,
    is also that of all threads which begin meanwhile, for good.
    """

    @wraps(work)
    def alone(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if torch.get_num_threads() == 1:
            return work(*args, **kwargs)
        # Modes of the thread.
        inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        results: list[Result] = []

        def there(others_wait: Callable[[], bool]) -> bool:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                results.append(work(*args, **kwargs))
            return True

        _Call(ALONE, [there]).finish()  # no worker: it waits for them
        return results[0]

    return alone


def drain(items: Iterator) -> None:
    """Takes all that is left of an iterator."""
    deque(items, maxlen=0)


@contextmanager
def keeping_threads() -> Iterator[None]:
    """Threads that set their number of threads meanwhile leave later ones theirs."""
    # torch.set_num_threads holds for its thread and for those that PyTorch has not seen
    # yet. A thread that was seen before gives these back what they would have had.
    with _pool.keeping:  # else another one's 1 would be taken for theirs
        keeper = ThreadPoolExecutor(1)
        threads = keeper.submit(torch.get_num_threads).result()
        try:
            yield
        finally:
            keeper.submit(torch.set_num_threads, threads).result()
            keeper.shutdown()


def start_threads(count: int, name: str) -> ThreadPoolExecutor:
    """An executor whose threads run PyTorch's operators single-threaded."""
    started = threading.Barrier(count + 1)

    def settle() -> None:
        torch.get_num_threads()  # PyTorch sees the thread: what it sets is its own
        torch.set_num_threads(1)
        started.wait()

    executor = ThreadPoolExecutor(count, thread_name_prefix=name)
    with keeping_threads():
        try:
            for _ in range(count):  # each waits for all, so each has its own thread
                executor.submit(settle)
            started.wait()
        except BaseException:  # no more threads, Ctrl-C
            started.abort()  # else those there are would wait for ever
            executor.shutdown()
            raise
    return executor


class _Pool:
    """The worker threads of this process: started when needed, again after a fork."""

    def __init__(self) -> None:
        self.lock, self.keeping = threading.Lock(), threading.Lock()
        self.executors: dict[str, ThreadPoolExecutor] = {}
        # The ends of works that wait for a thread.
        self.waiting: dict[str, set[Future]] = {SHARED: set(), ALONE: set()}

    def get(self, name: str) -> ThreadPoolExecutor:
        with self.lock:
            if name not in self.executors:
                self.executors[name] = start_threads(count_cores(), name)
            return self.executors[name]


class _Call:
    """Has threads do some works, each again and again until it says that it is done.

    A work is told how to find out whether other calls wait: then it had better return,
    and has its next turn behind theirs. ``stop`` makes all end soon.
    """

    # A class, for closures that name each other would hold the tensors of a call until
    # Python looks for cycles.

    def __init__(
        self,
        name: str,
        works: Sequence[Callable[[Callable[[], bool]], bool]],
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.works, self.stop = name, works, stop
        self.ends: list[Future] = [Future() for _ in works]

    def finish(self) -> None:
        """Returns, or raises the first error, when nothing is running any more."""
        queued = []
        try:
            for i, work in enumerate(self.works):
                if self.queue(i):
                    queued.append(self.ends[i])
                    continue
                with _one_thread():
                    work(_never)
            wait(queued)
        finally:  # after Ctrl-C too nobody may still write when the caller goes on
            self.stop()
            wait([end for end in self.ends if not end.cancel()])
            _pool.waiting[self.name].difference_update(self.ends)
        for end in queued:
            end.result()

    def queue(self, i: int) -> bool:
        """Whether a thread will do a work: not when the interpreter ends, say."""
        waiting = _pool.waiting[self.name]
        waiting.add(self.ends[i])
        try:
            _pool.get(self.name).submit(self.turn, i)
        except RuntimeError:
            waiting.discard(self.ends[i])
            return False
        return True

    def others_wait(self) -> bool:
        waiting = _pool.waiting[self.name]
        return bool(waiting) and not waiting.issubset(self.ends)

    def turn(self, i: int) -> None:
        """What a thread does."""
        end = self.ends[i]
        _pool.waiting[self.name].discard(end)
        if not end.running() and not end.set_running_or_notify_cancel():
            return  # the caller was interrupted before this began
        try:
            while not self.works[i](self.others_wait):
                if self.queue(i):
                    return  # and another thread may have begun it already
            end.set_result(None)
        except BaseException as error:
            self.stop()  # after a failure the others need not go on
            end.set_exception(error)


def _never() -> bool:
    return False


@contextmanager
def _one_thread() -> Iterator[None]:
    """The calling thread has one thread: only where no other can do its work."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


_pool = _Pool()


def _forget_threads() -> None:
    """A forked child has none of its parent's threads."""
    _pool.__init__()
    torch.set_num_threads(1)  # OpenMP would wait for the others for ever


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
