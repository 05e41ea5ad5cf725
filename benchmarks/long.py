"""Quality against length: the exact and the stitched mode on conversations.

    python -m benchmarks.long --data-folder LibriSpeech/test-clean

Builds conversations of two speakers (``benchmarks.conversations``), separates each in
both modes and compares with the voices. Writes ``docs/benchmarks/long.md``, ``.json``
and ``.png``. With ``--cache FILE`` every result is kept there, so that an interrupted
run goes on.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from benchmarks.conversations import draw_conversation, find_speakers
from speechbrain_spgm.files import replacing
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.metrics.pictures import new_figure, save
from speechbrain_spgm.metrics.si_sdr import si_sdr

ROOT = Path(__file__).resolve().parents[1]
MODES = ("exact", "stitched")
SECONDS = (10, 30, 60, 120, 300, 600)
CONTEXT = 10.0  # seconds before and after a seam that tell who is who
MARGIN = 3.0  # dB by which one permutation must be better to count


class Result(NamedTuple):
    """One conversation in both modes."""

    seconds: float
    seed: int
    exact: float  # SI-SDRi in dB
    stitched: float
    seams: int  # where both speakers are active
    swaps: int  # of them: voices change sides and stay there
    exact_swaps: int  # the same, at the same places, in the exact mode


def improvement(est: Tensor, sources: Tensor) -> float:
    """SI-SDRi of the better permutation of two voices, in dB.

    Arguments
    ---------
    est, sources : torch.Tensor
        ``[T, spks]``.
    """
    mix = sources.sum(1, keepdim=True).expand_as(sources)
    orders = ([0, 1], [1, 0])
    return max(_level(est[:, order], sources) for order in orders) - _level(
        mix, sources
    )


def _level(est: Tensor, sources: Tensor) -> float:
    return float(si_sdr(est.unsqueeze(0), sources.unsqueeze(0)).mean())


def preference(est: Tensor, sources: Tensor) -> float:
    """By how many dB the first permutation is better than the second."""
    return _level(est, sources) - _level(est[:, [1, 0]], sources)


def count_swaps(
    est: Tensor, sources: Tensor, seams: list[float], rate: int, overlap: float
) -> tuple[int, int]:
    """Seams with both speakers active, and those at which the voices change sides.

    A change counts if the seconds before a seam prefer one permutation, those after it
    the other, both clearly: it lasts to the next seam.

    Arguments
    ---------
    est, sources : torch.Tensor
        ``[T, spks]``.
    seams : list of float
        In seconds.
    rate : int
        In Hz.
    overlap : float
        Seconds that windows share at a seam.
    """
    active, swaps = 0, 0
    reach, half = round(CONTEXT * rate), round(overlap / 2 * rate)
    for time in seams:
        seam = round(time * rate)
        near = sources[max(0, seam - half) : seam + half]
        if not near.square().mean(0).gt(1e-6).all():
            continue
        active += 1
        sides = [
            preference(est[part], sources[part])
            for part in (slice(max(0, seam - reach), seam), slice(seam, seam + reach))
        ]
        swaps += sides[0] * sides[1] < 0 and min(map(abs, sides)) >= MARGIN
    return active, swaps


def measure(
    model: SPGMSeparation, sources: np.ndarray, window: float
) -> tuple[float, float, int, int, int]:
    """Both modes on one conversation; see ``Result``."""
    rate, voices = model.sample_rate, torch.from_numpy(sources)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mix.wav"
        soundfile.write(path, sources.sum(1), rate, subtype="FLOAT")
        found, seams = {}, []
        for mode in MODES:
            outputs = [Path(folder) / f"{mode}{k}.wav" for k in range(2)]
            facts = model.separate_to_files(
                path, outputs, mode=mode, max_memory="1T", window=window
            )
            seams = [seam["time"] for seam in facts["seams"]]
            read = [soundfile.read(output, dtype="float32")[0] for output in outputs]
            found[mode] = torch.from_numpy(np.stack(read, 1))
    swaps = {
        mode: count_swaps(est, voices, seams, rate, window / 3)
        for mode, est in found.items()
    }
    scores = [improvement(found[mode], voices) for mode in MODES]
    return *scores, *swaps["stitched"], swaps["exact"][1]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95% confidence interval (Student's t)."""
    from scipy.stats import t

    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return mean, float("nan")
    return mean, t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5


