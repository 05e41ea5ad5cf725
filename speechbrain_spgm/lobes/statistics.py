"""Which chunks the averages are taken over that a chunk is computed with.

A frame sees its own chunk and, of everything else, averages only: the moments of the
norms and the pooled vector of each block, its *stations*. Over what they are taken is
an argument of every path through the network:

================  ===================================================================
``Statistics()``  the whole utterance, as in the paper: the default
``Survey()``      likewise, and adds them up over all utterances that it is given to
``Shared(...)``   those of a survey, in place of an utterance's own: a window then comes
                  out as it does within the recording
``Running(...)``  for each chunk those of the chunks so far
``Window(...)``   for each chunk those of the chunks around it
``Placed(...)``   the same two within a recording that comes in overlapping parts
================  ===================================================================

Axes: B utterances, S chunks of one utterance, C rows = chunks of all utterances of a
batch, G groups of rows with averages in common, N filters, P quantities.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from speechbrain_spgm.choices import STATISTICS
from speechbrain_spgm.lobes.norms import utterance_mean, utterance_moments

MOST_CHUNKS = 2**31  # of a window: more than any recording has


class Statistics:
    """Averages over the whole utterance.

    Example
    -------
    >>> Averages(Statistics()).mean(torch.tensor([[1.0], [4.0], [6.0]]), [2, 1])
    tensor([[2.5000],
            [6.0000]])
    """

    own = True  # whether an utterance keeps its averages and nobody else needs them
    per_chunk = False  # one set for all chunks of an utterance, or one for each

    def of_view(self, view: int) -> Statistics:
        """Those of one view of a recording: views have nothing in common."""
        return self

    def take(self, station: int, own: Tensor, weights: Sequence[int]) -> Tensor:
        """What to use in place of the utterances' own averages, ``[P, B, N]``."""
        return own


class Survey(Statistics):
    """Adds up averages of utterances, which have what is ``given`` in their place."""

    own = False

    def __init__(self, given: Survey | None = None) -> None:
        self.given = given
        self.sums: list[tuple[Tensor, int]] = []  # by station: [P, 1, N], weight
        self.views: dict[int, Survey] = {}

    def of_view(self, view: int) -> Survey:
        """Sums of that view alone."""
        if view == 0:
            return self
        given = self.given and self.given.of_view(view)
        return self.views.setdefault(view, Survey(given))

    def take(self, station: int, own: Tensor, weights: Sequence[int]) -> Tensor:
        """Adds up the utterances' own; gives them what they are given."""
        scale = own.new_tensor(list(weights), dtype=torch.float64).unsqueeze(1)
        total = (own * scale).sum(1, keepdim=True)
        if station == len(self.sums):
            self.sums.append((torch.zeros_like(total), 0))
        before, weight = self.sums[station]
        self.sums[station] = before + total, weight + sum(weights)
        return own if self.given is None else self.given.average(station).expand_as(own)

    def average(self, station: int) -> Tensor:
        """``[P, 1, N]``."""
        total, weight = self.sums[station]
        return total / weight


class Shared(Statistics):
    """What a survey found in one utterance or more, in place of an utterance's own."""

    own = False

    def __init__(self, survey: Survey) -> None:
        self.survey = survey

    def of_view(self, view: int) -> Shared:
        """The survey's of that view."""
        return Shared(self.survey.of_view(view))

    def take(self, station: int, own: Tensor, weights: Sequence[int]) -> Tensor:
        """The survey's, ``[P, B, N]``."""
        return self.survey.average(station).expand_as(own)


