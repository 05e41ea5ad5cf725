"""Scale-invariant SDR with lengths, and the best assignment of estimates to sources.

Axes: B utterances, T samples, spks sources. Signals come in as [B, T, spks]; inside
they are [B, spks, T], because all sums run over T.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment

SILENCE = 1e-10  # mean square (-100 dB) up to which a reference counts as silent
LEAK_DB = -40.0  # share of the power from which on less of it is not asked for
TRIED_UP_TO = 4  # speakers for which all permutations are tried: 4! = 24
EPS = torch.finfo(torch.float32).eps


class PitResult(NamedTuple):
    """What ``pit_si_sdr_loss`` returns.

    Arguments
    ---------
    loss : torch.Tensor
        Negative SI-SDR in dB [B], the mean over the active references.
    permutation : torch.Tensor
        [B, spks]; estimate ``permutation[b, j]`` belongs to reference j.
    active : torch.Tensor
        [B, spks], bool; False where reference j is silent.
    """

    loss: torch.Tensor
    permutation: torch.Tensor
    active: torch.Tensor


def pit_si_sdr_loss(
    estimates: torch.Tensor,
    references: torch.Tensor,
    lengths: torch.Tensor | None = None,
) -> PitResult:
    """Permutation-invariant negative SI-SDR of each utterance.

    Samples beyond an utterance's length never count, so an utterance in a batch has the
    loss it has alone. Silent references take part in no pair: any estimate may stand
    for one, and the loss is the mean over the others (zero, with zero gradient, if
    there is no other). Computed in float32 whatever autocast says; the inputs stay as
    they are.

    Arguments
    ---------
    estimates, references : torch.Tensor
        [B, T, spks].
    lengths : torch.Tensor, optional
        Samples of each utterance [B]; default: all T.

    Returns
    -------
    PitResult
        loss [B], permutation [B, spks] and active [B, spks].

    Example
    -------
    >>> references = torch.randn(3, 8000, 2)
    >>> result = pit_si_sdr_loss(references.flip(-1), references)
    >>> result.permutation.tolist()
    [[1, 0], [1, 0], [1, 0]]
    >>> bool((result.loss < -60).all())
    True
    """
    with torch.autocast(estimates.device.type, enabled=False):
        estimates = centre(estimates, lengths)
        references = centre(references, lengths)
        active = is_active(references, lengths)
        scores = pairwise_si_sdr(estimates, references) * active.unsqueeze(1)
        permutation, best = best_pairs(scores)
        loss = -best.sum(-1) / active.sum(-1).clamp(min=1)
    return PitResult(loss, permutation, active)


def pit_si_sdr_leak_loss(
    estimates: torch.Tensor,
    references: torch.Tensor,
    lengths: torch.Tensor | None = None,
) -> PitResult:
    """``pit_si_sdr_loss`` that also asks for silence where a reference is silent.

    For recordings in which somebody is silent all the time (the augmentation
    ``converse`` makes such). The estimate that stands for a silent reference counts
    with the power that it has of all estimates', in dB, down to ``LEAK_DB``; the loss
    is the mean over all references, or zero where all are silent. It takes and returns
    what ``pit_si_sdr_loss`` does.

    Example
    -------
    >>> voice = torch.randn(1, 8000, 1)
    >>> lone = torch.cat([torch.zeros_like(voice), voice], dim=-1)
    >>> leaking = torch.cat([voice, 0.1 * voice], dim=-1)
    >>> result = pit_si_sdr_leak_loss(leaking, lone)
    >>> result.permutation.tolist()
    [[1, 0]]
    >>> leak = 2 * result.loss - pit_si_sdr_loss(leaking, lone).loss
    >>> leak.round()
    tensor([-20.])
    """
    with torch.autocast(estimates.device.type, enabled=False):
        estimates = centre(estimates, lengths)
        references = centre(references, lengths)
        active = is_active(references, lengths)
        heard = active.any(-1)
        scores = torch.where(
            active.unsqueeze(1),
            pairwise_si_sdr(estimates, references),
            -leak_db(estimates).unsqueeze(2),
        ) * heard.view(-1, 1, 1)
        permutation, best = best_pairs(scores)
    return PitResult(-best.mean(-1), permutation, active)


def si_sdr(
    estimates: torch.Tensor,
    references: torch.Tensor,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """SI-SDR in dB, [B, spks], of estimate j against reference j.

    Arguments as in ``pit_si_sdr_loss``; without meaning where the reference is silent.

    Example
    -------
    >>> reference = torch.tensor([1.0, -1, 1, -1]).view(1, 4, 1)
    >>> noise = torch.tensor([0.1, 0.1, -0.1, -0.1]).view(1, 4, 1)
    >>> si_sdr(reference + noise, reference).round(decimals=2)
    tensor([[20.]])
    """
    with torch.autocast(estimates.device.type, enabled=False):
        estimates = centre(estimates, lengths)
        references = centre(references, lengths)
        return ratio_db(estimates, references)


def training_loss(losses: torch.Tensor, threshold: float | None = None) -> torch.Tensor:
    """The mean of the losses [B] that are not below a threshold.

    The published recipes drop what is better than -30 dB, so that easy mixtures do not
    rule the gradient. If all are, the loss is zero and so is its gradient.
    """
    kept = is_kept(losses, threshold)
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def is_kept(losses: torch.Tensor, threshold: float | None) -> torch.Tensor:
    """Whether an utterance takes part in training: those of at least the threshold.

    Losses that are not finite are kept, so that nobody mistakes them for good ones.
    """
    if threshold is None:
        return torch.ones_like(losses, dtype=torch.bool)
    return ~(losses <= threshold)


def reorder(estimates: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    """Puts estimates [B, T, spks] into the order of their references."""
    return estimates.gather(2, permutation.unsqueeze(1).expand_as(estimates))


def centre(signals: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """From [B, T, spks] to float32 [B, spks, T], zero mean, zero beyond the lengths."""
    signals = signals.float().transpose(1, 2).contiguous()
    if lengths is None:
        return signals - signals.mean(-1, keepdim=True)
    samples = torch.arange(signals.shape[-1], device=signals.device)
    beyond = (samples >= lengths.unsqueeze(1)).unsqueeze(1)  # [B, 1, T]
    # Not a product: NaN in the padding must not get through.
    signals = signals.masked_fill(beyond, 0.0)
    means = signals.sum(-1, keepdim=True) / lengths.clamp(min=1).view(-1, 1, 1)
    return (signals - means).masked_fill(beyond, 0.0)


def is_active(references: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Whether each of the centred references [B, spks, T] is not silent: [B, spks]."""
    if lengths is None:
        return references.square().mean(-1) > SILENCE
    return references.square().sum(-1) > SILENCE * lengths.unsqueeze(1)


