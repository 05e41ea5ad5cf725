"""The errors for what a user can put right, and how foreign text is shown."""

from __future__ import annotations

import errno
import importlib
import os
import re
import unicodedata
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

# Control, format (bidi overrides too), lone surrogates, line and paragraph separators.
UNPRINTED = ("Cc", "Cf", "Cs", "Zl", "Zp")


def shown(text: object, longest: int | None = 1000) -> str:
    """Text of a stranger (a card, a name, an answer), safe to print, in one line.

    Arguments
    ---------
    text : object
        Anything; its ``str`` is shown.
    longest : int, optional
        In characters; what is longer loses its middle. None: everything is shown.

    Returns
    -------
    line : str
        Without control characters, escape sequences, line ends, invisible and
        direction-changing characters: each stands there as its escape.

    Example
    -------
    >>> print(shown("a\\x1b[2J\\nb\\u202e"), shown("ab" * 9, 10))
    a\\x1b[2J\\nb\\u202e aba...abab
    """
    text = str(text)
    if longest is not None and len(text) > longest:
        head = (longest - 3) // 2
        text = f"{text[:head]}...{text[head + 3 - longest :]}"
    if text.isprintable():
        return text
    return "".join(
        ascii(character)[1:-1]
        if unicodedata.category(character) in UNPRINTED
        else character
        for character in text
    )


def count(number: int, noun: str) -> str:
    """A number of things.

    Example
    -------
    >>> count(1, "file"), count(2, "file")
    ('1 file', '2 files')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, to quote in a sentence, else its class.

    Example
    -------
    >>> first_line(OSError("\\nNo answer:\\nagain")), first_line(KeyError())
    ('No answer', 'KeyError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


class UserError(ValueError):
    """Wrong input; the message is one sentence naming the value and the remedy.

    Programs catch it at the top, print the message alone and exit with code 2. As the
    message may quote what a stranger wrote, its text is that of :func:`shown`.

    Example
    -------
    >>> raise UserError("num_spks is 3, but the list mix.csv has 2 sources.")
    Traceback (most recent call last):
    ...
    speechbrain_spgm.errors.UserError: num_spks is 3, but the list mix.csv has 2 sources.
    """  # noqa: E501

    longest: int | None = 4000  # characters of a message

    def __str__(self) -> str:
        text = super().__str__()
        if text.startswith("Caught ") and "Original Traceback" in text:
            # A worker's of a DataLoader, which torch wraps in where it came from.
            text = text.rpartition(f"{type(self).__name__}: ")[2].strip()
        return shown(text, self.longest)


class MissingPackage(UserError):
    """A library that only some uses need is not installed."""


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Imports a library that only some uses need; ``package`` is its name for pip.

    ``purpose`` says what needs it, and begins the message.

    Example
    -------
    >>> require("json", "json", "The summary").__name__
    'json'
    >>> require("no_such_module", "no-such-package", "The summary")
    Traceback (most recent call last):
    ...
    speechbrain_spgm.errors.MissingPackage: The summary needs no-such-package: run pip install no-such-package.
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
        "PytorchStreamWriter|unexpected pos|iostream error|System error"
        "|unable to resize file",  # memory that processes share
        text,
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
    speechbrain_spgm.errors.UserError: out cannot be written (No space left on device): make room.
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
        file, ours = Path(os.fsdecode(name or place)), Path(place)
        near = ours.parent in file.parents or file in (ours, *ours.parents)
        if isinstance(place, Path) and not near:
            raise UserError(f"{name} cannot be read ({reason}): check it.") from None
        raise UserError(f"{place} cannot be written ({reason}): {remedy}.") from None
