"""Pictures and recordings to judge a run by eye and ear.

Everything that draws needs matplotlib and raises MissingPackage without it; a run
that can do without pictures catches that. Figures are objects of their own: nothing
touches pyplot or any other global state, so other plots of the process stay as they
are.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from speechbrain_spgm.audio import write_audio
from speechbrain_spgm.errors import MissingPackage, require
from speechbrain_spgm.files import replacing
from speechbrain_spgm.metrics.si_sdr import SILENCE, even, si_sdr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MIXTURE_COLOR = "#4d4d4d"
# Told apart by colour-blind readers too (Okabe and Ito).
VOICE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
LEVELS_DB = (-65, -10)  # of the spectrograms, 0 dB = loudest bin of the mixture
WINDOW_SECONDS = 0.064  # of a spectrogram
CURVES = {  # key in the history -> name, colour
    "train_si_sdr": ("training, SI-SDR", VOICE_COLORS[0]),
    "valid_si_sdr": ("validation, SI-SDR", VOICE_COLORS[1]),
    "valid_si_sdri": ("validation, SI-SDRi", VOICE_COLORS[2]),
}


class Example(NamedTuple):
    """A separated mixture: mix [T], estimates and references [T, spks], in one order.

    They may lie on any device.
    """

    id: str
    mix: torch.Tensor
    estimates: torch.Tensor
    references: torch.Tensor


def draw_curves(path: str | Path, history: Sequence[Mapping[str, float]]) -> None:
    """Draws SI-SDR in dB and the learning rate against the epoch, as a PNG.

    A row of ``history`` has ``epoch`` and, as far as known, ``lr``, ``train_si_sdr``,
    ``valid_si_sdr`` and ``valid_si_sdri``; what is missing or not finite leaves a gap.

    Example
    -------
    >>> path = getfixture("tmp_path") / "curves.png"
    >>> draw_curves(path, [{"epoch": 1, "lr": 1e-3, "valid_si_sdri": 0.3}])
    >>> path.read_bytes()[1:4]
    b'PNG'
    """
    figure = new_figure(7, 5.6)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    epochs = [row["epoch"] for row in history]

    for key, (name, color) in CURVES.items():
        values = np.array([row.get(key, np.nan) for row in history], dtype=float)
        if np.isfinite(values).any():
            top.plot(epochs, values, ".-", color=color, label=name)
    if top.lines:
        top.legend()
    top.set(ylabel="dB, higher is better")
    top.grid(alpha=0.3)

    rates = np.array([row.get("lr", np.nan) for row in history], dtype=float)
    bottom.plot(epochs, rates, ".-", color=MIXTURE_COLOR)
    bottom.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    bottom.locator_params(axis="x", integer=True)
    bottom.grid(alpha=0.3)
    save(figure, path)


def write_examples(
    folder: str | Path, examples: Sequence[Example], sample_rate: int
) -> list[Path]:
    """Writes recordings to listen to, and a picture of their spectrograms.

    Example number 1 gives ``1_<id>_mix.wav``, ``1_<id>_est1.wav``, ``1_<id>_ref1.wav``
    and so on, and ``1_<id>.png`` if matplotlib is installed. Each estimate gets the
    loudness of its reference (SI-SDR leaves the level open), and all files of an
    example one common gain if one of them would clip.

    Example
    -------
    >>> sources = torch.rand(800, 2)
    >>> example = Example("a", sources.sum(-1), sources, sources)
    >>> paths = write_examples(getfixture("tmp_path"), [example], 8000)
    >>> [path.name for path in paths]  # doctest: +NORMALIZE_WHITESPACE
    ['1_a_mix.wav', '1_a_est1.wav', '1_a_ref1.wav', '1_a_est2.wav', '1_a_ref2.wav',
     '1_a.png']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written, pictures = [], []
    for number, example in enumerate(map(fit_for_listening, examples), start=1):
        name = f"{number}_{file_name(example.id)}"
        waves = {"mix": example.mix}
        for k in range(example.references.shape[1]):
            waves[f"est{k + 1}"] = example.estimates[:, k]
            waves[f"ref{k + 1}"] = example.references[:, k]
        for part, wave in waves.items():
            path = folder / f"{name}_{part}.wav"
            write_audio(path, wave, sample_rate)
            written.append(path)
        pictures.append((folder / f"{name}.png", example))
    for path, example in pictures:  # last, because they may raise
        draw_example(path, example, sample_rate)
        written.append(path)
    return written


def fit_for_listening(example: Example) -> Example:
    """On the CPU, estimates as loud as references, no sample beyond full scale."""
    mix, estimates, references = (
        signal.detach().float().cpu().nan_to_num(posinf=0.0, neginf=0.0)
        for signal in example[1:]
    )
    power = estimates.square().mean(0)
    wanted = references.square().mean(0)
    heard = (power > 0) & ~is_silent(references, mix)
    estimates = estimates * torch.where(heard, wanted / power, 1.0).sqrt()
    peak = max(signal.abs().max().item() for signal in (mix, estimates, references))
    gain = 1 / max(peak, 1.0)
    return Example(example.id, mix * gain, estimates * gain, references * gain)


