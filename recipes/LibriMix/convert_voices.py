#!/usr/bin/env python3
"""Recordings of any kind, as training takes them: voices for --extra_voices.

    python convert_voices.py --voices list.csv --output_folder voices
    python train.py hparams/spgm-small.yaml --extra_voices voices/voices.csv ...

The list has the columns path (relative to it) and speaker. Each recording becomes a WAV
file of one channel (the first) at one rate, without the silence around the voice; what
is shorter than --shortest is left out.

Axes: T samples.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from speechbrain_spgm.audio import to_pcm16
from speechbrain_spgm.corpora.command import run_command
from speechbrain_spgm.corpora.generation import load, resample, write
from speechbrain_spgm.data.recordings import read_voices, tell_lower_rates, trim
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.files import replacing


def convert(voices: Path, folder: Path, rate: int = 8000, shortest: float = 0.3) -> int:
    """Writes ``<speaker>/<number>.wav`` and, last, ``voices.csv``.

    Arguments
    ---------
    voices : Path
        CSV file with the columns path and speaker.
    folder : Path
        Where to write.
    rate : int
        Samples per second.
    shortest : float
        Seconds of speech that a recording must have.

    Returns
    -------
    int
        How many recordings were written.

    Raises
    ------
    UserError
        If the rate is not above 0, a recording cannot be read or written, or none is
        long enough.
    """
    if rate < 1:
        raise UserError(f"--rate is {rate}, but must be above 0.")
    numbers: Counter[str] = Counter()
    rows = []
    found = read_voices(voices, mono=False)
    tell_lower_rates((file for _, file in found), rate)
    for speaker, file in tqdm(found, unit="file"):
        samples = trim(resample(load(file), file.rate, rate))  # [T]
        if len(samples) < max(1, shortest * rate):
            continue
        if speaker == ".." or Path(speaker).name != speaker:
            raise UserError(
                f"A speaker of {voices} is called {speaker}, which cannot be a "
                "folder's name: take letters, digits and hyphens."
            )
        numbers[speaker] += 1
        path = Path(speaker) / f"{numbers[speaker]:05}.wav"
        samples /= max(1.0, np.abs(samples).max())  # else it would clip
        write(folder / path, to_pcm16(samples), rate)
        rows.append({"path": path, "speaker": speaker})
    if not rows:
        raise UserError(f"No recording of {voices} has {shortest} s of speech.")
    with (
        replacing(folder / "voices.csv") as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.DictWriter(file, ["path", "speaker"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def run(arguments: argparse.Namespace) -> list[str]:
    """Converts, and says what came of it."""
    count = convert(
        arguments.voices, arguments.output_folder, arguments.rate, arguments.shortest
    )
    return [f"{count} recordings in {arguments.output_folder}"]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Make voices for --extra_voices from recordings of any kind."
    )
    parser.add_argument(
        "--voices", type=Path, required=True, metavar="CSV", help="path, speaker"
    )
    parser.add_argument("--output_folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rate", type=int, default=8000, help="samples per second")
    parser.add_argument(
        "--shortest", type=float, default=0.3, help="seconds of speech at least"
    )
    parser.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(make_parser()))
