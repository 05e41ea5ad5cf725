"""Which output of each window is which speaker: one decision for all windows.

A separator numbers its outputs as it likes, anew in every window. Two things tell which
outputs belong together:

- Neighbours separate the same samples where they overlap. The right permutation leaves
  little difference there; how little, relative to the other permutations, is the
  evidence. It fades where the overlap is silent.
- A speaker sounds alike in all windows. Every output has a mean log spectrum over the
  frames in which it is the loudest; every speaker has the mean of theirs. So a speaker
  is found again after a silence that no overlap bridges.

Both are sums of log likelihoods. Dynamic programming finds the best sequence of
permutations given the speakers' spectra, these follow from the permutations, and so on
until nothing changes; of several starts the best end is kept.

Axes: W windows, T samples, spks sources, P permutations, F bands.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from speechbrain_spgm.errors import UserError

MOST_SPEAKERS = 6  # whose 720 permutations can all be tried
FLOOR = 1e-3  # difference, relative to the mixture, that may be chance
SILENCE = 1e-4  # relative to the mean power of the recording
BANDS, FFT = 24, 512
# Bands are correlated and windows of one speaker differ: a window's spectrum counts as
# so many independent values.
FREEDOM = 4.0
# What the sound of one window may weigh: outputs that hold both speakers can mislead
# it, so a good overlap outvotes it, but it decides where overlaps are silent.
MOST_SAID = 0.5
STARTS = 12
ROUNDS = 20


class Timbre(NamedTuple):
    """Mean log spectra of the outputs of a window.

    ``spectra`` ``[spks, F]``, natural logarithm of power, mean over the bands removed,
    and ``share`` ``[spks]``: for how much of the window each output is the loudest and
    heard.
    """

    spectra: Tensor
    share: Tensor


class Assignment(NamedTuple):
    """Outputs of all windows in the order of the speakers.

    ``orders[w][k]`` is the output of window w that holds speaker k; ``confidence``, for
    each seam, from 0.5 to 1: of the chosen permutation against the best other one, all
    evidence of the recording considered.
    """

    orders: list[list[int]]
    confidence: list[float]


def distances(before: Tensor, after: Tensor) -> Tensor:
    """Energy of the differences of all pairs of outputs ``[T, spks]`` in an overlap.

    Float64, ``[spks, spks]``.
    """
    before, after = before.double(), after.double()
    return torch.stack(
        [(voice.unsqueeze(-1) - after).square().sum(0) for voice in before.T]
    )


def timbre(est: Tensor, loudness: float) -> Timbre:
    """The sound of a window's outputs ``[T, spks]``; zeros where never heard."""
    T, spks = est.shape
    padded = torch.nn.functional.pad(est.T, (0, max(0, FFT - T)))
    spectrum = torch.stft(
        padded,
        FFT,
        hop_length=FFT // 2,
        window=torch.hann_window(FFT, dtype=torch.float32, device="cpu"),
        center=False,
        return_complex=True,
    )
    power = spectrum.abs().square()[:, 1:]  # [spks, bins, frames]
    total = power.sum(1)  # [spks, frames]
    heard = total > 1e-2 * loudness * FFT * FFT * 3 / 16  # power of a windowed frame
    loudest = torch.nn.functional.one_hot(total.argmax(0), spks).T.bool() & heard
    share = loudest.double().mean(1)
    edges = _edges(power.shape[1])
    bands = torch.stack(
        [power[:, a:b].mean(1) for a, b in zip(edges, edges[1:], strict=False)], 1
    )  # [spks, F, frames]
    floor = 1e-6 * loudness * FFT
    logs = (bands.double() + floor).log()
    logs = logs - logs.mean(1, keepdim=True)
    count = loudest.sum(1).clamp_min(1).unsqueeze(-1)
    return Timbre((logs * loudest.unsqueeze(1)).sum(-1) / count, share)


def _edges(bins: int) -> list[int]:
    """Borders of the bands: equal at low frequencies, in ratio at high ones."""
    mel = torch.linspace(0, 1, BANDS + 1, dtype=torch.float64, device="cpu")
    edges = (10**mel - 1) / 9 * bins
    edges = torch.maximum(edges.round(), torch.arange(BANDS + 1, device="cpu"))
    return edges.int().tolist()


def check_speakers(spks: int) -> None:
    """Refuses models whose outputs cannot be put in order."""
    if spks > MOST_SPEAKERS:
        raise UserError(
            f"the model has {spks} outputs, but windows are stitched for at most "
            f"{MOST_SPEAKERS}: use the exact mode."
        )


