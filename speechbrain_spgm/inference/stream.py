"""Separating while the talk goes on: one chunk behind the microphone.

A frame sees its own chunk and, of everything else, averages. A stream takes them over
the chunks so far, so a chunk is final as soon as its last frame is there, and a frame
as soon as both its chunks are::

    samples  |======================|~~~~~~~~~~~|
             |<------ done -------->|<- waits ->|      K frames at most
    chunks   ... |-- row s - 1 --|
                     |-- row s ------|
                         |-- row s + 1 --| not yet

Everything that a recording has as a whole, a stream has so far, by one rule. Row s has
the averages over rows 0 to max(s, warm-up - 1), older ones less if there is a horizon:

- the *mean* of the samples, which is taken away (with a horizon of its own, short: an
  offset drifts), each time from the samples that row s is the first to hold;
- the *level* of the encoder's frames, to which the first norm refers;
- the moments of all norms and the pooled vectors, where all rows so far count as
  modulated like the newest (unless linear layers stand between);
- the products of the voices with each other and with the mixture, from which each voice
  gets the *gain* by which all together fit the mixture best. A gain moves from what it
  was for the row before to what it is for this one along the samples between.

*Silence* does not count, else a pause would make all averages those of silence: rows
30 dB below the mean power of those that count have the averages of the row before.
Where a row is 30 dB above that mean, all before was silence and is forgotten. The mean
fades in silence, 3 dB a minute, so that who goes away from the microphone counts again.
In the warm-up the mean is that over its rows.

Averages over the first seconds are not those over minutes, and a voice may change its
output on the way from the ones to the others. So the talk so far is *looked back* on:
whenever it is 2, 4, 8, ... times as long as the warm-up, it is separated anew, as if
all of it were the warm-up; the new voices are put in the order in which they have most
in common with those given so far, and go on from there. The first row's are faded in.
Where all before was silence, this begins anew with it::

    rows     |-warm-up-|---------|-------------------|------- ... look_back
    averages '---------' from 1. |                   |
             '-------------------' from 2. on        |
             '---------------------------------------' from 3. on

With two *views* the mixture is separated upside down as well, and the voices are the
mean of both, in which a view counts the more the less its voices have in common, in all
rows so far (``augment``). The second view's are put in the order in which all rows so
far have them most in common with the first's.

Axes: n, T samples, N filters, K frames in a chunk, P = K // 2, R rows (chunks), spks
sources.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from speechbrain_spgm.audio import to_tensor
from speechbrain_spgm.choices import LOOK_BACK, STREAM_VIEWS
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference.augment import TRUST, doubt_of
from speechbrain_spgm.inference.level import mixture_gains
from speechbrain_spgm.lobes import engine
from speechbrain_spgm.lobes.chunking import chunk_frames, count_chunks, row_seconds
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.separator import count_frames
from speechbrain_spgm.lobes.statistics import Averages, Heard, Running, keep_of
from speechbrain_spgm.models.published import ModelError

LONGEST = 60  # seconds of a warm-up or a look back, which are all held in memory
MEAN_HORIZON = 10.0  # seconds in which an offset may drift
ROWS_AT_ONCE = 16  # bounds the memory of a long push
SILENCE = 1e-3  # of the mean power of what counts
FADING = 3.0  # dB a minute, of that mean in silence
LOUDEST = 1e30  # beyond, squares of squares do not fit


@dataclass
class StreamState:
    """All that a stream knows about the past; copies and pickles."""

    averages: Averages  # of the network and the gains
    means: Averages  # of the samples
    waiting: Tensor  # samples that no row holds yet, [n], float64
    centred: Tensor  # without their mean, from the first frame not done on, [n]
    frames: Tensor  # what the encoder makes of these, [n, N]
    last: Tensor  # the last row, [K, N]
    overlap: Tensor  # what frames that are done add to samples behind them, [spks, n]
    gains: Tensor  # of the last row, [spks], float64
    order: list[int]  # the network's output that each voice is
    samples: Tensor  # from a row on, as they were pushed, to look back on, [n], float64
    voices: Tensor  # what was made of these so far, [n, spks], float64
    begin: int = 0  # the row, an even one
    origin: int = 0  # the sample with which they begin
    skipped: int = 0  # samples pushed before all that is counted here
    taken: int = 0  # samples pushed
    row: int = 0  # rows computed
    power: float = 0.0  # sum of the powers of the rows that count
    heard: int = 0  # how many those are
    finished: bool = False  # nothing more can come
    broken: bool = False  # a push or the finish has not come to its end
    mirror: StreamState | None = None  # the same of the second view
    common: Averages | None = None  # of the products of the voices of both
    share: float | None = None  # that the second view has in the voices


class SPGMStream:
    """Separates one talk, piece by piece; begun by ``SPGMSeparation.stream``.

    However the samples are cut into pieces, the same voices come out, as many samples
    as went in, always in the same order. Memory and time per second stay the same, as
    soon as nothing is looked back on any more. A stream belongs to one thread at a
    time; a model may have many streams.

    ``stream.state`` is all that changes. A copy of the stream, by ``copy.deepcopy``,
    goes on from there with the same model.

    Arguments
    ---------
    encoder, masknet, decoder : torch.nn.Module
        Of a model in evaluation mode.
    sample_rate : int
        The model's, in Hz.
    warm_up : float
        The first seconds, 0 to 60, are held back and have their averages in common: so
        the first words are separated as well as the others.
    horizon : float, optional
        Seconds after which the past counts a third (1/e): voices may then come and go.
        By default nothing is forgotten.
    look_back : float
        Seconds, 0 to 60, up to which the talk so far is separated anew whenever it has
        become twice as long; 0: never. Then a push takes as long as the talk so far
        takes to separate, and all look backs together as twice the last.
    autocast : torch.dtype, optional
        Precision of matrix products, as in ``lobes.separator.separate``.
    views : int
        1, or 2: better voices for twice the computing, and no more delay.

    Raises
    ------
    UserError
        If a number of seconds or of views is wrong.
    ModelError
        If the model is no SPGM network with SpeechBrain's encoder and decoder, or in
        training mode.

    Example
    -------
    >>> from speechbrain_spgm.inference import SPGMSeparation
    >>> model = SPGMSeparation.from_pretrained(device="cpu")
    >>> stream = model.stream()
    >>> voices = [stream.push(torch.rand(n)) for n in (3000, 7000, 1)]
    >>> [len(part) for part in (*voices, stream.finish())]
    [0, 6000, 0, 4001]
    """

    def __init__(
        self,
        encoder: nn.Module,
        masknet: nn.Module,
        decoder: nn.Module,
        sample_rate: int,
        warm_up: float = 1.0,
        horizon: float | None = None,
        autocast: torch.dtype | None = None,
        views: int = 1,
        look_back: float = LOOK_BACK,
    ) -> None:
        check_seconds("warm_up", warm_up)
        check_seconds("look_back", look_back)
        check_horizon(horizon)
        if type(views) is not int or views not in STREAM_VIEWS:
            known = " or ".join(map(str, STREAM_VIEWS))
            raise UserError(f"views is {views!r}, but a stream has {known}.")
        if not isinstance(masknet, SPGMMaskNet):
            raise ModelError(
                f"A {type(masknet).__name__} looks at whole recordings: only an SPGM "
                "network can be streamed."
            )
        if not engine.suits_ends(encoder, decoder):
            raise ModelError(
                "Only models with SpeechBrain's own encoder and decoder, one channel "
                "and no bias, can be streamed."
            )
        if any(part.training for part in masknet.modules()):
            raise ModelError(
                "The model is in training mode, where dropout spoils the voices: call "
                "its eval() before it is streamed."
            )
        self.encoder, self.masknet, self.decoder = encoder, masknet, decoder
        self.sample_rate, self.autocast = sample_rate, autocast
        self.kernel, self.stride = encoder.conv1d.kernel_size[0], decoder.stride[0]
        self.K, self.P = masknet.K, masknet.K // 2
        self.views, self.horizon = views, horizon
        self.warm_up = max(1, self._rows_in(warm_up))
        self.renewals = []  # how many rows there are when all are looked back on
        while self.warm_up << len(self.renewals) + 1 <= self._rows_in(look_back):
            self.renewals.append(self.warm_up << len(self.renewals) + 1)
        self.hop = row_seconds(self.K, self.stride, sample_rate)
        self.fading = 10 ** (-FADING / 10 * self.hop / 60)
        self.state = self._begin()

    def _rows_in(self, seconds: float) -> int:
        """How many rows end within the first seconds."""
        rows = 0
        while self._stop(rows) * self.stride <= seconds * self.sample_rate:
            rows += 1
        return rows

    def _averages(self, horizon: float | None) -> Averages:
        return Averages(Running(self.warm_up, keep_of(self.hop, horizon)))

    def _begin(self) -> StreamState:
        state = self._begin_view()
        if self.views > 1:
            state.mirror = self._begin_view()
            state.common = self._averages(self.horizon)
        return state

    def _begin_view(self) -> StreamState:
        horizon = self.horizon
        weight = self.masknet.conv1d.weight
        N, filters, _ = weight.shape

        spks, rest = self.masknet.num_spks, self.decoder.kernel_size[0] - self.stride
        return StreamState(
            averages=self._averages(horizon),
            means=self._averages(min(MEAN_HORIZON, horizon or math.inf)),
            waiting=torch.zeros(0, dtype=torch.float64, device=weight.device),
            centred=weight.new_zeros(0),
            frames=weight.new_zeros(0, filters),
            last=weight.new_zeros(self.K, N),
            overlap=weight.new_zeros(spks, max(0, rest)),
            gains=torch.zeros(spks, dtype=torch.float64, device=weight.device),
            order=[*range(spks)],
            samples=torch.zeros(0, dtype=torch.float64, device=weight.device),
            voices=torch.zeros(0, spks, dtype=torch.float64, device=weight.device),
        )

    @property
    def latency(self) -> float:
        """Seconds from a sample to its voices at most, without the computing.

        Only the first samples wait longer, until the warm-up is over.
        """
        return (self.K * self.stride + self.kernel - self.stride) / self.sample_rate

    def __deepcopy__(self, memo: dict) -> SPGMStream:
        twin = copy.copy(self)
        twin.state = copy.deepcopy(self.state, memo)
        return twin

    @torch.no_grad()
    def push(self, samples: ArrayLike | Tensor) -> Tensor:
        """Takes what is new of the mixture, gives what is new of the voices.

        Arguments
        ---------
        samples : torch.Tensor or array
            ``[n]`` at the model's sample rate and at any level, n >= 0.

        Returns
        -------
        voices : torch.Tensor
            ``[m, spks]``, float32, on the CPU, at the level that they have in the
            mixture; m may be 0.

        Raises
        ------
        UserError
            If the samples have another shape or hold NaN or infinity, or the stream is
            finished; it then stays as it was. Or if an earlier push was interrupted
            in the middle.
        """
        state = self.state
        samples = to_tensor(samples)
        if state.finished:
            raise UserError("the stream is finished: begin another.")
        self._check()
        if samples.ndim != 1 or samples.is_complex():
            raise UserError(
                f"samples has shape {list(samples.shape)} and type {samples.dtype}, "
                "but must be real [n], one channel."
            )
        samples = samples.to(state.waiting)
        wrong = ~(samples.abs() <= LOUDEST)
        if wrong.any():
            first = int(wrong.nonzero()[0])
            place = state.skipped + state.taken + first
            raise UserError(
                f"sample {place} of the stream is {samples[first]:g}, which is no "
                "sound: replace it by 0."
            )
        state.broken = True  # until the end: an exception leaves it so
        self._take(samples)
        voices = self._to_user(self._advance())
        self.state.broken = False
        return voices

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Gives the rest of the voices; nothing can be pushed after that.

        Returns
        -------
        voices : torch.Tensor
            ``[m, spks]``, as from :meth:`push`; all together as many as were pushed.

        Raises
        ------
        UserError
            If it, or a push, was interrupted in the middle.
        """
        state = self.state
        self._check()
        if state.finished or not state.taken:
            state.finished = True
            return self._to_user([])
        left = state.taken - max(0, self._done(state.row)) * self.stride
        state.broken = True
        voices = torch.cat(self._advance(last=True))[:left]
        rest = left - len(voices)  # in no frame
        voices = self._to_user([F.pad(voices, (0, 0, 0, rest))])
        self.state.finished, self.state.broken = True, False
        return voices

    def _check(self) -> None:
        """Refuses to go on where that cannot be, before anything changes."""
        if self.state.broken:
            raise UserError("the stream was interrupted in the middle: begin another.")
        net = self.masknet
        if net.int8 is not None and not engine.suits(net, self.state.last):
            net.check_float()

    def _to_user(self, parts: Sequence[Tensor]) -> Tensor:
        if not parts:
            spks = self.masknet.num_spks
            return torch.zeros(0, spks, dtype=torch.float32, device="cpu")
        return torch.cat(list(parts)).float().cpu()

    def _views(self) -> list[SPGMStream]:
        """This stream, and the one that hears all upside down."""
        if self.state.mirror is None:
            return [self]
        mirror = copy.copy(self)
        mirror.state = self.state.mirror
        return [self, mirror]

    def _mean(self, views: list[list[Tensor]], rows: int) -> list[Tensor]:
        """What both views make of some rows, and of what follows, ``[n, spks]``."""
        if len(views) == 1 or not views[0]:
            return views[0]
        state = self.state
        products = torch.stack(
            [
                torch.stack([-first.t() @ part, first.t() @ first, part.t() @ part])
                for first, part in zip(*views, strict=True)
            ]
        )
        products[rows:] = 0  # what comes behind the last row has its order and shares
        flat = products.flatten(1)
        products = state.common.mean(flat, [len(flat)]).view_as(products)
        state.common.rewind()
        parts = []
        for first, part, (both, *own) in zip(*views, products, strict=True):
            doubt, other = (float(doubt_of(product)) for product in own)
            share = 1 / (1 + math.exp(TRUST * (other - doubt)))
            before = share if state.share is None else state.share
            shares = before + (share - before) * ramp_of(first)
            parts.append(torch.lerp(first, -part[:, order_of(both)], shares))
            state.share = share
        return parts

    def _done(self, row: int) -> int:
        """How many frames are final before a row is computed; it begins with them."""
        return row // 2 * self.K - (0 if row % 2 else self.P)

    def _stop(self, row: int, L: int | None = None) -> int:
        """The frame behind a row, of L if that is known."""
        stop = self._done(row) + self.K
        return stop if L is None else min(stop, L)

    def _end(self, row: int, L: int | None = None) -> int:
        """How many samples the rows up to this one hold."""
        stop = self._stop(row, L)
        return 0 if row < 0 else (stop - 1) * self.stride + self.kernel

    def _take(self, samples: Tensor) -> None:
        """Samples ``[n]`` that come behind those taken so far."""
        self.state.samples = torch.cat([self.state.samples, samples])
        for view, stream in enumerate(self._views()):
            own = stream.state
            own.waiting = torch.cat([own.waiting, -samples if view else samples])
            own.taken += len(samples)

    def _frames(self, last: bool) -> int | None:
        """How many frames there are, once that is known."""
        if not last:
            return None
        return count_frames(self.state.taken, self.kernel, self.stride)

    def _ready(self, last: bool) -> int:
        """The row behind those that can be computed."""
        L, row = self._frames(last), self.state.row
        if L is not None:
            return count_chunks(L, self.K)
        while self._end(row) <= self.state.taken:
            row += 1
        return row if row >= self.warm_up else 0  # held back

    def _renewal(self) -> int | None:
        """The row, if any, before which the talk so far is looked back on next."""
        state = self.state
        rows = (state.begin + rows for rows in self.renewals)
        return next((row for row in rows if row >= state.row), None)

    def _advance(self, last: bool = False) -> list[Tensor]:
        """Computes what can be; what that adds to the voices, ``[n, spks]`` each."""
        parts, stop = [], self._ready(last)
        while (row := self.state.row) < stop:
            renewal = self._renewal()
            if row == renewal:
                new = self._renew(last)
                stop = self._ready(last)
            else:
                most = min(row + self._most(), renewal or stop)
                new = self._voices_to(min(stop, most), last)
            self._remember(new)
            parts += new
        return parts

    def _most(self) -> int:
        """How many rows may be computed at once."""
        if not self.state.row:
            return self.warm_up
        # PyTorch's own kernels give many rows other bits than each alone.
        alone = self.autocast or not engine.suits(self.masknet, self.state.last)
        # So few that a look back on what begins anew among them is not missed.
        return 1 if alone else min(ROWS_AT_ONCE, 2 * self.warm_up - 1)

    def _voices_to(self, stop: int, last: bool) -> list[Tensor]:
        """The voices that the rows before ``stop`` add."""
        state, L, views = self.state, self._frames(last), []
        rows = range(state.row, stop)
        for stream in self._views():
            views.append(stream._compute(rows, L))
            own = stream.state
            if L is not None and stop == count_chunks(L, self.K):
                views[-1].append((own.overlap.double() * own.gains.unsqueeze(-1)).t())
        parts = [part[:, state.order] for part in self._mean(views, len(rows))]
        for row, heard in zip(rows, state.averages.heard, strict=True):
            if heard is Heard.ANEW:
                state.begin = row - row % 2
        return parts

    def _remember(self, parts: Sequence[Tensor]) -> None:
        """Keeps what the next look back needs, and no more."""
        state = self.state
        begin = state.begin
        if self._renewal() is None:  # unless talk begins anew with the next row
            begin = (state.row - 1) // 2 * 2
        origin = begin // 2 * self.K * self.stride
        state.voices = torch.cat([state.voices, *parts])
        if origin > state.origin:
            state.samples = state.samples[origin - state.origin :]
            state.voices = state.voices[origin - state.origin :]
            state.origin = origin

    def _renew(self, last: bool) -> list[Tensor]:
        """Looks back, and computes the next row; the voices that it adds."""
        old, rows = self.state, self.state.row - self.state.begin
        new = copy.copy(self)
        new.warm_up = rows
        new.state = new._begin()
        new._take(old.samples)
        new.state.broken, new.state.skipped = True, old.skipped + old.origin
        voices = torch.cat(new._voices_to(rows, last))
        new.state.order = order_of(old.voices.t() @ voices)
        before = self._voices_to(old.row + 1, last)
        after = new._voices_to(rows + 1, last)
        self.state, new.state.voices = new.state, old.voices
        return [torch.lerp(before[0], after[0], ramp_of(after[0])), *after[1:]]

    def _compute(self, rows: range, L: int | None) -> list[Tensor]:
        """Some rows, of L frames if known; the voices that they add, ``[n, spks]``."""
        # All is cut by rows: how the samples were pushed plays no part.
        state, done = self.state, max(0, self._done(rows.start))
        for row, block in zip(rows, self._centre(rows, L), strict=True):
            state.centred = torch.cat([state.centred, block])
            start = max(0, self._stop(row - 1, L)) if row else 0
            frames = self._encode(start - done, self._stop(row, L) - done)
            state.frames = torch.cat([state.frames, frames])

        chunks, valid = self._cut(rows, L, done)
        state.averages.heard = self._listen(chunks, valid)
        kind = chunks.device.type
        with torch.autocast(kind, self.autocast) if self.autocast else nullcontext():
            chunks = self.masknet.advance(chunks, valid, state.averages)
            voices = [
                self._voices(row, chunk, L)
                for row, chunk in zip(rows, chunks, strict=True)
            ]
        state.row = rows.stop
        return self._level(voices, len(rows))

    def _centre(self, rows: range, L: int | None) -> list[Tensor]:
        """The samples that each row is the first to hold, without their mean."""
        state = self.state
        ends = [self._end(row, L) for row in range(rows.start - 1, rows.stop)]
        ends = [min(end, state.taken) for end in ends]  # less than a kernel in all
        counts = [end - start for start, end in zip(ends, ends[1:], strict=False)]
        total = sum(counts)
        blocks = state.waiting[:total].split(counts)
        state.waiting = state.waiting[total:]
        sums = torch.stack([block.sum() for block in blocks]).view(1, -1, 1)
        means, _ = state.means.moments_of(
            torch.cat([sums, torch.zeros_like(sums)]), [len(rows)], counts
        )
        state.means.rewind()
        return [
            (block - mean).to(state.centred)
            for block, mean in zip(blocks, means, strict=True)
        ]

    def _encode(self, start: int, stop: int) -> Tensor:
        """Frames of the samples that are held, ``[n, N]``."""
        if start >= stop:
            return self.state.frames[:0]
        first, end = start * self.stride, (stop - 1) * self.stride + self.kernel
        samples = self.state.centred[first:end]
        samples = F.pad(samples, (0, end - first - len(samples)))
        return self.encoder(samples.unsqueeze(0))[0].t()

    def _cut(self, rows: range, L: int | None, done: int) -> tuple[Tensor, Tensor]:
        """Rows of frames ``[R, K, N]``, and 1 where they hold any, ``[R, K, 1]``."""
        frames = self.state.frames
        chunks = frames.new_zeros(len(rows), self.K, frames.shape[1])
        valid = frames.new_zeros(len(rows), self.K, 1)
        last = self._stop(rows[-1], L)
        for i, row in enumerate(rows):
            start, stop, offset = chunk_frames(row, self.K, last)
            if start < stop:
                place = slice(offset, offset + stop - start)
                chunks[i, place] = frames[start - done : stop - done]
                valid[i, place] = 1
        return chunks, valid

    def _listen(self, chunks: Tensor, valid: Tensor) -> list[Heard]:
        """What each of some rows counts in the averages."""
        state = self.state
        power = chunks.double().square().sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
        if not state.heard:
            counts = power >= SILENCE * power.mean()
            state.power, state.heard = float(power[counts].sum()), int(counts.sum())
            return [Heard.TALK if count else Heard.SILENT for count in counts]
        found = []
        for p in power.tolist():
            mean = state.power / state.heard
            if p < SILENCE * mean:
                state.power *= self.fading
                found.append(Heard.SILENT)
            elif SILENCE * p > mean:
                state.power, state.heard = p, 1
                found.append(Heard.ANEW)
            else:
                state.power, state.heard = state.power + p, state.heard + 1
                found.append(Heard.TALK)
        return found

    def _voices(self, row: int, chunk: Tensor, L: int | None) -> Tensor:
        """The voices of the frames that a row makes final, ``[spks, n]``."""
        state, done = self.state, max(0, self._done(row))
        n = max(0, self._done(row + 1)) - done
        added = state.last[self.K - n :] + chunk[:n]
        state.last = chunk.clone()
        n = n if L is None else min(n, max(0, L - done))
        if not n:
            return state.overlap[:, :0]
        frames, state.frames = state.frames[:n], state.frames[n:]
        voices = self.masknet.masks(added[:n]) * frames.t()  # [spks, N, n]
        with torch.autocast(frames.device.type, enabled=False):
            pieces = self.decoder(voices.to(frames)).reshape(len(voices), -1)
        rest = state.overlap.shape[1]
        pieces[:, :rest] += state.overlap
        state.overlap = pieces[:, n * self.stride :].clone()
        return pieces[:, : n * self.stride]

    def _level(self, voices: list[Tensor], rows: int) -> list[Tensor]:
        """Brings the voices of each row to their level, ``[n, spks]``, float64."""
        state = self.state
        counts = [part.shape[1] for part in voices]
        mixes = F.pad(state.centred, (0, max(0, sum(counts) - len(state.centred))))
        mixes = mixes[: sum(counts)].double().split(counts)
        state.centred = state.centred[sum(counts) :]
        voices = [part.double() for part in voices]
        spks = len(state.gains)
        products = torch.stack(
            [
                torch.cat([(part @ part.t()).flatten(), part @ mix])
                for part, mix in zip(voices, mixes, strict=True)
            ]
        )
        products = state.averages.mean(products, [rows])
        parts = []
        for part, product in zip(voices, products, strict=True):
            gains = mixture_gains(product[:-spks].view(spks, spks), product[-spks:])
            before = state.gains.where(state.gains != 0, gains)
            part = part.t()
            parts.append(part * torch.lerp(before, gains, ramp_of(part)))
            state.gains = gains
        return parts


