"""A corpus on Ray: as many workers as a cluster has room for, none of whom is missed.

Ray Data hands rows to workers, as fast as they take them, and starts another where one
dies. Each has the model, and writes voices and its journal into the output folder
itself, which all machines must see: what is done stays done, whoever dies.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechbrain_spgm.audio import Cut
from speechbrain_spgm.bulk.corpus import BATCH_SIZE, Orders, Result, Threads
from speechbrain_spgm.bulk.ledger import Ledger
from speechbrain_spgm.bulk.manifest import Row
from speechbrain_spgm.errors import UserError, first_line, require
from speechbrain_spgm.inference.separation import SPGMSeparation

ROWS = 8  # that a worker without a GPU gets at a time, and loses when it dies
MOST_BLOCKS = 10_000


class Cluster(NamedTuple):
    """Separates rows on Ray."""

    make_model: Callable[[], SPGMSeparation]  # loads the model, in each worker
    address: str | None = None  # of a running cluster, or "auto"; None starts one here
    num_gpus: float = 0.0  # of each worker; a part of one is shared
    workers: int | None = None  # None: one for each core, or share of the GPUs

    def __call__(
        self, ledger: Ledger, orders: Orders, rows: Iterator[Row]
    ) -> Iterator[Result]:
        """Yields each row's result; they are written down by then."""
        require("ray.data", "'ray[data]'", "The engine ray")
        todo = list(rows)
        if todo:
            keys = {row.key for row in todo}
            for key, failure in self._run(ledger, orders, todo):
                if failure is not None:
                    keys.discard(key)  # an earlier run may have done it
                yield key, failure
            ledger.load(keys)

    def _run(self, ledger: Ledger, orders: Orders, todo: list[Row]) -> Iterator:
        ray = require("ray", "'ray[data]'", "The engine ray")
        started = not ray.is_initialized()
        try:
            if started:
                ray.init(self.address, log_to_driver=False, logging_level="error")
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            size = ROWS if not self.num_gpus else 4 * BATCH_SIZE
            blocks = min(MOST_BLOCKS, math.ceil(len(todo) / size))
            results = ray.data.from_items(
                [{"row": json.dumps(row)} for row in todo], override_num_blocks=blocks
            ).map_batches(
                Worker,
                fn_constructor_args=[
                    self.make_model,
                    ledger.folder.absolute(),
                    ledger.digits,
                    orders,
                ],
                batch_size=size,
                compute=ray.data.ActorPoolStrategy(
                    size=min(self._count(ray.cluster_resources()), blocks)
                ),
                num_cpus=1,
                num_gpus=self.num_gpus or None,
            )
            for row in results.iter_rows():
                yield row["key"], json.loads(row["failure"])
        except UserError:
            raise
        except Exception as error:  # Ray's own, around that of a worker
            text, mark = str(error), f"{UserError.__name__}: "
            told = text.rpartition(mark)[2] if mark in text else first_line(error)
            raise UserError(f"Ray has ended: {told.splitlines()[0]}") from None
        finally:
            if started and ray.is_initialized():
                ray.shutdown()

    def _count(self, resources: dict[str, float]) -> int:
        if self.workers:
            return self.workers
        if self.num_gpus:
            return max(1, int(resources.get("GPU", 0) / self.num_gpus))
        return max(1, int(resources["CPU"]))


class Worker:
    """One of Ray's actors: a model and a journal of its own."""

    def __init__(
        self,
        make_model: Callable[[], SPGMSeparation],
        folder: Path,
        digits: int,
        orders: Orders,
    ) -> None:
        self.threads = Threads(make_model(), workers=1)
        self.ledger, self.orders = Ledger(folder), orders
        self.ledger.digits = digits

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Finishes rows; says what became of each."""
        rows = (unpacked(text) for text in batch["row"])
        results = list(self.threads(self.ledger, self.orders, rows))
        return {
            "key": [key for key, _ in results],
            "failure": [json.dumps(failure) for _, failure in results],
        }


def unpacked(text: str) -> Row:
    """A row from its JSON, which is ASCII: Arrow takes no names that are not UTF-8.

    Example
    -------
    >>> row = Row(0, {"a": 1}, "a\\udcff", "/a\\udcff", Cut(1.5), "3f09")
    >>> unpacked(json.dumps(row)) == row
    True
    """
    row = Row(*json.loads(text))
    return row._replace(cut=Cut(*row.cut))
