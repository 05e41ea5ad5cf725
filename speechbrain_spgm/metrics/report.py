"""What a test leaves: tables, files, and the utterances that went worst.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_spgm.data import MixtureBatch
from speechbrain_spgm.errors import MissingPackage, count, shown
from speechbrain_spgm.files import replacing
from speechbrain_spgm.metrics.pictures import Example, draw_improvement, write_examples
from speechbrain_spgm.metrics.scores import (
    METRICS,
    Score,
    breakdown,
    cells_of,
    summarise,
    title_of,
)
from speechbrain_spgm.metrics.si_sdr import PitResult, reorder

logger = get_logger(__name__)

KEPT = 5  # worst utterances
SUMMARY_FILE = "test_summary.json"


class Worst:
    """Keeps the audio of the ``number`` utterances with the lowest SI-SDRi."""

    def __init__(self, number: int = KEPT) -> None:
        self.number = number
        self.kept: list[tuple[Score, Example]] = []

    def add(
        self,
        scores: Sequence[Score],
        estimates: torch.Tensor,
        batch: MixtureBatch,
        pit: PitResult,
    ) -> None:
        """Takes what was scored, ``scores`` being what ``score_batch`` returned."""
        estimates = reorder(estimates.detach(), pit.permutation)
        places = {id: b for b, id in enumerate(batch.ids)}
        for score in scores:
            if len(self.kept) == self.number and badness(score) <= badness(
                self.kept[-1][0]
            ):
                continue
            b = places[score.id]
            length = batch.lengths[b]
            signals = (batch.mix[b], estimates[b], batch.sources[b])
            example = Example(score.id, *(x[:length].cpu().clone() for x in signals))
            self.merge([*self.kept, (score, example)])

    def merge(self, pairs: Sequence[tuple[Score, Example]]) -> None:
        """Keeps the worst of ``pairs``, for example those of all ranks."""
        self.kept = sorted(pairs, key=lambda pair: -badness(pair[0]))[: self.number]

    @property
    def examples(self) -> list[Example]:
        """The worst first."""
        return [example for _, example in self.kept]


def badness(score: Score) -> float:
    """The higher, the worse; NaN is the worst."""
    return math.inf if math.isnan(score.si_sdri) else -score.si_sdri


def write_results(
    scores: Sequence[Score],
    folder: str | Path,
    *,
    about: Mapping[str, Any] | None = None,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    worst: Sequence[Example] = (),
    sample_rate: int = 8000,
) -> MissingPackage | None:
    """Writes all that a test found out; returns why there are no pictures, if so.

    ``test_results.csv`` has a row per utterance, ``test_summary.json`` and
    ``test_results.md`` the means and 95% confidence intervals, ``test_results.png`` the
    spread of SI-SDRi (if matplotlib is installed), and ``worst/`` the utterances in
    ``worst``. Each file is whole or not there. ``about`` says what was evaluated, and
    ``groups`` goes from a heading such as "speakers" to a mapping for ``breakdown``.
    """
    folder = Path(folder)
    with (
        replacing(folder / "test_results.csv") as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["id", *scores[0].values])
        for id, values in scores:
            cells = ("" if x is None else f"{x:.4f}" for x in values.values())
            writer.writerow([id, *cells])

    parts = {
        heading: breakdown(scores, names) for heading, names in (groups or {}).items()
    }
    summary = {**(about or {}), **summarise(scores)}
    if parts:
        summary["groups"] = parts
    write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=2))
    tables = [format_table(scores), *map(format_groups, parts, parts.values())]
    write_text(folder / "test_results.md", "\n\n".join(tables))

    try:
        if worst:  # first the recordings, which need no package
            write_worst(folder / "worst", worst, sample_rate)
        points = [(s.values["si_sdr_mix"], s.values["si_sdri"]) for s in scores]
        points = [point for point in points if all(map(math.isfinite, point))]
        if points:
            draw_improvement(folder / "test_results.png", *zip(*points, strict=True))
    except MissingPackage as error:
        logger.info(f"No pictures of this test: {error}")
        return error
    return None


def write_worst(folder: Path, worst: Sequence[Example], sample_rate: int) -> None:
    """Writes examples in place of those that an earlier test left."""
    earlier = set()
    if folder.is_dir():
        made_here = re.compile(r"\d+_.+_((mix|est\d+|ref\d+)\.wav)|\d+_.+\.png")
        earlier = {path for path in folder.iterdir() if made_here.fullmatch(path.name)}
    for path in earlier:
        path.unlink()
    write_examples(folder, worst, sample_rate)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, which is whole or not there."""
    with replacing(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def format_table(scores: Sequence[Score]) -> str:
    """The summary as a Markdown table.

    Example
    -------
    >>> print(format_table([Score("a", {"sdri": 8.0}), Score("b", {"sdri": 6.0})]))
    | 2 utterances  |    mean | 95% CI |
    |---------------|--------:|-------:|
    | SDRi          | 7.00 dB | ± 1.96 |
    """
    summary = summarise(scores)
    lines = [
        f"| {count(summary.pop('n'), 'utterance'):<13} |    mean | 95% CI |",
        "|---------------|--------:|-------:|",
    ]
    for key, entry in summary.items():
        title, unit = title_of(key)
        mean, interval = cells_of(entry, unit)
        lines.append(f"| {title:<13} | {mean:>7} | {interval:>6} |")
    return "\n".join(lines)


def format_groups(heading: str, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """A breakdown as a Markdown table of the improvements.

    Example
    -------
    >>> parts = {"F+F": {"n": 1, "si_sdri": {"mean": 6.0, "ci95": None}}}
    >>> print(format_groups("speakers", parts))
    | speakers | n | SI-SDRi |
    |---|---:|---:|
    | F+F | 1 | 6.00 dB |
    """
    wanted = [f"{metric}i" for metric in METRICS]
    keys = [key for key in wanted if any(key in part for part in parts.values())]
    titles = [title_of(key)[0] for key in keys]
    lines = [
        f"| {' | '.join([heading, 'n', *titles])} |",
        "|---" + "|---:" * (1 + len(keys)) + "|",
    ]
    for name, part in parts.items():
        cells = [
            " ".join(cells_of(part[key], title_of(key)[1])).strip()
            if key in part
            else ""
            for key in keys
        ]
        lines.append(f"| {' | '.join([shown(name), str(part['n']), *cells])} |")
    return "\n".join(lines)
