"""Scores of separated utterances: per utterance, on average, and on disk.

Axes: B utterances, T samples, spks sources, R pairs of a signal and its reference.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from speechbrain.utils.logger import get_logger
from torch.nn.functional import pad
from torchmetrics.functional.audio import (
    scale_invariant_signal_distortion_ratio,
    signal_distortion_ratio,
)

from speechbrain_spgm.data import MixtureBatch
from speechbrain_spgm.data.atomic import replacing
from speechbrain_spgm.data.errors import MissingPackage, UserError, require
from speechbrain_spgm.training.losses import PitResult, centre, reorder
from speechbrain_spgm.training.pictures import (
    Example,
    draw_improvement,
    write_examples,
)

logger = get_logger(__name__)

TAPS = 512  # of the distortion filter that SDR forgives, as in BSS Eval
LIMIT_DB = 100.0  # SDR is cut to this range: a perfect estimate has no finite one
DIAGONAL = 10 ** (-LIMIT_DB / 10)  # makes a singular correlation matrix solvable
PESQ_MODES = {8000: "nb", 16000: "wb"}  # narrow and wide band
KEPT = 5  # worst utterances


class Score(NamedTuple):
    """What was measured of one utterance, the mean over its active references.

    ``values`` has for each metric m the keys ``m_mix`` (of the mixture), ``m`` (of the
    estimates) and ``mi`` (the improvement); None is what cannot be measured.
    """

    id: str
    values: dict[str, float | None]

    @property
    def si_sdr(self) -> float:
        """SI-SDR of the estimates in dB."""
        return self.values["si_sdr"]

    @property
    def si_sdri(self) -> float:
        """The improvement of SI-SDR in dB."""
        return self.values["si_sdri"]


class Metric(NamedTuple):
    """A metric: its name, its unit, and what measures it.

    ``measure`` takes signals [R, T] and references [R, T], their lengths [R] (beyond
    them both are zero) and the sample rate; it returns [R].
    """

    name: str
    unit: str
    measure: Callable[..., torch.Tensor]


def measure_si_sdr(
    signals: torch.Tensor, references: torch.Tensor, lengths: torch.Tensor, *_: int
) -> torch.Tensor:
    """SI-SDR in dB by torchmetrics, of signals without their mean.

    Example
    -------
    >>> reference = torch.tensor([[1.0, -1, 1, -1, 0]])
    >>> signal = reference + torch.tensor([[0.1, 0.1, -0.1, -0.1, 0]])
    >>> measure_si_sdr(signal, reference, torch.tensor([4])).round(decimals=2)
    tensor([20.])
    """
    # centre knows the lengths; zeros beyond them add nothing to torchmetrics' sums.
    signals, references = (
        centre(x.unsqueeze(2), lengths).squeeze(1) for x in (signals, references)
    )
    return scale_invariant_signal_distortion_ratio(signals, references)


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch inside uses one thread.

    With more, MKL factors the matrices of a batch wrongly or hangs (pytorch#142815).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def measure_sdr(
    signals: torch.Tensor, references: torch.Tensor, *_: Any
) -> torch.Tensor:
    """SDR in dB by torchmetrics: BSS Eval's, which forgives a filter of 512 taps.

    Zeros after the end change no correlation, so no lengths are needed. Cut to
    plus or minus 100 dB.

    Example
    -------
    >>> reference = torch.randn(1, 4000)
    >>> delayed = reference.roll(5)
    >>> delayed[:, :5] = 0
    >>> measure_sdr(delayed, reference) > 25  # but SI-SDR is about -20 dB
    tensor([True])
    """
    # torchmetrics' correlations need at least as many samples as the filter has taps.
    missing = max(0, TAPS - signals.shape[-1])
    signals, references = (pad(x, (0, missing)) for x in (signals, references))
    try:
        ratio = signal_distortion_ratio(signals, references, filter_length=TAPS)
    except torch.linalg.LinAlgError:  # some reference is, for example, periodic
        if len(signals) > 1:  # the others must not notice
            pairs = zip(signals.split(1), references.split(1), strict=True)
            return torch.cat([measure_sdr(*pair) for pair in pairs])
        ratio = signals.new_full((1,), torch.nan)
    # A pure tone's correlation matrix is singular, and nothing is left of a perfect
    # estimate: both are measured again on a matrix that is a little larger.
    odd = ~ratio.isfinite() & signals.isfinite().all(-1)
    if odd.any():
        ratio[odd] = signal_distortion_ratio(
            signals[odd], references[odd], filter_length=TAPS, load_diag=DIAGONAL
        )
    return ratio.clamp(-LIMIT_DB, LIMIT_DB)


def measure_pesq(
    signals: torch.Tensor,
    references: torch.Tensor,
    lengths: torch.Tensor,
    sample_rate: int,
) -> torch.Tensor:
    """PESQ: narrow band at 8 kHz, wide band at 16 kHz; NaN where it hears no speech."""
    pesq = require("pesq", "pesq", "The metric PESQ")
    values = []
    for signal, reference, length in zip(signals, references, lengths, strict=True):
        pair = (x[:length].double().numpy() for x in (reference, signal))
        try:
            value = pesq.pesq(sample_rate, *pair, PESQ_MODES[sample_rate])
        except pesq.PesqError:
            value = math.nan
        values.append(value)
    return torch.tensor(values)


def measure_stoi(
    signals: torch.Tensor,
    references: torch.Tensor,
    lengths: torch.Tensor,
    sample_rate: int,
) -> torch.Tensor:
    """STOI, between 0 and 1."""
    pystoi = require("pystoi", "pystoi", "The metric STOI")
    return torch.tensor(
        [
            float(pystoi.stoi(r[:n].numpy(), s[:n].numpy(), sample_rate))
            for s, r, n in zip(signals, references, lengths, strict=True)
        ]
    )


METRICS = {
    "si_sdr": Metric("SI-SDR", " dB", measure_si_sdr),
    "sdr": Metric("SDR", " dB", measure_sdr),
    "pesq": Metric("PESQ", "", measure_pesq),
    "stoi": Metric("STOI", "", measure_stoi),
}
OPTIONAL = {"pesq": "pesq", "stoi": "pystoi"}  # metric -> package


def check_metrics(metrics: Iterable[str], sample_rate: int) -> None:
    """Makes sure before a long evaluation that its metrics can be measured.

    Arguments
    ---------
    metrics : iterable of str
        Names in ``METRICS``; si_sdr must be among them.
    sample_rate : int
        Of the signals, in Hz.

    Raises
    ------
    UserError
        If there is no such metric, it does not exist at this rate, or its package is
        not installed.

    Example
    -------
    >>> check_metrics(["si_sdr", "pesq"], 44100)
    Traceback (most recent call last):
    ...
    speechbrain_spgm.errors.UserError: PESQ is defined at 8000 and 16000 Hz, not at 44100 Hz: leave it out.
    """  # noqa: E501
    metrics = list(metrics)
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(
                f"There is no metric {metric!r}: take some of {', '.join(METRICS)}."
            )
    if "si_sdr" not in metrics:
        raise UserError("The metric si_sdr must be among the metrics: add it.")
    if "pesq" in metrics and sample_rate not in PESQ_MODES:
        raise UserError(
            f"PESQ is defined at 8000 and 16000 Hz, not at {sample_rate} Hz: "
            "leave it out."
        )
    for metric in metrics:
        if metric in OPTIONAL:
            package = OPTIONAL[metric]
            require(package, package, f"The metric {METRICS[metric].name}")


def score_batch(
    estimates: torch.Tensor,
    batch: MixtureBatch,
    pit: PitResult,
    metrics: Sequence[str] = ("si_sdr",),
    sample_rate: int = 8000,
) -> list[Score]:
    """Scores each utterance over its own length.

    Arguments
    ---------
    estimates : torch.Tensor
        [B, T, spks].
    batch : MixtureBatch
        Mixtures and references.
    pit : PitResult
        Which estimate belongs to which reference, and which references are not silent:
        only those count, and an utterance without any has no score.
    metrics : sequence of str
        Names in ``METRICS``.
    sample_rate : int
        In Hz; only PESQ and STOI ask for it.

    Returns
    -------
    list of Score
        In the order of the batch.
    """
    pairs = pit.active.nonzero()  # [R, 2]: utterance, reference
    if not len(pairs):
        return []
    rows, columns = pairs.unbind(1)
    lengths = batch.lengths[rows]
    samples = torch.arange(batch.mix.shape[1], device=lengths.device)
    beyond = samples >= lengths.unsqueeze(1)  # [R, T]
    estimates = reorder(estimates.detach().float(), pit.permutation)
    # Each is [R, T], on the CPU if a library for numpy arrays follows.
    device = "cpu" if set(metrics) & set(OPTIONAL) else lengths.device
    references, separated, mixtures = (
        x.float().masked_fill(beyond, 0.0).to(device)
        for x in (
            batch.sources[rows, :, columns],
            estimates[rows, :, columns],
            batch.mix[rows],
        )
    )
    lengths, rows = lengths.to(device), rows.to(device)

    values: dict[int, dict[str, float | None]] = {b: {} for b in rows.tolist()}
    for metric in metrics:
        # Mixture and estimate in one call: [2, R]
        before, after = (
            METRICS[metric]
            .measure(
                torch.cat([mixtures, separated]),
                references.repeat(2, 1),
                lengths.repeat(2),
                sample_rate,
            )
            .view(2, -1)
        )
        for b, kept in values.items():
            mixed, result = (
                known(x[rows == b].mean().item(), metric) for x in (before, after)
            )
            kept[f"{metric}_mix"], kept[metric] = mixed, result
            gain = None if None in (mixed, result) else result - mixed
            kept[f"{metric}i"] = gain
    return [Score(batch.ids[b], kept) for b, kept in values.items()]


def known(value: float, metric: str) -> float | None:
    """None for what PESQ or STOI could not measure; other metrics always have a value.

    Example
    -------
    >>> known(float("nan"), "pesq"), known(float("nan"), "si_sdr"), known(1.5, "pesq")
    (None, nan, 1.5)
    """
    return None if metric in OPTIONAL and math.isnan(value) else value


class Worst:
    """Keeps the audio of the utterances with the lowest SI-SDRi.

    Arguments
    ---------
    number : int
        How many.
    """

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


def average(scores: Sequence[Score]) -> dict[str, float]:
    """The mean of each metric over the utterances where it could be measured.

    Example
    -------
    >>> average([Score("a", {"si_sdri": 8.0}), Score("b", {"si_sdri": 6.0})])
    {'si_sdri': 7.0}
    """
    return {key: fmean(column) for key, column in columns_of(scores).items()}


def columns_of(scores: Sequence[Score]) -> dict[str, list[float]]:
    """The values of each metric, without those that could not be measured."""
    columns = {
        key: [s.values[key] for s in scores if s.values[key] is not None]
        for key in scores[0].values
    }
    return {key: column for key, column in columns.items() if column}


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """Number of utterances, and mean and 95% confidence interval of each metric.

    Returns
    -------
    dict
        ``n`` and, for each metric, ``mean`` and ``ci95``: the mean is known to plus or
        minus ``ci95`` (normal approximation; 0 for a single utterance). A metric that
        could be measured on fewer utterances has an ``n`` of its own; what is not
        finite is None.

    Example
    -------
    >>> summarise([Score("a", {"si_sdri": 8.0}), Score("b", {"si_sdri": 6.0})])
    {'n': 2, 'si_sdri': {'mean': 7.0, 'ci95': 1.96}}
    """
    summary: dict[str, Any] = {"n": len(scores)}
    for key, column in columns_of(scores).items():
        mean, interval = fmean(column), 0.0
        if not math.isfinite(mean):
            summary[key] = {"mean": None, "ci95": None}
            continue
        if len(column) > 1:
            interval = 1.96 * stdev(column) / len(column) ** 0.5
        summary[key] = {"mean": round(mean, 4), "ci95": round(interval, 4)}
        if len(column) < len(scores):
            summary[key]["n"] = len(column)
    return summary


def breakdown(
    scores: Sequence[Score], groups: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The summary of each group of utterances.

    Arguments
    ---------
    scores : sequence of Score
        Of all utterances.
    groups : mapping
        From the id to the group's name; ids without a group are left out.

    Returns
    -------
    dict
        From the group's name, sorted, to what ``summarise`` returns.

    Example
    -------
    >>> scores = [Score(id, {"si_sdri": dB}) for id, dB in [("a", 8.0), ("b", 6.0)]]
    >>> breakdown(scores, {"a": "F+M", "b": "F+F"})["F+F"]
    {'n': 1, 'si_sdri': {'mean': 6.0, 'ci95': 0.0}}
    """
    members: dict[str, list[Score]] = {}
    for score in scores:
        if score.id in groups:
            members.setdefault(groups[score.id], []).append(score)
    return {name: summarise(members[name]) for name in sorted(members)}


