"""What the page does with a recording; it knows no browser.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from speechbrain_spgm.audio import read_audio, resample, write_audio
from speechbrain_spgm.errors import UserError, count, shown
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.inference.files import explain, from_file, separate_to_files
from speechbrain_spgm.inference.options import Options
from speechbrain_spgm.metrics.pictures import (
    MIXTURE_COLOR,
    VOICE_COLORS,
    decibels,
    draw_wave,
)
from speechbrain_spgm.metrics.si_sdr import even, pit_si_sdr_loss, si_sdr

DRAWN = 60  # seconds of a recording, from its beginning
SLACK = 0.05  # seconds by which a reference may be shorter or longer


class Outcome(NamedTuple):
    """The files of one separation, what is to be said, and a table of scores.

    The pictures are those of the mixture and of the voices, in this order.
    """

    mixture: Path
    voices: list[Path]
    pictures: list[Path]
    archive: Path
    remarks: list[str]
    scores: str


def separate(
    model: SPGMSeparation,
    recording: Path,
    folder: Path,
    references: Sequence[Path] = (),
    max_minutes: float = 10,
    tell: Callable[[int, int], object] | bool = False,
) -> Outcome:
    """Separates a recording as ``spgm separate`` does, and draws and scores it.

    Files go into ``folder``, which is empty. Only ``recording``'s own name is shown.
    ``references`` come in any order. ``tell`` gets the steps done and all steps.
    """
    name = recording.name
    mix, rate = read(recording, max_minutes)
    known = read_references(references, mix, rate, model.num_spks, max_minutes)
    stem = recording.stem
    voices = [folder / f"{stem}_spk{i + 1}.wav" for i in range(model.num_spks)]
    options = Options(progress=tell).checked(model)
    facts = separate_to_files(model, from_file(recording), name, voices, options)

    mixture = folder / f"{stem}_mixture.wav"
    write_audio(mixture, mix, rate)
    waves = [mix, *(read_audio(voice).samples for voice in voices)]
    pictures = draw(folder, waves, rate)
    scores = score(torch.stack(waves[1:], -1), known, mix, references)
    archive = folder / f"{stem}_voices.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for voice in voices:
            file.write(voice, voice.name)
    return Outcome(mixture, voices, pictures, archive, explain(facts), scores)


def read(path: Path, max_minutes: float) -> tuple[Tensor, int]:
    """A recording ``[T]`` and its rate, if it is not too long."""
    return read_audio(path, path.name, longest=60 * max_minutes)[:2]


def read_references(
    paths: Sequence[Path], mix: Tensor, rate: int, spks: int, max_minutes: float
) -> Tensor | None:
    """References ``[T, spks]`` at the recording's rate, None if there are none."""
    if not paths:
        return None
    if len(paths) != spks:
        raise UserError(
            f"There are {count(len(paths), 'reference')}, but the model gives {spks} "
            f"voices: give {spks} files, or none."
        )
    voices = []
    for path in paths:
        samples, own = read(path, max_minutes)
        samples = resample(samples, own, rate)
        if abs(len(samples) - len(mix)) > SLACK * rate:
            raise UserError(
                f"The reference {path.name} lasts {len(samples) / rate:.2f} s, the "
                f"recording {len(mix) / rate:.2f} s: give the voices as they are in it."
            )
        T = min(len(samples), len(mix))
        voices.append(torch.nn.functional.pad(samples[:T], (0, len(mix) - T)))
    return torch.stack(voices, -1)


def draw(folder: Path, waves: Sequence[Tensor], rate: int) -> list[Path]:
    """Pictures of a mixture and its voices ``[T]``, all on the mixture's scale."""
    waves = [wave[: DRAWN * rate] for wave in waves]
    loudest = float(decibels(waves[0], rate).max())
    peak = float(waves[0].abs().max()) or 1.0
    pictures = []
    for i, wave in enumerate(waves):
        color = VOICE_COLORS[(i - 1) % len(VOICE_COLORS)] if i else MIXTURE_COLOR
        pictures.append(folder / f"picture{i}.png")
        draw_wave(pictures[-1], wave, rate, loudest, peak, color)
    return pictures


def score(
    voices: Tensor, references: Tensor | None, mix: Tensor, paths: Sequence[Path]
) -> str:
    """A Markdown table of SI-SDR, empty without references ``[T, spks]``."""
    if references is None:
        return ""
    voices, references = even(voices, 0)[None], even(references, 0)[None]
    order = pit_si_sdr_loss(voices, references).permutation[0].tolist()
    mixed = even(mix, 0)[None, :, None].expand_as(references)
    before = si_sdr(mixed, references)[0].tolist()
    after = si_sdr(voices[..., order], references)[0].tolist()
    lines = [
        "| reference | voice | SI-SDR before | after | gain |",
        "|---|---|---|---|---|",
    ]
    for path, k, old, new in zip(paths, order, before, after, strict=True):
        name = shown(path.name, 60).replace("|", "\\|")
        lines.append(
            f"| {name} | {k + 1} | {old:.1f} dB | {new:.1f} dB | {new - old:+.1f} dB |"
        )
    return "\n".join(lines)
