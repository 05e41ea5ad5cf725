"""Long recordings: memory, windows, permutations, files."""

import ctypes
import json
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_spgm.audio import resample, resampled_length
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import SPGMSeparation, memory
from speechbrain_spgm.inference.level import bring_to_level
from speechbrain_spgm.inference.long import spool, stitching
from speechbrain_spgm.inference.long.assignment import assign, distances, timbre
from speechbrain_spgm.inference.long.spool import resample_in_pieces, resampled
from speechbrain_spgm.inference.long.windows import lay_out
from speechbrain_spgm.inference.memory import estimate_bytes, parse_bytes
from tests.inference.test_stream import separator

RATE = 8000


@pytest.mark.parametrize("T", [7, 90, 91, 150, 151, 1000])
def test_windows_of_an_identity_give_the_input_back(T: int) -> None:
    windows = lay_out(T, length=90, overlap=30)
    signal, total, weight = torch.rand(T), torch.zeros(T), torch.zeros(T)
    for w, start in enumerate(windows.starts):
        first, last = windows.used(w)
        assert start <= first < last <= start + windows.length
        total[first:last] += windows.weights(w) * signal[first:last]
        weight[first:last] += windows.weights(w)
    torch.testing.assert_close(weight, torch.ones(T), rtol=0, atol=1e-6)
    torch.testing.assert_close(total, signal, rtol=0, atol=1e-6)
    assert all(windows.overlap(w) >= 30 for w in range(len(windows.starts) - 1))


def talk(seconds: int, spks: int) -> torch.Tensor:
    """Voices [T, spks]: noise of different colours that comes and goes."""
    draw = np.random.default_rng(0)
    voices = []
    for k in range(spks):
        noise = draw.standard_normal(seconds * RATE + 1)
        coloured = noise[1:] + (0.9, -0.9, 0)[k] * noise[:-1]
        syllables = np.repeat(draw.uniform(0, 1, seconds * 4) > 0.4, RATE // 4)
        voices.append(0.1 * coloured * syllables)
    return torch.tensor(np.stack(voices, 1), dtype=torch.float32)


@pytest.mark.parametrize("spks", [1, 2, 3])
def test_every_permutation_is_found(spks: int) -> None:
    """Through pauses, other gains, and an overlap in which nobody talks."""
    voices = talk(66, spks)
    voices[20 * RATE : 38 * RATE, 0] = 0  # a whole window without this speaker
    voices[22 * RATE : 27 * RATE] = 0  # and an overlap without any
    mix = voices.sum(1)
    windows = lay_out(len(mix), 9 * RATE, 3 * RATE)
    orders = [torch.randperm(spks) for _ in windows.starts]
    pieces = [
        voices[start : start + windows.length, order] * (1 + 0.2 * torch.rand(spks))
        + 1e-4 * torch.randn(windows.length, spks)
        for start, order in zip(windows.starts, orders, strict=True)
    ]
    pairs, energies = [], []
    for w in range(len(pieces) - 1):
        overlap, start = windows.overlap(w), windows.starts[w + 1]
        pairs.append(distances(pieces[w][-overlap:], pieces[w + 1][:overlap]))
        energies.append(float(mix[start : start + overlap].square().sum()))
    assert min(energies) < 1e-3 * max(energies)
    loudness = float(mix.square().mean())
    timbres = [timbre(piece, loudness) for piece in pieces]
    found = assign(pairs, energies, loudness * windows.overlap(0), timbres)
    speakers = [
        order[o].tolist() for order, o in zip(orders, found.orders, strict=True)
    ]
    assert speakers == [orders[0].tolist()] * len(orders)
    assert found.orders[0] == list(range(spks))
    assert len(found.confidence) == len(pairs)
    # Speakers' sounds bridge the silent overlap, with less certainty than an overlap.
    assert all(0.5 < c <= 1 for c in found.confidence) or spks == 1
    assert min(found.confidence[:3] + found.confidence[5:]) > 0.9


def test_silence_gives_no_confidence_and_no_failure() -> None:
    nothing = torch.zeros(4000, 2)
    found = assign(
        [distances(nothing, nothing)], [0.0], 1e-12, [timbre(nothing, 1e-20)] * 2
    )
    assert found.orders == [[0, 1], [0, 1]] and found.confidence == [0.5]


@pytest.mark.parametrize("rates", [(44100, 8000), (8000, 48000), (7999, 8000)])
def test_pieces_are_resampled_as_the_whole(rates, monkeypatch) -> None:
    signal = torch.randn(30001, 2)
    whole = resample(signal.T.contiguous(), *rates).T
    total = resampled_length(30001, *rates)
    assert len(whole) == total
    step = 1234
    pieces = [
        resampled(lambda a, b: signal[a:b], 30001, rates, a, min(total, a + step))
        for a in range(0, total, step)
    ]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-5)
    monkeypatch.setattr(spool, "PIECE", step)
    again = resample_in_pieces(signal.T, rates)
    torch.testing.assert_close(again.T, torch.cat(pieces), rtol=0, atol=0)


