"""What has been done in an output folder, by however many processes.

::

    DIR/out.jsonl                    a row per voice, in the manifest's order
    DIR/voices/3f/3f09...._spk1.flac
    DIR/.spgm/settings.json          how all of them were made
    DIR/.spgm/journal-*.jsonl        a line per recording, written when its files are

Each process has a journal of its own, so nobody writes after a line that a kill cut
off. A recording that two processes separate gives the same files and the same line
twice, and counts once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO
from uuid import uuid4

from speechbrain_spgm.bulk.manifest import ALL, Manifest, Row, Shard
from speechbrain_spgm.errors import UserError, writing
from speechbrain_spgm.files import (
    beginning,
    lock_alone,
    machine,
    replacing,
    sweep,
    temporary_name,
)

STATE, SETTINGS, VOICES = ".spgm", "settings.json", "voices"
START = '{"key": "'  # of each line of a journal
OURS = frozenset(["remarks"])  # fields that only some rows have
MEAN_FILES = 500  # expected in a folder: above twice as many there never are

Voices = list[dict[str, Any]]


class Ledger:
    """The record of one output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / STATE
        with writing(f"The output folder {folder}"):
            self.state.mkdir(parents=True, exist_ok=True)
        mark = f"{machine()}-{os.getpid()}-{beginning(os.getpid()) or 0}"
        self.journal = self.state / f"journal-{mark}-{uuid4().hex[:8]}.jsonl"
        self.places: dict[str, tuple[Path, int]] = {}
        self.digits = 0
        self._lock, self._file = threading.Lock(), None

    def settle(self, settings: Mapping[str, Any], rows: int, speakers: int) -> None:
        """Writes down how voices are made here, or refuses other ways.

        ``settings`` are JSON's types; ``rows`` and ``speakers`` say how many folders.
        """
        wanted = {
            **json.loads(json.dumps(settings)),
            "digits": digits_for(rows, speakers),
        }
        place = self.state / SETTINGS
        with writing(f"The output folder {self.folder}"):
            found = _first(place, wanted)
        self.digits = found.pop("digits", 0)
        for name in {**wanted, **found}:
            if name != "digits" and wanted.get(name) != found.get(name):
                raise UserError(
                    f"{self.folder} holds voices made with {name} "
                    f"{found.get(name)!r}, not {wanted.get(name)!r}: take another "
                    "folder, or the same again."
                )

    @contextmanager
    def locked(self, shard: Shard) -> Iterator[None]:
        """Keeps other processes from doing the same again.

        Only for the sake of time: where the file system has no locks, nothing is lost.
        """
        with writing(f"The output folder {self.folder}"):
            lock = os.open(
                self.state / f"lock{shard.suffix}", os.O_RDWR | os.O_CREAT, 0o666
            )
        try:
            if not lock_alone(lock):
                part = f"{shard.index}/{shard.count} of {self.folder}"
                raise UserError(
                    f"another process works on shard {part}: wait for its end."
                )
            yield
        finally:
            os.close(lock)
            self.close()

    def outputs(self, key: str, speakers: int, ending: str) -> list[str]:
        """Where the voices of a row go, relative to the folder.

        Example
        -------
        >>> ledger = Ledger(getfixture("tmp_path"))
        >>> ledger.digits = 2
        >>> ledger.outputs("3f09", 2, "flac")
        ['voices/3f/3f09_spk1.flac', 'voices/3f/3f09_spk2.flac']
        """
        folder = "/".join(filter(None, [VOICES, key[: self.digits]]))
        return [f"{folder}/{key}_spk{i}.{ending}" for i in range(1, speakers + 1)]

    def add(self, key: str, voices: Voices) -> None:
        """Writes down that a row is done; its files are on the disk before its line."""
        for voice in voices:
            _sync(self.folder / voice["path"])
        line = (json.dumps({"key": key, "voices": voices}) + "\n").encode("ascii")
        with self._lock:
            if self._file is None:
                self._file = open(self.journal, "ab")
            place = self._file.tell()
            self._file.write(line)
            self._file.flush()
            self.places[key] = self.journal, place
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the journal; what is added later begins another line of it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def load(self, keys: Iterable[str]) -> None:
        """Reads which of some rows are done: in the journals, their files unchanged.

        Of several lines about a row the newest journal's counts.
        """
        wanted, width = frozenset(keys), len(START)
        for path in sorted(self.state.glob("journal-*.jsonl"), key=_age):
            if path == self.journal:
                continue
            place = 0
            with open(path, "rb") as file:
                for line in file:
                    key = line[width : width + 20].decode("ascii", "replace")
                    if key in wanted and self._unchanged(line):
                        self.places[key] = path, place
                    place += len(line)

    def _unchanged(self, line: bytes) -> bool:
        try:
            return all(
                os.stat(self.folder / voice["path"]).st_size == voice["bytes"]
                for voice in json.loads(line)["voices"]
            )
        except (OSError, ValueError, KeyError):  # gone, or cut off by a kill
            return False

    def lists(self, shard: Shard) -> tuple[Path, Path]:
        """Where the rows of a shard go that are done, and those that failed."""
        out, failed = (f"{name}{shard.suffix}.jsonl" for name in ("out", "failed"))
        return self.folder / out, self.folder / failed

    def write(
        self, manifest: Manifest, shard: Shard, failures: Mapping[str, str]
    ) -> None:
        """Writes out.jsonl and failed.jsonl, whole or not at all, and tidies up.

        ``failures`` has why rows are not done, by their keys.
        """
        out, failed = self.lists(shard)
        with writing(f"The lists in {self.folder}", "make room"):
            with (
                replacing(failed) as failed_part,
                replacing(out) as out_part,
                open(failed_part, "w", encoding="ascii") as failed_file,
                open(out_part, "w", encoding="ascii") as out_file,
                _Lines() as lines,
            ):
                for row in manifest.shard(shard):
                    if row.key in self.places:
                        self._write_voices(row, lines, out_file)
                    elif row.key in failures:  # else it is newer than this run
                        _write_row({"error": failures[row.key]}, row, failed_file)
            if not failures:
                failed.unlink(missing_ok=True)
            if shard == ALL:  # what killed processes left where nobody wrote since
                for folder in (self.folder / VOICES, *(self.folder / VOICES).glob("*")):
                    sweep(folder)

    def _write_voices(self, row: Row, lines: _Lines, file: TextIO) -> None:
        for voice in json.loads(lines.read(*self.places[row.key]))["voices"]:
            del voice["bytes"]
            _write_row(voice, row, file)


