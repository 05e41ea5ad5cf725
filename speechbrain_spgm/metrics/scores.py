"""Scores of separated utterances: per utterance and on average, at any level.

Axes: B utterances, T samples, spks sources, R pairs of a signal and its reference.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from torchmetrics.functional.audio import (
    scale_invariant_signal_distortion_ratio,
    signal_distortion_ratio,
)

from speechbrain_spgm.data import MixtureBatch
from speechbrain_spgm.errors import UserError, require
from speechbrain_spgm.lobes.workers import single_threaded
from speechbrain_spgm.metrics.si_sdr import (
    PitResult,
    centre,
    even,
    is_active,
    octaves,
    pit_si_sdr_loss,
    reorder,
)

TAPS = 512  # of the distortion filter that SDR forgives, as in BSS Eval
LIMIT_DB = 100.0  # SDR is cut to this range: a perfect estimate has no finite one
DIAGONAL = 10 ** (-LIMIT_DB / 10)  # makes a singular correlation matrix solvable
PESQ_MODES = {8000: "nb", 16000: "wb"}  # narrow and wide band


class Score(NamedTuple):
    """What was measured of one utterance, the mean over its active references.

    ``values`` has for each metric m the keys ``m_mix`` (of the mixture), ``m`` (of the
    estimates) and ``mi`` (the improvement); None is what cannot be measured.
    """

    id: str
    values: dict[str, float | None]

    @property
    def si_sdri(self) -> float:
        """The improvement of SI-SDR in dB."""
        return self.values["si_sdri"]


class Metric(NamedTuple):
    """A metric: its name, its unit, and what measures it.

    ``measure`` takes signals [R, T] and references [R, T], their lengths [R] (beyond
    them both are zero) and the sample rate; it returns [R]. One that needs a
    ``package`` gets tensors on the CPU, and may give NaN for what it cannot measure. It
    is defined at ``rates`` in Hz; None: at all.
    """

    name: str
    unit: str
    measure: Callable[..., torch.Tensor]
    package: str | None = None
    rates: tuple[int, ...] | None = None


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
        even(centre(x.unsqueeze(2), lengths).squeeze(1)) for x in (signals, references)
    )
    return scale_invariant_signal_distortion_ratio(signals, references)


# With more, MKL factors the matrices of a batch wrongly or hangs (pytorch#142815).
@single_threaded
def measure_sdr(
    signals: torch.Tensor, references: torch.Tensor, *_: Any
) -> torch.Tensor:
    """SDR in dB by torchmetrics: BSS Eval's, which forgives a filter of 512 taps.

    Zeros after the end change no correlation, so no lengths are needed. Cut to
    plus or minus 100 dB.
    """
    # torchmetrics' correlations need at least as many samples as the filter has taps.
    missing = max(0, TAPS - signals.shape[-1])
    signals, references = (even(pad(x, (0, missing))) for x in (signals, references))
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
    """STOI, between 0 and 1; NaN where there is too little speech to measure it."""
    pystoi = require("pystoi", "pystoi", "The metric STOI")
    signals, references = even(signals), even(references)
    values = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        for s, r, n in zip(signals, references, lengths, strict=True):
            try:
                value = float(pystoi.stoi(r[:n].numpy(), s[:n].numpy(), sample_rate))
            except RuntimeWarning:
                value = math.nan
            values.append(value)
    return torch.tensor(values)


METRICS = {
    "si_sdr": Metric("SI-SDR", " dB", measure_si_sdr),
    "sdr": Metric("SDR", " dB", measure_sdr),
    "pesq": Metric("PESQ", "", measure_pesq, "pesq", tuple(PESQ_MODES)),
    "stoi": Metric("STOI", "", measure_stoi, "pystoi"),
}


def check_metrics(metrics: Iterable[str], sample_rate: int) -> None:
    """Refuses before a long evaluation what cannot be measured at this rate in Hz.

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
    for name, _, _, package, rates in map(METRICS.get, metrics):
        if rates is not None and sample_rate not in rates:
            raise UserError(
                f"{name} is defined at {' and '.join(map(str, rates))} Hz, not at "
                f"{sample_rate} Hz: leave it out."
            )
        if package is not None:
            require(package, package, f"The metric {name}")


def match(estimates: torch.Tensor, batch: MixtureBatch) -> PitResult:
    """Which estimate [B, T, spks] belongs to which reference, at whatever level.

    A reference is silent if it is 100 dB below the loudest sample of its utterance.

    Example
    -------
    >>> from speechbrain_spgm.data import Mixture
    >>> sources = 1e-6 * torch.randn(1000, 2)
    >>> batch = MixtureBatch.collate([Mixture("quiet", sources.sum(-1), sources)])
    >>> match(batch.sources.flip(-1), batch).permutation
    tensor([[1, 0]])
    """
    samples = torch.arange(batch.mix.shape[1], device=batch.mix.device)
    beyond = (samples >= batch.lengths.unsqueeze(1)).unsqueeze(2)  # [B, T, 1]
    estimates, sources, mix = (
        x.detach().float().masked_fill(beyond, 0.0)
        for x in (estimates, batch.sources, batch.mix.unsqueeze(2))
    )
    loudest = torch.cat([sources, mix], dim=2).abs().amax((1, 2), keepdim=True)
    together = centre(sources * octaves(loudest), batch.lengths)
    silent = ~is_active(together, batch.lengths)
    sources = sources.masked_fill(silent.unsqueeze(1), 0.0)
    return pit_si_sdr_loss(even(estimates, 1), even(sources, 1), batch.lengths)


