"""Whether a recording's level or an offset changes how well it is separated.

    python -m benchmarks.levels --list libri2mix_test-clean.csv \\
        --data-folder LibriSpeech --mixtures 50

Separates each mixture as it is, at other levels and with offsets, in every way and in
fp32 and int8, and writes ``docs/levels.md``: the mean SI-SDRi must stay what it is.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import soundfile
import torch
from torch import Tensor

from benchmarks.testlist import made_by, open_list, parse, publish
from speechbrain_spgm.audio import Recording
from speechbrain_spgm.data import MixtureBatch
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss
from speechbrain_spgm.training.experiment import user_errors

# What is done to a mixture: a gain, then an offset.
CHANGES = {
    "as it is": (1.0, 0.0),
    "times 1e-4": (1e-4, 0.0),
    "times 1e+2": (1e2, 0.0),
    "plus 0.1": (1.0, 0.1),
}
PRECISIONS = ("fp32", "int8")
TOGETHER = 5  # mixtures in a batch
WINDOW, OVERLAP = 4.0, 0.5  # seconds; test mixtures are short

Way = Callable[[SPGMSeparation, Tensor, Tensor], Sequence[Tensor]]


def exact(model: SPGMSeparation, mix: Tensor, lengths: Tensor) -> list[Tensor]:
    """Each recording as a whole."""
    recordings = [
        Recording(row[:n], model.sample_rate, "mixture")
        for row, n in zip(mix, lengths, strict=True)
    ]
    return [model.separate_recording(r, views=1)[0] for r in recordings]


def stitched(model: SPGMSeparation, mix: Tensor, lengths: Tensor) -> list[Tensor]:
    """Each in windows, from a file."""
    voices = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mixture.wav"
        for row, n in zip(mix, lengths, strict=True):
            soundfile.write(path, row[:n].numpy(), model.sample_rate, subtype="FLOAT")
            options = {"window": WINDOW, "overlap": OVERLAP, "views": 1}
            voices.append(model.separate_file(path, mode="stitched", **options)[0])
    return voices


def batched(model: SPGMSeparation, mix: Tensor, lengths: Tensor) -> Tensor:
    """All at once."""
    return model.separate_batch(mix, lengths, level=True)


def streamed(model: SPGMSeparation, mix: Tensor, lengths: Tensor) -> list[Tensor]:
    """Each as it comes."""
    voices = []
    for row, n in zip(mix, lengths, strict=True):
        stream = model.stream(views=1)
        voices.append(torch.cat([stream.push(row[:n]), stream.finish()]))
    return voices


WAYS: dict[str, Way] = {
    "exact": exact,
    "stitched": stitched,
    "batched": batched,
    "streamed": streamed,
}


def improvements(voices: Sequence[Tensor], batch: MixtureBatch) -> list[float]:
    """SI-SDRi in dB of each utterance."""
    gains = []
    for est, sources, n in zip(voices, batch.sources, batch.lengths, strict=True):
        sources = sources[None, :n]
        mix = sources.sum(-1, keepdim=True).expand_as(sources)
        before, after = (pit_si_sdr_loss(x, sources).loss for x in (mix, est[None, :n]))
        gains.append(float(before - after))
    return gains


def report(scores: dict[tuple[str, str], dict[str, list[float]]], name: str) -> str:
    """The table in Markdown."""
    count = min(len(values) for row in scores.values() for values in row.values())
    lines = [
        "# Levels and offsets\n",
        f"{made_by('levels', count)} with {name}: mean SI-SDRi in dB of {count} "
        "test mixtures, one view of each, whose samples are multiplied by a "
        "gain or raised by an offset. Spread: the largest less the smallest mean.\n",
        f"| precision | way | {' | '.join(CHANGES)} | spread |",
        f"|---|---|{'---|' * len(CHANGES)}---|",
    ]
    for (precision, way), row in scores.items():
        means = [fmean(values) for values in row.values()]
        cells = " | ".join(f"{mean:.3f}" for mean in means)
        spread = max(means) - min(means)
        lines.append(f"| {precision} | {way} | {cells} | {spread:.3f} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measures and writes.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    arguments = parse("levels", argv)
    keys = [(precision, way) for precision in PRECISIONS for way in WAYS]
    scores = {key: {change: [] for change in CHANGES} for key in keys}
    with user_errors():
        models = {
            precision: SPGMSeparation.from_pretrained(
                arguments.model, device="cpu", precision=precision
            )
            for precision in PRECISIONS
        }
        mixtures = open_list(arguments, models["fp32"].sample_rate)
        for start in range(0, len(mixtures), TOGETHER):
            places = range(start, min(len(mixtures), start + TOGETHER))
            batch = MixtureBatch.collate([mixtures[i] for i in places])
            for precision, way in keys:
                for change, (gain, offset) in CHANGES.items():
                    mix = gain * batch.mix + offset
                    voices = WAYS[way](models[precision], mix, batch.lengths)
                    # The loss has a floor, under which quiet voices would fall.
                    voices = [est / gain for est in voices]
                    scores[precision, way][change] += improvements(voices, batch)
            text = report(scores, arguments.model or "the shipped model")
            publish(arguments, "levels", text)


if __name__ == "__main__":
    main()
