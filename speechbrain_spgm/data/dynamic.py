"""Dynamic mixing: new mixtures of different speakers in every epoch.

Axes: T samples, spks sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from speechbrain_spgm.audio import (
    AudioFile,
    change_rate,
    frames_needed,
    read_frames,
    to_pcm16,
)
from speechbrain_spgm.data.augment import Augmentations
from speechbrain_spgm.data.batch import Mixture
from speechbrain_spgm.data.levels import (
    LEVELS,
    LIBRIMIX_DB,
    PEAK,
    LevelRule,
    librimix_levels,
    loudness,
    mean_amplitude,
    power_db,
)
from speechbrain_spgm.data.recordings import Voice
from speechbrain_spgm.data.seeded import SeededDataset
from speechbrain_spgm.data.vary import check_speeds
from speechbrain_spgm.errors import UserError

NOISE_DB = (-38.0, -30.0)  # loudness of LibriMix's noise
SILENCE_DB = -60.0  # a crop below this level is drawn again,
MAX_DRAWS = 10  # this many times at most
QUIET = 1e-4, 10 ** (-36 / 20)  # peaks of recordings that are raised before that,
RAISED = 0.1  # to this one; what is below is a silence with its rounding noise
MAX_PAUSE = 0.4  # seconds between recordings that are joined


class DynamicMixing(SeededDataset):
    """Draws speakers, then a recording of each, then a crop, speed and level.

    Speakers are equally likely, however much speech each has (see ``speaker_power``),
    and within a speaker every second of speech is. A recording shorter than the crop
    stands at a random place in silence, or others follow it (see ``join_recordings``).
    The way to a mixture::

        crops -> augmentations of voices -> levels --+--> peak -> augmentations -> sum
                                     noise -> level -+            of the mixture

    Item i of an epoch depends on (seed, epoch, i) only, whatever workers and ranks
    there are (to rounding, which may differ with the number of threads). The mixture is
    the sum of the sources and, if there is any, of the noise.

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
        Range of the source levels in LUFS, for the level rule "librimix".
    speeds : sequence of int
        Speeds in per cent to draw from, one per source; [100] leaves the speed alone.
    cache_audio : bool
        Decode all recordings once into memory, 2 bytes a sample.
    seed : int
        Seed of all draws.
    levels : str
        The level rule: "librimix" draws each loudness on its own, "wsj0mix" the mean
        amplitude of the first and the others' difference to it; see ``levels.py``.
    noise : sequence of AudioFile
        Noise recordings, of which every mixture gets a random crop; a short one is
        repeated. ``find_noise`` finds them.
    noise_loudness_db : pair of float
        Range of the noise level in LUFS.
    noise_snr_db : pair of float, optional
        If given, the noise is instead so many dB below the power of all voices.
    noise_share : float
        In what share of the mixtures there is noise.
    augmentations : dict of str to float, or list of str, optional
        See ``Augmentations``.
    join_recordings : bool
        Fill the crop around a shorter recording with others of the speaker.
    speaker_power : float
        Draw speakers in proportion to their seconds of speech to this power.

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
        loudness_db: tuple[float, float] = LIBRIMIX_DB,
        speeds: Iterable[int] = (100,),
        cache_audio: bool = False,
        seed: int = 0,
        levels: str = "librimix",
        noise: Sequence[AudioFile] = (),
        noise_loudness_db: tuple[float, float] = NOISE_DB,
        noise_snr_db: tuple[float, float] | None = None,
        noise_share: float = 1.0,
        augmentations: Mapping[str, float] | Iterable[str] | None = None,
        join_recordings: bool = False,
        speaker_power: float = 0.0,
    ) -> None:
        super().__init__(seed)
        self.num_spks = num_spks
        self.sample_rate = sample_rate
        self.segment = round(segment_seconds * sample_rate)
        self.speeds = check_speeds(speeds)
        self.levels = level_rule(levels, check_range("loudness_db", loudness_db))
        self.noise = list(noise)
        self.noise_loudness_db = check_range("noise_loudness_db", noise_loudness_db)
        self.noise_snr_db = noise_snr_db and check_range("noise_snr_db", noise_snr_db)
        self.noise_share = noise_share
        self.augmentations = Augmentations(augmentations or {})
        self.join_recordings = join_recordings
        self.files = by_speaker(voices)
        self._chances = chances(self.files, speaker_power)
        if mixtures_per_epoch is None:
            mixtures_per_epoch = len(self.recordings)
        self.mixtures_per_epoch = mixtures_per_epoch
        self._check()
        self._gains_of: dict[Path, np.float32] = {}
        # Filled here, before workers start: they then share these pages.
        self._cache = {
            file.path: packed(read_frames(file))
            for file in self.recordings + self.noise
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
        if not 0 <= self.noise_share <= 1:
            raise UserError(
                f"noise_share is {self.noise_share}, but must be from 0 (no mixture "
                "has noise) to 1 (all have)."
            )

    @property
    def recordings(self) -> list[AudioFile]:
        """The files of all voices."""
        return [file for files in self.files.values() for file in files]

    @property
    def speakers(self) -> set[str]:
        """All speakers that may be drawn."""
        return set(self.files)

    @property
    def seconds(self) -> list[float]:
        """How long each item is: all the same."""
        return [self.segment / self.sample_rate] * len(self)

    def __len__(self) -> int:
        return self.mixtures_per_epoch

    def __getitem__(self, index: int) -> Mixture:
        rng = self.generator(index)
        speakers = rng.choice(
            list(self.files), self.num_spks, replace=False, p=self._chances
        )
        voices = np.stack([self._voice(speaker, rng) for speaker in speakers])
        voices = self.augmentations.voices(voices, self.sample_rate, rng)
        voices *= self._gains(voices, rng)
        noisy = self.noise and (
            self.noise_share == 1 or rng.random() < self.noise_share
        )
        noise = [self._noise(voices, rng)] if noisy else []
        parts = np.concatenate([voices, *noise])  # [spks, T], and noise as one more row
        parts *= self._peak_gain(parts)
        parts = self.augmentations.mixture(parts, self.sample_rate, rng)
        parts = torch.from_numpy(parts)
        return Mixture("_".join(speakers), parts.sum(0), parts[: self.num_spks].T)

    def _gains(self, voices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What brings voices [spks, T] to random levels [spks, 1]."""
        targets = self.levels.draw(self.num_spks, rng)
        gains = [
            gain_to(target, self.levels.measure(voice, self.sample_rate))
            for target, voice in zip(targets, voices, strict=True)
        ]
        return np.array(gains, dtype=np.float32)[:, None]

    def _peak_gain(self, parts: np.ndarray) -> np.float32:
        """What brings the peak of mixture and voices where the level rule wants it."""
        peak = max(np.abs(parts.sum(0)).max(), np.abs(parts[: self.num_spks]).max())
        if peak == 0:
            return np.float32(1)
        gain = PEAK / peak
        return np.float32(gain if self.levels.fixed_peak else min(1, gain))

    def _voice(self, speaker: str, rng: np.random.Generator) -> np.ndarray:
        """A crop [T] of the speaker, redrawn if near silent."""
        files = self.files[speaker]
        seconds = np.array([file.seconds for file in files])
        for _ in range(MAX_DRAWS):
            file = files[rng.choice(len(files), p=seconds / seconds.sum())]
            speed = int(rng.choice(self.speeds))
            short = file.frames < self._frames(file, speed)
            if short and self.join_recordings:
                crop = self._joined(file, files, speed, rng)
            else:
                crop = self._crop(file, speed, rng)
            if mean_amplitude(crop, self.sample_rate) <= SILENCE_DB:
                crop *= self._gain_of(file)
            if mean_amplitude(crop, self.sample_rate) > SILENCE_DB:
                break
        return crop

    def _gain_of(self, file: AudioFile) -> np.float32:
        """What raises a recording that is quiet throughout, read once; 1 for others."""
        if file.path not in self._gains_of:
            peak = np.abs(self._read(file, 0, file.frames)).max(initial=0)
            quiet = QUIET[0] < peak < QUIET[1]
            self._gains_of[file.path] = np.float32(RAISED / peak if quiet else 1)
        return self._gains_of[file.path]

    def _noise(self, voices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A crop of noise [1, T] at a random level."""
        file = self.noise[rng.integers(len(self.noise))]
        frames = frames_needed(self.segment, file.rate, self.sample_rate)
        start = int(rng.integers(max(0, file.frames - frames) + 1))
        samples = np.resize(self._read(file, start, frames), frames)
        samples = change_rate(torch.from_numpy(samples), file.rate, self.sample_rate)
        noise = samples[: self.segment].numpy()
        if self.noise_snr_db is None:
            target = rng.uniform(*self.noise_loudness_db)
            level = loudness(noise, self.sample_rate)
        else:
            target = power_db(voices.sum(0)) - rng.uniform(*self.noise_snr_db)
            level = power_db(noise)
        return np.float32(gain_to(target, level, floor_db=-np.inf)) * noise[None]

    def _crop(
        self, file: AudioFile, speed: int, rng: np.random.Generator
    ) -> np.ndarray:
        """A random crop [T]; a short recording is padded at both ends at random."""
        frames = self._frames(file, speed)
        start = int(rng.integers(max(0, file.frames - frames) + 1))
        samples = self._at_speed(file, speed, start)[: self.segment]
        # 0        offset                     T
        # |--zeros--|--------samples-------|--zeros--|
        offset = int(rng.integers(self.segment - len(samples) + 1))
        crop = np.zeros(self.segment, dtype=np.float32)
        crop[offset : offset + len(samples)] = samples
        return crop

    def _joined(
        self,
        file: AudioFile,
        files: Sequence[AudioFile],
        speed: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """A crop [T] that begins in a short recording and goes on with others."""
        # 0        start                            start + T
        # |--first---:----|pause|--second--|pause|--thi:rd--|
        parts = [self._at_speed(file, speed)]
        start = int(rng.integers(max(1, len(parts[0]))))
        missing = start + self.segment - len(parts[0])
        waiting = [other for other in files if other is not file]
        while missing > 0:
            pause = int(rng.integers(1, 1 + round(MAX_PAUSE * self.sample_rate)))
            waiting = waiting or [*files]  # again, when all were heard
            following = waiting.pop(rng.integers(len(waiting)))
            parts += [np.zeros(pause, np.float32), self._at_speed(following, speed)]
            missing -= pause + len(parts[-1])
        return np.concatenate(parts)[start : start + self.segment]

    def _frames(self, file: AudioFile, speed: int) -> int:
        """How many frames of the file a crop takes."""
        return frames_needed(self.segment, file.rate, self.sample_rate, speed)

    def _at_speed(self, file: AudioFile, speed: int, start: int = 0) -> np.ndarray:
        """What a crop takes of the file from there, at the crop's rate."""
        frames = min(self._frames(file, speed), file.frames - start)
        samples = torch.from_numpy(self._read(file, start, frames))
        return change_rate(samples, file.rate, self.sample_rate, speed).numpy()

    def _read(self, file: AudioFile, start: int, frames: int) -> np.ndarray:
        if file.path not in self._cache:
            return read_frames(file, start, frames)
        samples, exponent = self._cache[file.path]
        samples = samples[start : start + frames].astype(np.float32)
        return np.ldexp(samples, exponent)  # exact for files of 16 bits


def packed(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """Samples [T] as 16-bit numbers, and the power of two that they are multiples of.

    Nothing clips, and what is quiet keeps its digits.

    Example
    -------
    >>> packed(np.array([3.0, -1.5]))
    (array([ 24576, -12288], dtype=int16), -13)
    """
    peak = np.abs(samples).max(initial=0)
    octaves = min(int(np.frexp(peak)[1]), 0 if peak <= 1 else 128)  # -1 itself fits
    return to_pcm16(np.ldexp(samples, -octaves)), octaves - 15


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


def chances(
    files: Mapping[str, Sequence[AudioFile]], power: float
) -> np.ndarray | None:
    """How likely each speaker is drawn, [speakers]; None: equally likely."""
    if not 0 <= power <= 1:
        raise UserError(
            f"speaker_power is {power}, but must be from 0 (speakers are equally "
            "likely) to 1 (seconds of speech are)."
        )
    if power == 0:
        return None
    seconds = [sum(file.seconds for file in those) for those in files.values()]
    weights = np.array(seconds) ** power
    return weights / weights.sum()


def gain_to(target_db: float, level_db: float, floor_db: float = SILENCE_DB) -> float:
    """The factor from a level to another; 1 for what is not above the floor.

    Silence stays silence: raising it would only raise its rounding noise.
    """
    return 10 ** ((target_db - level_db) / 20) if level_db > floor_db else 1.0


def level_rule(name: str, loudness_db: tuple[float, float]) -> LevelRule:
    """The rule of that name, with this range if it is LibriMix's."""
    if name not in LEVELS:
        raise UserError(f"There is no level rule {name}: choose {' or '.join(LEVELS)}.")
    if name != "librimix":
        return LEVELS[name]
    return LEVELS[name]._replace(draw=partial(librimix_levels, loudness_db=loudness_db))


def check_range(name: str, values: Sequence[float]) -> tuple[float, float]:
    """Two numbers in ascending order, or a sentence that says what is wrong."""
    if len(values) != 2 or not values[0] <= values[1]:
        raise UserError(
            f"The range {name} is {list(values)}, but must be the lowest and the "
            "highest value in dB."
        )
    return tuple(values)
