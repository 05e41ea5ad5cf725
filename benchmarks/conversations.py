"""Conversations of two test speakers, built from single utterances.

Axes: T samples, spks sources.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from speechbrain_spgm.audio import resample
from speechbrain_spgm.errors import UserError

SPEAKERS = 2
SECONDS = (2.0, 8.0)  # of a turn
GAP = (-3.0, 1.5)  # seconds from the end of a turn to the next; below 0 both talk
LEVELS = 2.5  # dB by which a speaker is louder or quieter than the common level
RMS = 0.05  # the common level while talking


def find_speakers(folder: Path) -> dict[str, list[Path]]:
    """The files of every speaker in a folder SPEAKER/CHAPTER/*.flac.

    Arguments
    ---------
    folder : Path
        LibriSpeech's test-clean or one laid out like it.

    Returns
    -------
    speakers : dict of str to list of Path
        Sorted.

    Raises
    ------
    UserError
        If there are fewer than two speakers.
    """
    speakers: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/*/*.flac")):
        speakers.setdefault(path.parts[-3], []).append(path)
    if len(speakers) < SPEAKERS:
        raise UserError(
            f"{folder} holds {len(speakers)} speakers, but a conversation needs two: "
            "give a folder with files SPEAKER/CHAPTER/*.flac."
        )
    return speakers


def draw_conversation(
    speakers: dict[str, list[Path]], seconds: float, rate: int, seed: int
) -> np.ndarray:
    """Two speakers in turn, with pauses and overlaps.

    A turn is some seconds of an utterance; when a speaker's utterances have all been
    heard, they come again. Nothing else than the arguments decides what is drawn.

    Arguments
    ---------
    speakers : dict of str to list of Path
        From ``find_speakers``.
    seconds : float
        Duration.
    rate : int
        In Hz.
    seed : int
        Of the two speakers, the turns, pauses and levels.

    Returns
    -------
    sources : np.ndarray
        ``[T, spks]``, float32; their sum is the mixture.
    """
    draw = np.random.default_rng(seed)
    T = round(seconds * rate)
    sources = np.zeros((T, SPEAKERS), np.float32)
    names = draw.choice(sorted(speakers), SPEAKERS, replace=False)
    speech = [_speech(speakers[name], rate, draw) for name in names]
    gains = 10 ** (draw.uniform(-LEVELS, LEVELS, SPEAKERS) / 20)
    heard = [0] * SPEAKERS
    end = [0] * SPEAKERS  # of everyone's last turn
    start, k = 0, int(draw.integers(SPEAKERS))
    while start < T:
        length = round(draw.uniform(*SECONDS) * rate)
        turn = np.take(
            speech[k], np.arange(heard[k], heard[k] + length), mode="wrap"
        ) * np.float32(gains[k] * RMS)
        heard[k] += length
        piece = sources[start : start + length, k]
        piece += turn[: len(piece)]
        end[k] = start + length
        k = (k + 1) % SPEAKERS
        start += length + round(draw.uniform(*GAP) * rate)
        start = max(start, end[k])  # nobody talks over themselves
    return sources


def _speech(paths: list[Path], rate: int, draw: np.random.Generator) -> np.ndarray:
    """All utterances of a speaker in some order, each with an RMS of 1."""
    import torch

    parts = []
    for index in draw.permutation(len(paths)):
        samples, own = soundfile.read(paths[index], dtype="float32")
        samples = resample(torch.from_numpy(samples), own, rate).numpy()
        parts.append(samples / np.sqrt(np.mean(samples**2)))
    return np.concatenate(parts)
