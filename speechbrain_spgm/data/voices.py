"""Single-speaker recordings for dynamic mixing, found on disk."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from speechbrain_spgm.data.audio import AudioFile, open_audio
from speechbrain_spgm.data.errors import UserError

AUDIO_SUFFIXES = {".flac", ".wav"}


class Voice(NamedTuple):
    """One recording of one speaker."""

    speaker: str
    file: AudioFile


def find_voices(folder: str | Path, splits: str | Iterable[str] = "*") -> list[Voice]:
    """Finds all recordings of a LibriSpeech-style folder.

    The layout is ``<split>/<speaker>/<chapter>/<name>.flac`` (or .wav).

    Arguments
    ---------
    folder : str or Path
        The folder that holds the splits.
    splits : str or list of str
        Which splits: names or patterns such as ``train-*``.

    Returns
    -------
    list of Voice
        Sorted by path, so that the order is the same on every machine.

    Raises
    ------
    UserError
        If the folder, a split or a readable recording in it is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"The data folder {folder} does not exist: "
            "give the folder that holds LibriSpeech's splits as data_folder."
        )
    voices = []
    for split in [splits] if isinstance(splits, str) else splits:
        paths = sorted(
            path
            for path in folder.glob(f"{split}/*/*/*")
            if path.suffix.lower() in AUDIO_SUFFIXES
        )
        if not paths:
            raise UserError(
                f"There is no recording {folder}/{split}/<speaker>/<chapter>/*.flac: "
                "check data_folder and the names of the splits."
            )
        voices += [Voice(path.parts[-3], open_audio(path)) for path in paths]
    return voices


def read_voices(manifest: str | Path, split: str = "train") -> list[Voice]:
    """Reads a CSV file that names recordings and their speakers.

    Arguments
    ---------
    manifest : str or Path
        A CSV file with the columns ``path`` (relative to the CSV's folder) and
        ``speaker``. If it has a column ``split``, only the rows of ``split`` count.
    split : str
        See above.

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
    rows = read_table(manifest, columns=("path", "speaker"))
    voices = [
        Voice(row["speaker"], open_audio(manifest.parent / row["path"]))
        for row in rows
        if row.get("split", split) == split
    ]
    if not voices:
        raise UserError(f"The list {manifest} names no recording of split {split}.")
    return voices


def read_table(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Reads the rows of a CSV file that has at least these columns.

    Raises
    ------
    UserError
        If the file is missing, not CSV, without rows, or lacks a column or a value.
    """
    if not path.is_file():
        raise UserError(f"The list {path} does not exist.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The list {path} is not a CSV file: {error}.") from None
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(
            f"The list {path} has no column {missing[0]}; "
            f"its columns are {', '.join(header) or 'none'}."
        )
    if not rows:
        raise UserError(f"The list {path} has no rows.")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(
                f"Line {number} of the list {path} has not as many values as the "
                f"header has columns ({len(header)})."
            )
    return rows
