"""A stream gives what its rule says, however the samples come."""

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from speechbrain.lobes.models.dual_path import SBRNNBlock
from torch import Tensor

from speechbrain_spgm.data import MixtureList
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import ModelError, SPGMSeparation
from speechbrain_spgm.inference.augment import TRUST
from speechbrain_spgm.inference.level import mixture_gains
from speechbrain_spgm.inference.stream import MEAN_HORIZON, SPGMStream
from speechbrain_spgm.lobes import engine
from speechbrain_spgm.lobes.chunking import chunk_frames, overlap_add, segment
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.separator import count_frames
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.models.published import build
from tests.conftest import CONFIG

RATE = 8000
VARIANTS = {
    "att": {},
    "odd chunks": {"masknet_chunksize": 25},
    "linear layers": {"masknet_useextralinearlayer": True, "spgm_block_pool": "max"},
    "no skip": {"masknet_extraskipconnection": False, "masknet_norm": "gln"},
    "control, three": {"spgm_block_pool": "none", "masknet_numspks": 3},
    "wide kernel": {"encoder_kernel_size": 32, "spgm_block_pool": "lem"},
}


def separator(precision: str | None = None, **fields: object) -> SPGMSeparation:
    """A small random model."""
    torch.manual_seed(1)
    config = {**CONFIG, **fields}
    modules = dict(zip(("encoder", "masknet", "decoder"), build(config), strict=True))
    for block in modules["masknet"].dual_mdl:  # so that modulation matters
        for linear in (block.inter_mdl.s_lin, block.inter_mdl.g_lin):
            if linear is not None:
                torch.nn.init.normal_(linear.weight, std=0.5)
    options = {"run_opts": {"device": "cpu"}, "precision": precision}
    return SPGMSeparation(modules, {"sample_rate": RATE}, **options)


def talk(T: int) -> Tensor:
    """Noise whose level and mean change."""
    t = torch.arange(T) / RATE
    return torch.randn(T) * (0.05 + 0.1 * torch.sin(7 * t) ** 2) + 0.01 * t.cos()


def in_pieces(stream: SPGMStream, mix: Tensor, sizes: list[int]) -> Tensor:
    """The voices of a mixture that comes in pieces of these sizes, over and over."""
    parts, start, i = [], 0, 0
    while start < len(mix):
        parts.append(stream.push(mix[start : start + sizes[i % len(sizes)]]))
        start, i = start + sizes[i % len(sizes)], i + 1
    return torch.cat([*parts, stream.finish()])


def numbers(power: list[float], shared: int, hop: float) -> tuple[Tensor, Tensor]:
    """The rows that count, numbered from 1, others 0; the first of them for each."""
    mean = sum(power[:shared]) / len(power[:shared])
    counts = [p >= 1e-3 * mean for p in power[:shared]]
    heard = [p for p, count in zip(power, counts, strict=False) if count]
    first, firsts = 0, [0] * len(counts)
    total, n = sum(heard), len(heard)
    for p in power[shared:]:
        counts.append(p >= 1e-3 * total / n)
        if not counts[-1]:
            total *= 10 ** (-0.3 * hop / RATE / 60)
        elif 1e-3 * p > total / n:
            total, n, first = p, 1, sum(counts)
        else:
            total, n = total + p, n + 1
        firsts.append(first)
    counts = torch.tensor(counts)
    return counts.cumsum(0) * counts, torch.tensor(firsts)


