"""What it costs to separate while the talk goes on.

    python -m benchmarks.live --data-folder LibriSpeech --seconds 24
    python -m benchmarks.live --data-folder LibriSpeech --list libri2mix_test-clean.csv

Separates mixtures of two people who both talk all the time (of a list: its first that
are long enough, cut; else utterances of the speakers in test-clean, one after the
other) with averages over the whole recording, over a window, over the chunks so far,
and as a stream, and prints the mean SI-SDRi of each and its difference from the first,
with 95% intervals. Nothing but the statistics differs.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.conversations import RMS, find_speakers
from benchmarks.conversations import _speech as speech_of
from benchmarks.long import interval
from speechbrain_spgm.data import MixtureList
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.lobes.statistics import statistics_of
from speechbrain_spgm.training.losses import pit_si_sdr_loss

PUSH = 0.1  # seconds that a stream gets at a time

Separate = Callable[[Tensor], Tensor]  # [T] to [T, spks]


def ways(model: SPGMSeparation, horizon: float) -> dict[str, Separate]:
    """How a mixture may be separated."""
    row_seconds = model._period() / model.sample_rate

    def batch(name: str, **options: float) -> Separate:
        statistics = statistics_of(name, row_seconds, **options)
        return lambda mix: model.separate_batch(mix[None], statistics=statistics)[0]

    def stream(mix: Tensor) -> Tensor:
        live = model.stream()
        parts = [live.push(part) for part in mix.split(round(PUSH * model.sample_rate))]
        return torch.cat([*parts, live.finish()])

    return {
        "whole": batch("whole"),
        "running": batch("running", warm_up=0),
        "running, 1 s warm-up": batch("running"),
        "running, 2 s warm-up": batch("running", warm_up=2),
        f"running, 1 s, horizon {horizon:g} s": batch("running", horizon=horizon),
        "window 8 s": batch("window"),
        "stream, 1 s warm-up": stream,
    }


def overlapped(folder: Path, seconds: float, rate: int) -> Iterator[Tensor]:
    """Two speakers who both talk all the time, ``[T, spks]``; new ones each time."""
    speakers, T = find_speakers(folder / "test-clean"), round(seconds * rate)
    for seed in range(10_000):
        draw = np.random.default_rng(seed)
        names = draw.choice(sorted(speakers), 2, replace=False)
        voices = [speech_of(speakers[name], rate, draw) for name in names]
        if min(map(len, voices)) >= T:
            levels = 10 ** (draw.uniform(-2.5, 2.5, 2) / 20) * RMS
            parts = [v[:T] * level for v, level in zip(voices, levels, strict=True)]
            yield torch.from_numpy(np.stack(parts, 1)).float()


def listed(path: Path, folder: Path, seconds: float, rate: int) -> Iterator[Tensor]:
    """The sources of a list's mixtures that are long enough, ``[T, spks]``."""
    T = round(seconds * rate)
    mixtures = MixtureList(path, folder, num_spks=2, sample_rate=rate)
    for i in range(len(mixtures)):
        sources = mixtures[i].sources
        if len(sources) >= T:
            yield sources[:T]


def si_sdr_of(est: Tensor, sources: Tensor) -> float:
    """The mean over the voices in their best order, in dB; both ``[T, spks]``."""
    return -float(pit_si_sdr_loss(est[None], sources[None]).loss)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live")
    parser.add_argument("--data-folder", type=Path, required=True, help="LibriSpeech")
    parser.add_argument("--list", type=Path, help="LibriMix's CSV file")
    parser.add_argument("--mixtures", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--horizon", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--model", help="by default the shipped one")
    arguments = parser.parse_args(argv)
    model = SPGMSeparation.from_pretrained(arguments.model, device="cpu")
    found: dict[str, list[float]] = {}
    where = (arguments.data_folder, arguments.seconds, model.sample_rate)
    drawn = listed(arguments.list, *where) if arguments.list else overlapped(*where)
    for _, sources in zip(range(arguments.mixtures), drawn, strict=False):
        mix = sources.sum(1)
        before = si_sdr_of(torch.stack([mix, mix], 1), sources)
        for name, separate in ways(model, arguments.horizon).items():
            gain = si_sdr_of(separate(mix), sources) - before
            found.setdefault(name, []).append(gain)
    print(f"{arguments.seconds:g} s, n={len(found['whole'])}, SI-SDRi in dB")
    for name, values in found.items():
        gaps = [a - b for a, b in zip(values, found["whole"], strict=True)]
        cells = ("{:+.2f} ± {:.2f}".format(*interval(v)) for v in (values, gaps))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
