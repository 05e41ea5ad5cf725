"""The errors for what a user can put right."""

from __future__ import annotations

import errno
import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

# What a disk or its rights refuse; other system errors are faults of a program.
REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP),
}


class UserError(ValueError):
    """Wrong input; the message is one sentence naming the value and the remedy.

    Programs catch it at the top, print the message alone and exit with code 2.

    Example
    -------
    >>> raise UserError("num_spks is 3, but the list mix.csv has 2 sources.")
    Traceback (most recent call last):
    ...
    speechbrain_spgm.data.errors.UserError: num_spks is 3, but the list mix.csv has 2 sources.
    """  # noqa: E501


class MissingPackage(UserError):
    """A library that only some uses need is not installed."""


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Imports a library that only some uses need.

    Arguments
    ---------
    module, package : str
        What to import, and the name under which pip knows its library.
    purpose : str
        What needs it; begins the message.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    MissingPackage
        If the library is not installed.

    Example
    -------
    >>> require("json", "json", "The summary").__name__
    'json'
    >>> require("no_such_module", "no-such-package", "The summary")
    Traceback (most recent call last):
    ...
    speechbrain_spgm.data.errors.MissingPackage: The summary needs no-such-package: run pip install no-such-package.
    """  # noqa: E501
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingPackage(
            f"{purpose} needs {package}: run pip install {package}."
        ) from None


def refusal(error: BaseException | None) -> str | None:
    """Why a disk does not take a file, in words; None if the error is another.

    torch, safetensors and libsndfile have errors of their own for a full disk.

    Example
    -------
    >>> refusal(OSError(errno.ENOSPC, "")), refusal(KeyError("x"))
    ('No space left on device', None)
    """
    found = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in REFUSALS:
            return os.strerror(found.errno)
        found = found.__cause__ or found.__context__
    text = str(error)
    if named := re.search(r"([\w ]+) \(os error \d+\)", text):
        return named[1].strip()
    if isinstance(error, RuntimeError) and re.search(
        "PytorchStreamWriter|unexpected pos|iostream error|System error", text
    ):
        return "the disk may be full"
    return None


@contextmanager
def writing(place: str | Path, remedy: str = "take another folder") -> Iterator[None]:
    """Turns what a full or read-only disk raises inside into a UserError.

    Example
    -------
    >>> with writing("out", "make room"):
    ...     raise OSError(errno.ENOSPC, "")
    Traceback (most recent call last):
    ...
    speechbrain_spgm.data.errors.UserError: out cannot be written (No space left on device): make room.
    """  # noqa: E501
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = refusal(error)
        if reason is None and isinstance(error, OSError):
            reason = error.strerror
        if reason is None:
            raise
        # Another file than ours, then: a source of what is written, say.
        name = getattr(error, "filename", None)
        near = name is None or Path(place).parent in Path(os.fsdecode(name)).parents
        if isinstance(place, Path) and not near:
            raise UserError(f"{name} cannot be read ({reason}): check it.") from None
        raise UserError(f"{place} cannot be written ({reason}): {remedy}.") from None
