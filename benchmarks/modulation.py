"""What the global modulation does in a trained model.

    python -m benchmarks.modulation --list libri2mix_test-clean.csv \\
        --data-folder LibriSpeech

Takes the shipped model (or ``--model``) and test mixtures, and writes
``docs/modulation.md`` and ``.png``: how the factors of each block differ from mixture
to mixture, what SI-SDRi is left when they are taken away, held fixed or taken from
other people, and how much of the past the global vector needs.

Axes: B mixtures, L encoder frames, N filters, K frames in a chunk, S chunks of a
mixture, spks sources.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.evidence import mean
from benchmarks.testlist import made_by, open_list, parse, publish
from speechbrain_spgm.data import MixtureList
from speechbrain_spgm.inference.separation import find_published
from speechbrain_spgm.lobes.chunking import overlap_add
from speechbrain_spgm.lobes.norms import norm_affine, row_moments, utterance_moments
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.lobes.statistics import Averages
from speechbrain_spgm.metrics.pictures import new_figure, save
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss
from speechbrain_spgm.models.published import load_published
from speechbrain_spgm.training.experiment import user_errors

PASTS = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds of the past in the global vector

# From the number of a block, the block and its pooled chunks [S, N] to factors [S, N],
# or [1, N] for all chunks.
Modulate = Callable[[int, SPGMBlock, Tensor], Tensor]


class Model(NamedTuple):
    """A separation model of the published layout."""

    encoder: nn.Module
    masknet: nn.Module
    decoder: nn.Module
    sample_rate: int


def separate(model: Model, mix: Tensor, modulate: Modulate) -> Tensor:
    """Separates a mixture with other factors than the model's own.

    Arguments
    ---------
    model : Model
        In evaluation mode.
    mix : torch.Tensor
        ``[1, T]``.
    modulate : callable
        Gives the factors of a block.

    Returns
    -------
    est : torch.Tensor
        ``[1, T, spks]``.
    """
    net = model.masknet
    mix_w = model.encoder(mix)  # [1, N, L]
    L = mix_w.shape[-1]
    rows, chunks = net._embed(mix_w, [L], Averages())  # [S, K, N]

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        return utterance_moments(*row_moments(x), chunks)

    for i, block in enumerate(net.dual_mdl):
        local = net._intra(block, rows)
        scale, shift = norm_affine(block.intra_norm, *moments(local))
        rows = local * scale + shift + (rows if block.skip_around_intra else 0)
        c = modulate(i, block.inter_mdl, block.inter_mdl.pool(rows))
        mixed = rows * c.unsqueeze(1)
        scale, shift = norm_affine(block.inter_norm, *moments(mixed))
        rows = rows + mixed * scale + shift
    added = overlap_add(net.prelu(rows), chunks, [L])
    masks = net.masks(added[0]).unsqueeze(1)  # [spks, 1, N, L]
    voices = [model.decoder(mix_w * mask) for mask in masks]
    est = torch.stack([voice.reshape(1, -1) for voice in voices], dim=-1)
    return nn.functional.pad(est, (0, 0, 0, mix.shape[1] - est.shape[1]))


def own(i: int, block: SPGMBlock, pooled: Tensor) -> Tensor:
    """The model's own factors: the mean over all chunks modulates all."""
    return block.modulation(pooled.mean(0, keepdim=True))


def ones(i: int, block: SPGMBlock, pooled: Tensor) -> Tensor:
    """No modulation."""
    return torch.ones_like(pooled[:1])


def given(factors: list[Tensor]) -> Modulate:
    """Factors ``[N]`` of each block that come from elsewhere."""
    return lambda i, block, pooled: factors[i].unsqueeze(0)


def past(chunks: int) -> Modulate:
    """Every chunk is modulated by the mean over itself and those just before it."""

    def modulate(i: int, block: SPGMBlock, pooled: Tensor) -> Tensor:
        sums = pooled.double().cumsum(0)
        sums[chunks:] -= sums[:-chunks].clone()
        counts = torch.arange(1, len(pooled) + 1).clamp(max=chunks).unsqueeze(1)
        return block.modulation((sums / counts).to(pooled.dtype))

    return modulate


class Found(NamedTuple):
    """What the mixtures show."""

    factors: Tensor  # [B, blocks, N]
    halves: Tensor  # the same for the two halves of each mixture, [B, 2, blocks, N]
    scores: dict[str, list[float]]  # SI-SDRi in dB of each mixture


def record(model: Model, mix: Tensor) -> Tensor:
    """The model's own factors of each block, ``[blocks, N]``."""
    factors = []

    def modulate(i: int, block: SPGMBlock, pooled: Tensor) -> Tensor:
        factors.append(own(i, block, pooled))
        return factors[-1]

    separate(model, mix, modulate)
    return torch.cat(factors)