def write_results(
    scores: Sequence[Score],
    folder: str | Path,
    *,
    about: Mapping[str, Any] | None = None,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    worst: Sequence[Example] = (),
    sample_rate: int = 8000,
) -> None:
    """Writes all that a test found out.

    ``test_results.csv`` has a row per utterance, ``test_summary.json`` and
    ``test_results.md`` the means and 95% confidence intervals, ``test_results.png`` the
    spread of SI-SDRi (if matplotlib is installed), and ``worst/`` the utterances in
    ``worst``. Each file is whole or not there.

    Arguments
    ---------
    scores : sequence of Score
        At least one.
    folder : str or Path
        Where to; it exists.
    about : mapping, optional
        What was evaluated, for the summary: ``test_set``, ``model`` and so on.
    groups : mapping, optional
        From a heading such as "speakers" to a mapping for ``breakdown``.
    worst : sequence of Example
        The worst first.
    sample_rate : int
        Of ``worst`` in Hz.
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
    write_text(folder / "test_summary.json", json.dumps(summary, indent=2))
    tables = [format_table(scores), *map(format_groups, parts, parts.values())]
    write_text(folder / "test_results.md", "\n\n".join(tables))

    try:
        points = [(s.values["si_sdr_mix"], s.values["si_sdri"]) for s in scores]
        points = [point for point in points if all(map(math.isfinite, point))]
        if points:
            draw_improvement(folder / "test_results.png", *zip(*points, strict=True))
        if worst:
            write_worst(folder / "worst", worst, sample_rate)
    except MissingPackage as error:
        logger.info(f"No pictures of this test: {error}")


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
    count = summary.pop("n")
    noun = "utterance" if count == 1 else "utterances"
    lines = [
        f"| {f'{count} {noun}':<13} |    mean | 95% CI |",
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
    >>> parts = {"F+F": {"n": 1, "si_sdri": {"mean": 6.0, "ci95": 0.0}}}
    >>> print(format_groups("speakers", parts))
    | speakers | n | SI-SDRi |
    |---|---:|---:|
    | F+F | 1 | 6.00 dB ± 0.00 |
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
            " ".join(cells_of(part[key], title_of(key)[1])) if key in part else ""
            for key in keys
        ]
        lines.append(f"| {' | '.join([name, str(part['n']), *cells])} |")
    return "\n".join(lines)


def title_of(key: str) -> tuple[str, str]:
    """The title and the unit of a key of ``Score.values``.

    Example
    -------
    >>> title_of("si_sdr_mix"), title_of("stoii")
    (('SI-SDR, mix', ' dB'), ('STOIi', ''))
    """
    for metric, (name, unit, _) in METRICS.items():
        titles = {
            f"{metric}_mix": f"{name}, mix",
            metric: name,
            f"{metric}i": f"{name}i",
        }
        if key in titles:
            return titles[key], unit
    return key, ""


def cells_of(entry: Mapping[str, Any], unit: str) -> tuple[str, str]:
    """Mean and interval of a summary's entry for a table."""
    if entry["mean"] is None:
        return "n/a", ""
    return f"{entry['mean']:.2f}{unit}", f"± {entry['ci95']:.2f}"