def ramp_of(part: Tensor) -> Tensor:
    """From above 0 to 1 along the samples of voices ``[n, spks]``, ``[n, 1]``.

    Example
    -------
    >>> ramp_of(torch.zeros(2, 3)).tolist()
    [[0.5], [1.0]]
    """
    n = len(part)
    return (torch.arange(n, device=part.device).to(part).view(n, 1) + 1) / max(1, n)


def order_of(products: Tensor) -> list[int]:
    """For each voice the other that it has most in common with, ``[spks, spks]``.

    Example
    -------
    >>> order_of(torch.tensor([[0.1, 3.0], [2.0, 0.2]]))
    [1, 0]
    """
    products = products.nan_to_num().cpu()
    return linear_sum_assignment(products, maximize=True)[1].tolist()


def is_number(value: object) -> bool:
    """Whether it is one, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_seconds(name: str, value: object) -> None:
    """Refuses a warm-up or a look back that cannot be."""
    if not is_number(value) or not 0 <= value <= LONGEST:
        raise UserError(
            f"{name} is {value!r}, but must be from 0 to {LONGEST} seconds."
        )


def check_horizon(horizon: object) -> None:
    """Refuses a horizon that cannot be."""
    if horizon is not None and (not is_number(horizon) or not 0 < horizon < math.inf):
        raise UserError(
            f"horizon is {horizon!r}, but must be a number of seconds above 0, or None "
            "to forget nothing."
        )