@pytest.fixture
def ideal(model: SPGMSeparation, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The true voices, which the model now gives in a random order at random gains."""
    voices = talk(20, 2)
    voices -= voices.mean(0)  # as separated voices have none
    levelled = bring_to_level(voices.sum(1)[None], [len(voices)])[0][0]

    def separate_batch(batch: torch.Tensor, views: int, **_: object) -> torch.Tensor:
        n = batch.shape[1]
        loudest = int(batch[0].abs().argmax())  # where this window begins
        start = int((levelled - batch[0, loudest]).abs().argmin()) - loudest
        gains = 0.5 + torch.rand(2)
        return (voices[start : start + n] * gains)[:, torch.randperm(2)].unsqueeze(0)

    monkeypatch.setattr(model, "separate_batch", separate_batch)
    return voices


def test_stitched_files_hold_the_voices(model, ideal, tmp_path) -> None:
    soundfile.write(tmp_path / "a.wav", ideal.sum(1).numpy(), RATE, subtype="FLOAT")
    outputs = [tmp_path / "out" / f"{k}.wav" for k in range(2)]
    facts = model.separate_to_files(
        tmp_path / "a.wav",
        outputs,
        mode="stitched",
        window=5,
        report=tmp_path / "out" / "r.json",
    )
    assert facts == json.loads((tmp_path / "out" / "r.json").read_text())
    assert facts["mode"] == "stitched" and facts["samples"] == 20 * RATE
    assert len(facts["seams"]) == len(lay_out(20 * RATE, 40000, 13333).starts) - 1
    for seam in facts["seams"]:
        assert set(seam) == {"time", "permutation", "confidence", "both_active"}
        assert sorted(seam["permutation"]) == [0, 1] and 0.5 <= seam["confidence"] <= 1
    assert sorted(os.listdir(tmp_path / "out")) == ["0.wav", "1.wav", "r.json"]
    found = torch.stack([torch.from_numpy(soundfile.read(o)[0]) for o in outputs], 1)
    best = min(
        float((found[:, order] - ideal).abs().max()) for order in ([0, 1], [1, 0])
    )
    assert best < 1e-4
    again = model.separate_file(tmp_path / "a.wav", mode="stitched", window=5)[0]
    best = min(
        float((again[:, order] - ideal).abs().max()) for order in ([0, 1], [1, 0])
    )
    assert best < 1e-4


@pytest.mark.parametrize("views", [1, 2])
def test_windows_are_separated_as_in_the_recording(
    model, tmp_path, monkeypatch, views
) -> None:
    """They share its averages; with their own, each would come out otherwise."""
    monkeypatch.setattr(stitching, "fit_mixture", lambda est, samples: est)
    # The voices of a random network have no order that views could agree on, and how
    # much they have in common differs from window to window.
    monkeypatch.setattr("speechbrain_spgm.inference.augment.TRUST", 0.0)
    monkeypatch.setattr(
        "speechbrain_spgm.inference.augment.in_order_of", lambda _, x: x
    )
    path = tmp_path / "a.wav"
    mix = talk(20, 2).sum(1) * torch.linspace(0.05, 1, 20 * RATE)
    soundfile.write(path, mix.numpy(), RATE, subtype="FLOAT")
    exact = model.separate_file(path, mode="exact", views=views)[0]
    stitched = model.separate_file(path, mode="stitched", window=5, views=views)[0]
    errors = [
        float((stitched[:, order] - exact).norm() / exact.norm())
        for order in ([0, 1], [1, 0])
    ]
    assert min(errors) < 0.1  # 0.3 with their own


def test_ctrl_c_leaves_nothing(model, tmp_path, monkeypatch) -> None:
    soundfile.write(tmp_path / "a.wav", talk(20, 1)[:, 0].numpy(), 16000)
    soundfile.write(tmp_path / "0.wav", np.zeros(5), 8000)
    before = (tmp_path / "0.wav").read_bytes()
    calls = []

    def interrupt(est, mix):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return est

    monkeypatch.setattr(stitching, "fit_mixture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.separate_to_files(
            tmp_path / "a.wav",
            [tmp_path / "0.wav", tmp_path / "1.wav"],
            mode="stitched",
            window=3,
            report=tmp_path / "r.json",
        )
    assert sorted(os.listdir(tmp_path)) == ["0.wav", "a.wav"]
    assert (tmp_path / "0.wav").read_bytes() == before


def test_memory_decides_and_is_logged(model, tmp_path, caplog) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, talk(4, 2).sum(1).numpy(), RATE)
    outputs = [tmp_path / "0.wav", tmp_path / "1.wav"]
    need = estimate_bytes(model, 4 * RATE, RATE)
    with caplog.at_level(logging.INFO, "speechbrain_spgm.inference"):
        for limit, mode in [(need, "exact"), (need - 1, "stitched")]:
            facts = model.separate_to_files(path, outputs, max_memory=limit, window=2)
            assert (facts["mode"], facts["limit_bytes"]) == (mode, limit)
            assert f"{mode} mode; exact takes about" in caplog.messages[-1]
        # A file that is no longer than a window needs no seam.
        facts = model.separate_to_files(path, outputs, max_memory=1, window=4)
        assert facts["mode"] == "exact" and facts["seams"] == []
    with pytest.raises(UserError, match="exact mode would take .* but may take 64 M"):
        long = tmp_path / "long.wav"
        soundfile.write(long, np.zeros(1_000_000), 1000)
        model.separate_file(long, mode="exact", max_memory="64M")


def test_exact_mode_is_separate_recording(model, tmp_path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, talk(3, 2).sum(1).numpy(), RATE, subtype="FLOAT")
    outputs = [tmp_path / "0.wav", tmp_path / "1.wav"]
    whole = model.separate_file(path, mode="exact")[0]
    model.separate_to_files(path, outputs, mode="exact")
    for k, output in enumerate(outputs):
        assert np.array_equal(
            soundfile.read(output, dtype="float32")[0], whole[:, k].numpy()
        )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"max_memory": "much"}, "'much' is no amount of memory"),
        ({"window": 0.5}, "at least 1 s"),
        ({"overlap": 6}, "at most a third of the window, 5 s"),
        ({"views": 0}, "views is 0, but must be a whole number from 1 to 8"),
    ],
)
def test_wrong_options_are_one_sentence(model, tmp_path, wrong, words) -> None:
    with pytest.raises(UserError, match=words):
        model.separate_file(tmp_path / "never read.wav", **wrong)
    with pytest.raises(UserError):
        parse_bytes("0")
    assert parse_bytes("9" * 400) > 2**60


def test_the_shortest_overlap(model) -> None:
    """Less than a sample, where the windows fit without any."""
    talk = torch.randn(3 * RATE)
    how = {"mode": "stitched", "window": 1, "overlap": 5e-5, "views": 1}
    est = model.separate_audio(talk, RATE, **how)
    assert est.shape == (1, 3 * RATE, 2) and est.isfinite().all()


def test_the_estimate_counts_tables_of_filters_and_the_upper_band(model) -> None:
    """Measured: 17 bytes a value, 718 MiB."""
    plain, odd = (estimate_bytes(model, 40_000, rate) for rate in (20_000, 19_996))
    assert odd - plain > 17 * 4999 * 2000
    assert estimate_bytes(model, 40 * 384_000, 384_000) > 718 * 2**20


PEAK = """
import ctypes, sys
from pathlib import Path
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.inference.memory import estimate_bytes
from speechbrain_spgm.models.config import build

def resident(field):
    status = Path("/proc/self/status").read_text().split(field + ":")[1]
    return int(status.split()[0]) * 1024

folder, rate, samples = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
shipped = SPGMSeparation.from_pretrained(device="cpu").hparams.config
small = {**shipped, "masknet_numlayers": 1, "intra_numlayers": 1, "intra_dffn": 32}
parts = dict(zip(("encoder", "masknet", "decoder"), build(small)))
model = SPGMSeparation(parts, {"sample_rate": 8000}, {"device": "cpu"})
voices = [folder / "s1.wav", folder / "s2.wav"]
model.separate_to_files(folder / "short.wav", voices, mode="exact")
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
model.separate_to_files(folder / "long.wav", voices, mode="exact")
print(resident("VmHWM") - before, estimate_bytes(model, samples, rate))
"""


@pytest.mark.skipif(
    not (
        Path("/proc/self/clear_refs").exists()
        and hasattr(ctypes.CDLL(None), "malloc_trim")
    ),
    reason="only Linux with glibc tells the peak",
)
def test_the_estimate_is_above_the_measured_peak_and_near(tmp_path) -> None:
    """A file of 6 min, in a process of its own, by a network of the shipped width.

    What is held at once hangs on the number of filters, K and the length, not on how
    deep the network is.
    """
    rate = 2 * RATE  # what resampling takes counts too
    samples = 360 * rate
    noise = 0.1 * np.random.default_rng(0).standard_normal(samples, np.float32)
    soundfile.write(tmp_path / "long.wav", noise, rate)
    soundfile.write(tmp_path / "short.wav", noise[:rate], rate)
    words = [sys.executable, "-W", "ignore", "-c", PEAK, tmp_path, rate, samples]
    result = subprocess.run(map(str, words), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    peak, estimate = map(int, result.stdout.split())
    assert estimate / 1.4 < peak < estimate


def limited(limit: str, field: str) -> None:
    """Prints which part of 256 MB is free when a process may take no more than that."""
    kind = getattr(memory.resource, limit)
    with open("/proc/self/status") as status:
        used = next(int(s.split()[1]) * 1024 for s in status if s.startswith(field))
    hard = memory.resource.getrlimit(kind)[1]
    memory.resource.setrlimit(kind, (used + 2**28, hard))
    print(memory.free_bytes() / 2**28)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
@pytest.mark.parametrize(
    ("limit", "field"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")]
)
def test_free_memory_is_within_ulimit(limit: str, field: str) -> None:
    from benchmarks.faults import Child

    end = Child(partial(limited, limit, f"{field}:")).wait()
    assert end.code == 0 and 0.9 < float(end.said) <= 1, end.said


TREES = {
    "version 2": (
        "0::/user/job\n",
        {
            "memory.max": "max\n",  # the root has none at all
            "user/memory.max": "9000\n",
            "user/memory.current": "2000\n",
            "user/memory.stat": "anon 1000\ninactive_file 500\n",
            "user/job/memory.max": "max\n",
            "user/job/memory.current": "2000\n",
            "user/job/memory.stat": "inactive_file 0\n",
        },
        7500,
    ),
    "version 1": (
        "3:cpu:/elsewhere\n2:hugetlb,memory:/job\n0::/\n",
        {
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/memory.usage_in_bytes": "5000\n",
            "memory/memory.stat": "total_inactive_file 0\n",
            "memory/job/memory.limit_in_bytes": "4000\n",
            "memory/job/memory.usage_in_bytes": "3000\n",
            "memory/job/memory.stat": "inactive_file 9\ntotal_inactive_file 200\n",
        },
        1200,
    ),
    "a path of the host": (
        "0::/docker/0123\n",
        {
            "memory.max": "800\n",
            "memory.current": "900\n",
            "memory.stat": "inactive_file 0\n",
        },
        0,
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_free_memory_is_within_control_groups(tmp_path, monkeypatch, name) -> None:
    groups, files_of, free = TREES[name]
    contents = {"self/cgroup": groups, "meminfo": "MemAvailable:  10 kB\n"}
    for path, text in {**contents, **files_of}.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert memory.free_bytes() == free
    (tmp_path / "self/cgroup").unlink()
    assert memory.free_bytes() == 10 * 1024
    (tmp_path / "meminfo").unlink()
    assert memory.free_bytes() == memory.UNKNOWN_FREE


def test_memory_that_torch_keeps_is_free(monkeypatch) -> None:
    for name, value in {
        "mem_get_info": (100, 1000),
        "memory_reserved": 700,
        "memory_allocated": 200,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_bytes("cuda:0") == 600


def test_the_exact_mode_shows_how_far_it_is(model, tmp_path) -> None:
    steps = []
    soundfile.write(tmp_path / "mix.wav", talk(4, 2).sum(1).numpy(), RATE)
    outputs = [tmp_path / "a.wav", tmp_path / "b.wav"]
    model.separate_to_files(
        tmp_path / "mix.wav", outputs, mode="exact", progress=lambda *n: steps.append(n)
    )
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1] > 100


@pytest.mark.parametrize(
    ("statistics", "seconds", "views", "far", "K"),
    [
        ("running", None, 1, 3e-3, 16),
        ("running", None, 1, 3e-3, 15),
        ("running", 0.5, 2, 3e-3, 16),
        ("window", 0.4, 2, 0.02, 16),
        ("window", 0.5, 1, 0.02, 15),
    ],
)
def test_windows_have_the_statistics_of_the_recording(
    statistics: str,
    seconds: float | None,
    views: int,
    far: float,
    K: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stitched voices are those of the exact mode; others differ."""
    model, T = separator(masknet_chunksize=K), 4 * RATE + 1234
    monkeypatch.setattr(stitching, "fit_mixture", lambda est, mix: est)
    # Else views of a random network count otherwise from window to window.
    monkeypatch.setattr("speechbrain_spgm.inference.augment.TRUST", 0.0)
    mix = talk(5, 2).sum(1)[:T] * torch.linspace(0.1, 3, T)
    chosen = {"statistics": statistics, "statistics_seconds": seconds}
    exact, stitched, whole = (
        model.separate_audio(mix, RATE, window=1.1, views=views, **options)[0]
        for options in (
            {"mode": "exact", **chosen},
            {"mode": "stitched", **chosen},
            {"mode": "exact"},
        )
    )

    def error(est: torch.Tensor) -> float:
        return float((est - exact).norm() / exact.norm())

    assert error(stitched) < far and error(whole) > 3 * far
