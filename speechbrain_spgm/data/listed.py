"""Mixtures on disk, and mixtures of a LibriMix list mixed on the fly.

Axes: T samples, spks sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from speechbrain_spgm.audio import (
    AudioFile,
    change_rate,
    open_all,
    read_frames,
    resampled_length,
)
from speechbrain_spgm.data.batch import Mixture
from speechbrain_spgm.data.lists import (
    NOISY,
    count_sources,
    load_noise,
    mixed_length,
    open_noise,
    read_list,
)
from speechbrain_spgm.data.manifests import ManifestRow, read_manifest
from speechbrain_spgm.data.recordings import read_table
from speechbrain_spgm.data.seeded import SeededDataset
from speechbrain_spgm.data.vary import Variation
from speechbrain_spgm.errors import UserError

DURATION_TOLERANCE = 0.1  # seconds, for manifests that round


class VariedDataset(SeededDataset):
    """What the two kinds of listed mixtures share: random crops and variation."""

    def __init__(
        self,
        sample_rate: int,
        segment_seconds: float | None,
        seed: int,
        variation: Variation,
    ) -> None:
        super().__init__(seed)
        self.sample_rate = sample_rate
        self.segment = segment_samples(segment_seconds, sample_rate)
        self.variation = variation

    def draw_crop(self, frames: int, rng: np.random.Generator) -> tuple[int, int]:
        """First frame and number of frames of a random crop, before any variation."""
        kept = frames
        if self.segment is not None:  # at a higher speed it takes more
            kept = min(
                frames, self.variation.frames_for(self.segment, self.sample_rate)
            )
        return int(rng.integers(frames - kept + 1)), kept

    def vary(
        self,
        id: str,
        mix: torch.Tensor,
        sources: torch.Tensor,
        rng: np.random.Generator,
    ) -> Mixture:
        """The example that a crop, mix [T] and sources [T, spks], becomes."""
        varied = self.variation(mix, sources, self.sample_rate, rng, self.segment)
        return Mixture(id, *varied)

    def seconds_of(self, frames: int) -> float:
        """How long the item of a mixture of ``frames`` frames is at most."""
        kept = frames if self.segment is None else min(frames, self.segment)
        return kept / self.sample_rate


class ManifestDataset(VariedDataset):
    """Mixtures and sources that lie on disk and that a manifest lists.

    Every mixture and source is opened once at the start (headers only), so that
    training does not fail on one hours later. Noise, if the manifest has it, is part of
    the mixture and no source: it is not read.

    Arguments
    ---------
    path : str or Path
        The manifest; see ``speechbrain_spgm.data.manifests``.
    num_spks : int
        How many sources each mixture must have.
    sample_rate : int
        The rate in Hz that all files must have.
    segment_seconds : float, optional
        If given, item i is a random crop of that many seconds (or all of a shorter
        mixture), drawn from (seed, epoch, i).
    seed : int
        Seed of the crops and of all other draws.
    limit : int, optional
        Use only the first ``limit`` mixtures of the manifest.
    speeds, augmentations
        For training: see ``Variation``.

    Raises
    ------
    UserError
        If the manifest is missing or wrong or has another number of sources; if a file
        is missing, truncated, at another rate, or of another length than its mixture.
    """

    def __init__(
        self,
        path: str | Path,
        num_spks: int,
        sample_rate: int,
        segment_seconds: float | None = None,
        seed: int = 0,
        limit: int | None = None,
        speeds: Iterable[int] = (100,),
        augmentations: Mapping[str, float] | Iterable[str] | None = None,
    ) -> None:
        variation = Variation(speeds, augmentations)
        super().__init__(sample_rate, segment_seconds, seed, variation)
        self.path = Path(path)
        rows = read_manifest(self.path, num_spks)[:limit]
        files = iter(open_all(p for row in rows for p in (row.mix, *row.sources)))
        self.entries = [
            (row.id, next(files), [next(files) for _ in row.sources]) for row in rows
        ]
        for row, (_, mix, sources) in zip(rows, self.entries, strict=True):
            self._check(row, mix, sources)

    def _check(
        self, row: ManifestRow, mix: AudioFile, sources: list[AudioFile]
    ) -> None:
        for file in (mix, *sources):
            if file.rate != self.sample_rate:
                raise UserError(
                    f"The audio file {file.path} is at {file.rate} Hz, but sample_rate "
                    f"is {self.sample_rate}: change sample_rate or prepare the data at "
                    "that rate."
                )
        if abs(mix.seconds - row.duration) > DURATION_TOLERANCE:
            raise UserError(
                f"The audio file {mix.path} lasts {mix.seconds:.2f} s, but "
                f"{row.duration:.2f} s in the manifest {self.path}: prepare the data "
                "again."
            )
        for file in sources:
            if file.frames != mix.frames:
                raise UserError(
                    f"The source {file.path} has {file.frames} samples, but its "
                    f"mixture {mix.path} has {mix.frames}: prepare the data again."
                )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Mixture:
        id, mix, sources = self.entries[index]
        rng = self.generator(index)
        start, frames = self.draw_crop(mix.frames, rng)
        waves = [
            torch.from_numpy(read_frames(file, start, frames))
            for file in (mix, *sources)
        ]
        stack = torch.stack(waves[1:], dim=-1)
        return self.vary(id, waves[0], stack, rng)

    @property
    def seconds(self) -> list[float]:
        """How long each item is at most."""
        return [self.seconds_of(mix.frames) for _, mix, _ in self.entries]


class MixtureList(VariedDataset):
    """Mixes on the fly what a LibriMix metadata file lists.

    The columns are ``mixture_ID``, ``source_1_path``, ``source_1_gain``,
    ``source_2_path``, and so on; paths are relative to the LibriSpeech folder. A
    mixture is the sum of gain times source. Every file is opened once at the start, so
    that training does not fail on a missing one hours later.

    Arguments
    ---------
    path : str or Path
        The CSV file.
    folder : str or Path
        The LibriSpeech folder.
    num_spks : int
        How many sources each mixture must have.
    sample_rate : int
        Rate of the mixtures in Hz; sources at other rates are resampled.
    mode : str
        "min" cuts all sources to the shortest, "max" pads them to the longest.
    segment_seconds : float, optional
        If given, item i is a random crop of that many seconds (or all of a shorter
        mixture), drawn from (seed, epoch, i).
    seed : int
        Seed of the crops and of all other draws.
    limit : int, optional
        Use only the first ``limit`` mixtures of the list.
    speeds, augmentations
        For training: see ``Variation``.
    mixture : str
        mix_clean, mix_both (with the list's noise) or mix_single (the first source and
        the noise; ``num_spks`` is 1).
    noise_folder : str or Path, optional
        WHAM!'s ``wham_noise``, or one of the folders in it, for mixtures with noise.

    Raises
    ------
    UserError
        If the list or one of its files is missing or wrong, its number of sources is
        not ``num_spks``, or there is no noise for mixtures that have it.
    """

    def __init__(
        self,
        path: str | Path,
        folder: str | Path,
        num_spks: int,
        sample_rate: int,
        mode: str = "min",
        segment_seconds: float | None = None,
        seed: int = 0,
        limit: int | None = None,
        speeds: Iterable[int] = (100,),
        augmentations: Mapping[str, float] | Iterable[str] | None = None,
        mixture: str = "mix_clean",
        noise_folder: str | Path | None = None,
    ) -> None:
        variation = Variation(speeds, augmentations)
        super().__init__(sample_rate, segment_seconds, seed, variation)
        mixed_length([1], mode)
        self.path = Path(path)
        self.mode = mode
        self.num_spks = num_spks
        rows = read_mixtures(self.path, num_spks, mixture)[:limit]
        self.entries = open_sources(rows, Path(folder))
        self.noises = open_noises(self.path, rows, mixture, noise_folder)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Mixture:
        id, sources = self.entries[index]
        waves = []
        for file, gain in sources:
            wave = torch.from_numpy(read_frames(file))
            waves.append(gain * change_rate(wave, file.rate, self.sample_rate))
        length = mixed_length(map(len, waves), self.mode)
        # A negative padding cuts; mix_single leaves out all but the first. [T, spks]
        waves = [pad(wave, (0, length - len(wave))) for wave in waves[: self.num_spks]]
        stack = torch.stack(waves, dim=-1)
        mix = stack.sum(-1)
        if self.noises:
            mix = mix + self._noise(index, length)
        rng = self.generator(index)
        start, frames = self.draw_crop(length, rng)
        crop = slice(start, start + frames)
        return self.vary(id, mix[crop], stack[crop], rng)

    def _noise(self, index: int, length: int) -> torch.Tensor:
        """The noise of a mixture [T], begun again if it is shorter than the longest."""
        file, gain = self.noises[index]
        frames = max(
            resampled_length(source.frames, source.rate, file.rate)
            for source, _ in self.entries[index][1]
        )
        noise = torch.from_numpy(load_noise(file, frames)).float()
        noise = gain * change_rate(noise, file.rate, self.sample_rate)
        return pad(noise, (0, length - len(noise)))

    @property
    def seconds(self) -> list[float]:
        """How long each item is at most, give or take a sample."""
        durations = (
            mixed_length((file.seconds for file, _ in sources), self.mode)
            for _, sources in self.entries
        )
        return [self.seconds_of(round(d * self.sample_rate)) for d in durations]

    @property
    def speakers(self) -> set[str]:
        """The speakers, as LibriSpeech's folder layout names them."""
        return {
            file.path.parts[-3] for _, sources in self.entries for file, _ in sources
        }

    @property
    def recordings(self) -> list[AudioFile]:
        """The files of all sources."""
        return [file for _, sources in self.entries for file, _ in sources]


