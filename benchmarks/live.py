"""What it costs to separate while the talk goes on, and what averages should be over.

    python -m benchmarks.live --data-folder LibriSpeech --list libri2mix_test-clean.csv

Separates mixtures of known voices in several ways, of which nothing differs but what
SPGM's averages are over, in four studies:

- *8 s*: the list's first mixtures that are as long, cut;
- *24 to 30 s*: utterances of two speakers, one after the other, both talking all the
  time;
- *replaced*: likewise, but after 20 of 40 s somebody else takes the place of one;
- *talk*: conversations with turns and pauses (``benchmarks.conversations``).

Writes the mean SI-SDRi of each way and its difference from the first, with 95%
intervals, between the marks of docs/stream.md. With ``--cache FILE`` every result is
kept there, so that an interrupted run goes on.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.conversations import RMS, draw_conversation, find_speakers
from benchmarks.conversations import _speech as speech_of
from benchmarks.long import improvement, interval, keep, kept
from speechbrain_spgm.data import MixtureList
from speechbrain_spgm.files import replacing
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.lobes.statistics import statistics_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "stream.md"
MARKS = "<!-- benchmarks.live: begin -->", "<!-- benchmarks.live: end -->"
PUSH = 0.1  # seconds that a stream gets at a time
CHANGE = 20  # seconds after which a talker is replaced
TALKS = (10, 30, 60, 120, 300, 600)  # seconds

Separate = Callable[[SPGMSeparation, Tensor], Tensor]  # [T] to [T, spks]


class Result(NamedTuple):
    """The SI-SDRi in dB of one mixture, separated in one way."""

    study: str
    name: str  # of the mixture
    way: str
    gain: float


def batch(name: str, views: int = 1, **options: float | None) -> Separate:
    """As one, with other statistics."""

    def separate(model: SPGMSeparation, mix: Tensor) -> Tensor:
        statistics = statistics_of(name, model.row_seconds, **options)
        return model.separate_batch(
            mix[None], views=views, level=True, statistics=statistics
        )[0]

    return separate


def stream(**options: float | None) -> Separate:
    """Piece by piece."""

    def separate(model: SPGMSeparation, mix: Tensor) -> Tensor:
        live = model.stream(**{"views": 1, **options})
        parts = [live.push(part) for part in mix.split(round(PUSH * model.sample_rate))]
        return torch.cat([*parts, live.finish()])

    return separate


WHOLE = {"whole": batch("whole")}
TWICE = {
    "whole, two views": batch("whole", views=2),
    "stream, 1 s warm-up, two views": stream(warm_up=1.0, views=2, look_back=0),
    "stream that looks back on 8 s, two views": stream(views=2, look_back=8.0),
}
WARM = {
    f"running, {seconds:g} s warm-up": batch("running", warm_up=seconds)
    for seconds in (0, 0.5, 1, 2)
}
WINDOW = {"window 8 s": batch("window")}
STREAM = {
    "stream, 1 s warm-up": stream(warm_up=1.0, look_back=0),
    "stream that looks back on 8 s": stream(warm_up=1.0, look_back=8.0),
}
FAR = {"stream that looks back on 32 s": stream(warm_up=1.0, look_back=32.0)}
HORIZONS = {
    f"running, 1 s warm-up, horizon {seconds} s": batch("running", horizon=seconds)
    for seconds in (5, 10, 20)
}
LONG = {key: WARM[key] for key in ("running, 1 s warm-up",)} | {
    "window 15 s": batch("window", window=15)
}
WAYS = {
    "8 s": WHOLE | WARM | WINDOW | STREAM | TWICE,
    "24 to 30 s": WHOLE | WARM | WINDOW | STREAM | TWICE,
    "replaced": WHOLE | LONG | HORIZONS | WINDOW,
    "talk": WHOLE | LONG | WINDOW | STREAM | FAR,
}


def eight(arguments: argparse.Namespace, rate: int) -> Iterator[tuple[str, Tensor]]:
    """The sources of the list's mixtures that are long enough, ``[T, spks]``."""
    T = 8 * rate
    mixtures = MixtureList(
        arguments.list, arguments.data_folder, num_spks=2, sample_rate=rate
    )
    for i in range(len(mixtures)):
        if len(mixtures[i].sources) >= T:
            yield mixtures[i].id, mixtures[i].sources[:T]


def joined(arguments: argparse.Namespace, rate: int) -> Iterator[tuple[str, Tensor]]:
    """Two speakers who both talk all the time; who has no more to say begins again."""
    speakers = find_speakers(arguments.data_folder / arguments.part)
    for seed in range(10**6):
        draw = np.random.default_rng(seed)
        T = round(draw.uniform(24, 30) * rate)
        yield str(seed), _voices(speakers, 2, T, rate, draw)


def replaced(arguments: argparse.Namespace, rate: int) -> Iterator[tuple[str, Tensor]]:
    """Likewise, but a third speaker takes the place of the second."""
    speakers, T = find_speakers(arguments.data_folder / arguments.part), CHANGE * rate
    for seed in range(10**6):
        draw = np.random.default_rng(seed)
        voices = _voices(speakers, 3, 2 * T, rate, draw)
        second = torch.cat([voices[:T, 1], voices[T:, 2]])
        yield str(seed), torch.stack([voices[:, 0], second], 1)


