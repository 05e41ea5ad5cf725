"""Audio files: what they hold, a part of one, and at another rate or speed.

Axes: T samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil, gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from speechbrain_spgm.data.errors import UserError

THREADS = 8  # opening files is mostly waiting for the disk
UNKNOWN_SIZE = 0x7FFF0000
BLOCK = 2**18  # frames read at a time: the frame count in a header is only a promise


class AudioFile(NamedTuple):
    """A readable file: where it is, its frames and its rate in Hz."""

    path: Path
    frames: int
    rate: int

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.frames / self.rate


def open_audio(path: str | Path, mono: bool = True) -> AudioFile:
    """Looks into a file and makes sure that it can be read to its end.

    Arguments
    ---------
    path : str or Path
        Any file that libsndfile reads (WAV, FLAC, OGG, MP3).
    mono : bool
        Refuse files of several channels.

    Returns
    -------
    AudioFile
        Its path, frames and rate.

    Raises
    ------
    UserError
        If the file is missing, not audio, empty, truncated or has too many channels.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The audio file {path} does not exist.")
    try:
        with soundfile.SoundFile(path) as file:
            frames, rate, channels = file.frames, file.samplerate, file.channels
            whole = is_whole(file)
            if not whole and not states_length(path):
                file.seek(0)
                frames = sum(iter(lambda: len(file.read(BLOCK)), 0))
                whole = True
    except (soundfile.LibsndfileError, RuntimeError):
        raise UserError(
            f"The audio file {path} is truncated or not audio: replace it."
        ) from None
    if not whole:
        raise UserError(f"The audio file {path} is truncated: replace it.")
    if frames == 0:
        raise UserError(f"The audio file {path} is empty: remove or replace it.")
    if mono and channels != 1:
        raise UserError(
            f"The audio file {path} has {channels} channels, but a source has one: "
            "convert it to mono."
        )
    return AudioFile(path, frames, rate)


def is_whole(file: soundfile.SoundFile) -> bool:
    """Whether an open file holds as many frames as its header says.

    libsndfile silently shortens a cut WAV file to what is left, and only its log tells;
    other formats keep the header's number, so their last frame must be readable.
    """
    if file.format in ("WAV", "WAVEX"):
        cut = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.M)
        # Streamed files have no true size: 0, 0x7fffffff and the like.
        return not cut or not int(cut[2]) < int(cut[1]) < UNKNOWN_SIZE
    file.seek(max(0, file.frames - 1))
    return len(file.read(1)) == min(1, file.frames)


def states_length(path: str | Path) -> bool:
    """Whether a file says how many frames it holds.

    An MP3 file says so in its first frame, if at all (a Xing, Info or VBRI tag).
    Without that, libsndfile guesses from the size, and a cut file cannot be told from a
    whole one.
    """
    with open(path, "rb") as file:
        head = file.read(10)
        if head.startswith(b"ID3"):  # title and pictures; of each byte 7 bits count
            file.seek(10 + int("".join(f"{byte:07b}" for byte in head[6:]), 2))
            head = file.read(10)
        is_mp3 = head[:1] == b"\xff" and head[1:2] >= b"\xe0"
        return not is_mp3 or bool(re.search(b"Xing|Info|VBRI", file.read(100)))


def open_all(paths: Iterable[str | Path], mono: bool = True) -> list[AudioFile]:
    """``open_audio`` of many files, several at a time, in their order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(partial(open_audio, mono=mono), paths))


def read_audio(file: AudioFile, start: int = 0, frames: int = -1) -> np.ndarray:
    """Reads a part of a file without decoding the rest.

    Arguments
    ---------
    file : AudioFile
        What ``open_audio`` returned.
    start : int
        First frame.
    frames : int
        How many frames; -1 reads to the end.

    Returns
    -------
    np.ndarray
        Samples [T] of the first channel, float32, full scale is 1.

    Raises
    ------
    UserError
        If the file cannot be read any more.
    """
    try:
        samples, _ = soundfile.read(
            file.path, start=start, frames=frames, dtype="float32", always_2d=True
        )
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise UserError(f"The audio file {file.path} cannot be read: {error}") from None
    return np.ascontiguousarray(samples[:, 0])


def frames_needed(samples: int, rate: int, target_rate: int, speed: int = 100) -> int:
    """How many frames of a file give ``samples`` samples after ``change_rate``.

    Example
    -------
    >>> frames_needed(8000, rate=16000, target_rate=8000)
    16000
    >>> frames_needed(8000, rate=8000, target_rate=8000, speed=105)
    8400
    """
    return ceil(ceil(samples * speed / 100) * rate / target_rate)


def change_rate(
    samples: torch.Tensor, rate: int, target_rate: int, speed: int = 100
) -> torch.Tensor:
    """Resamples, and plays faster or slower on the way.

    Speed changes tempo and pitch together, as SpeechBrain's SpeedPerturb does.

    Arguments
    ---------
    samples : torch.Tensor
        Samples [T].
    rate, target_rate : int
        Rates in Hz, before and after.
    speed : int
        Per cent; 105 makes the audio 5% shorter.

    Returns
    -------
    torch.Tensor
        Samples [about T * target_rate / rate * 100 / speed]; ``frames_needed`` says
        how many frames to pass for a certain number.

    Example
    -------
    >>> change_rate(torch.zeros(16000), 16000, 8000).shape
    torch.Size([8000])
    >>> change_rate(torch.zeros(8400), 8000, 8000, speed=105).shape
    torch.Size([8000])
    """
    # Two steps: the filters of a common ratio like 44.1 kHz to 8.4 kHz would be huge.
    divisor, whole = gcd(rate, target_rate), gcd(speed, 100)
    with samples.device:  # torchaudio's filters would be on the user's default device
        samples = resample(samples, rate // divisor, target_rate // divisor)
        return resample(samples, speed // whole, 100 // whole)
