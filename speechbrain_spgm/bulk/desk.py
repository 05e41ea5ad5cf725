"""One model that many threads share: so many steps at a time, or one batch of them all.

Each thread reads, levels and writes a recording of its own through the functions that
separate a single file; only the network is waited for here. On a CPU each recording has
a core to itself, which is the same arithmetic as all cores on one recording. On a GPU
what waits is separated as a batch; its items never influence each other.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speechbrain_spgm.inference.memory import SAFE_SHARE, estimate_bytes, free_bytes
from speechbrain_spgm.inference.separation import SPGMSeparation
from speechbrain_spgm.lobes.workers import start_threads


class Stopped(Exception):
    """The run was interrupted while a recording was being separated."""


class Desk:
    """A ``Separable`` whose network is used by ``workers`` threads at a time."""

    def __init__(self, model: SPGMSeparation, workers: int) -> None:
        self.model = model
        self.stopped = threading.Event()
        self._places = threading.Semaphore(workers)
        self._memory = _Memory(int(SAFE_SHARE * free_bytes(model.device)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def separate_recording(
        self, recording: Any, normalize: Any, views: Any, watch: Any, **options: Any
    ) -> Tensor:
        """The model's own, whose ``separate_batch`` is that of the desk."""
        need = estimate_bytes(
            self.model, len(recording.samples), recording.sample_rate, views or 1
        )
        with self._memory.taken(need):
            return type(self.model).separate_recording(
                self, recording, normalize, views, self._watched(watch), **options
            )

    def separate_batch(self, mix: Tensor, *given: Any, **options: Any) -> Tensor:
        """The model's own, when there is room."""
        with self._places:
            if self.stopped.is_set():
                raise Stopped
            return self.model.separate_batch(mix, *given, **options)

    def close(self) -> None:
        """Ends what is running, at its next step."""
        self.stopped.set()

    def _watched(self, watch: Any) -> Any:
        def look(rows: int, total: int) -> None:
            if self.stopped.is_set():
                raise Stopped
            if watch is not None:
                watch(rows, total)

        return look


class BatchDesk(Desk):
    """A desk that separates waiting mixtures of like lengths as one batch.

    ``batch_seconds`` are with the padding; a longer mixture is alone.
    """

    def __init__(
        self, model: SPGMSeparation, batch_size: int, batch_seconds: float
    ) -> None:
        super().__init__(model, 1)
        self.most, self.samples = batch_size, round(batch_seconds * model.sample_rate)
        self._waiting: list[_Request] = []
        self._lock = threading.Lock()
        self._thread = start_threads(1, "spgm-desk")

    def separate_batch(
        self,
        mix: Tensor,
        lengths: None = None,
        views: int = 1,
        watch: Any = None,
        **options: Any,
    ) -> Tensor:
        """``[1, T]`` to ``[1, T, spks]``, with others' in one batch."""
        if options.get("statistics") is not None:  # belongs to this recording alone
            return super().separate_batch(mix, None, views, watch=watch, **options)
        request = _Request(mix, {"views": views, **options}, Future())
        with self._lock:
            if self.stopped.is_set():
                raise Stopped
            self._waiting.append(request)
            self._thread.submit(self._work)
        return request.future.result()

    def close(self) -> None:
        """Ends the thread; who still waits is told."""
        with self._lock:
            super().close()
        self._thread.shutdown()
        for request in self._waiting:
            request.future.set_exception(Stopped())

    def _work(self) -> None:
        with self._lock:
            if self.stopped.is_set() or not self._waiting:  # others took all
                return
            batch = self._take()
        try:
            self._separate(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for request in batch:  # one of them, or all at once are too many
                try:
                    self._separate([request])
                except Exception as reason:
                    request.future.set_exception(reason)

    def _take(self) -> list[_Request]:
        """Who has waited longest, and those whose lengths are nearest to its own."""
        oldest = self._waiting[0]
        alike = [r for r in self._waiting if r.options == oldest.options]
        alike.sort(key=lambda r: abs(r.length - oldest.length))  # itself comes first
        batch, longest = [], 0
        for request in alike[: self.most]:
            longest = max(longest, request.length)
            if batch and (len(batch) + 1) * longest > self.samples:
                break
            batch.append(request)
        chosen = set(map(id, batch))
        self._waiting = [r for r in self._waiting if id(r) not in chosen]
        return batch

    def _separate(self, batch: list[_Request]) -> None:
        lengths = [request.length for request in batch]
        mix = torch.zeros(len(batch), max(lengths), dtype=batch[0].mix.dtype)
        for row, request in zip(mix, batch, strict=True):
            row[: request.length] = request.mix[0]
        with self._places:
            est = self.model.separate_batch(mix, lengths, **batch[0].options)
        for b, request in enumerate(batch):
            request.future.set_result(est[b : b + 1, : request.length])


class _Request(NamedTuple):
    """A mixture ``[1, T]``, how it is separated, and who gets the voices."""

    mix: Tensor
    options: dict[str, Any]
    future: Future

    @property
    def length(self) -> int:
        return self.mix.shape[1]


class _Memory:
    """Bytes that recordings share; one that needs more than all waits to be alone."""

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(
                lambda: not self.used or self.used + size <= self.total
            )
            self.used += size
        try:
            yield
        finally:
            with self._changed:
                self.used -= size
                self._changed.notify_all()