def by_the_rule(
    model: SPGMSeparation, mix: Tensor, warm_up: float, horizon: float | None
) -> Tensor:
    """All at once and with plain operations, in float64: what a stream should give."""
    mods = copy.deepcopy(model.mods).double()
    encoder, net, decoder = mods.encoder, mods.masknet, mods.decoder
    K, stride, kernel = net.K, decoder.stride[0], encoder.conv1d.kernel_size[0]
    T, mix = len(mix), mix.double()
    L = count_frames(T, kernel, stride)
    rows = range(2 * ((K // 2 + L) // K + 1))
    ends = [(chunk_frames(row, K, 10**9)[1] - 1) * stride + kernel for row in rows]
    shared = max(1, sum(end - kernel + stride <= warm_up * RATE for end in ends))

    def weights(horizon: float, number: Tensor, first: Tensor) -> Tensor:
        """How much each row counts for each, [S, S]; rows of no number do not."""
        last = torch.arange(len(rows)).clamp(min=min(shared, len(rows)) - 1)
        newest = number.cummax(0).values[last].unsqueeze(1)
        age = newest - number  # in halves of a chunk
        counts = (number > 0) & (age >= 0) & (number >= first[last].unsqueeze(1))
        return torch.exp(-age * K * stride / 2 / RATE / horizon).double() * counts

    every = torch.arange(1, len(rows) + 1)
    near = weights(min(10, horizon or math.inf), every, torch.zeros_like(every))
    assert MEAN_HORIZON == 10

    def moments(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and mean square of rows [S, K, N], [S, 1, N] each."""
        count = past @ valid.sum(1)
        mean, power = ((past @ (v * valid).sum(1) / count) for v in (x, x.square()))
        return mean.unsqueeze(1), power.unsqueeze(1)

    def norm(layer, x: Tensor, valid: Tensor, c: Tensor = 1, level=False) -> Tensor:
        """Of c * x, as if all rows so far had this one's c, [S, 1, N]."""
        mean, power = moments(x, valid)
        mean, power = ((c * mean).mean(-1, True), (c * c * power).mean(-1, True))
        eps = layer.eps * power if level else layer.eps
        x = (c * x - mean) / (power - mean.square() + eps).clamp(min=1e-99).sqrt()
        return x * layer.weight.flatten() + layer.bias.flatten()

    ends = [min(end, (L - 1) * stride + kernel, T) for end in ends]
    blocks = mix[: ends[-1]].split([b - a for a, b in pairwise([0, *ends])])
    sums = torch.stack([block.sum() for block in blocks])
    counts = torch.tensor([len(block) for block in blocks]).double()
    means = (near @ sums) / (near @ counts)
    mix = torch.cat([b - mean for b, mean in zip(blocks, means, strict=True)])
    mix = F.pad(mix, (0, max(0, kernel - len(mix))))
    frames = encoder(mix.unsqueeze(0))[0].t()

    x, _ = segment([frames], K)
    valid, _ = segment([torch.ones(L, 1).double()], K)
    ones = torch.ones_like(valid)
    power = ((x * valid).square().sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)).tolist()
    past = weights(horizon or math.inf, *numbers(power, shared, K * stride / 2))
    x = norm(net.norm, x, valid, level=True) * valid @ net.conv1d.weight.squeeze(-1).t()
    for block in net.dual_mdl:
        local = block.intra_mdl(x)
        if block.linear_layer_after_inter_intra:
            local = block.intra_linear(local)
        local = norm(block.intra_norm, local, ones)
        x = local + x if block.skip_around_intra else local
        p = past @ block.inter_mdl.pool(x) / past.sum(1, keepdim=True)
        c = block.inter_mdl.modulation(p).unsqueeze(1)
        if block.linear_layer_after_inter_intra:
            x = x + norm(block.inter_norm, block.inter_linear(c * x), ones)
        else:
            x = x + norm(block.inter_norm, x, ones, c)
    added = overlap_add(net.prelu(x), [len(rows)], [L])[0]
    est = decoder(net.masks(added) * frames.t()).reshape(net.num_spks, -1)

    # Gains, row by row: it completes the frames up to where the next one begins.
    done = [min(L, max(0, chunk_frames(r + 1, K, 10**9)[0])) * stride for r in rows]
    parts = [slice(a, b) for a, b in pairwise([0, *done])]
    mix = F.pad(mix, (0, max(0, done[-1] - len(mix))))
    gram = torch.stack([est[:, part] @ est[:, part].t() for part in parts])
    target = torch.stack([est[:, part] @ mix[part] for part in parts])
    gains = [mixture_gains(torch.tensordot(w, gram, 1), w @ target) for w in past]
    voices = []
    for part, (before, gain) in zip(parts, pairwise([gains[0], *gains]), strict=True):
        n = part.stop - part.start
        ramp = ((torch.arange(n) + 1) / max(n, 1)).double().unsqueeze(1)
        before = before.where(before != 0, gain)  # a voice begins at its level
        voices.append(est[:, part].t() * (before + (gain - before) * ramp))
    voices.append(est[:, done[-1] :].t() * gains[-1])
    voices = torch.cat(voices)[:T]
    return F.pad(voices, (0, 0, 0, T - len(voices)))


def best(products: Tensor) -> list[int]:
    """The order in which most is in common."""
    orders = permutations(range(len(products)))
    return list(max(orders, key=lambda order: products[range(len(order)), order].sum()))


def looking_back(
    model: SPGMSeparation,
    mix: Tensor,
    warm_up: float,
    horizon: float | None,
    order_of: Callable[[Tensor], list[int]],
) -> Tensor:
    """Parts of streams with ever longer warm-ups, each in the order of those before."""
    K, stride = model.mods.masknet.K, model.mods.decoder.stride[0]
    L = count_frames(len(mix), model.mods.encoder.conv1d.kernel_size[0], stride)
    chunks = [chunk_frames(row, K, 10**9) for row in range(999)]
    starts, stops, _ = zip(*chunks, strict=True)
    given = by_the_rule(model, mix, warm_up, horizon)
    rows = 2 * max(1, sum(stop * stride <= warm_up * RATE for stop in stops))
    while rows < 2 * ((K // 2 + L) // K + 1):
        seconds = stops[rows - 1] * stride / RATE
        new = by_the_rule(model, mix, seconds + 1e-9, horizon)
        start, stop = (min(L, max(0, starts[r])) * stride for r in (rows, rows + 1))
        new = new[:, order_of(given[:start].t() @ new[:start])]
        ramp = (torch.arange(stop - start).double() + 1).unsqueeze(1) / (stop - start)
        fade = torch.lerp(given[start:stop], new[start:stop], ramp)
        given, rows = torch.cat([given[:start], fade, new[stop:]]), 2 * rows
    return given


@pytest.mark.parametrize("order_of", [best, lambda _: [1, 2, 0]])
@pytest.mark.parametrize(("warm_up", "horizon"), [(0.03, None), (0.1, 0.3)])
@torch.no_grad()
def test_a_stream_looks_back(
    warm_up: float,
    horizon: float | None,
    order_of: Callable[[Tensor], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whenever it is twice as long; no voice changes its output, whoever tells that."""
    model = separator(**VARIANTS["control, three"])
    found = []
    monkeypatch.setattr(
        "speechbrain_spgm.inference.stream.order_of",
        lambda products: found.append(products) or order_of(products),
    )
    for T, size in ((6001, 100), (3000, 999), (700, 1)):
        mix, wanted = talk(T), []
        for products in (found, wanted):
            products.clear()
        by_rule = looking_back(
            *(model, mix, warm_up, horizon),
            lambda products, wanted=wanted: (
                wanted.append(products) or order_of(products)
            ),
        )
        voices = in_pieces(model.stream(warm_up, horizon), mix, [size]).double()
        peak = float(by_rule.abs().max())
        torch.testing.assert_close(voices, by_rule, rtol=0, atol=2e-5 * peak)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * peak)


def test_a_look_back_begins_where_silence_ends(model: SPGMSeparation) -> None:
    mix = torch.cat([1e-4 * talk(5000), talk(5000)])
    for sizes in ([100], [10000]):
        stream = model.stream(0.05)
        found = in_pieces(stream, mix, sizes)
        begun = stream.state.skipped
        assert 4000 < begun <= 5000
        again = in_pieces(model.stream(0.05), mix[begun:], [3000])
        gaps = [found[-2500:] - end for end in (again[-2500:], again[-2500:].flip(1))]
        assert min(gap.abs().max() for gap in gaps) < 1e-6 * found.abs().max()
    without = in_pieces(model.stream(0.05, look_back=0), mix, [100])
    assert (found[-2500:] - without[-2500:]).abs().max() > 1e-3 * found.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("warm_up", "horizon"), [(0, None), (0.12, None), (0.1, 0.3)])
@torch.no_grad()
def test_a_stream_is_what_the_rule_gives(
    variant: str, warm_up: float, horizon: float | None
) -> None:
    model = separator(**VARIANTS[variant])
    for T in (1, 15, 33, 700, 6001):
        mix = talk(T)
        mix[1500:2800] *= 1e-4  # does not count
        mix[:1000] *= 1e-3 if T > 1000 else 1  # is forgotten, or not in the warm-up
        wanted = by_the_rule(model, mix, warm_up, horizon)
        found = in_pieces(model.stream(warm_up, horizon, look_back=0), mix, [100])
        assert found.shape == (T, model.num_spks)
        peak = float(wanted.abs().max())
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5 * peak)


@pytest.mark.parametrize(("warm_up", "horizon"), [(0, None), (0.12, None), (0.1, 0.3)])
@torch.no_grad()
def test_two_views_are_their_weighted_mean(
    warm_up: float, horizon: float | None
) -> None:
    model = separator()
    K, stride = model.mods.masknet.K, model.mods.decoder.stride[0]
    for T in (15, 700, 6001):
        mix, stream = talk(T), model.stream(warm_up, horizon, 2, look_back=0)
        first = by_the_rule(model, mix, warm_up, horizon)
        second = -by_the_rule(model, -mix, warm_up, horizon)
        L = count_frames(T, model.mods.encoder.conv1d.kernel_size[0], stride)
        rows = range(2 * ((K // 2 + L) // K + 1))
        ends = [min(L, max(0, chunk_frames(r + 1, K, 10**9)[0])) * stride for r in rows]
        parts = [slice(a, b) for a, b in pairwise([0, *ends, T])]
        pairs = (first, second), (first, first), (second, second)
        products = torch.stack(
            [torch.stack([a[p].t() @ b[p] for a, b in pairs]) for p in parts]
        )
        products[-1] = 0
        wanted, before = [], None
        for r, part in enumerate(parts):
            last = min(max(r, stream.warm_up - 1), len(parts) - 1)
            age = (last - torch.arange(last + 1)) * stream.hop
            weights = torch.exp(-age / (horizon or math.inf)).double()
            common, *own = torch.tensordot(weights, products[: last + 1], 1)
            swapped = common[0, 1] + common[1, 0] > common[0, 0] + common[1, 1]
            other = second[part].flip(1) if swapped else second[part]
            # |v|^2 + |w|^2 against |v + w|^2
            doubts = [min(1, float(abs(1 - g.trace() / g.sum()))) for g in own]
            share = 1 / (1 + math.exp(TRUST * (doubts[1] - doubts[0])))
            before = share if before is None else before
            n = len(other)
            ramp = ((torch.arange(n) + 1) / max(n, 1)).double().unsqueeze(1)
            shares = before + (share - before) * ramp
            wanted.append((1 - shares) * first[part] + shares * other)
            before = share
        wanted = torch.cat(wanted)
        found = in_pieces(stream, mix, [100]).double()
        peak = float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * peak)
    for views in (0, 3, True, 1.0):
        with pytest.raises(UserError, match=f"views is {views}"):
            model.stream(views=views)


@pytest.mark.parametrize(
    ("precision", "views"), [("fp32", 1), ("fp32", 2), ("int8", 1), ("bf16", 1)]
)
def test_cuts_change_nothing(precision: str, views: int) -> None:
    model, mix = separator(precision), talk(9000)
    whole = in_pieces(model.stream(0.1, views=views), mix, [len(mix)])
    peak = float(whole.abs().max())
    assert peak > 0.01
    for sizes in ([1], [96], [0, 7, 3000, 1]):
        cut = mix[:2000] if sizes == [1] else mix
        found = in_pieces(model.stream(0.1, views=views), cut, sizes)
        until = len(cut) - 500 if sizes == [1] else len(mix)  # the end is another one
        assert float((found[:until] - whole[:until]).abs().max()) <= 1e-6 * peak


def test_other_paths_stream_as_well() -> None:
    """Networks that the engine does not know, and float64."""
    model = separator()
    net = model.mods.masknet
    rnn = SPGMMaskNet(16, 16, SBRNNBlock(16, 8, 1), SPGMBlock(16, "att"), 2, K=24)
    for masknet in (rnn.eval(), net):
        parts = (model.mods.encoder, masknet, model.mods.decoder, RATE)
        if masknet is net:
            for part in parts[:3]:
                part.double()
        mix = talk(4000)
        whole = in_pieces(SPGMStream(*parts, warm_up=0.1), mix, [4000])
        found = in_pieces(SPGMStream(*parts, warm_up=0.1), mix, [37])
        assert float((found - whole).abs().max()) <= 1e-6 * float(whole.abs().max())


def test_nothing_comes_late(model: SPGMSeparation) -> None:
    """After the warm-up no sample waits longer than the latency says."""
    stream, given = model.stream(warm_up=0.1), 0
    longest = 0
    for taken in range(1, 3000):
        given += len(stream.push(talk(1)))
        if taken > 0.1 * RATE + 100:
            longest = max(longest, taken - given)
    assert longest <= stream.latency * RATE < 24 * 8 + 16
    assert longest > 24 * 8 - 16


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_neither_level_nor_offset_matters(precision: str) -> None:
    model, mix = separator(precision), talk(9000).double()
    plain = in_pieces(model.stream(0.1), mix, [500])
    for gain, offset in [(1e-4, 0.0), (1e2, 0.0), (1, 0.1), (1e-2, -0.1), (1e-12, 0)]:
        found = in_pieces(model.stream(0.1), gain * mix + offset, [500]) / gain
        error = float((found - plain).norm() / plain.norm())
        assert error < (1e-4 if precision == "fp32" else 0.05)  # 0.01 dB of 26
    assert plain.mean().abs() < 0.002
    # The voices have the mixture's level.
    centred = mix.float() - mix.mean()
    assert float((plain.sum(1) - centred).norm() / centred.norm()) < 1


def test_a_copy_goes_on_from_there(model: SPGMSeparation) -> None:
    mix = talk(6000)
    stream = model.stream(0.1, horizon=1.0)
    begun = stream.push(mix[:2500])
    twin, saved = copy.deepcopy(stream), pickle.dumps(stream.state)
    assert twin.masknet is stream.masknet and len(saved) < 200_000
    rest = torch.cat([stream.push(mix[2500:]), stream.finish()])
    other = in_pieces(twin, -3 * mix[:1000], [10])  # another future: nothing in common
    assert len(other) == 3500 - len(begun)
    again = model.stream(0.1, horizon=1.0)
    again.state = pickle.loads(saved)
    assert torch.equal(in_pieces(again, mix[2500:], [333]), rest)


def test_memory_stays_the_same(model: SPGMSeparation) -> None:
    stream, sizes = model.stream(0.1, look_back=0.4), []
    for _ in range(30):
        stream.push(talk(800))
        sizes.append(len(pickle.dumps(stream.state)))
    assert max(sizes[5:]) <= 1.2 * min(sizes[5:])


def test_several_streams_at_once_give_what_each_gives_alone() -> None:
    model = separator()
    mixes = [talk(3000 + 777 * i) for i in range(5)]

    def work(mix: Tensor) -> Tensor:
        return in_pieces(model.stream(0.1), mix, [150])

    alone = [work(mix) for mix in mixes]
    with ThreadPoolExecutor(5) as threads:
        for found, wanted in zip(threads.map(work, mixes), alone, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("horizon", [None, 0.5, 1e-9])
def test_silence_clipping_and_pauses_are_sound(horizon: float | None) -> None:
    model = separator()
    speech, pause = talk(4000), torch.zeros(8 * RATE)
    assert not in_pieces(model.stream(0.1, horizon), pause[:5000], [500]).any()
    loud = in_pieces(model.stream(0.1, horizon), (30 * speech).clamp(-1, 1), [500])
    assert loud.isfinite().all() and 0.1 < loud.abs().max() < 10
    stream = model.stream(0.1, horizon)
    voices = in_pieces(stream, torch.cat([pause[:9000], speech, pause, speech]), [8000])
    assert voices.isfinite().all()
    assert float(voices[15000 : 13000 + len(pause) - 500].abs().max()) < 0.02


@pytest.mark.parametrize("horizon", [None, 0.5])
def test_how_long_a_pause_is_plays_no_part(horizon: float | None) -> None:
    """Its averages are those of the talk: not of silence, the more the longer it is."""
    model, noise = separator(), 0.1 * torch.randn(2, 4000)
    before, after = noise - noise.mean(1, keepdim=True)  # that has its own horizon
    found = []
    for hops in (10, 200):  # from chunk to chunk, 96 samples
        mix = torch.cat([before, torch.zeros(hops * 96), after])
        stream = model.stream(0.1, horizon, look_back=0.4)  # over before the pause
        found.append(in_pieces(stream, mix, [1000])[-4000:])
    short, long = found
    assert (short - long).abs().max() < 0.03 * short.abs().max()


@pytest.mark.parametrize("horizon", [None, 2.0])
def test_a_talk_is_heard_from_its_first_word_and_after_a_pause(
    shared: Path, horizon: float | None
) -> None:
    """The shipped model; together the voices are the mixture, at its level."""
    voices = shared / "voices"
    lists = voices / "LibriMix-metadata" / "libri2mix_test-clean.csv"
    options = {"num_spks": 2, "sample_rate": RATE}
    mix = MixtureList(lists, voices / "LibriSpeech", **options)[3].mix[: 3 * RATE]
    model, pause = SPGMSeparation.from_pretrained(device="cpu"), torch.zeros(4 * RATE)
    stream = model.stream(horizon=horizon)
    talk = torch.cat([pause[: 2 * RATE], mix, pause, 0.1 * mix])
    found = in_pieces(stream, talk, [RATE]).sum(1)
    for start in (2 * RATE, 9 * RATE):
        for part in (slice(start, start + RATE), slice(start, start + 3 * RATE)):
            error = (found[part] - talk[part]).norm() / talk[part].norm()
            assert error < 0.3


def test_wrong_input_is_one_sentence_and_changes_nothing(model: SPGMSeparation) -> None:
    stream, mix = model.stream(0.1), talk(4000)
    parts = [stream.push(mix[:1500])]
    spoilt = mix[1500:].clone()
    for value in (math.nan, math.inf, -1e38):
        spoilt[7] = value
        with pytest.raises(UserError, match="sample 1507 of the stream is .*: replace"):
            stream.push(spoilt)
    for shape in ((2, 100), ()):
        with pytest.raises(UserError, match=r"must be real \[n\], one channel"):
            stream.push(torch.zeros(shape))
    with pytest.raises(UserError, match="must be real"):
        stream.push(torch.zeros(3, dtype=torch.complex64))
    parts += [stream.push(mix[1500:].numpy()), stream.push([]), stream.finish()]
    assert torch.equal(torch.cat(parts), in_pieces(model.stream(0.1), mix, [4000]))
    with pytest.raises(UserError, match="the stream is finished"):
        stream.push(mix)
    assert len(stream.finish()) == len(model.stream().finish()) == 0

    for name, value in product(("warm_up", "look_back"), (-1, True, 61, "2")):
        with pytest.raises(UserError, match=f"{name} is .* from 0 to 60"):
            model.stream(**{name: value})
    for horizon in (0, math.nan, math.inf, "2"):
        with pytest.raises(UserError, match="horizon is .* seconds above 0"):
            model.stream(horizon=horizon)
    parts = (model.mods.encoder, torch.nn.Identity(), model.mods.decoder, RATE)
    with pytest.raises(ModelError, match="Identity looks at whole recordings"):
        SPGMStream(*parts)


def test_arrays_of_every_kind_are_taken(model: SPGMSeparation) -> None:
    mix = talk(3000)
    voices = in_pieces(model.stream(0.1), mix, [1000])
    batch = model.separate_batch(mix.unsqueeze(0))
    plain = mix.numpy()
    for samples in (
        *(plain, plain[::-1].copy()[::-1], plain.astype(">f4")),
        np.frombuffer(plain.tobytes(), np.float32),  # read-only
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(in_pieces(model.stream(0.1), samples, [1000]), voices)
            assert torch.equal(model.separate_batch(samples[None]), batch)


def test_a_model_in_training_and_int8_where_it_is_not_for_are_refused() -> None:
    for precision in ("fp32", "int8"):
        model = separator(precision)
        stream = model.stream(0.1)
        with pytest.raises(ModelError, match=r"is in training mode.*call its eval\(\)"):
            model.train().stream()
    for mode in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with mode, pytest.raises(ValueError, match="A network in int8 runs on the CPU"):
            stream.push(talk(4000))
        model.eval()
        stream = model.stream(0.1)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_a_stream_that_was_interrupted_in_the_middle_says_so(
    views: int, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, mix = separator().stream(0.1, views=views), talk(6000)
    stream.push(mix[:3000])
    advance, calls = SPGMMaskNet.advance, []

    def interrupted(*given: object) -> Tensor:
        calls.append(given)
        if len(calls) == views:  # one view is done
            raise KeyboardInterrupt
        return advance(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SPGMMaskNet, "advance", interrupted)
        stream.finish() if last else stream.push(mix[3000:])
    for again in (stream, copy.deepcopy(stream)):
        for further in (lambda s=again: s.push(mix), again.finish):
            with pytest.raises(UserError, match="interrupted in the middle: begin"):
                further()


def test_a_push_that_int8_refuses_changes_nothing() -> None:
    model, mix = separator("int8"), talk(4000)
    wanted = in_pieces(model.stream(0.1), mix, [2000])
    stream = model.stream(0.1)
    parts = [stream.push(mix[:2000])]
    for refused in (lambda: stream.push(mix), stream.finish):
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(ValueError, match="A network in int8 runs on the CPU"),
        ):
            refused()
    parts += [stream.push(mix[2000:]), stream.finish()]
    assert torch.equal(torch.cat(parts), wanted)


def test_a_model_in_int8_and_its_stream_are_pickled() -> None:
    model, mix = separator("int8"), talk(4000)
    stream = model.stream(0.1)
    stream.push(mix[:2000])
    again, twin = pickle.loads(pickle.dumps((model, stream)))
    assert torch.equal(twin.push(mix[2000:]), stream.push(mix[2000:]))
    batch = mix.unsqueeze(0)
    assert torch.equal(again.separate_batch(batch), model.separate_batch(batch))


def test_threads_that_begin_during_a_push_keep_their_number(monkeypatch) -> None:
    model, mix, block, seen = separator(), talk(1500), engine._Rows.block, []

    def watched(rows: engine._Rows, part: torch.nn.Module) -> None:
        with ThreadPoolExecutor(1) as new:
            begun = new.submit(torch.get_num_threads).result()
        seen.append((torch.get_num_threads(), begun))
        block(rows, part)

    monkeypatch.setattr(engine._Rows, "block", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        in_pieces(model.stream(0.1), mix, [500])
        assert set(seen) == {(1, 2)} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("before", [True, False])
def test_two_workers_share_a_wide_row_and_change_no_bit(
    precision: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix = talk(4000)
    model = separator(precision, intra_norm_before=before)
    whole_rows = in_pieces(model.stream(0.1), mix, [500])
    monkeypatch.setattr(engine, "WIDE_ROW", 0)
    found = []
    for workers, sizes in ((1, [500]), (2, [500]), (2, [4000])):
        monkeypatch.setattr(engine, "count_workers", lambda n=workers: n)
        found.append(in_pieces(model.stream(0.1), mix, sizes))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    error = (found[0] - whole_rows).norm() / whole_rows.norm()
    assert error < (1e-5 if precision == "fp32" else 0.1)
