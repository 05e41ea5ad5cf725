"""The processes of a run: which one this is, and what all of them know together.

Everything works alike without several processes.
"""

from __future__ import annotations

import gc

import torch
import torch.distributed as dist


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of every process's ``values``, the same on all; changed in place.

    Example
    -------
    >>> sum_over_ranks(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather(items: list) -> list:
    """The items of all processes, in the order of the ranks, on every process.

    Example
    -------
    >>> gather([1, 2])
    [1, 2]
    """
    if not dist.is_initialized():
        return list(items)
    parts: list[list] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def part() -> None:
    """Leaves the other processes: to be called when no exchange is under way.

    A process that ends without it may be aborted: a thread of the group that frees its
    last tensor needs a Python that is gone (github.com/pytorch/pytorch/issues/190489).
    """
    if dist.is_initialized():
        gc.collect()  # the threads end with the last thing that holds the group
        dist.destroy_process_group()
