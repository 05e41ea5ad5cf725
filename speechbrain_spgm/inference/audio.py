"""Recordings in, voices out: audio files of any kind that libsndfile knows.

Axes: T samples, spks sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from torch import Tensor

from speechbrain_spgm.data.atomic import replacing
from speechbrain_spgm.data.audio import BLOCK, change_rate, states_length
from speechbrain_spgm.data.errors import UserError

# What a folder is searched for.
EXTENSIONS = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .caf .w64 .rf64".split()
)
LARGEST_KERNEL = 10**7  # values in torchaudio's table of filters, one per phase


class AudioFileError(UserError):
    """An audio file that cannot be separated; the message is one sentence."""


class Recording(NamedTuple):
    """A mono signal and where it came from.

    Arguments
    ---------
    samples : torch.Tensor
        ``[T]``, float32, full scale is 1.
    sample_rate : int
        In Hz.
    name : str
        For messages.
    missing : int
        How many samples a cut-off file lacks at its end.
    """

    samples: Tensor
    sample_rate: int
    name: str
    missing: int = 0


def read_audio(path: str | Path) -> Recording:
    """Reads a whole file; several channels are averaged to one.

    Arguments
    ---------
    path : str or Path
        WAV, FLAC, OGG, MP3, AIFF and whatever else libsndfile reads.

    Returns
    -------
    recording : Recording
        At the file's own rate. Of a cut-off file it holds what is there.

    Raises
    ------
    AudioFileError
        If the file is missing, empty, no audio or damaged, or holds NaN or infinity.
    """
    blocks: list[np.ndarray] = []
    sample_rate, missing = stream_audio(path, blocks.append)
    try:
        samples = np.concatenate(blocks)
    except MemoryError:
        raise AudioFileError(f"{path} does not fit into memory: cut it up.") from None
    return Recording(torch.from_numpy(samples), sample_rate, str(path), missing)


def stream_audio(
    path: str | Path, use: Callable[[np.ndarray], object]
) -> tuple[int, int]:
    """Reads a file a few seconds at a time; several channels are averaged to one.

    Arguments
    ---------
    path : str or Path
        As in ``read_audio``.
    use : callable
        Gets the blocks one after the other, ``[T]``, float32.

    Returns
    -------
    sample_rate : int
        In Hz.
    missing : int
        How many samples a cut-off file lacks at its end.

    Raises
    ------
    AudioFileError
        As ``read_audio``.
    """
    path = Path(path)
    if path.is_dir():
        raise AudioFileError(f"{path} is a folder: give an audio file.")
    if not path.is_file():
        raise AudioFileError(f"{path} does not exist: check its name.")
    if path.stat().st_size == 0:
        raise AudioFileError(f"{path} is an empty file: copy or record it again.")
    length, sample_rate, promised = 0, 0, 0
    blocks = _mono_blocks(path)
    while True:
        try:
            block, sample_rate, promised = next(blocks)
        except StopIteration:
            break
        except PermissionError:
            raise AudioFileError(
                f"{path} may not be read: change its rights."
            ) from None
        except MemoryError:
            raise AudioFileError(
                f"{path} does not fit into memory: cut it up."
            ) from None
        # libsndfile's own errors are RuntimeErrors; it wants more for .raw files
        except (RuntimeError, OSError, TypeError, ValueError):
            raise AudioFileError(
                f"{path} is damaged or no audio file of a known kind: "
                "convert it to WAV or FLAC."
            ) from None
        if not np.isfinite(block).all():
            raise AudioFileError(
                f"{path} holds samples that are NaN or infinite: export it again."
            )
        use(block)
        length += len(block)
    if length == 0:
        raise AudioFileError(f"{path} holds no samples: copy or record it again.")
    return sample_rate, max(0, promised - length)


def _mono_blocks(path: Path) -> Iterator[tuple[np.ndarray, int, int]]:
    """Blocks [T], each with the rate and how many samples the header promises."""
    with path.open("rb") as opened, soundfile.SoundFile(opened) as file:
        promised = file.frames if states_length(path) else 0
        # A block is [frames, channels].
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            mono = block.mean(axis=1, dtype=np.float64).astype(np.float32)
            yield mono, file.samplerate, promised


def write_audio(path: str | Path, samples: Tensor, sample_rate: int) -> None:
    """Writes a mono WAV file, whole or not at all; see ``write_voices``.

    Arguments
    ---------
    path : str or Path
        Replaced if it exists.
    samples : torch.Tensor
        ``[T]``.
    sample_rate : int
        In Hz.

    Example
    -------
    >>> path = getfixture("tmp_path") / "loud.wav"
    >>> write_audio(path, torch.tensor([0.0, 1.5]), 8000)
    >>> read_audio(path).samples
    tensor([0.0000, 1.5000])
    """
    write_voices([path], samples.unsqueeze(-1), sample_rate)


def write_voices(paths: Sequence[str | Path], voices: Tensor, sample_rate: int) -> None:
    """Writes one WAV file per voice; they appear only when all are written.

    Samples are 32-bit floats: a voice that is louder than its mixture does not clip and
    a quiet one is not rounded away.

    Arguments
    ---------
    paths : sequence of str or Path
        One per voice; replaced if they exist.
    voices : torch.Tensor
        ``[T, spks]``.
    sample_rate : int
        In Hz.

    Raises
    ------
    AudioFileError
        If they cannot be written.
    """
    try:
        with ExitStack() as stack:
            for path, voice in zip(paths, voices.T, strict=True):
                temporary = stack.enter_context(replacing(Path(path)))
                samples = voice.cpu().contiguous().numpy()
                soundfile.write(
                    temporary, samples, sample_rate, subtype="FLOAT", format="WAV"
                )
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "strerror", None) or "no rights, or the disk is full"
        raise AudioFileError(f"{paths[0]} cannot be written: {reason}.") from None


def resample(samples: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Resamples between any two rates.

    Arguments
    ---------
    samples : torch.Tensor
        ``[..., T]``.
    old_rate, new_rate : int
        In Hz.

    Returns
    -------
    resampled : torch.Tensor
        ``[..., ceil(T * new_rate / old_rate)]``.

    Example
    -------
    >>> resample(torch.zeros(2, 441), 44100, 8000).shape
    torch.Size([2, 80])
    >>> resample(torch.zeros(7999), 7999, 8000).shape
    torch.Size([8000])
    """
    divisor = math.gcd(old_rate, new_rate)
    old, new = old_rate // divisor, new_rate // divisor
    if old * new <= LARGEST_KERNEL:
        return change_rate(samples, old, new)
    # Rates with nearly no common divisor: torchaudio would need gigabytes.
    return torch.from_numpy(resample_poly(samples.numpy(), new, old, axis=-1))