def kept(cache: Path | None, kind: type[NamedTuple]) -> list:
    """The results that an earlier run has left."""
    lines = cache.read_text().splitlines() if cache and cache.exists() else []
    return [kind(*json.loads(line)) for line in lines]


def keep(cache: Path | None, result: NamedTuple) -> None:
    """Prints a result, and adds it to the file of those that are kept."""
    print(result, flush=True)
    if cache:
        with cache.open("a") as file:
            file.write(json.dumps(result) + "\n")


def table(results: list[Result]) -> str:
    """A Markdown table by length."""
    lines = [
        "| length | n | exact, SI-SDRi dB | stitched, SI-SDRi dB | stitched - exact "
        "| seams, both active | swaps | of the exact mode there |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seconds in sorted({r.seconds for r in results}):
        rows = [r for r in results if r.seconds == seconds]
        cells = [
            "{:.2f} ± {:.2f}".format(*interval([value(r) for r in rows]))
            for value in (
                lambda r: r.exact,
                lambda r: r.stitched,
                lambda r: r.stitched - r.exact,
            )
        ]
        counts = [sum(r[i] for r in rows) for i in (4, 5, 6)]
        row = [f"{seconds:g} s", len(rows), *cells, *counts]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def draw(path: Path, results: list[Result]) -> None:
    """SI-SDRi against length, both modes, with confidence intervals."""
    figure = new_figure(6, 3.6)
    axes = figure.subplots()
    lengths = sorted({r.seconds for r in results})
    for mode in MODES:
        points = [
            interval([getattr(r, mode) for r in results if r.seconds == seconds])
            for seconds in lengths
        ]
        means, widths = zip(*points, strict=True)
        axes.errorbar(lengths, means, widths, marker="o", capsize=3, label=mode)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{seconds:g}" for seconds in lengths])
    axes.set_xlabel("length of the recording in seconds")
    axes.set_ylabel("SI-SDRi in dB")
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    """Measures and writes.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, nargs="+", default=SECONDS)
    parser.add_argument("--mixtures", type=int, default=20, help="of each length")
    parser.add_argument("--window", type=float, default=15.0)
    parser.add_argument("--model", help="by default the shipped one")
    parser.add_argument("--cache", type=Path, help="keep the results here, a file")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs" / "benchmarks", metavar="DIR"
    )
    arguments = parser.parse_args(argv)
    model = SPGMSeparation.from_pretrained(arguments.model, device="cpu")
    speakers = find_speakers(arguments.data_folder)
    results = kept(arguments.cache, Result)
    done = {result[:2] for result in results}
    for seconds in arguments.seconds:
        for seed in range(arguments.mixtures):
            if (seconds, seed) in done:
                continue
            sources = draw_conversation(speakers, seconds, model.sample_rate, seed)
            measured = measure(model, sources, arguments.window)
            results.append(Result(seconds, seed, *measured))
            keep(arguments.cache, results[-1])
    name = arguments.model or "the shipped model"
    write(arguments.output, results, arguments.window, name)


def write(folder: Path, results: list[Result], window: float, name: str) -> None:
    """The table, the numbers and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (
        "# Quality against length\n\nMade by `python -m benchmarks.long "
        "--data-folder LibriSpeech/test-clean` with "
        f"{name}: conversations of two test speakers with pauses and overlaps, n of "
        f"each length; stitched windows of {window:g} s share a third. "
        "Intervals are 95%. A swap: the 10 s before and after a seam prefer different "
        f"permutations of the references by {MARGIN:g} dB or more.\n\n"
        f"{table(results)}\n\n![SI-SDRi against length](long.png)\n"
    )
    with replacing(folder / "long.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with replacing(folder / "long.json") as temporary:
        rows = [result._asdict() for result in results]
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(folder / "long.png", results)


if __name__ == "__main__":
    main()
