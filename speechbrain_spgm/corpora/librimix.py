"""LibriMix: made from LibriSpeech and the official lists, or found on disk.

Cosentino et al., "LibriMix" (arXiv 2005.11262). A source is gain times recording,
resampled, then cut to the shortest or padded to the longest; a mixture is their sum.
Nothing is rescaled: the gains in the lists keep mixtures from clipping.

=============  =======================================================================
Mixture        Sum of
=============  =======================================================================
``mix_clean``  all sources
``mix_both``   all sources and the noise
``mix_single`` the first source and the noise
=============  =======================================================================

Layout: ``Libri2Mix/wav8k/min/<split>/{mix_clean,mix_both,...,s1,s2,noise}/<id>.wav``.

Axes: T samples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechbrain_spgm.audio import AudioFile, resampled_length
from speechbrain_spgm.corpora.generation import Plan, fit, load, resample
from speechbrain_spgm.corpora.scanning import find_set, scan, set_folder, source_names
from speechbrain_spgm.data.listed import open_sources
from speechbrain_spgm.data.lists import (
    MIXTURES,
    NOISY,
    check_mixture,
    count_sources,
    load_noise,
    mixed_length,
    open_noise,
    read_list,
)
from speechbrain_spgm.data.manifests import ManifestRow
from speechbrain_spgm.errors import UserError


@dataclass(frozen=True)
class LibriMixPlan(Plan):
    """One mixture of LibriMix: files and gains of the sources, then of the noise."""

    files: tuple[AudioFile, ...] = ()
    gains: tuple[float, ...] = ()

    def render(self) -> dict[str, np.ndarray]:
        """Sources and noise, [T] each: gain times recording."""
        parts = {}
        spoken = [
            file
            for part, file in zip(self.made_from, self.files, strict=True)
            if part != "noise"
        ]
        for part, file, gain in zip(
            self.made_from, self.files, self.gains, strict=True
        ):
            if part == "noise":
                lengths = [
                    resampled_length(s.frames, s.rate, file.rate) for s in spoken
                ]
                samples = load_noise(file, max(lengths))
            else:
                samples = load(file)
            samples = resample(gain * samples, file.rate, self.sample_rate)
            parts[part] = fit(samples, self.samples)
        return parts


def plan_librimix(
    librispeech: str | Path,
    list_path: str | Path,
    output: str | Path,
    sample_rate: int = 8000,
    mode: str = "min",
    mixtures: Sequence[str] = ("mix_clean",),
    noise_folder: str | Path | None = None,
    num_spks: int | None = None,
) -> list[LibriMixPlan]:
    """Says how to make the mixtures of one list; ``generate`` makes them.

    Arguments
    ---------
    librispeech : str or Path
        The folder that holds LibriSpeech's splits.
    list_path : str or Path
        A metadata list such as ``libri2mix_train-clean-100.csv``, with the columns
        mixture_ID, source_1_path, source_1_gain, ..., and noise_path, noise_gain for
        mixtures with noise.
    output : str or Path
        ``Libri2Mix`` (or ``Libri3Mix``, ...) is made in it.
    sample_rate : int
        Rate of the files in Hz.
    mode : str
        min or max.
    mixtures : sequence of str
        Which of mix_clean, mix_both and mix_single.
    noise_folder : str or Path, optional
        WHAM!'s ``wham_noise``, needed for mix_both and mix_single.
    num_spks : int, optional
        How many sources the list must have.

    Returns
    -------
    list of LibriMixPlan
        In the order of the list.

    Raises
    ------
    UserError
        If the list is missing or wrong, a recording is missing or unreadable, or there
        is no noise for a mixture that needs it.
    """
    list_path, noisy = Path(list_path), any(name in NOISY for name in mixtures)
    check_folders(Path(librispeech), noise_folder, mixtures)
    rows = read_list(list_path, noisy, num_spks)
    parts = source_names(count_sources(rows[0]))
    folder = set_folder(output, f"Libri{len(parts)}Mix", sample_rate, mode)
    folder /= split_name(list_path)

    prefixes = [f"source_{i}" for i in range(1, len(parts) + 1)]
    sources = [files for _, files in open_sources(rows, Path(librispeech))]
    noises: dict[str, AudioFile] = {}
    if noisy:
        names = sorted({row["noise_path"] for row in rows})
        opened = [open_noise(Path(noise_folder) / name) for name in names]
        noises = dict(zip(names, opened, strict=True))
        parts, prefixes = (*parts, "noise"), [*prefixes, "noise"]

    sums = {
        "mix_clean": tuple(part for part in parts if part != "noise"),
        "mix_both": parts,
        "mix_single": ("s1", "noise"),
    }
    plans = []
    for row, spoken in zip(rows, sources, strict=True):
        paths = [row[f"{prefix}_path"] for prefix in prefixes]
        gains = [row[f"{prefix}_gain"] for prefix in prefixes]
        used = tuple(file for file, _ in spoken)
        lengths = [resampled_length(f.frames, f.rate, sample_rate) for f in used]
        if noisy:  # repeated or cut, so its length does not count
            used += (noises[row["noise_path"]],)
        plans.append(
            LibriMixPlan(
                id=row["mixture_ID"],
                folder=folder,
                sample_rate=sample_rate,
                samples=mixed_length(lengths, mode),
                made_from={
                    part: f"{gain} x {path} ({file.frames} at {file.rate} Hz)"
                    for part, gain, path, file in zip(
                        parts, gains, paths, used, strict=True
                    )
                },
                mixtures={name: sums[name] for name in MIXTURES if name in mixtures},
                files=used,
                gains=tuple(float(gain) for gain in gains),
            )
        )
    return plans


def check_folders(
    librispeech: Path, noise_folder: str | Path | None, mixtures: Sequence[str]
) -> None:
    """Makes sure that the folders are there and the mixtures have names we know."""
    for name in mixtures:
        check_mixture(name)
        if name in NOISY and noise_folder is None:
            raise UserError(
                f"The mixture type {name} needs noise: give WHAM!'s folder wham_noise "
                "as noise_folder, or make mix_clean only."
            )
    if not librispeech.is_dir():
        raise UserError(
            f"The LibriSpeech folder {librispeech} does not exist: give the folder "
            "that holds train-clean-100 and so on."
        )
    if noise_folder is not None and not Path(noise_folder).is_dir():
        raise UserError(
            f"The noise folder {noise_folder} does not exist: give WHAM!'s wham_noise."
        )


def split_name(list_path: Path) -> str:
    """What LibriMix calls the split of a list.

    Example
    -------
    >>> split_name(Path("libri2mix_train-clean-100.csv"))
    'train-100'
    >>> split_name(Path("libri3mix_dev-clean.csv"))
    'dev'
    """
    return re.sub(r"^libri\d+mix_", "", list_path.stem).replace("-clean", "")


def scan_librimix(
    data_folder: str | Path,
    split: str,
    num_spks: int = 2,
    sample_rate: int = 8000,
    mode: str = "min",
    mixture: str = "mix_clean",
) -> list[ManifestRow]:
    """The mixtures of a split of an existing LibriMix folder, as ``scan`` gives them.

    Arguments
    ---------
    data_folder : str or Path
        The folder that holds ``Libri2Mix`` and so on, or one further down.
    split : str
        train-360, train-100, dev, test, ...
    num_spks, sample_rate, mode, mixture
        What kind of mixtures. Those of mix_single have one source.
    """
    mixed_length([1], mode)
    check_mixture(mixture)
    tail = set_folder("", f"Libri{num_spks}Mix", sample_rate, mode).parts
    folder = find_set(Path(data_folder), tail, split, mixture)
    sources = source_names(1 if mixture == "mix_single" else num_spks)
    return scan(folder, mixture, sources, sample_rate)
