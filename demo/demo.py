"""Separates a mixture of two people, measures the result and draws it.

The two voices are a LibriVox reading and a Russian telephone prompt (see
ATTRIBUTION.md): no model of this project was trained on either. `make demo` runs it.

    python demo/demo.py [--model SOURCE] [--output DIR]

Axes: T samples, spks sources.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from matplotlib.axes import Axes
from torchmetrics.functional.audio import (
    permutation_invariant_training,
    pit_permutate,
    scale_invariant_signal_distortion_ratio,
)

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.metrics.pictures import (
    MIXTURE_COLOR,
    VOICE_COLORS,
    add_level_bar,
    decibels,
    draw_spectrogram,
    new_figure,
    save,
)

HERE = Path(__file__).resolve().parent
VOICES = {"reading-en.flac": "man, English", "prompt-ru.flac": "woman, Russian"}


def main(argv: list[str] | None = None) -> None:
    """Runs the demo.

    Arguments
    ---------
    argv : list of str, optional
        The command line after the program's name.
    """
    arguments = parse(argv)
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)

    references, sample_rate = read_voices()  # [spks, T]
    mixture = references.sum(0)  # [T]
    write(output / "mixture.wav", mixture, sample_rate)

    model = SPGMSeparation.from_pretrained(arguments.model)
    estimates = model.separate_file(output / "mixture.wav")[0].T  # [spks, T]
    if len(estimates) != len(references):
        raise UserError(
            f"The demo mixes {len(references)} people, but this model separates "
            f"{len(estimates)}: give a model for {len(references)} by --model."
        )

    before = si_sdr(mixture.expand_as(references), references)  # [spks]
    after, estimates = si_sdr_of_best_order(estimates, references)
    for number, estimate in enumerate(estimates, start=1):
        write(output / f"spk{number}.wav", estimate, sample_rate)
    draw(
        output / "demo.png", mixture, estimates, references, before, after, sample_rate
    )
    report(before, after)
    print("\nwritten:")
    for name in ("mixture.wav", "spk1.wav", "spk2.wav", "demo.png"):
        print(f"  {output / name}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="separate a mixture of two people")
    parser.add_argument(
        "--model",
        metavar="SOURCE",
        help="a folder or a Hub repository (default: the model in the package)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=HERE / "output",
        help="where the wavs and the picture go (default: demo/output)",
    )
    return parser.parse_args(argv)


def read_voices() -> tuple[torch.Tensor, int]:
    """Reads the recordings: [spks, T] and their sample rate."""
    waves, rates = zip(
        *(soundfile.read(HERE / name, dtype="float32") for name in VOICES), strict=True
    )
    return torch.from_numpy(np.stack(waves)), rates[0]


def write(path: Path, wave: torch.Tensor, sample_rate: int) -> None:
    """Writes one waveform [T] as a 16-bit file."""
    soundfile.write(path, wave.numpy(), sample_rate, subtype="PCM_16")


def si_sdr(estimates: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """The SI-SDR of each source in dB: [spks, T] twice to [spks]."""
    return scale_invariant_signal_distortion_ratio(
        estimates, references, zero_mean=True
    )


def si_sdr_of_best_order(
    estimates: torch.Tensor, references: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The SI-SDR per source [spks] and the estimates, in the order that fits best."""
    _, order = permutation_invariant_training(
        estimates[None], references[None], si_sdr, eval_func="max"
    )
    ordered = pit_permutate(estimates[None], order)[0]
    return si_sdr(ordered, references), ordered


def report(before: torch.Tensor, after: torch.Tensor) -> None:
    """Prints the table of SI-SDR per voice and on average."""
    rows = [*zip(VOICES.values(), before.tolist(), after.tolist(), strict=True)]
    rows.append(("mean", before.mean().item(), after.mean().item()))
    print("SI-SDR in dB      mixture   separated   improvement")
    for voice, mixed, separated in rows:
        print(f"{voice:<16}{mixed:>9.1f}{separated:>12.1f}{separated - mixed:>+14.1f}")


def draw(
    path: Path,
    mixture: torch.Tensor,
    estimates: torch.Tensor,
    references: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    sample_rate: int,
) -> None:
    """Draws waveforms and spectrograms of the mixture, the estimates and the voices.

    Arguments
    ---------
    path : Path
        The picture's file.
    mixture : torch.Tensor
        [T].
    estimates, references : torch.Tensor
        [spks, T], in the same order.
    before, after : torch.Tensor
        [spks], the SI-SDR in dB of the mixture and of the estimates.
    sample_rate : int
        In Hz.
    """
    figure = new_figure(13, 7.6)
    axes = figure.subplot_mosaic(
        [
            ["wave mix", "wave est 0", "wave est 1"],
            ["spec mix", "spec est 0", "spec est 1"],
            ["scores", "wave ref 0", "wave ref 1"],
            ["scores", "spec ref 0", "spec ref 1"],
        ],
        height_ratios=[1, 2, 1, 2],
    )
    panels = [("mix", "Mixture", mixture, MIXTURE_COLOR)]
    for k, (voice, color) in enumerate(
        zip(VOICES.values(), VOICE_COLORS, strict=False)
    ):
        panels.append((f"est {k}", f"Separated: {voice}", estimates[k], color))
        panels.append((f"ref {k}", f"As recorded: {voice}", references[k], color))

    peak = mixture.abs().max().item()
    loudest = decibels(mixture, sample_rate).max()
    seconds = len(mixture) / sample_rate
    for name, title, wave, color in panels:
        top, bottom = axes[f"wave {name}"], axes[f"spec {name}"]
        top.set_title(title, color=color, fontweight="bold", loc="left")
        top.plot(np.linspace(0, seconds, len(wave)), wave, color=color, linewidth=0.4)
        top.set(xlim=(0, seconds), ylim=(-peak, peak), xticklabels=[], yticks=[])
        image = draw_spectrogram(bottom, wave, sample_rate, loudest)
    draw_scores(axes["scores"], before, after)
    add_level_bar(figure, image, [*axes.values()])
    save(figure, path)


def draw_scores(axes: Axes, before: torch.Tensor, after: torch.Tensor) -> None:
    """Draws the SI-SDR [spks] of each voice, in the mixture and separated, as bars."""
    for k, voice in enumerate(VOICES.values()):
        for offset, value, color, label in (
            (0.16, before[k].item(), MIXTURE_COLOR, "mixture"),
            (-0.16, after[k].item(), VOICE_COLORS[k], "separated"),
        ):
            place = -k + offset
            axes.barh(place, value, height=0.3, color=color)
            axes.annotate(
                f"{label} {value:.1f} dB",
                (max(value, 0), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        axes.text(0, -k + 0.38, voice, fontweight="bold", color=VOICE_COLORS[k])
    axes.set_title("SI-SDR: higher is better", fontweight="bold", loc="left")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="SI-SDR (dB)", yticks=[], ylim=(-len(VOICES) + 0.6, 0.6))
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.7 * (high - low))  # room for the labels
    axes.spines[["top", "left", "right"]].set_visible(False)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