def is_silent(references: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """Which references [T, spks] are silent beside their mixture [T]: [spks]."""
    loudest = max(references.abs().max(), mix.abs().max())
    return references.square().mean(0) <= SILENCE * loudest.square()


def file_name(id: str) -> str:
    """An id as a part of a file name, safe on every system.

    Example
    -------
    >>> file_name("../5022-29405 (1).wav")
    '_5022-29405_1_wav'
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "_", id)[:120]


def draw_example(path: str | Path, example: Example, sample_rate: int) -> None:
    """Draws the spectrograms of a mixture, its estimates and references, as a PNG."""
    spks = example.references.shape[1]
    figure = new_figure(11, 2.2 * (1 + spks))
    axes = figure.subplot_mosaic(
        [["mix", "mix"], *([f"est {k}", f"ref {k}"] for k in range(spks))]
    )
    scores = si_sdr(*(even(x, 0)[None] for x in example[2:]))[0]
    silent = is_silent(example.references, example.mix)
    panels = [("mix", f"Mixture {example.id}", example.mix, MIXTURE_COLOR)]
    for k in range(spks):
        color = VOICE_COLORS[k % len(VOICE_COLORS)]
        score = "silent reference" if silent[k] else f"SI-SDR {scores[k]:.1f} dB"
        title = f"Estimate {k + 1}: {score}"
        panels.append((f"est {k}", title, example.estimates[:, k], color))
        title = f"Reference {k + 1}"
        panels.append((f"ref {k}", title, example.references[:, k], color))

    loudest = decibels(example.mix, sample_rate).max()
    for name, title, wave, color in panels:
        axes[name].set_title(title, color=color, fontweight="bold", loc="left")
        image = draw_spectrogram(axes[name], wave, sample_rate, loudest)
    add_level_bar(figure, image, [*axes.values()])
    save(figure, path)


def draw_wave(
    path: str | Path,
    wave: torch.Tensor,
    sample_rate: int,
    loudest: float,
    peak: float,
    color: str,
) -> None:
    """Draws a waveform [T], on the CPU, and its spectrogram as a PNG file.

    ``loudest`` is the level in dB that is 0 dB in the picture (see ``decibels``);
    the waveform's axis reaches to ``peak``.
    """
    figure = new_figure(8, 2.6)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=[1, 3])
    times = np.arange(len(wave)) / sample_rate
    step = max(1, len(wave) // 100_000)  # more points than a picture can show
    top.plot(times[::step], wave[::step], color=color, linewidth=0.4)
    top.set(ylim=(-peak, peak), yticks=[])
    draw_spectrogram(bottom, wave, sample_rate, loudest)
    save(figure, path)


def draw_improvement(
    path: str | Path, before: Sequence[float], improvement: Sequence[float]
) -> None:
    """Draws how SI-SDRi [n] is spread, and its dependence on the mixture, in dB."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2, sharey=True)
    mean = float(np.mean(improvement))
    left.hist(improvement, bins="auto", orientation="horizontal", color=VOICE_COLORS[0])
    left.set(xlabel="utterances", ylabel="SI-SDRi (dB)")
    left.locator_params(axis="x", integer=True)
    right.scatter(before, improvement, s=8, alpha=0.6, color=VOICE_COLORS[0])
    right.set(xlabel="SI-SDR of the mixture (dB)")
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axhline(mean, color=VOICE_COLORS[1], label=f"mean {mean:.2f} dB")
        axes.grid(alpha=0.3)
    right.legend()
    figure.suptitle(f"SI-SDR improvement of {len(improvement)} utterances")
    save(figure, path)


def draw_spectrogram(
    axes: Axes, wave: torch.Tensor, sample_rate: int, loudest: float
) -> AxesImage:
    """Draws the spectrogram of a waveform [T], with 0 dB at the level ``loudest``."""
    image = axes.imshow(
        decibels(wave, sample_rate) - loudest,
        vmin=LEVELS_DB[0],
        vmax=LEVELS_DB[1],
        cmap="magma",
        origin="lower",
        aspect="auto",
        extent=(0, len(wave) / sample_rate, 0, sample_rate / 2000),
    )
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)")
    return image


def decibels(wave: torch.Tensor, sample_rate: int) -> np.ndarray:
    """The level of each time-frequency bin of a waveform [T], in dB.

    Example
    -------
    >>> tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 8000)
    >>> levels = decibels(tone, sample_rate=8000)
    >>> levels.shape, int(levels[:, 60].argmax())  # bins of 8000 / 512 Hz
    ((257, 126), 64)
    """
    size = round(WINDOW_SECONDS * sample_rate)
    spectrum = torch.stft(
        wave,
        n_fft=size,
        hop_length=size // 8,
        window=torch.hann_window(size),
        pad_mode="constant",  # unlike reflection, it takes short waves too
        return_complex=True,
    )
    return 20 * spectrum.abs().clamp_min(1e-8).log10().numpy()


def add_level_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes]) -> None:
    """Says beside all ``axes`` which colour is which level."""
    figure.colorbar(
        image,
        ax=axes,
        label="level (dB, loudest bin of the mixture = 0)",
        extend="both",
        aspect=50,
        pad=0.01,
    )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, or MissingPackage."""
    try:
        figure = require("matplotlib.figure", "matplotlib", "A picture")
    except OSError:  # it has no folder for its fonts
        raise MissingPackage(
            "A picture needs a folder for matplotlib: set MPLCONFIGDIR to one that can "
            "be written."
        ) from None
    return figure.Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: str | Path, dpi: int = 110) -> None:
    """Writes a figure as a PNG file, which is whole or not there."""
    with replacing(Path(path)) as unfinished:
        figure.savefig(unfinished, format="png", dpi=dpi)