class Running(Statistics):
    """Averages over the chunks so far: nothing waits for the future.

    Chunk s has those of chunks 0 to max(s, warm_up - 1), where the one before the last
    of them counts ``keep`` times as much, the one before that ``keep`` squared, ...
    ``warm_up`` is at least 1, ``keep`` above 0; at 1 nothing is ever forgotten.
    """

    own, per_chunk = False, True
    ahead = False  # whether a chunk needs those behind it

    def __init__(self, warm_up: int = 1, keep: float = 1.0) -> None:
        if warm_up < 1 or not 0 < keep <= 1:
            raise ValueError(
                f"warm_up is {warm_up} and keep {keep}, but they must be at least 1 "
                "chunk, and above 0 and up to 1."
            )
        self.warm_up, self.keep = warm_up, keep
        self.before = warm_up  # chunks that one must know one by one

    def spread(
        self, planes: Tensor, past: Tensor | None, station: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Weighted sums over the chunks so far, for each.

        From quantities and weights of the chunks, ``[P + 1, S, N]``, and what is left
        of those before, ``[P + 1, N]``, to both again.
        """
        sums, total = [], torch.zeros_like(planes[:, 0]) if past is None else past
        for chunk in planes.unbind(1):
            total = total * self.keep + chunk
            sums.append(total)
        if past is None:
            head = sums[: self.warm_up]
            sums[: self.warm_up] = head[-1:] * len(head)
        return torch.stack(sums, 1), total


class Window(Statistics):
    """Averages over the ``chunks`` around each.

    At the ends of a recording the window is as long, but not centred. An utterance with
    no more chunks has averages over the whole of it.
    """

    own, per_chunk, ahead = False, True, True

    def __init__(self, chunks: int) -> None:
        if chunks < 1:
            raise ValueError(f"chunks is {chunks}, but a window has at least 1.")
        self.chunks = self.before = chunks

    def spread(
        self, planes: Tensor, past: Tensor | None, station: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Sums over the chunks around each."""
        S = planes.shape[1]
        n = min(self.chunks, S)
        sums = F.pad(planes.cumsum(1), (0, 0, 1, 0))  # [P + 1, S + 1, N]
        starts = torch.arange(S, device=planes.device).sub_(n // 2).clamp_(0, S - n)
        return sums[:, starts + n] - sums[:, starts], planes[:, -1]


class Placed(Statistics):
    """Running or window averages of a recording that comes in overlapping parts.

    A part's chunks get what they would have within the whole recording, as far as the
    parts before, and what has been looked at of those behind, have told. Parts begin
    with an even chunk of the recording, one after the other.

    Example
    -------
    >>> placed = Placed(Running())
    >>> x = torch.tensor([[1.0], [3.0], [8.0], [0.0]])  # the last is cut off
    >>> Averages(placed).mean(x, [4]).flatten()
    tensor([1., 2., 4., 3.])
    >>> placed.move(2)
    >>> x = torch.tensor([[5.0], [4.0], [6.0]])  # cut off; the first that is new
    >>> Averages(placed).mean(x, [3]).flatten()
    tensor([4.0000, 4.0000, 4.4000])
    """

    own, per_chunk = False, True

    def __init__(self, rule: Running | Window) -> None:
        self.rule, self.first = rule, 0
        self.base = 0  # the first chunk of which anything is known
        self.known: dict[int, Tensor] = {}  # by station: [P + 1, chunks, N]
        self.past: dict[int, Tensor | None] = {}  # what is left of those before
        self.views: dict[int, Placed] = {}

    def of_view(self, view: int) -> Placed:
        """That of one view alone, at the same place."""
        return self.views.setdefault(view, Placed(self.rule)) if view else self

    def move(self, first: int) -> None:
        """The next part begins with this chunk; what lies far behind is forgotten."""
        self.look(first)
        base = max(self.base, first - self.rule.before)
        for station, known in self.known.items():
            gone = known[:, : base - self.base]
            if gone.shape[1]:
                past = self.past.get(station)
                self.past[station] = self.rule.spread(gone, past)[1]
                self.known[station] = known[:, base - self.base :]
        self.base = base
        for other in self.views.values():
            other.move(first)

    def look(self, first: int) -> None:
        """The next part begins with this chunk, and one before it comes again."""
        self.first = first
        for other in self.views.values():
            other.look(first)

    def spread(
        self, planes: Tensor, past: Tensor | None, station: int = 0
    ) -> tuple[Tensor, None]:
        """Those of a part's chunks among all that are known."""
        start = self.first - self.base
        stop = start + planes.shape[1]
        known = self.known.get(station, planes[:, :0])
        # Chunks at the borders of a part are cut off, and whole in its neighbours.
        head = max(start, min(start + 1, known.shape[1]))
        tail = stop if known.shape[1] <= stop else stop - 1
        known = torch.cat(
            [known[:, :head], planes[:, head - start : tail - start], known[:, tail:]],
            1,
        )
        self.known[station] = known
        sums, _ = self.rule.spread(known, self.past.get(station))
        return sums[:, start:stop], None


def statistics_of(
    name: str,
    row_seconds: float,
    warm_up: float = 1.0,
    horizon: float | None = None,
    window: float = 8.0,
) -> Statistics:
    """Statistics by their name, and by seconds in place of chunks.

    ``name`` is "whole", "running" or "window"; ``row_seconds`` are half a chunk. The
    running ones are in common for ``warm_up``; after ``horizon`` the past counts a
    third (1/e), or with ``None`` as much as ever.

    Example
    -------
    >>> statistics_of("running", 0.25).warm_up, statistics_of("window", 0.25).chunks
    (4, 32)
    """
    if name == "whole":
        return Statistics()
    if name == "window":
        return Window(max(1, round(min(window / row_seconds, MOST_CHUNKS))))
    if name == "running":
        keep = keep_of(row_seconds, horizon)
        return Running(max(1, math.floor(warm_up / row_seconds + 1e-9)), keep)
    raise ValueError(f"statistics are {name!r}, but must be {', '.join(STATISTICS)}.")


def keep_of(row_seconds: float, horizon: float | None) -> float:
    """How much a chunk counts where the next counts 1, above 0.

    Example
    -------
    >>> keep_of(0.25, None), round(keep_of(0.25, 5.0), 3)
    (1.0, 0.951)
    """
    keep = 1.0 if horizon is None else math.exp(-row_seconds / horizon)
    return max(keep, sys.float_info.min)


class Heard(Enum):
    """What a chunk of a stream counts in its averages."""

    TALK = "talk"  # as the others
    SILENT = "silent"  # nothing
    ANEW = "anew"  # alone: what was before was silence against it


class Averages:
    """The averages of a batch on its way through a network, station by station.

    Create one per pass. A stream keeps one and calls :meth:`rewind` before each pass:
    running averages then go on where they were. By default utterances have their own.
    """

    def __init__(self, statistics: Statistics | None = None) -> None:
        self.statistics = statistics or Statistics()
        self.station = 0
        self.past: dict[tuple[int, int], Tensor] = {}  # by station and utterance
        self.heard: Sequence[Heard] = ()  # of the rows of the next pass; all count

    def rewind(self) -> None:
        """The next average is that of the first station."""
        self.station = 0

    def groups(self, chunks: Sequence[int]) -> Sequence[int]:
        """How many rows after one another have averages in common; they sum to C."""
        return [1] * sum(chunks) if self.statistics.per_chunk else chunks

    def moments(
        self, mean: Tensor, var: Tensor, chunks: Sequence[int], rows: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[G, N]`` of every filter from those of rows, ``[C, N]``.

        ``chunks`` are rows of every utterance, ``rows`` the weight of each row, or 1.
        """
        rows = rows or [1] * len(mean)
        if self.statistics.per_chunk:
            weights = mean.new_tensor(rows).unsqueeze(-1)
            sums = torch.stack([mean, var + mean.square()]) * weights
            return _moments(self._spread(sums, weights, chunks))
        mean, var = utterance_moments(mean, var, chunks)
        if self.statistics.own:
            return mean, var
        return _moments(
            self._take(torch.stack([mean, var + mean.square()]), _add_up(rows, chunks))
        )

    def moments_of(
        self, sums: Tensor, chunks: Sequence[int], rows: Sequence[int], K: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance ``[G, N]`` from sums of x and x² over rows, ``[2, C, N]``.

        A row of weight 1 has ``K`` frames. The others are as in :meth:`moments`.
        """
        if self.statistics.per_chunk:
            weights = sums.new_tensor(rows).unsqueeze(-1)
            return _moments(self._spread(sums / K, weights, chunks))
        weights = _add_up(rows, chunks)
        frames = sums.new_tensor([K * weight for weight in weights]).unsqueeze(-1)
        parts = [part.sum(1) for part in sums.split(list(chunks), 1)]
        mean, var = _moments(torch.stack(parts, 1) / frames)
        if self.statistics.own:
            return mean, var
        own = torch.stack([mean, var + mean.square()])
        return _moments(self._take(own, weights))

    def mean(self, x: Tensor, chunks: Sequence[int]) -> Tensor:
        """A mean of every filter from values of rows: ``[C, N]`` to ``[G, N]``."""
        if self.statistics.per_chunk:
            ones = torch.ones(len(x), 1, dtype=torch.float64, device=x.device)
            return self._spread(x.double().unsqueeze(0), ones, chunks)[0].to(x.dtype)
        mean = utterance_mean(x, chunks)
        if self.statistics.own:
            return mean
        return self._take(mean.unsqueeze(0), chunks)[0].to(x.dtype)

    def _take(self, own: Tensor, weights: Sequence[int]) -> Tensor:
        self.station += 1
        return self.statistics.take(self.station - 1, own, weights)

    def _spread(self, sums: Tensor, weights: Tensor, chunks: Sequence[int]) -> Tensor:
        """Weighted means for each chunk, ``[P, C, N]``, from sums and weights."""
        planes = torch.cat([sums, weights.expand_as(sums[:1])])
        found = []
        for b, part in enumerate(planes.split(list(chunks), 1)):
            key = self.station, b
            past = self.past.get(key)
            part, self.past[key] = self._over_heard(part, past)
            found.append(part[:-1] / part[-1:].clamp(min=1e-9))
        self.station += 1
        return torch.cat(found, 1)

    def _over_heard(
        self, planes: Tensor, past: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """``spread`` over what is heard; silent rows have what was there before."""
        if not self.heard:
            return self.statistics.spread(planes, past, self.station)
        if past is None:
            heard = [row is not Heard.SILENT for row in self.heard]
            counts = torch.tensor(heard, device=planes.device)
            sums, past = self.statistics.spread(planes[:, counts], None, self.station)
            return sums[:, (counts.cumsum(0) - 1).clamp(min=0)], past
        sums = []
        for row, heard in zip(planes.split(1, 1), self.heard, strict=True):
            if heard is Heard.ANEW:
                past = torch.zeros_like(past)
            if heard is not Heard.SILENT:
                row, past = self.statistics.spread(row, past, self.station)
            sums.append(past.unsqueeze(1))
        return torch.cat(sums, 1), past


def _add_up(rows: Sequence[int], chunks: Sequence[int]) -> list[int]:
    """The weights of utterances from those of their rows."""
    rest = iter(rows)
    return [sum(next(rest) for _ in range(S)) for S in chunks]


def _moments(averages: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance from the averages of x and x²."""
    mean, power = averages
    return mean, (power - mean.square()).clamp(min=0)
