"""Files that are either whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes ``path`` when the block ends well.

    The temporary file lies in the same folder, so that the last step is one rename.
    After any exception, Ctrl-C included, it is removed and ``path`` is as before.

    Arguments
    ---------
    path : Path
        The file to write or replace.

    Yields
    ------
    temporary : Path
        The name to write to.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.txt"
    >>> with replacing(path) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('whole', 1)
    """
    temporary = path.with_name(f".{uuid4().hex}.part")
    try:
        temporary.touch()  # with the rights that the user gives to new files,
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # which safetensors would narrow to the owner
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Writes a file into a folder and removes it again.

    Raises
    ------
    OSError
        If the disk or its rights refuse.

    Example
    -------
    >>> check_writable(getfixture("tmp_path"))
    """
    probe = folder / f".{uuid4().hex}.part"
    try:
        probe.write_bytes(bytes(4096))
    finally:
        probe.unlink(missing_ok=True)