def segment_samples(segment_seconds: float | None, sample_rate: int) -> int | None:
    """The length of a crop in samples, or None for whole mixtures.

    Example
    -------
    >>> segment_samples(0.5, 8000)
    4000
    """
    if segment_seconds is None:
        return None
    samples = round(segment_seconds * sample_rate)
    if samples < 1:
        raise UserError(
            f"The segment_seconds is {segment_seconds}: it must be above 0."
        )
    return samples


def read_mixtures(path: Path, num_spks: int, mixture: str) -> list[dict[str, str]]:
    """The rows of a list whose mixtures have so many sources."""
    if mixture == "mix_single" and num_spks != 1:
        raise UserError(
            f"num_spks is {num_spks}, but mix_single is one speaker with noise: give "
            "num_spks 1."
        )
    noisy = mixture in NOISY
    if noisy and "noise_path" not in read_table(path, columns=("mixture_ID",))[0]:
        raise UserError(
            f"The list {path} has no column noise_path for {mixture}: give LibriMix's "
            "list with noise, or take mix_clean."
        )
    return read_list(path, noisy, None if mixture == "mix_single" else num_spks)


def open_sources(
    rows: list[dict[str, str]], folder: Path
) -> list[tuple[str, list[tuple[AudioFile, float]]]]:
    """For each row of a list its id, and file and gain of each source."""
    if not folder.is_dir():
        raise UserError(
            f"The data folder {folder} does not exist: "
            "give the folder that holds LibriSpeech's splits as data_folder."
        )
    prefixes = [f"source_{i}" for i in range(1, 1 + count_sources(rows[0]))]
    names = list(dict.fromkeys(row[f"{p}_path"] for row in rows for p in prefixes))
    opened = dict(zip(names, open_all(folder / name for name in names), strict=True))
    return [
        (
            row["mixture_ID"],
            [(opened[row[f"{p}_path"]], float(row[f"{p}_gain"])) for p in prefixes],
        )
        for row in rows
    ]


def open_noises(
    path: Path, rows: list[dict[str, str]], mixture: str, folder: str | Path | None
) -> list[tuple[AudioFile, float]]:
    """For each row of a list file and gain of its noise; none for clean mixtures."""
    if mixture not in NOISY:
        return []
    if folder is None:
        raise UserError(
            f"The noise of {mixture} is not in the list {path} itself: give WHAM!'s "
            "folder wham_noise as noise_folder, or take mix_clean."
        )
    places = {}
    for name in dict.fromkeys(row["noise_path"] for row in rows):
        beside = Path(folder).parent / name  # for wham_noise/tr, say
        places[name] = open_noise(beside if beside.is_file() else Path(folder) / name)
    return [(places[row["noise_path"]], float(row["noise_gain"])) for row in rows]
