"""Ctrl-C and SIGTERM in training: first a checkpoint, then the end."""

from __future__ import annotations

import signal
from types import FrameType
from typing import NoReturn

from speechbrain_spgm.console import Ending, Terminated


class StopRequest(Ending):
    """Remembers a signal until there is a good moment to stop.

    A second Ctrl-C does not wait for that moment.

    Example
    -------
    >>> stop = StopRequest()
    >>> with stop.listening():
    ...     signal.raise_signal(signal.SIGINT)
    ...     print(stop.asked)
    True
    """

    number: int | None = None  # of the first signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.number:
            raise KeyboardInterrupt
        self.number, self.asked = self.number or number, True

    def leave(self, line: str) -> NoReturn:
        """Ends the run with a line for its user."""
        raise (Terminated if self.number == signal.SIGTERM else KeyboardInterrupt)(line)


def leave_signals_to_parent(worker: int) -> None:
    """For the workers of a loader: Ctrl-C reaches them too, but the run ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