def octaves(peaks: torch.Tensor) -> torch.Tensor:
    """The powers of two that bring peaks to [0.5, 1); 1 for silence and infinity.

    Such a factor changes no digit, but SILENCE and EPS then mean the same at any level.
    """
    gains = torch.ldexp(torch.ones_like(peaks), -torch.frexp(peaks).exponent)
    return torch.where(peaks.isfinite() & (peaks > 0), gains, 1.0)


def even(signals: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """Signals along an axis with peaks from a half to 1, for what knows no level."""
    return signals * octaves(signals.abs().amax(axis, keepdim=True))


def pairwise_si_sdr(estimates: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """SI-SDR of every estimate i with every reference j: [B, spks (i), spks (j)]."""
    # [B, spks, 1, T] against [B, 1, spks, T]
    return ratio_db(estimates.unsqueeze(2), references.unsqueeze(1))


def ratio_db(estimates: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """SI-SDR in dB of centred signals along T, broadcast over the other axes."""
    dot = (estimates * references).sum(-1)
    energy = references.square().sum(-1)
    scale = (dot + EPS) / (energy + EPS)
    # The residual itself, not a difference of energies, which cancels at high SI-SDR.
    noise = (estimates - scale.unsqueeze(-1) * references).square().sum(-1)
    return 10 * torch.log10((scale.square() * energy + EPS) / (noise + EPS))


def leak_db(estimates: torch.Tensor) -> torch.Tensor:
    """Each one's share of the power of estimates [B, spks, T]: [B, spks], in dB."""
    powers = estimates.square().sum(-1)
    shares = powers / powers.sum(-1, keepdim=True).clamp(min=EPS)
    return 10 * torch.log10(shares + 10 ** (LEAK_DB / 10))


def best_pairs(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best permutation of scores [B, spks, spks], and its scores: [B, spks]."""
    permutation = best_permutation(scores.detach().nan_to_num())
    # Row j of the matrix's transpose holds reference j's scores.
    best = scores.transpose(1, 2).gather(2, permutation.unsqueeze(2)).squeeze(2)
    return permutation, best


def best_permutation(scores: torch.Tensor) -> torch.Tensor:
    """The assignment of estimates to references with the highest sum of scores.

    From [B, spks, spks], estimates by references, to [B, spks]: the estimate of each.
    """
    spks = scores.shape[-1]
    if spks > TRIED_UP_TO:
        rows = [linear_sum_assignment(s.T, maximize=True)[1] for s in scores.cpu()]
        return torch.stack([torch.from_numpy(r) for r in rows]).to(scores.device)
    tried = torch.tensor(list(permutations(range(spks))), device=scores.device)
    # Sum over j of scores[b, tried[p, j], j]: [B, permutations]
    sums = scores[:, tried, torch.arange(spks, device=scores.device)].sum(-1)
    return tried[sums.argmax(-1)]
