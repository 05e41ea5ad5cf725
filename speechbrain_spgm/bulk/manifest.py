"""Which recordings, or parts of them, a corpus holds.

A row is known by a hash of what it names, so that every machine gives its voices the
same names, and a run finds again what an earlier one has done.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from speechbrain_spgm.audio import Cut
from speechbrain_spgm.errors import UserError

# Names of the field with a recording's path, NeMo's first.
PATHS = (
    "audio_filepath audio_path audio path file_path file file_name filename wav mix "
    "mixture_path"
).split()
TABLES = {".csv": ",", ".tsv": "\t"}  # what separates the columns


class Shard(NamedTuple):
    """Every ``count``-th row of a manifest, from row ``index`` on, counted from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard as people write it.

        Example
        -------
        >>> Shard.parse("200/200")
        Shard(index=200, count=200)
        >>> Shard.parse("0/200")
        Traceback (most recent call last):
        ...
        speechbrain_spgm.errors.UserError: the shard is '0/200', but must be like 3/200, from 1/200 to 200/200.
        """  # noqa: E501
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        index, count = map(int, match.groups()) if match else (0, 200)
        if not 1 <= index <= count:
            n = max(1, count)
            raise UserError(
                f"the shard is {text!r}, but must be like 3/200, from 1/{n} to {n}/{n}."
            )
        return cls(index, count)

    @property
    def suffix(self) -> str:
        """What the names of this shard's lists end with; equally long in all of them.

        Example
        -------
        >>> Shard(3, 200).suffix, Shard().suffix
        ('-003-of-200', '')
        """
        width = len(str(self.count))
        return "" if self.count == 1 else f"-{self.index:0{width}}-of-{self.count}"


ALL = Shard()


class Row(NamedTuple):
    """One row of a manifest.

    Its number from 0, its fields as the manifest has them, the path as it stands there
    and where that is, the part that is wanted, what it is known by, and a sentence if
    nothing can be done with it.
    """

    number: int
    fields: Mapping[str, Any]
    name: str
    path: str
    cut: Cut
    key: str
    problem: str | None = None


class Manifest:
    """The rows of a file or of a folder, read again whenever they are asked for.

    Arguments
    ---------
    path : Path
        JSON lines with ``audio_filepath`` and, if only a part is wanted, ``offset`` and
        ``duration`` in seconds; or a table with these columns (.csv, .tsv). Paths are
        relative to its folder.
    files : iterable of str, optional
        Of a folder ``path``: which of its files, relative to it.

    Raises
    ------
    UserError
        If there is no such file.

    Example
    -------
    >>> path = getfixture("tmp_path") / "in.jsonl"
    >>> _ = path.write_text('{"audio_filepath": "a.wav", "offset": 2.5, "lang": "en"}')
    >>> [(row.name, row.cut.offset, row.key) for row in Manifest(path)]
    [('a.wav', 2.5, 'fce4ac1ba4879607f3dd')]
    """

    def __init__(self, path: Path, files: Iterable[str] | None = None) -> None:
        self.path, self.files = path, None if files is None else list(files)
        self.base = os.path.abspath(path if files is not None else path.parent)
        if self.files is None and not os.path.isfile(path):
            raise UserError(f"the manifest {path} does not exist: check its name.")

    @property
    def name(self) -> str:
        """What it is called, wherever it lies."""
        return self.path.name or os.path.basename(self.base)

    def __iter__(self) -> Iterator[Row]:
        for number, found in enumerate(self._all_fields()):
            if isinstance(found, str):
                key = key_of(["", found])
                wrong = f"is no JSON object with a path in {PATHS[0]}"
                if self.path.suffix.lower() in TABLES:
                    wrong = "has not as many values as the header, or no path"
                problem = f"row {number + 1} of {self.name} {wrong}: correct it."
                yield Row(number, {"row": found}, "", "", Cut(), key, problem)
            else:
                yield self._row(number, found)

    def shard(self, shard: Shard) -> Iterator[Row]:
        """The rows of a shard."""
        return (row for row in self if row.number % shard.count == shard.index - 1)

    def _row(self, number: int, fields: dict[str, Any]) -> Row:
        name = next(fields[field] for field in PATHS if field in fields)
        numbers, problem = [], None
        for field, lowest in (("offset", 0), ("duration", 1e-9)):
            value = _seconds(fields.get(field))
            if value is not None and not lowest <= value < math.inf:
                problem = (
                    f"row {number + 1} of {self.name} has {field} {fields[field]!r}, "
                    f"but it must be a number of seconds{' above 0' * (lowest > 0)}."
                )
                value = str(fields[field])
            numbers.append(value)
        key = key_of([name, *numbers])
        cut = Cut() if problem else Cut(numbers[0] or 0.0, numbers[1])
        path = os.path.join(self.base, name)
        return Row(number, fields, name, path, cut, key, problem)

    def _all_fields(self) -> Iterator[dict[str, Any] | str]:
        """The fields of every row, or its text if they cannot be told."""
        if self.files is not None:
            yield from ({PATHS[0]: name} for name in self.files)
            return
        try:
            with open(
                self.path, encoding="utf-8", errors="surrogateescape", newline="\n"
            ) as file:
                if file.read(1) != "\ufeff":
                    file.seek(0)
                delimiter = TABLES.get(self.path.suffix.lower())
                yield from (
                    self._lines(file)
                    if delimiter is None
                    else self._table(file, delimiter)
                )
        except OSError as error:
            raise UserError(
                f"the manifest {self.path} cannot be read ({error.strerror}): check it."
            ) from None

    def _lines(self, file: TextIO) -> Iterator[dict[str, Any] | str]:
        for line in filter(None, map(str.strip, file)):
            try:
                # NaN and infinity stay texts: no other JSON reader takes them.
                fields = json.loads(line, parse_constant=str, parse_float=_finite)
                named = [fields[name] for name in PATHS if name in dict(fields)]
                good = isinstance(named[0], str) and named[0] != ""
            except (ValueError, TypeError, IndexError, RecursionError):
                good = False
            yield fields if good else line

    def _table(self, file: TextIO, delimiter: str) -> Iterator[dict[str, Any] | str]:
        # Strict: else a quote without its end takes all rows behind it into its field.
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            columns = reader.fieldnames or []
            if not set(PATHS) & set(columns):
                raise UserError(
                    f"the manifest {self.path} has no column {PATHS[0]}; its columns "
                    f"are {', '.join(columns) or 'none'}."
                )
            for fields in reader:
                whole = None not in fields and None not in fields.values()
                named = [fields.get(name) for name in PATHS if name in fields]
                yield fields if whole and named[0] else json.dumps([*fields.values()])
        except csv.Error as error:
            raise UserError(
                f"the manifest {self.path} is no table (after line {reader.line_num}: "
                f"{error}): write quotes in a field twice, in a field within quotes."
            ) from None


def _finite(text: str) -> float | str:
    return float(text) if math.isfinite(float(text)) else text


def key_of(parts: list[Any]) -> str:
    """What a row is known by: 80 bits of a hash.

    Example
    -------
    >>> key_of(["a.wav", None, None]) == key_of(["a.wav", 0.0, None])
    False
    """
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()[:20]


def _seconds(value: Any) -> float | None:
    """A number of seconds, None if it is left open, NaN if it is something else."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