def assign(
    pairs: list[Tensor], energies: list[float], loudness: float, timbres: list[Timbre]
) -> Assignment:
    """The permutations of all W windows; the first keeps its order.

    For each seam ``distances`` and the mixture's energy in the overlap; ``loudness`` is
    the energy of an overlap of mean power.
    """
    W, spks = len(timbres), len(timbres[0].share)
    check_speakers(spks)
    orders = torch.tensor(list(permutations(range(spks))), device="cpu")  # [P, spks]
    transitions = [
        _transition(pair, energy, loudness, orders)
        for pair, energy in zip(pairs, energies, strict=True)
    ]
    spectra = torch.stack([t.spectra for t in timbres])  # [W, spks, F]
    share = torch.stack([t.share for t in timbres])  # [W, spks]

    flat = torch.zeros(W, len(orders), dtype=torch.float64, device="cpu")
    best, best_score, best_emission = None, -float("inf"), flat
    for start in [None, *_starts(share)]:
        emission = flat  # the first start knows neighbours only,
        if start is not None:  # the others the voices of one window
            emission = _emissions(spectra, share, spectra[start], orders)
        path = _viterbi(emission, transitions)
        for _ in range(ROUNDS):
            emission = _emissions(
                spectra, share, _means(spectra, share, orders[path]), orders
            )
            previous, path = path, _viterbi(emission, transitions)
            if torch.equal(path, previous):
                break
        score = _score(path, emission, transitions)
        if score > best_score + 1e-9:
            best, best_score, best_emission = path, score, emission
    first = orders[best[0]].argsort()  # the first window keeps its order
    chosen = orders[best][:, first]
    return Assignment(
        chosen.tolist(), _confidence(best, best_emission, transitions, orders)
    )


def _transition(pair: Tensor, energy: float, loudness: float, orders: Tensor) -> Tensor:
    """Log likelihood of every pair of permutations at a seam, ``[P, P]``."""
    rest = pair[orders.unsqueeze(1), orders.unsqueeze(0)].sum(-1)
    return -(rest + FLOOR * energy + SILENCE * loudness + 1e-30).log()


def _starts(share: Tensor) -> list[int]:
    """Some windows, those first in which every output is heard."""
    return share.amin(1).argsort(descending=True, stable=True)[:STARTS].tolist()


def _means(spectra: Tensor, share: Tensor, orders: Tensor) -> Tensor:
    """The speakers' spectra under an assignment, ``[spks, F]``."""
    index = orders.unsqueeze(-1).expand_as(spectra)
    weight = share.gather(1, orders).unsqueeze(-1)
    total = (spectra.gather(1, index) * weight).sum(0)
    return total / weight.sum(0).clamp_min(1e-12)


def _emissions(spectra: Tensor, share: Tensor, means: Tensor, orders: Tensor) -> Tensor:
    """Log likelihood of every permutation of each window by its sound, ``[W, P]``."""
    errors = spectra.unsqueeze(2) - means  # [W, output, speaker, F]
    squares = errors.square().mean(-1)
    # Around the nearest speaker: large where they cannot be told apart by their sound.
    total = share.sum().clamp_min(1e-12)
    variance = (squares.amin(2) * share).sum() / total + 1e-2
    # An output that is heard for a tenth of the window says all that it can say.
    weight = (share * 10).clamp_max(1).unsqueeze(-1)
    match = -FREEDOM / 2 * weight * (squares / variance + variance.log())
    speakers = torch.arange(orders.shape[1], device="cpu")
    emission = match[:, orders, speakers].sum(-1)
    return emission.maximum(emission.amax(1, keepdim=True) - MOST_SAID)


def _viterbi(emission: Tensor, transitions: list[Tensor]) -> Tensor:
    """The best permutation of each window, ``[W]``."""
    score, back = emission[0], []
    for transition, here in zip(transitions, emission[1:], strict=True):
        value, origin = (score.unsqueeze(1) + transition).max(0)
        back.append(origin)
        score = value + here
    path = [int(score.argmax())]
    for origin in reversed(back):
        path.append(int(origin[path[-1]]))
    return torch.tensor(path[::-1], device="cpu")


def _score(path: Tensor, emission: Tensor, transitions: list[Tensor]) -> float:
    steps = sum(
        transition[a, b]
        for transition, a, b in zip(transitions, path, path[1:], strict=False)
    )
    return float(emission.gather(1, path.unsqueeze(1)).sum() + steps)


def _confidence(
    path: Tensor, emission: Tensor, transitions: list[Tensor], orders: Tensor
) -> list[float]:
    """Of each seam: the best sequence with its permutation against the best without."""
    ahead = [emission[0]]
    for transition, here in zip(transitions, emission[1:], strict=True):
        ahead.append((ahead[-1].unsqueeze(1) + transition).amax(0) + here)
    behind = [torch.zeros_like(emission[0])]
    for transition, there in zip(transitions[::-1], emission.flip(0), strict=False):
        behind.append((transition + there + behind[-1]).amax(1))
    behind.reverse()
    # The permutation at a seam: which output follows which, whatever speaker it is.
    inverse = orders.argsort(1)
    relative = orders.unsqueeze(0).expand(len(orders), -1, -1)
    relative = relative.gather(2, inverse.unsqueeze(1).expand_as(relative))
    found = []
    for w, transition in enumerate(transitions):
        value = ahead[w].unsqueeze(1) + transition + emission[w + 1] + behind[w + 1]
        same = (relative == relative[path[w], path[w + 1]]).all(-1)
        if same.all():  # a single speaker
            found.append(1.0)
            continue
        margin = value[same].max() - value[~same].max()
        found.append(float(torch.sigmoid(margin)))
    return found