def study(model: Model, mixtures: MixtureList) -> Found:
    """Separates every mixture in every way."""
    mixes = [mixtures[i].mix.unsqueeze(0) for i in range(len(mixtures))]
    factors = torch.stack([record(model, mix) for mix in mixes])
    halves = torch.stack(
        [
            torch.stack([record(model, h) for h in mix.tensor_split(2, 1)])
            for mix in mixes
        ]
    )
    net = model.masknet
    half = net.K / 2 * model.decoder.stride[0] / model.sample_rate  # seconds
    scores: dict[str, list[float]] = {}
    for i, mix in enumerate(mixes):
        ways = {
            "as trained": own,
            "no modulation (c = 1)": ones,
            "mean factors of all mixtures": given(list(factors.mean(0))),
            "factors of the next mixture": given(list(factors[(i + 1) % len(mixes)])),
        }
        ways |= {  # chunks overlap by half: n of them reach n + 1 halves back
            f"global vector of the last {seconds:g} s": past(
                max(1, round(seconds / half) - 1)
            )
            for seconds in PASTS
        }
        sources = mixtures[i].sources.unsqueeze(0)
        lengths = torch.tensor([mix.shape[1]])
        before = pit_si_sdr_loss(mix.unsqueeze(-1).expand_as(sources), sources, lengths)
        for name, modulate in ways.items():
            est = separate(model, mix, modulate)
            after = pit_si_sdr_loss(est, sources, lengths)
            scores.setdefault(name, []).append(float(before.loss - after.loss))
    return Found(factors, halves, scores)


def report(found: Found, name: str) -> str:
    """Everything in Markdown."""
    B, blocks, _ = found.factors.shape
    reference = found.scores["as trained"]
    lines = [
        "# What the modulation does\n",
        f"{made_by('modulation', B)} with {name} on {B} mixtures of two "
        "test speakers. ± is the 95% confidence interval of the mean (of the "
        "difference, paired by mixture).\n",
        "| factors | SI-SDRi, dB | against the trained way, dB |",
        "|---|---|---|",
    ]
    for name, values in found.scores.items():
        gaps = [a - b for a, b in zip(values, reference, strict=True)]
        gap = "" if name == "as trained" else mean(gaps)
        lines.append(f"| {name} | {mean(values)} | {gap} |")
    lines += [
        "\nHow far the factors c of a block are from each other: the root mean square "
        "over filters, between the two halves of a mixture (the same people) and "
        "between different mixtures (other people), beside the mean and the spread "
        "over filters.\n",
        "| block | mean of c | spread over filters | same people | other people "
        "| ratio |",
        "|---|---|---|---|---|---|",
    ]
    for i in range(blocks):
        c = found.factors[:, i]
        same = (found.halves[:, 0, i] - found.halves[:, 1, i]).square().mean().sqrt()
        # Halves against halves: both sides are estimates from as much audio.
        first, second = found.halves[:, 0, i], found.halves[:, 1, i].roll(1, 0)
        other = (first - second).square().mean().sqrt()
        numbers = [c.mean(), c.mean(0).std(), same, other, other / same]
        cells = " | ".join(f"{float(x):.3f}" for x in numbers)
        lines.append(f"| {i + 1} | {cells} |")
    lines.append("\n![Factors of two mixtures](modulation.png)\n")
    return "\n".join(lines)


def draw(path: Path, found: Found) -> None:
    """The factors of both halves of two mixtures, block by block."""
    blocks = found.factors.shape[1]
    figure = new_figure(7, 1.7 * blocks)
    for i, axes in enumerate(
        figure.subplots(blocks, 1, sharex=True, squeeze=False)[:, 0]
    ):
        order = found.factors[:, i].mean(0).argsort()
        for b, color in ((0, "tab:blue"), (1, "tab:orange")):
            for half, style in ((0, "-"), (1, ":")):
                axes.plot(
                    found.halves[b, half, i][order],
                    style,
                    color=color,
                    linewidth=1,
                    label=f"mixture {b + 1}, half {half + 1}",
                )
        axes.set_ylabel(f"c, block {i + 1}")
        axes.grid(alpha=0.3)
    axes.set_xlabel("filter, by mean factor")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=4
    )
    save(figure, path)


def main(argv: list[str] | None = None) -> None:
    """Measures and writes.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    arguments = parse("modulation", argv)
    with user_errors(), torch.no_grad():
        *parts, config = load_published(find_published(arguments.model))
        for part in parts:
            part.eval()
        model = Model(*parts, config["sample_rate"])
        found = study(model, open_list(arguments, model.sample_rate))
    text = report(found, arguments.model or "the shipped model")
    publish(arguments, "modulation", text)
    draw(arguments.output / "modulation.png", found)


if __name__ == "__main__":
    main()
