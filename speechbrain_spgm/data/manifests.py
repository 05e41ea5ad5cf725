"""The manifest: one CSV file that names the mixtures of a set, whatever the corpus.

===========  =========================================================================
Column       Meaning
===========  =========================================================================
``id``       Name of the mixture, unique in the file.
``duration`` Its true length in seconds, frames / rate of the mixture's file.
``mix``      The mixture's audio file.
``s1 .. sN`` The files of its N >= 1 sources, as long and at the same rate as ``mix``.
``noise``    The file of the noise in the mixture; empty where there is none.
===========  =========================================================================

The first line is the header, rows are sorted by id, the encoding is UTF-8. Paths are
absolute or relative to the folder of the CSV file. Further columns are ignored, and the
column ``noise`` may be left out. So this is a whole manifest::

    id,duration,mix,s1,s2,noise
    rain-0001,4.25,mix/rain-0001.wav,s1/rain-0001.wav,s2/rain-0001.wav,

A corpus of your own needs nothing but such a file: write it with ``write_manifest`` or
with any other tool. Those of SpeechBrain's recipes (``ID``, ``mix_wav``, ``s1_wav``,
...) and Asteroid's metadata (``mixture_ID``, ``mixture_path``, ``source_1_path``, ...,
``length`` in samples) are read as they are.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from speechbrain_spgm.audio import open_all, open_audio
from speechbrain_spgm.data.recordings import check_columns, read_table, to_number
from speechbrain_spgm.errors import UserError, writing
from speechbrain_spgm.files import replacing


class ManifestRow(NamedTuple):
    """One mixture: its id, seconds, mixture file, source files and noise file."""

    id: str
    duration: float
    mix: Path
    sources: tuple[Path, ...]
    noise: Path | None = None


def write_manifest(path: str | Path, rows: Iterable[ManifestRow]) -> None:
    """Writes a manifest; one that already says the same is not touched.

    Files below the manifest's folder are named relative to it, so that the whole
    folder may be moved; others are named by their absolute path.

    Arguments
    ---------
    path : str or Path
        The CSV file; its folder is made.
    rows : iterable of ManifestRow
        In any order.

    Raises
    ------
    UserError
        If there are no rows, an id comes twice, the rows differ in their number of
        sources, or the file cannot be written.

    Example
    -------
    >>> path = getfixture("tmp_path") / "train.csv"
    >>> folder = path.parent
    >>> sources = (folder / "s1" / "a.wav", folder / "s2" / "a.wav")
    >>> write_manifest(path, [ManifestRow("a", 1.5, folder / "mix" / "a.wav", sources)])
    >>> print(path.read_text(), end="")
    id,duration,mix,s1,s2,noise
    a,1.5,mix/a.wav,s1/a.wav,s2/a.wav,
    >>> [row.duration for row in read_manifest(path, num_spks=2)]
    [1.5]
    """
    path = Path(path)
    rows = sorted(rows, key=lambda row: row.id)
    if not rows:
        raise UserError(f"The manifest {path} would have no rows.")
    num_spks = len(rows[0].sources)
    for row in rows:
        if len(row.sources) != num_spks:
            raise UserError(
                f"Mixture {row.id} has {len(row.sources)} sources, but {rows[0].id} in "
                f"the same manifest {path} has {num_spks}: write two manifests."
            )
    for before, row in zip(rows, rows[1:], strict=False):
        if before.id == row.id:
            raise UserError(f"The id {row.id} comes twice in the manifest {path}.")

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"s{i}" for i in range(1, num_spks + 1)]
    writer.writerow(["id", "duration", "mix", *names, "noise"])
    for row in rows:
        files = [portable(file, path.parent) for file in (row.mix, *row.sources)]
        noise = "" if row.noise is None else portable(row.noise, path.parent)
        writer.writerow([row.id, repr(float(row.duration)), *files, noise])
    write_if_new(path, text.getvalue())


def write_if_new(path: Path, text: str) -> None:
    """Writes a text file, unless it already says the same; its folder is made."""
    content = text.encode(errors="surrogateescape")  # names are what they are on disk
    with writing(f"The file {path}", "take another output folder"):
        if path.is_file() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def portable(file: Path, folder: Path) -> str:
    """The file relative to the folder if it lies below it, else its absolute path."""
    file, folder = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
    return (file.relative_to(folder) if folder in file.parents else file).as_posix()


def read_manifest(path: str | Path, num_spks: int | None = None) -> list[ManifestRow]:
    """Reads a manifest, sorted by id; files are opened where it tells no lengths.

    If given, ``num_spks`` is how many sources each mixture must have.
    """
    path = Path(path)
    table = translate(read_table(path, columns=()), path)
    check_columns(path, table[0], ("id", "duration", "mix", "s1"))
    found = sum(bool(re.fullmatch(r"s[1-9]\d*", column)) for column in table[0])
    names = [f"s{i}" for i in range(1, found + 1)]
    check_columns(path, table[0], names)  # s1, s2, ... without a gap
    if num_spks not in (None, found):
        raise UserError(
            f"The manifest {path} has {found} source(s) per mixture, but num_spks is "
            f"{num_spks}: change one of them."
        )

    rows: dict[str, ManifestRow] = {}
    for line, values in enumerate(table, start=2):
        place = f"Line {line} of the manifest {path}"
        for name in ("id", "mix", *names):
            if not values[name].strip():
                raise UserError(f"{place} has no value for {name}.")
        if values["id"] in rows:
            raise UserError(f"{place} repeats the id {values['id']}.")
        files = [path.parent / values[name] for name in ("mix", *names)]
        noise = (values.get("noise") or "").strip()
        rows[values["id"]] = ManifestRow(
            values["id"],
            parse_duration(values["duration"], place),
            files[0],
            tuple(files[1:]),
            path.parent / noise if noise else None,
        )
    return [rows[id] for id in sorted(rows)]


def parse_duration(text: str, place: str) -> float:
    """Seconds as a number above 0, or a sentence that says where there is none."""
    duration = to_number(text)
    if not duration > 0:
        raise UserError(
            f"{place} has the duration {text!r}, but it must be seconds above 0."
        )
    return duration


def translate(table: list[dict[str, str]], path: Path) -> list[dict[str, str]]:
    """A table with our columns, if SpeechBrain's or Asteroid's recipes wrote it.

    Example
    -------
    >>> row = {"ID": "a", "duration": "1", "mix_wav": "m.wav", "s1_wav": "s.wav"}
    >>> translate([row], Path("train.csv"))
    [{'id': 'a', 'duration': '1', 'mix': 'm.wav', 's1': 's.wav'}]
    """
    if theirs := {"ID", "mix_wav"} <= table[0].keys():
        names = {name: name.removesuffix("_wav") for name in table[0]} | {"ID": "id"}
    elif {"mixture_ID", "mixture_path"} <= table[0].keys():
        names = {
            name: re.sub(r"^source_(\d+)_path$", r"s\1", name) for name in table[0]
        } | {"mixture_ID": "id", "mixture_path": "mix", "noise_path": "noise"}
    else:
        return table
    table = [{names[name]: value for name, value in row.items()} for row in table]
    if "duration" not in table[0] and "length" in table[0]:
        # In samples; one recording tells their rate, and each is opened later anyway.
        rate = open_audio(path.parent / table[0]["mix"]).rate
        for line, row in enumerate(table, start=2):
            samples = parse_duration(row["length"], f"Line {line} of the list {path}")
            row["duration"] = repr(samples / rate)
    elif theirs and all(row.get("duration") == "1.0" for row in table):
        # What SpeechBrain's recipes write, however long a mixture is.
        files = open_all(path.parent / row["mix"] for row in table)
        for row, file in zip(table, files, strict=True):
            row["duration"] = repr(file.seconds)
    return table