class _Lines:
    """Lines of many journals, of which many stay open."""

    MOST = 200

    def __init__(self) -> None:
        self.files: dict[Path, BinaryIO] = {}

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()

    def read(self, path: Path, place: int) -> bytes:
        if path not in self.files:
            if len(self.files) == self.MOST:
                self.__exit__()
            self.files[path] = open(path, "rb")
        self.files[path].seek(place)
        return self.files[path].readline()


def _write_row(ours: dict[str, Any], row: Row, file: TextIO) -> None:
    """Our fields, then the manifest's, none of which takes the place of another."""
    kept: dict[str, Any] = {}
    for name, value in row.fields.items():
        target = name
        if name in OURS or name in ours:
            while target in OURS or target in ours or target in row.fields:
                target = f"mixture_{target}"
        kept[target] = value
    file.write(json.dumps({**ours, **kept}) + "\n")


def _age(journal: Path) -> tuple[int, str]:
    return journal.stat().st_mtime_ns, journal.name


def digits_for(rows: int, speakers: int) -> int:
    """How many digits of a key name its folder, so that none gets above 1,000 files.

    Example
    -------
    >>> [digits_for(rows, 2) for rows in (250, 251, 4000, 4001, 36_000_000)]
    [0, 1, 1, 2, 5]
    """
    digits = 0
    while rows * speakers > MEAN_FILES * 16**digits:
        digits += 1
    return digits


def _first(place: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """What whoever came first wrote to a small file, whole whenever it is there."""
    if not place.exists():
        temporary = temporary_name(place.parent)
        try:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
            try:
                os.link(temporary, place)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
    try:
        return json.loads(place.read_text())
    except ValueError:
        raise UserError(
            f"{place} is damaged: remove it, and give the same options."
        ) from None


def _sync(path: Path) -> None:
    """Brings a file to the disk, where that can be asked for."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
