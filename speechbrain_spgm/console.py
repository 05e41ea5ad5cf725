"""What every command does about its surroundings: streams, signals, the terminal.

Exit codes: 0 all is well, 2 wrong input, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import IO, Any, TextIO, TypeVar

Item = TypeVar("Item")
WRONG_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: cleans up as Ctrl-C does."""


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """What a command that was interrupted returns."""
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


class Stream:
    """A standard stream, None if it is closed, that takes any text and never fails.

    Example
    -------
    >>> import io
    >>> Stream(None).write("lost"), Stream(io.StringIO()).write("kept")
    (4, 4)
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.error: OSError | None = None  # what went wrong first

    def write(self, text: str) -> int:
        """Writes what the stream takes; other characters are escaped."""
        if self.stream is not None and self.error is None:
            try:
                try:
                    self.stream.write(text)
                except UnicodeEncodeError:
                    encoding = self.stream.encoding or "ascii"
                    safe = text.encode(encoding, "backslashreplace").decode(encoding)
                    self.stream.write(safe)
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Brings to the stream what is buffered."""
        if self.stream is not None and self.error is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Nobody listens or the disk is full: what follows goes nowhere."""
        self.error = error if isinstance(error, OSError) else OSError(str(error))
        with suppress(OSError, ValueError, AttributeError):
            lead_nowhere(self.stream)

    def isatty(self) -> bool:
        """Whether somebody may be looking."""
        try:
            return self.stream is not None and self.stream.isatty()
        except (OSError, ValueError, AttributeError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def lead_nowhere(stream: IO) -> None:
    """Lets what Python writes of a stream's buffer at its end succeed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def surroundings() -> Iterator[None]:
    """Streams that never fail, and SIGTERM as ``Terminated``, for one command.

    At the end an OSError, if stdout took not all and its reader has not just gone.
    """
    for _ in range(3):  # else the next file opened would become a standard stream
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
    before = sys.stdout, sys.stderr
    out = sys.stdout = Stream(before[0])
    sys.stderr = Stream(before[1])
    try:
        with handling(terminate, signal.SIGTERM):
            yield
    except SystemExit as end:  # after --help, which may not have arrived either
        out.flush()
        if end.code or out.error is None or out.error.errno == errno.EPIPE:
            raise
    finally:
        out.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
    if out.error is not None and out.error.errno != errno.EPIPE:
        raise out.error


def terminate(number: int, frame: FrameType | None) -> None:
    """What a command does at SIGTERM."""
    raise Terminated


@contextmanager
def handling(
    note: Callable[[int, FrameType | None], None], *signals: signal.Signals
) -> Iterator[None]:
    """Gives signals to a function inside the block, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Ending:
    """Lets Ctrl-C and SIGTERM end work that has no end of its own, between two steps.

    A second signal does not wait.

    Example
    -------
    >>> ending = Ending()
    >>> with ending.listening():
    ...     for number in ending.until(iter(range(9))):
    ...         if number == 2:
    ...             signal.raise_signal(signal.SIGINT)
    >>> number
    2
    """

    def __init__(self) -> None:
        self.asked = self.waiting = False

    def listening(self) -> AbstractContextManager[None]:
        """Takes the signals inside the block, in the main thread."""
        return handling(self._note, signal.SIGINT, signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if again or self.waiting:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def until(self, items: Iterator[Item]) -> Iterator[Item]:
        """What an iterator gives, until it or a signal ends it."""
        while True:
            try:
                self.waiting = True
                if self.asked:
                    return
                item = next(items)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self.waiting = False
            yield item


def positive(kind: type) -> type:
    """The type of an argument that must be above 0."""

    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__  # argparse names it in its messages
    return parse


@contextmanager
def errors_only(*loggers: str) -> Iterator[None]:
    """Keeps what loggers say below an error from the user, inside the block."""
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def ensure_utf8() -> None:
    """Starts this process again in UTF-8 mode if its locale knows only ASCII.

    Else libraries could not open files with other names, nor SpeechBrain write them
    into the record of a run. In UTF-8 mode names are as ``os.fsencode`` has them.
    """
    if sys.getfilesystemencoding() == "ascii":
        command = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONUTF8": "1"})
