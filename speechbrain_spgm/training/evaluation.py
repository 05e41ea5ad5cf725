"""Scores of separated utterances: per utterance, on average, and on disk.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from speechbrain_spgm.data import MixtureBatch
from speechbrain_spgm.data.atomic import replacing
from speechbrain_spgm.training.losses import PitResult, reorder

METRICS = ("si_sdr_mix", "si_sdr", "si_sdri")


class Score(NamedTuple):
    """SI-SDR in dB of the mixture and of the estimates, and the improvement."""

    id: str
    si_sdr_mix: float
    si_sdr: float
    si_sdri: float


def score_batch(
    estimates: torch.Tensor, batch: MixtureBatch, pit: PitResult
) -> list[Score]:
    """Scores each utterance with torchmetrics, over its own length.

    Arguments
    ---------
    estimates : torch.Tensor
        [B, T, spks].
    batch : MixtureBatch
        Mixtures and references.
    pit : PitResult
        Which estimate belongs to which reference, and which references are not silent:
        only those count, and an utterance without any has no score.

    Returns
    -------
    list of Score
        In the order of the batch.
    """
    estimates = reorder(estimates.float(), pit.permutation)
    scores = []
    for b, id in enumerate(batch.ids):
        if not pit.active[b].any():
            continue
        length = batch.lengths[b]
        # [active spks, T of this utterance]
        references = batch.sources[b, :length, pit.active[b]].T
        separated = estimates[b, :length, pit.active[b]].T
        mixture = batch.mix[b, :length].expand_as(references)
        before, after = (
            scale_invariant_signal_distortion_ratio(x, references, zero_mean=True)
            .mean()
            .item()
            for x in (mixture, separated)
        )
        scores.append(Score(id, before, after, after - before))
    return scores


def average(scores: Sequence[Score]) -> dict[str, float]:
    """The mean of each metric in dB.

    Example
    -------
    >>> average([Score("a", 0.0, 8.0, 8.0), Score("b", 1.0, 7.0, 6.0)])
    {'si_sdr_mix': 0.5, 'si_sdr': 7.5, 'si_sdri': 7.0}
    """
    return {m: fmean(getattr(s, m) for s in scores) for m in METRICS}


def summarise(scores: Sequence[Score]) -> dict[str, dict[str, float] | int]:
    """Number of utterances, and mean and 95% confidence interval of each metric.

    Returns
    -------
    dict
        ``n`` and, for each metric, ``mean`` and ``ci95`` in dB: the mean is known to
        plus or minus ``ci95`` (normal approximation; 0 for a single utterance).

    Example
    -------
    >>> summarise([Score("a", 0.0, 8.0, 8.0), Score("b", 1.0, 7.0, 6.0)])["si_sdri"]
    {'mean': 7.0, 'ci95': 1.96}
    """
    means = average(scores)
    summary: dict[str, dict[str, float] | int] = {"n": len(scores)}
    for metric in METRICS:
        spread = 0.0
        if len(scores) > 1:
            spread = stdev(getattr(s, metric) for s in scores)
        interval = 1.96 * spread / len(scores) ** 0.5
        summary[metric] = {
            "mean": round(means[metric], 4),
            "ci95": round(interval, 4),
        }
    return summary


def write_results(scores: Sequence[Score], folder: str | Path) -> None:
    """Writes test_results.csv (a row per utterance) and test_summary.json.

    Arguments
    ---------
    scores : sequence of Score
        At least one.
    folder : str or Path
        Where to; it exists.
    """
    folder = Path(folder)

    with (
        replacing(folder / "test_results.csv") as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(Score._fields)
        for id, *values in scores:
            writer.writerow([id, *(f"{value:.4f}" for value in values)])
    with replacing(folder / "test_summary.json") as unfinished:
        text = json.dumps(summarise(scores), indent=2)
        unfinished.write_text(text + "\n", encoding="utf-8")


def format_table(scores: Sequence[Score]) -> str:
    """The summary as a small table for the terminal.

    Example
    -------
    >>> print(format_table([Score("a", 0.0, 8.0, 8.0), Score("b", 1.0, 7.0, 6.0)]))
    2 utterances            dB   95% CI
    SI-SDR of mixtures    0.50   ± 0.98
    SI-SDR                7.50   ± 0.98
    SI-SDRi               7.00   ± 1.96
    """
    summary = summarise(scores)
    names = ("SI-SDR of mixtures", "SI-SDR", "SI-SDRi")
    lines = [f"{str(summary['n']) + ' utterances':<18}{'dB':>8}{'95% CI':>9}"]
    for name, metric in zip(names, METRICS, strict=True):
        value = summary[metric]
        interval = f"± {value['ci95']:.2f}"
        lines.append(f"{name:<18}{value['mean']:8.2f}{interval:>9}")
    return "\n".join(lines)
