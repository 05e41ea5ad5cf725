"""What the chunks of a recording share, where it comes in windows.

A frame sees its own chunk and, of everything else, averages over the utterance only:
the moments of the norms and the pooled vector of each block. A window that is computed
with the averages of the whole recording comes out as it does within the recording:
nothing that happens to be in it leads it astray, and the voices keep their sides.

::

    with first.learning():          windows have their own averages; first sums them up
    with second.learning(first):    windows have the first's; second sums up their own
    with second.ruling():           windows have the second's

Where a window is seen in several views, each view has averages of its own.

Axes: B utterances, N filters, P quantities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class Averages:
    """Sums over windows of one recording, through one network.

    Example
    -------
    >>> averages = Averages()
    >>> with averages.learning():
    ...     own = [Share().mean(torch.tensor([[x]]), [1]).item() for x in (1.0, 4.0)]
    >>> with averages.ruling():
    ...     ruled = Share().mean(torch.tensor([[9.0]]), [1]).item()
    >>> own, ruled
    ([1.0, 4.0], 2.5)
    """

    def __init__(self) -> None:
        # By view, then by station: [P, 1, N], weight.
        self.sums: dict[int, list[tuple[Tensor, int]]] = {}

    def learning(self, given: Averages | None = None) -> AbstractContextManager[None]:
        """Sums up the averages of the utterances computed inside, from this thread.

        Arguments
        ---------
        given : Averages, optional
            What the utterances have in place of their own.
        """
        return _set(self, given)

    def ruling(self) -> AbstractContextManager[None]:
        """Gives the utterances computed inside, from this thread, what was learnt."""
        return _set(None, self)


# Who learns, and who is given in place of an utterance's own averages.
_current: ContextVar[tuple[Averages | None, Averages | None]] = ContextVar(
    "share", default=(None, None)
)
_view: ContextVar[int] = ContextVar("view", default=0)


@contextmanager
def of_view(number: int) -> Iterator[None]:
    """What is computed inside, from this thread, belongs to this view.

    Example
    -------
    >>> averages = Averages()
    >>> with averages.learning():
    ...     for number in (0, 1):
    ...         with of_view(number):
    ...             own = Share().mean(torch.tensor([[number + 5.0]]), [1])
    >>> with averages.ruling(), of_view(0):
    ...     Share().mean(torch.tensor([[9.0]]), [1]).item()
    5.0
    """
    token = _view.set(number)
    try:
        yield
    finally:
        _view.reset(token)


@contextmanager
def _set(learner: Averages | None, given: Averages | None) -> Iterator[None]:
    token = _current.set((learner, given))
    try:
        yield
    finally:
        _current.reset(token)


class Share:
    """The averages of a batch on its way through a network, station by station.

    Outside :class:`Averages`' contexts they stay what they are. Create one per pass:
    stations are counted from here.
    """

    def __init__(self) -> None:
        (self.learner, self.given), self.station = _current.get(), 0
        self.view = _view.get()

    def moments(
        self, mean: Tensor, var: Tensor, weights: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of every filter.

        Arguments
        ---------
        mean, var : torch.Tensor
            The utterances' own, ``[B, N]``, float64.
        weights : sequence of int
            How much of the recording each utterance is.

        Returns
        -------
        mean, var : torch.Tensor
            Those to use, ``[B, N]``.
        """
        if self.learner is self.given is None:
            return mean, var
        mean, power = self._take(torch.stack([mean, var + mean.square()]), weights)
        return mean, (power - mean.square()).clamp(min=0)

    def mean(self, x: Tensor, weights: Sequence[int]) -> Tensor:
        """A mean of every filter, ``[B, N]``, likewise."""
        if self.learner is self.given is None:
            return x
        return self._take(x.unsqueeze(0), weights)[0].to(x.dtype)

    def _take(self, own: Tensor, weights: Sequence[int]) -> Tensor:
        station = self.station
        self.station += 1
        if self.learner is not None:
            scale = own.new_tensor(list(weights), dtype=torch.float64).unsqueeze(1)
            total = (own * scale).sum(1, keepdim=True)
            sums = self.learner.sums.setdefault(self.view, [])
            if station == len(sums):
                sums.append((torch.zeros_like(total), 0))
            sums[station] = sums[station][0] + total, sums[station][1] + sum(weights)
        if self.given is None:
            return own
        total, weight = self.given.sums[self.view][station]
        return (total / weight).expand_as(own)
