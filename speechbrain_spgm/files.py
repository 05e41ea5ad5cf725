"""Files and folders that are either whole or not there, and what kills leave of them.

A temporary name tells who uses it: machine, process, and when the process began. The
next process of ours that writes into the folder removes what the dead have left.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

from speechbrain_spgm.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Of every temporary file and folder; the second form is that of earlier versions.
TEMPORARY = re.compile(
    r"\.spgm-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-(?P<began>[0-9a-f]{8})"
    r"-[0-9a-f]{12}\.part|\.[0-9a-f]{32}\.part"
)

_swept: set[tuple[int, Path]] = set()  # folders, by the process that looked at them


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
    refuse_special(path)
    temporary = temporary_name(path.parent)
    try:
        temporary.touch()  # with the rights that the user gives to new files,
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # which safetensors would narrow to the owner
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_special(path: Path) -> None:
    """Refuses what no file may take the place of, such as /dev/null."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"{path} is a device or a pipe: give the name of a file.")


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``target`` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (temporary_name(target.parent) for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            target.replace(old)
        temporary.replace(target)
    finally:
        if old.exists() and not target.exists():
            old.replace(target)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def lock_alone(descriptor: int) -> bool:
    """Whether no other process holds an open file or folder, which is locked then.

    Where the system or the file system has no locks, nobody ever does.
    """
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def scratch() -> Path:
    """Where this system keeps temporary files; a UserError if no folder takes any."""
    try:
        return Path(gettempdir())
    except FileNotFoundError:
        raise UserError(
            "There is no folder for temporary files (TMPDIR, /tmp, /var/tmp and the "
            "working directory cannot be written): set TMPDIR to one that can."
        ) from None


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder of this process, by default in ``scratch()``, until the block ends."""
    folder = temporary_name(scratch() if parent is None else parent)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Writes a file into a folder and removes it again; OSError if that is refused."""
    probe = temporary_name(folder)
    try:
        probe.write_bytes(bytes(4096))
    finally:
        probe.unlink(missing_ok=True)


def temporary_name(folder: Path) -> Path:
    """A new name in a folder, in which no dead process keeps anything any more."""
    here = os.getpid(), folder.absolute()
    if here not in _swept:  # once is enough: a folder may hold very many files
        _swept.add(here)
        sweep(folder)
    process = os.getpid()
    mark = f"{machine()}-{process}-{beginning(process) or '0' * 8}"
    return folder / f".spgm-{mark}-{uuid4().hex[:12]}.part"


def sweep(folder: Path) -> None:
    """Removes the temporary files and folders that killed processes left in a folder.

    What another user, another machine or a live process may be using stays.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_left(os.fsdecode(entry.name)):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)


def is_left(name: str) -> bool:
    """Whether a name was made by a process of this machine that is dead by now."""
    found = TEMPORARY.fullmatch(name)
    if not found or found["machine"] != machine():
        return False
    process = int(found["process"])
    try:
        os.kill(process, 0)  # asks whether it exists
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False  # it is another user's
    # A number is given again, after a restart of the machine at the latest.
    return beginning(process) not in (None, found["began"])


def machine() -> str:
    """Where process numbers mean the same: this host, in this container."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return _digest(f"{socket.gethostname()} {numbers}")


def beginning(process: int) -> str | None:
    """When a process began, as 8 digits; "dead" if it has ended, None if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read()
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # its name comes before
        state, start = fields[0], fields[19].decode("ascii")
    except (OSError, IndexError):
        return None
    return "dead" if state in (b"Z", b"X") else _digest(boot + start)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