def talks(arguments: argparse.Namespace, rate: int) -> Iterator[tuple[str, Tensor]]:
    """Conversations of all lengths, in turn."""
    speakers = find_speakers(arguments.data_folder / arguments.part)
    for seed in range(10**6):
        for seconds in TALKS:
            if seconds <= arguments.longest:
                sources = draw_conversation(speakers, seconds, rate, seed)
                yield f"{seconds} s, {seed}", torch.from_numpy(sources)


def _voices(
    speakers: dict[str, list[Path]],
    n: int,
    T: int,
    rate: int,
    draw: np.random.Generator,
) -> Tensor:
    names = draw.choice(sorted(speakers), n, replace=False)
    voices = [speech_of(speakers[name], rate, draw) for name in names]
    levels = 10 ** (draw.uniform(-2.5, 2.5, n) / 20) * RMS
    parts = [np.resize(v, T) * g for v, g in zip(voices, levels, strict=True)]
    return torch.from_numpy(np.stack(parts, 1)).float()


STUDIES = {"8 s": eight, "24 to 30 s": joined, "replaced": replaced, "talk": talks}


def measure(
    model: SPGMSeparation,
    study: str,
    name: str,
    sources: Tensor,
    done: set,
    ways: list[str],
) -> Iterator[Result]:
    """One mixture in all wanted ways that have not been measured yet."""
    for way, separate in WAYS[study].items():
        if (study, name, way) in done or way not in ways:
            continue
        est = separate(model, sources.sum(1))
        yield Result(study, name, way, improvement(est, sources))
        if study == "replaced":
            after = slice(CHANGE * model.sample_rate, None)
            gain = improvement(est[after], sources[after])
            yield Result("replaced, after the change", name, way, gain)


def table(results: list[Result]) -> str:
    """A Markdown table of one study."""
    found: dict[str, dict[str, float]] = {}
    for result in results:
        found.setdefault(result.way, {})[result.name] = result.gain
    # A run that goes on may have begun with another way.
    first = found.get(*WHOLE) or next(iter(found.values()))
    lines = [
        "| averages | n | SI-SDRi, dB | minus the first, dB | median | worst | best |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, gains in found.items():
        gaps = sorted(gains[name] - first[name] for name in gains if name in first)
        cells = [way, str(len(gains)), told(gains.values())]
        cells += ["", "", "", ""]  # if it was on no mixture of the first
        if gaps:
            ends = [f"{median(gaps):+.2f}", f"{gaps[0]:+.1f}", f"{gaps[-1]:+.1f}"]
            cells[3:] = [told(gaps), *ends]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def told(values: Iterable[float]) -> str:
    """A mean and its interval."""
    return "{:.2f} ± {:.2f}".format(*interval([*values]))


def report(results: list[Result], model: str, part: str) -> str:
    """All studies."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        length = result.name.split(",")[0] if result.study == "talk" else ""
        groups.setdefault(f"{result.study} {length}".strip(), []).append(result)
    tables = [f"**{name}**\n\n{table(rows)}" for name, rows in groups.items()]
    return (
        "Made by `python -m benchmarks.live --data-folder LibriSpeech --list "
        f"libri2mix_test-clean.csv` with {model} on {part}, one view "
        "unless two are named; intervals are 95%, of differences those of paired "
        "ones.\n\n" + "\n\n".join(tables)
    )


def write(page: Path, text: str) -> None:
    """Puts a text between the marks of a page."""
    begin, end = MARKS
    old = page.read_text(encoding="utf-8")
    new, count = re.subn(
        f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", old, flags=re.DOTALL
    )
    assert count == 1, f"{page} has no place for the tables"
    with replacing(page) as temporary:
        temporary.write_text(new, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live")
    parser.add_argument("--data-folder", type=Path, required=True, help="LibriSpeech")
    parser.add_argument("--list", type=Path, required=True, help="LibriMix's CSV file")
    parser.add_argument("--part", default="test-clean", help="folder of the speakers")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=[*STUDIES])
    parser.add_argument("--mixtures", type=int, default=30, help="of each study")
    known = sorted({way for ways in WAYS.values() for way in ways})
    parser.add_argument("--ways", nargs="+", choices=known, default=known)
    parser.add_argument("--longest", type=float, default=600, help="talk, in seconds")
    parser.add_argument("--model", help="by default the shipped one")
    parser.add_argument("--cache", type=Path, help="keep the results here, a file")
    parser.add_argument("--page", type=Path, default=PAGE, help="where tables go")
    arguments = parser.parse_args(argv)
    model = SPGMSeparation.from_pretrained(arguments.model, device="cpu")
    results = kept(arguments.cache, Result)
    done = {result[:3] for result in results}
    for study in arguments.studies:
        drawn = STUDIES[study](arguments, model.sample_rate)
        for name, sources in islice(drawn, arguments.mixtures):
            for result in measure(model, study, name, sources, done, arguments.ways):
                results.append(result)
                keep(arguments.cache, result)
    name = arguments.model or "the shipped model"
    write(arguments.page, report(results, name, arguments.part))


if __name__ == "__main__":
    main()
