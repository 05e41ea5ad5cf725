"""LibriMix's lists: which recordings, gains and noise a mixture is made of.

Axes: T samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from speechbrain_spgm.audio import AudioFile, open_audio, read_frames
from speechbrain_spgm.choices import LENGTHS
from speechbrain_spgm.data.recordings import check_columns, read_table, to_number
from speechbrain_spgm.errors import UserError

MIXTURES = ("mix_clean", "mix_both", "mix_single")
NOISY = ("mix_both", "mix_single")
FADE = 0.5  # seconds of cross-fade where a short noise begins again


def check_mixture(name: str) -> None:
    """Refuses what is no kind of LibriMix."""
    if name not in MIXTURES:
        raise UserError(
            f"The mixture type is {name}, but must be one of {', '.join(MIXTURES)}."
        )


def read_list(path: Path, noisy: bool, num_spks: int | None) -> list[dict[str, str]]:
    """The rows of a metadata list, with paths and finite gains for every source."""
    rows = read_table(path, ("mixture_ID", "source_1_path", "source_1_gain"))
    found = count_sources(rows[0])
    if num_spks not in (None, found):
        raise UserError(
            f"The list {path} has {found} sources per mixture, but num_spks is "
            f"{num_spks}: change one of them."
        )
    prefixes = [f"source_{i}" for i in range(1, found + 1)] + ["noise"] * noisy
    columns = [f"{prefix}_{what}" for prefix in prefixes for what in ("path", "gain")]
    check_columns(path, rows[0], columns)
    seen = set()
    for line, row in enumerate(rows, start=2):
        for prefix in prefixes:
            if not row[f"{prefix}_path"].strip() or math.isnan(
                to_number(row[f"{prefix}_gain"])
            ):
                raise UserError(
                    f"Line {line} of the list {path} has no path or no number as gain "
                    f"for {prefix}: it is {row[f'{prefix}_gain']!r} of mixture "
                    f"{row['mixture_ID']}."
                )
        if row["mixture_ID"] in seen:
            raise UserError(
                f"Line {line} of the list {path} repeats the mixture_ID "
                f"{row['mixture_ID']}."
            )
        seen.add(row["mixture_ID"])
    return rows


def count_sources(row: dict[str, str]) -> int:
    """How many sources the columns of a list describe."""
    return sum(bool(re.fullmatch(r"source_\d+_path", column)) for column in row)


def open_noise(path: Path) -> AudioFile:
    """A noise file, mono or of more channels."""
    if not path.is_file():
        raise UserError(
            f"The noise {path} does not exist: give WHAM!'s wham_noise as noise_folder "
            "(LibriMix's augment_train_noise.py makes its files *sp08.wav and "
            "*sp12.wav)."
        )
    return open_audio(path, mono=False)


def load_noise(file: AudioFile, frames: int) -> np.ndarray:
    """The first channel of a noise [T], begun again until it has so many frames."""
    samples = read_frames(file, frames=min(frames, file.frames)).astype(np.float64)
    return extend(samples, frames, file.rate)


def extend(noise: np.ndarray, frames: int, rate: int) -> np.ndarray:
    """A noise [T], begun again with a cross-fade until it has so many frames.

    Below a second there is no room for the cross-fade, and it is repeated as it is.
    """
    fade = round(FADE * rate) + 1
    if len(noise) < 2 * fade:
        return np.resize(noise, frames)
    rise = 0.5 - 0.5 * np.cos(np.pi * np.arange(fade) / (fade - 1))
    # whole  ------------------|\\\\
    # noise                    |////|----------------
    #                           fade
    whole = noise
    while len(whole) < frames:
        seam = whole[-fade:] * (1 - rise) + noise[:fade] * rise
        whole = np.concatenate([whole[:-fade], seam, noise[fade:]])
    return whole[:frames]


def mixed_length(lengths: Iterable[int], mode: str) -> int:
    """The length of a mixture of sources of these lengths.

    Example
    -------
    >>> mixed_length([3, 5], "min"), mixed_length([3, 5], "max")
    (3, 5)
    """
    if mode not in LENGTHS:
        raise UserError(
            f"The mixture mode is {mode}, but must be {' or '.join(LENGTHS)}."
        )
    return min(lengths) if mode == "min" else max(lengths)
