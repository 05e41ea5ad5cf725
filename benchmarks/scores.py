"""Which score without references tells how well a mixture was separated.

    python -m benchmarks.scores --data-folder LibriSpeech --output docs \
        --dev libri2mix_dev-clean.csv --test libri2mix_test-clean.csv

Separates the beginnings of the first mixtures of two lists of LibriMix as ``spgm
separate`` does, and prints for each score without references its rank correlation
(Spearman) with the true SI-SDRi, with 95% intervals (bootstrap). For the best on dev, a
threshold is chosen there which finds mixtures that gained little, and told how it does
on test. A row per mixture is added to scores.csv; what is there is not done again.

Seams only exist in the stitched mode: their confidence is that of windows of 2 s, one
view, and is compared with the SI-SDRi of the voices that were stitched from these.

Axes: B utterances, T samples, spks sources, n mixtures.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean
from threading import Lock

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.data import Subset

from speechbrain_spgm.audio import read_audio
from speechbrain_spgm.data import Mixture, MixtureBatch, MixtureList
from speechbrain_spgm.files import temporary_folder
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.inference.files import from_samples, separate_to_files
from speechbrain_spgm.inference.options import Options
from speechbrain_spgm.metrics.reference_free import (
    REFERENCE_FREE,
    Heard,
    check_scores,
    measure_all,
)
from speechbrain_spgm.metrics.scores import match, score_batch

WINDOW = 2.0  # seconds, of the stitched mode
POOR = 5.0  # dB of SI-SDRi below which a mixture counts as poorly separated
DRAWS = 2000  # of the bootstrap

ADDING = Lock()
Row = dict[str, float | str | None]


def measure(
    model: SPGMSeparation,
    dataset: MixtureList,
    names: Sequence[str],
    seconds: float,
    seams: int,
) -> Iterator[Row]:
    """True SI-SDRi and all scores of each mixture, of the first with their seams."""
    rate = model.sample_rate
    most = round(seconds * rate)
    for i in range(len(dataset)):
        id, mix, sources = dataset[i][:3]
        batch = MixtureBatch.collate([Mixture(id, mix[:most], sources[:most])])
        est = model.separate_audio(batch.mix[0], rate, mode="exact")
        again = partial(model.separate_audio, sample_rate=rate, mode="exact", views=1)
        heard = Heard(batch.mix[0], est[0], rate, lambda mix, f=again: f(mix)[0])
        found = measure_all(names, heard)
        row = {"id": batch.ids[0], "si_sdri": improvement(est, batch)}
        row |= {name: fmean(voice[name] for voice in found) for name in names}
        row |= {"seam_confidence": None, "stitched_si_sdri": None}
        yield row | (stitched(model, batch) if i < seams else {})


def improvement(est: Tensor, batch: MixtureBatch) -> float:
    """The true SI-SDRi of voices ``[1, T, spks]`` in dB."""
    return score_batch(est, batch, match(est, batch))[0].si_sdri


def stitched(model: SPGMSeparation, batch: MixtureBatch) -> Row:
    """The least confidence of the seams, and what the stitched voices gained."""
    if batch.mix.shape[1] <= WINDOW * model.sample_rate:
        return {}
    options = Options(mode="stitched", window=WINDOW, views=1).checked(model)
    sound = from_samples(batch.mix[0], model.sample_rate)
    with temporary_folder() as folder:
        paths = [folder / f"{i}.wav" for i in range(model.num_spks)]
        facts = separate_to_files(model, sound, "mixture", paths, options)
        voices = [read_audio(path).samples for path in paths]
    return {
        "seam_confidence": min(seam["confidence"] for seam in facts["seams"]),
        "stitched_si_sdri": improvement(torch.stack(voices, -1)[None], batch),
    }


def columns(rows: Sequence[Row], name: str) -> np.ndarray:
    """A score and the gain that goes with it, ``[2, n]``."""
    gain = "stitched_si_sdri" if name == "seam_confidence" else "si_sdri"
    pairs = [(row[name], row[gain]) for row in rows if row[name] is not None]
    return np.array(pairs, dtype=float).T


def correlation(pairs: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rank correlation of ``[2, n]`` and its 95% interval."""
    rng, n = np.random.default_rng(seed), pairs.shape[1]
    draws = [
        spearmanr(*pairs[:, rng.integers(n, size=n)]).statistic for _ in range(DRAWS)
    ]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(spearmanr(*pairs).statistic), float(low), float(high)


