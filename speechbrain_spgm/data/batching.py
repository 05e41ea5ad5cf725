"""Which utterances make a batch: of similar duration, the same on any number of ranks.

Axes: n utterances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from speechbrain_spgm.errors import UserError

BLOCK = 64  # utterances of similar duration that follow each other; a power of two
JITTER = 0.1  # durations are blurred by this part, so that neighbours change


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of similar duration; the ``batch_sampler`` of a DataLoader.

    A batch holds ``batch_size`` utterances, or as many as last ``max_batch_seconds``
    together, or what comes first if both are given. An utterance longer than
    ``max_batch_seconds`` is a batch of its own.

    The order of the utterances depends on (seed, epoch) and nothing else; it is cut
    into batches, and in step g rank r of W takes batch g*W + r::

        order    5 1 7 0 | 3 2 6 4 | ...      W * batch_size = 4
        2 x 2    5 1        3 2               rank 0
                     7 0        6 4           rank 1
        1 x 4    5 1 7 0    3 2 6 4           rank 0 alone: the same steps

    So 2 ranks with batches of 1 see in each step what 1 rank sees with batches of 2,
    or with batches of 1 and two steps of accumulation. With ``max_batch_seconds``, W
    ranks see in each step what 1 rank sees in W steps.

    *Training* (``even``). Every rank has as many steps as the others, whom it waits for
    in each, and every utterance comes up at least once: the last step is filled from
    the beginning of the order. A dataset smaller than one step thus makes one, with
    repetitions. Utterances of equal duration, as in dynamic mixing, are simply
    shuffled.

    *Evaluation*. Longest first, equal ones in the given order, and every utterance
    exactly once over all ranks. Nothing is repeated, so the last batch may be small and
    ranks may differ by one batch; a rank may even have none.

    Arguments
    ---------
    seconds : sequence of float
        Duration of each utterance.
    batch_size : int, optional
        Utterances in a batch of one rank.
    max_batch_seconds : float, optional
        Most audio in a batch of one rank, without padding.
    shuffle : bool
        Whether the order is another in each epoch; else the longest come first.
    even : bool, optional
        True to train, False to evaluate; by default as ``shuffle``.
    seed : int
        Seed of the order, not negative.
    rank : int
        This process, from 0.
    world_size : int
        All processes.

    Raises
    ------
    UserError
        If there is no utterance, or neither size is given, or one is not above 0.

    Example
    -------
    >>> sampler = BucketBatchSampler([3.0, 1.0, 2.0], batch_size=2, shuffle=False)
    >>> list(sampler)
    [[0, 2], [1]]
    """

    def __init__(
        self,
        seconds: Sequence[float],
        batch_size: int | None = None,
        max_batch_seconds: float | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        even: bool | None = None,
    ) -> None:
        self.seconds = np.asarray(seconds, dtype=np.float64)
        self.batch_size = batch_size
        self.max_batch_seconds = max_batch_seconds
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.even = shuffle if even is None else even
        self.epoch = 0
        self._skip = 0
        self._check()
        self._batches = self._cut_epoch()

    def _check(self) -> None:
        if not len(self.seconds):
            raise UserError("There is no utterance to make a batch of.")
        sizes = {
            "batch_size": self.batch_size,
            "max_batch_seconds": self.max_batch_seconds,
        }
        given = {name: size for name, size in sizes.items() if size is not None}
        if not given:
            raise UserError("Give batch_size or max_batch_seconds: both are null.")
        for name, size in given.items():
            if size <= 0:
                raise UserError(f"The {name} is {size}, but must be above 0.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not one of {self.world_size}")

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the iterations from now on."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._batches = self._cut_epoch()

    def start(self, batch: int) -> None:
        """Lets the next iteration, and only that, begin at a batch of this rank.

        A resumed run continues an epoch so without loading what it has seen.
        """
        self._skip = batch

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, so that an iterator that is never used uses up no start: the
        # DataLoader makes one of these before its own.
        skip, self._skip = self._skip, 0
        yield from self._batches[skip:]

    def __len__(self) -> int:
        """Batches of this rank in the whole epoch."""
        return len(self._batches)

    def _cut_epoch(self) -> list[list[int]]:
        """This rank's batches of this epoch."""
        if self.shuffle:
            # Not the stream of an item: those have (seed, epoch, index) and zeros.
            rng = np.random.default_rng((self.seed, self.epoch, 0, 1))
            order = shuffled_by_duration(self.seconds, rng)
        else:
            order = np.argsort(-self.seconds, kind="stable")
        if not self.even:
            return self._cut(order)[self.rank :: self.world_size]
        if self.max_batch_seconds is None:
            order = fill(order, self.batch_size * self.world_size)
        batches = self._cut(order)
        steps = -(-len(batches) // self.world_size)
        mine = range(self.rank, steps * self.world_size, self.world_size)
        return [batches[i % len(batches)] for i in mine]

    def _cut(self, order: np.ndarray) -> list[list[int]]:
        """Consecutive utterances until a batch is full, and so on."""
        most = self.max_batch_seconds or np.inf
        size = self.batch_size or len(order)
        batches: list[list[int]] = []
        total = 0.0
        for index, seconds in zip(
            order.tolist(), self.seconds[order].tolist(), strict=True
        ):
            if not batches or len(batches[-1]) == size or total + seconds > most:
                batches.append([])
                total = 0.0
            batches[-1].append(index)
            total += seconds
        return batches


def fill(order: np.ndarray, multiple: int) -> np.ndarray:
    """The order and its beginning again, up to the next multiple."""
    return np.resize(order, -(-len(order) // multiple) * multiple)


def shuffled_by_duration(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of durations [n] in which neighbours are similar.

    Blocks of 64 utterances that follow each other in duration come in random order; in
    each the halves are swapped or not, and in these their halves, and so on. Any
    2, 4, 8, ... neighbours (counted from the beginning) then follow each other in
    duration, so the order need not know the batch size::

        sorted block     0 1 2 3 4 5 6 7
        halves           4 5 6 7|0 1 2 3      swapped
        quarters         4 5|6 7|2 3|0 1      left, swapped
        eighths          5 4|6 7|2 3|1 0      swapped, left, left, swapped

    What does not fill blocks of 64, another random few in each epoch, follows in blocks
    of 32, 16, ..., 1.
    """
    rest = rng.permutation(len(seconds))
    blurred = seconds * rng.uniform(1, 1 + JITTER, len(seconds))
    parts = []
    block = BLOCK
    while block:
        whole = len(rest) // block * block
        part, rest = rest[:whole], rest[whole:]
        part = part[np.argsort(blurred[part], kind="stable")].reshape(-1, block)
        parts.append(swap_halves(rng.permutation(part), rng).ravel())
        block //= 2
    return np.concatenate(parts)


def swap_halves(blocks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Swaps the halves of every block [rows, 2^k] by a coin, then theirs, and so on."""
    blocks = blocks.copy()
    size = blocks.shape[1] // 2
    while size:
        pairs = blocks.reshape(-1, 2, size)
        coins = rng.random(len(pairs)) < 0.5
        pairs[coins] = pairs[coins, ::-1]
        size //= 2
    return blocks