def score_batch(
    estimates: torch.Tensor,
    batch: MixtureBatch,
    pit: PitResult,
    metrics: Sequence[str] = ("si_sdr",),
    sample_rate: int = 8000,
) -> list[Score]:
    """Scores each utterance over its own length, estimates [B, T, spks], in order.

    Only references that ``pit`` calls active count; an utterance without any has no
    score.
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
    on_cpu = any(METRICS[metric].package for metric in metrics)
    device = "cpu" if on_cpu else lengths.device
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
        both = torch.cat([mixtures, separated]), references.repeat(2, 1)
        found = METRICS[metric].measure(*both, lengths.repeat(2), sample_rate)
        before, after = found.view(2, -1)
        for b, kept in values.items():
            mixed, result = (
                known(x[rows == b].mean().item(), metric) for x in (before, after)
            )
            kept[f"{metric}_mix"], kept[metric] = mixed, result
            gain = None if None in (mixed, result) else result - mixed
            kept[f"{metric}i"] = gain
    return [Score(batch.ids[b], kept) for b, kept in values.items()]


def known(value: float, metric: str) -> float | None:
    """None for what a package could not measure; our own metrics always have a value.

    Example
    -------
    >>> known(float("nan"), "pesq"), known(float("nan"), "si_sdr"), known(1.5, "pesq")
    (None, nan, 1.5)
    """
    return None if METRICS[metric].package and math.isnan(value) else value


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
        minus ``ci95`` (normal approximation; None for a single utterance). A metric
        that could be measured on fewer utterances has an ``n`` of its own; what is not
        finite is None.

    Example
    -------
    >>> summarise([Score("a", {"si_sdri": 8.0}), Score("b", {"si_sdri": 6.0})])
    {'n': 2, 'si_sdri': {'mean': 7.0, 'ci95': 1.96}}
    """
    summary: dict[str, Any] = {"n": len(scores)}
    for key, column in columns_of(scores).items():
        mean, interval = fmean(column), None
        if not math.isfinite(mean):
            summary[key] = {"mean": None, "ci95": None}
            continue
        if len(column) > 1:
            interval = round(1.96 * stdev(column) / len(column) ** 0.5, 4)
        summary[key] = {"mean": round(mean, 4), "ci95": interval}
        if len(column) < len(scores):
            summary[key]["n"] = len(column)
    return summary


def breakdown(
    scores: Sequence[Score], groups: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The summary of each group of utterances; ``groups`` goes from id to group."""
    members: dict[str, list[Score]] = {}
    for score in scores:
        if score.id in groups:
            members.setdefault(groups[score.id], []).append(score)
    return {name: summarise(members[name]) for name in sorted(members)}


def title_of(key: str) -> tuple[str, str]:
    """The title and the unit of a key of ``Score.values``.

    Example
    -------
    >>> title_of("si_sdr_mix"), title_of("stoii")
    (('SI-SDR, mix', ' dB'), ('STOIi', ''))
    """
    for metric, (name, unit, *_) in METRICS.items():
        titles = {
            f"{metric}_mix": f"{name}, mix",
            metric: name,
            f"{metric}i": f"{name}i",
        }
        if key in titles:
            return titles[key], unit
    return key, ""


def cells_of(entry: Mapping[str, Any], unit: str) -> tuple[str, str]:
    """Mean and interval of a summary's entry for a table.

    Example
    -------
    >>> cells_of({"mean": 6.0, "ci95": 0.25}, " dB"), cells_of({"mean": 6.0}, " dB")
    (('6.00 dB', '± 0.25'), ('6.00 dB', ''))
    """
    if entry["mean"] is None:
        return "n/a", ""
    interval = entry.get("ci95")
    return f"{entry['mean']:.2f}{unit}", "" if interval is None else f"± {interval:.2f}"


def as_quality(entry: Mapping[str, Any]) -> str:
    """Mean and interval in dB of a summary's entry for a model's card.

    Example
    -------
    >>> as_quality({"mean": 6.0, "ci95": 0.25}), as_quality({"mean": 6.0, "ci95": None})
    ('6.00 dB ± 0.25 (95% CI)', '6.00 dB')
    """
    text = " ".join(cells_of(entry, " dB")).strip()
    return f"{text} (95% CI)" if "±" in text else text