def choose(pairs: np.ndarray, better: int) -> float:
    """The threshold that tells poor mixtures from others best (balanced accuracy)."""
    values, gains = pairs[0] * better, pairs[1]
    order = np.unique(values)
    cuts = (order[1:] + order[:-1]) / 2

    def accuracy(cut: float) -> float:
        poor = gains < POOR
        return ((values < cut)[poor].mean() + (values >= cut)[~poor].mean()) / 2

    return float(max(cuts, key=accuracy) * better)


def read_rows(path: Path) -> list[Row]:
    """What an earlier run has measured."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {
                name: value
                if name in ("list", "id")
                else (float(value) if value else None)
                for name, value in row.items()
            }
            for row in csv.DictReader(file)
        ]


def add_row(path: Path, row: Row) -> None:
    """Adds a row, and the names of its columns to a new file."""
    cells = [f"{x:.4f}" if isinstance(x, float) else x for x in row.values()]
    with ADDING, path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(row)
        writer.writerow(cells)


def report(dev: list[Row], test: list[Row], names: Sequence[str]) -> str:
    """The tables in Markdown."""
    lines = ["| score | rank correlation with SI-SDRi, dev | test | n |"]
    lines += ["|---|---|---|---|"]
    better = {name: REFERENCE_FREE[name].better for name in names}
    if all(columns(rows, "seam_confidence").size for rows in (dev, test)):
        better["seam_confidence"] = 1
    found = {}
    for name in better:
        cells = []
        for rows in (dev, test):
            pairs = columns(rows, name)
            rho, low, high = correlation(pairs)
            cells.append(f"{rho:+.2f} ({low:+.2f} to {high:+.2f})")
            found.setdefault(name, rho * better[name])
        lines.append(
            f"| `{name}` | {cells[0]} | {cells[1]} | "
            f"{columns(dev, name).shape[1]}, {columns(test, name).shape[1]} |"
        )
    best = max(names, key=found.get)
    cut = choose(columns(dev, best), better[best])
    side = "below" if better[best] > 0 else "above"
    lines += ["", f"Thrown away where `{best}` is {side} {cut:.4g}, chosen on dev:", ""]
    lines += ["| list | thrown away | SI-SDRi of all | of what is kept | of the rest |"]
    lines[-1] += f" poor ones (below {POOR:g} dB) found | good ones lost |"
    lines += ["|---|---|---|---|---|---|---|"]
    for title, rows in (("dev", dev), ("test", test)):
        values, gains = columns(rows, best)
        kept = values * better[best] >= cut * better[best]
        poor = gains < POOR
        lines.append(
            f"| {title} | {1 - kept.mean():.0%} | {gains.mean():.2f} dB | "
            f"{gains[kept].mean():.2f} dB | {gains[~kept].mean():.2f} dB | "
            f"{(~kept)[poor].sum()} of {poor.sum()} | "
            f"{(~kept)[~poor].sum()} of {(~poor).sum()} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables; writes a row per mixture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-folder", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--limits", type=int, nargs=2, default=(40, 60))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seams", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--scores", default=",".join(REFERENCE_FREE))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    names = check_scores(arguments.scores.split(","))
    model = SPGMSeparation.from_pretrained(arguments.model, device="cpu")
    shape = {"num_spks": model.num_spks, "sample_rate": model.sample_rate}
    place = arguments.output / "scores.csv"
    done = read_rows(place)
    end = time.monotonic() + 60 * arguments.minutes

    def work(title: str, path: Path, limit: int) -> list[Row]:
        known = [row for row in done if row["list"] == title]
        dataset = MixtureList(path, arguments.data_folder, **shape, limit=limit)
        dataset = Subset(dataset, range(len(known), len(dataset)))
        seams = arguments.seams - len(known)
        for row in measure(model, dataset, names, arguments.seconds, seams):
            known.append({"list": title, **row})
            add_row(place, known[-1])
            if time.monotonic() > end:
                break
        return known

    tasks = zip(
        ("dev", "test"), (arguments.dev, arguments.test), arguments.limits, strict=True
    )
    with ThreadPoolExecutor(2) as pool:
        lists = list(pool.map(lambda task: work(*task), tasks))
    print(report(*lists, names))


if __name__ == "__main__":
    main()
