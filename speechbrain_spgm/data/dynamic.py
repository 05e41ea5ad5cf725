"""Dynamic mixing: new mixtures of different speakers in every epoch.

Axes: T samples, spks sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from speechbrain_spgm.data.audio import (
    AudioFile,
    change_rate,
    frames_needed,
    read_audio,
)
from speechbrain_spgm.data.batch import Mixture
from speechbrain_spgm.data.errors import UserError
from speechbrain_spgm.data.seeded import SeededDataset
from speechbrain_spgm.data.voices import Voice

PEAK = 0.9  # of the loudest sample of mixture and sources, as in LibriMix
SILENCE_DB = -60.0  # a crop below this level is drawn again,
MAX_DRAWS = 10  # this many times at most
INT16 = 32768


class DynamicMixing(SeededDataset):
    """Draws speakers, then a recording of each, then a crop, speed and level.

    Speakers are equally likely, however much speech each has, and within a speaker
    every second of speech is. A recording shorter than the crop stands at a random
    place in silence. Levels follow LibriMix: the loudness of each source is uniform in
    ``loudness_db`` and a mixture that would clip is turned down as a whole (loudness
    here is the power of the active blocks, without LUFS's ear weighting).

    Item i of an epoch depends on (seed, epoch, i) only.

    Arguments
    ---------
    voices : sequence of Voice
        The recordings. The same file named twice counts once.
    num_spks : int
        Sources of a mixture, all of different speakers.
    sample_rate : int
        Rate of the mixtures in Hz; recordings at other rates are resampled.
    segment_seconds : float
        Duration of every mixture.
    mixtures_per_epoch : int, optional
        Default: the number of recordings.
    loudness_db : pair of float
        Range of the source levels in dB, relative to full scale.
    speeds : sequence of int
        Speeds in per cent to draw from, one per source; [100] leaves the speed alone.
    cache_audio : bool
        Decode all recordings once into memory, 2 bytes a sample.
    seed : int
        Seed of all draws.

    Raises
    ------
    UserError
        If there are fewer speakers than a mixture needs, or a knob has no sense.
    """

    def __init__(
        self,
        voices: Sequence[Voice],
        num_spks: int,
        sample_rate: int,
        segment_seconds: float,
        mixtures_per_epoch: int | None = None,
        loudness_db: tuple[float, float] = (-33.0, -25.0),
        speeds: Iterable[int] = (100,),
        cache_audio: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.num_spks = num_spks
        self.sample_rate = sample_rate
        self.segment = round(segment_seconds * sample_rate)
        self.loudness_db = tuple(loudness_db)
        self.speeds = list(speeds)
        self.files = by_speaker(voices)
        self.mixtures_per_epoch = mixtures_per_epoch or len(voices)
        self._check()
        # Filled here, before workers start: they then share these pages.
        self._cache = {
            file.path: to_int16(read_audio(file))
            for files in self.files.values()
            for file in files
            if cache_audio
        }

    def _check(self) -> None:
        if len(self.files) < self.num_spks:
            raise UserError(
                f"The training recordings have {len(self.files)} speaker(s), but a "
                f"mixture needs {self.num_spks} different ones: add recordings."
            )
        if self.segment < 1 or self.mixtures_per_epoch < 1:
            raise UserError("segment_seconds and mixtures_per_epoch must be above 0.")
        if not self.speeds or min(self.speeds) < 1:
            raise UserError(
                f"The speeds are {self.speeds}, but must be per cent above 0."
            )

    @property
    def speakers(self) -> set[str]:
        """All speakers that may be drawn."""
        return set(self.files)

    def __len__(self) -> int:
        return self.mixtures_per_epoch

    def __getitem__(self, index: int) -> Mixture:
        rng = self.generator(index)
        speakers = rng.choice(list(self.files), self.num_spks, replace=False)
        # [T, spks]
        sources = torch.stack([self._source(s, rng) for s in speakers], dim=-1)
        mix = sources.sum(-1)
        peak = max(mix.abs().max().item(), sources.abs().max().item())
        gain = min(1.0, PEAK / peak) if peak > 0 else 1.0
        return Mixture("_".join(speakers), gain * mix, gain * sources)

    def _source(self, speaker: str, rng: np.random.Generator) -> torch.Tensor:
        """A crop [T] of the speaker at a random level, redrawn if near silent."""
        files = self.files[speaker]
        seconds = np.array([file.seconds for file in files])
        for _ in range(MAX_DRAWS):
            file = files[rng.choice(len(files), p=seconds / seconds.sum())]
            crop = self._crop(file, int(rng.choice(self.speeds)), rng)
            level = active_level_db(crop, self.sample_rate)
            if level > SILENCE_DB:
                break
        target = rng.uniform(*self.loudness_db)
        # Silence stays silence: raising it would only raise its rounding noise.
        gain = 10 ** ((target - level) / 20) if level > SILENCE_DB else 1.0
        return gain * crop

    def _crop(
        self, file: AudioFile, speed: int, rng: np.random.Generator
    ) -> torch.Tensor:
        """A random crop [T]; a short recording is padded at both ends at random."""
        frames = frames_needed(self.segment, file.rate, self.sample_rate, speed)
        start = int(rng.integers(max(0, file.frames - frames) + 1))
        samples = self._read(file, start, min(frames, file.frames - start))
        samples = change_rate(
            torch.from_numpy(samples), file.rate, self.sample_rate, speed
        )[: self.segment]
        # 0        offset                     T
        # |--zeros--|--------samples-------|--zeros--|
        offset = int(rng.integers(self.segment - len(samples) + 1))
        crop = torch.zeros(self.segment)
        crop[offset : offset + len(samples)] = samples
        return crop

    def _read(self, file: AudioFile, start: int, frames: int) -> np.ndarray:
        if file.path not in self._cache:
            return read_audio(file, start, frames)
        cached = self._cache[file.path][start : start + frames]
        return cached.astype(np.float32) / INT16


def by_speaker(voices: Iterable[Voice]) -> dict[str, list[AudioFile]]:
    """Each speaker's recordings, without the second mention of a file.

    Speakers come in sorted order, so that draws do not depend on the file system.
    """
    files: dict[str, list[AudioFile]] = {}
    seen = set()
    for speaker, file in voices:
        path = file.path.resolve()
        if path not in seen:
            files.setdefault(speaker, []).append(file)
        seen.add(path)
    return {speaker: files[speaker] for speaker in sorted(files)}


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Samples of full scale 1 as 16-bit integers, exact for 16-bit files."""
    return np.clip(np.rint(samples * INT16), -INT16, INT16 - 1).astype(np.int16)


def active_level_db(samples: torch.Tensor, rate: int) -> float:
    """Level of the parts that are not pauses, in dB relative to full scale.

    Blocks of 100 ms more than 10 dB below the mean power are left out, which is the
    relative gate of ITU-R BS.1770.

    Arguments
    ---------
    samples : torch.Tensor
        Samples [T].
    rate : int
        Samples per second.

    Returns
    -------
    float
        The level; -inf for silence.

    Example
    -------
    >>> tone = torch.ones(8000) * 0.1
    >>> round(active_level_db(torch.cat([tone, torch.zeros(8000)]), 8000), 3)
    -20.0
    """
    powers = torch.stack([block.square().mean() for block in samples.split(rate // 10)])
    active = powers[powers >= powers.mean() / 10]
    return 10 * torch.log10(active.mean()).item()
