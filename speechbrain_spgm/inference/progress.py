"""How far a separation is: a bar in a terminal, or whatever a program shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from speechbrain_spgm.errors import shown

Progress = bool | Callable[[int, int], object]


class Bar(tqdm):
    """A bar that also tells a program of every step.

    ``progress``: whether to draw, in a terminal; or what gets the steps done and all.

    Example
    -------
    >>> with Bar(print, total=2) as bar:
    ...     _ = bar.update(), bar.update()
    1 2
    2 2
    """

    def __init__(self, progress: Progress, desc: str = "", **settings: Any) -> None:
        self.tell = progress if callable(progress) else None
        self.done = 0
        drawn = progress is True
        settings |= {"desc": shown(desc, 100), "leave": False}  # it names files
        super().__init__(disable=None if drawn else True, **settings)

    def update(self, n: float | None = 1) -> bool | None:
        """Goes on by n steps."""
        drawn = super().update(n)
        self.done += n
        if self.tell and self.total:
            self.tell(self.done, self.total)
        return drawn
