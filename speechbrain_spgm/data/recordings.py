"""Recordings for dynamic mixing, of single speakers and of noise, found on disk."""

from __future__ import annotations

import csv
import logging
import math
import os
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechbrain_spgm.audio import AudioFile, open_all
from speechbrain_spgm.errors import UserError

logger = logging.getLogger(__name__)
AUDIO_SUFFIXES = {".flac", ".wav"}
QUIET = 0.01  # of a recording's peak: below is silence


def tell_lower_rates(files: Iterable[AudioFile], sample_rate: int) -> None:
    """Says once that recordings hold less than mixtures at this rate in Hz could."""
    files = {file.path: file for file in files}
    lower = [file for file in files.values() if file.rate < sample_rate]
    if lower and os.environ.get("RANK", "0") == "0":
        logger.warning(
            f"{len(lower)} of {len(files)} recordings have a lower rate than the "
            f"mixtures, {sample_rate} Hz, such as {lower[0].path} with "
            f"{lower[0].rate} Hz: above {lower[0].rate // 2} Hz they hold nothing."
        )


class Voice(NamedTuple):
    """One recording of one speaker."""

    speaker: str
    file: AudioFile


def find_voices(folder: str | Path, splits: str | Iterable[str] = "*") -> list[Voice]:
    """Finds all recordings of a LibriSpeech-style or WSJ0-style folder.

    A folder directly below a split is a speaker; recordings lie in it or in the folders
    directly below it::

        train-clean-100/19/198/19-198-0000.flac     LibriSpeech: speaker 19
        si_tr_s/011/011a0101.wav                    WSJ0: speaker 011

    Arguments
    ---------
    folder : str or Path
        The folder that holds the splits.
    splits : str or list of str
        Which splits: names or patterns such as ``train-*``. One of them may be given as
        the folder itself.

    Returns
    -------
    list of Voice
        Split by split, sorted by path, so that the order is the same on every machine.

    Raises
    ------
    UserError
        If the folder, a split or a readable recording in it is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"The data folder {folder} does not exist: "
            "give the folder that holds the splits as data_folder."
        )
    named: list[tuple[str, Path]] = []
    given = folder
    for split in [splits] if isinstance(splits, str) else splits:
        folder = given
        if Path(split).is_absolute():
            raise UserError(
                f"The split {split} is a path: name folders in {given}, or patterns of "
                "their names."
            )
        if not any(folder.glob(f"{split}/*/*")) and fnmatch(folder.name, split):
            folder, split = given.parent, given.name  # the split itself was given
        elif any(map(is_of_a_chapter, folder.glob(f"{split}/*/*"))):
            folder, split = given.parent, given.name  # and matched its speakers
        # <split>/<speaker>/<name> and <split>/<speaker>/<chapter>/<name>
        direct = [(path.parts[-2], path) for path in folder.glob(f"{split}/*/*")]
        deeper = [(path.parts[-3], path) for path in folder.glob(f"{split}/*/*/*")]
        files = [
            (speaker, path)
            for speaker, path in direct + deeper
            if path.suffix.lower() in AUDIO_SUFFIXES
        ]
        if not files:
            raise UserError(
                f"There is no recording {folder}/{split}/<speaker>/<chapter>/*.flac "
                f"and no {folder}/{split}/<speaker>/*.wav: check data_folder and the "
                "names of the splits, and convert other formats (.wv1, .sph) to WAV."
            )
        named += sorted(files, key=lambda item: item[1])
    opened = open_all(path for _, path in named)
    return [
        Voice(speaker, file) for (speaker, _), file in zip(named, opened, strict=True)
    ]


def is_of_a_chapter(path: Path) -> bool:
    """Whether a file is called as LibriSpeech calls those of a chapter.

    Example
    -------
    >>> is_of_a_chapter(Path("19/198/19-198-0000.flac"))
    True
    """
    return path.name.startswith("-".join(path.parts[-3:-1]) + "-")


def find_noise(source: str | Path, split: str = "train") -> list[AudioFile]:
    """The noise recordings of a folder or of a list; of several channels, the first.

    Arguments
    ---------
    source : str or Path
        A folder, searched with all folders in it, or a CSV file with the column
        ``path`` (relative to the CSV's folder) and, perhaps, ``split``.
    split : str
        Which rows of a list with a column ``split`` count.

    Returns
    -------
    list of AudioFile
        Of a folder, sorted by path; of a list, in its order.

    Raises
    ------
    UserError
        If the source, or a readable recording in it, is missing.
    """
    source = Path(source)
    if source.is_file():
        paths = [
            source.parent / row["path"] for row in rows_of(source, ["path"], split)
        ]
    else:
        files = files_below(source)
        paths = sorted(x for x in files if x.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise UserError(
            f"There is no noise recording in {source}: give a folder that holds some, "
            "or a CSV file with a column path."
        )
    return open_all(paths, mono=False)


def files_below(folder: Path) -> Iterator[Path]:
    """Files in a folder and all below it; links are followed, loops are not."""
    entered = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        yield from (Path(root, name) for name in files)


def read_voices(
    manifest: str | Path, split: str = "train", mono: bool = True
) -> list[Voice]:
    """Reads a CSV file that names recordings and their speakers.

    Arguments
    ---------
    manifest : str or Path
        A CSV file with the columns ``path`` (relative to the CSV's folder) and
        ``speaker``. If it has a column ``split``, only the rows of ``split`` count.
    split : str
        See above.
    mono : bool
        Refuse files of several channels, of which the first would be taken.

    Returns
    -------
    list of Voice
        In the order of the file.

    Raises
    ------
    UserError
        If the file, a column, a row or a recording is missing or unreadable.
    """
    manifest = Path(manifest)
    rows = rows_of(manifest, ["path", "speaker"], split)
    for row in rows:
        if not row["speaker"].strip():
            raise UserError(
                f"The list {manifest} names no speaker of {row['path']}: add it."
            )
    opened = open_all((manifest.parent / row["path"] for row in rows), mono)
    return [Voice(row["speaker"], file) for row, file in zip(rows, opened, strict=True)]


def rows_of(manifest: Path, columns: list[str], split: str) -> list[dict[str, str]]:
    """The rows of a list that belong to a split, at least one."""
    rows = [
        row for row in read_table(manifest, columns) if row.get("split", split) == split
    ]
    if not rows:
        raise UserError(f"The list {manifest} names no recording of split {split}.")
    return rows


def read_table(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Reads the rows of a CSV file that has at least these columns, and a row."""
    try:
        if path.is_dir():
            raise UserError(f"The list {path} is a folder: give a CSV file.")
        if not path.is_file():
            raise UserError(f"The list {path} does not exist.")
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows, header = list(reader), reader.fieldnames or []
    except OSError as error:
        raise UserError(
            f"The list {path} cannot be read ({error.strerror}): check its rights."
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The list {path} is not a CSV file: {error}.") from None
    check_columns(path, header, columns)
    if not rows:
        raise UserError(f"The list {path} has no rows.")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(
                f"Line {number} of the list {path} has not as many values as the "
                f"header has columns ({len(header)})."
            )
    return rows


def check_columns(path: Path, header: Iterable[str], columns: Iterable[str]) -> None:
    """Makes sure that a table has some columns."""
    for column in columns:
        if column not in header:
            raise UserError(
                f"The list {path} has no column {column}; "
                f"its columns are {', '.join(header) or 'none'}."
            )


def to_number(text: str) -> float:
    """A finite number; NaN for any other text."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def trim(samples: np.ndarray) -> np.ndarray:
    """Samples [T] without the silence, below a hundredth of the peak, at both ends.

    Example
    -------
    >>> trim(np.array([0.0, 0.001, 0.5, 0.0, 0.4, 0.002]))
    array([0.5, 0. , 0.4])
    """
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max(initial=0))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]
