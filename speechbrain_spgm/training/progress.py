"""What a run has to report: sums over the present epoch, a row per finished one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.training.ranks import world_size


@register_checkpoint_hooks
class Progress:
    """Counts over all ranks; saved with every checkpoint, so a resume goes on counting.

    ``loss_sum`` in dB is over this epoch's ``utterances`` with a finite loss;
    ``skipped`` counts its steps left out, ``skipped_in_a_row`` those since the last
    good one; ``history`` has a row per finished epoch: ``epoch``, ``lr``,
    ``train_si_sdr``, ...

    Example
    -------
    >>> progress = Progress()
    >>> progress.add(loss_sum=-12.0, utterances=2)
    >>> progress.add(loss_sum=-3.0, utterances=1)
    >>> progress.si_sdr
    5.0
    """

    def __init__(self) -> None:
        self.loss_sum = 0.0
        self.utterances = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.history: list[dict[str, float]] = []

    def start_epoch(self) -> None:
        """Forgets the sums of the last epoch."""
        self.loss_sum, self.utterances, self.skipped = 0.0, 0, 0

    def add(self, loss_sum: float, utterances: int) -> None:
        """Counts the utterances of a step."""
        self.loss_sum += loss_sum
        self.utterances += utterances

    @property
    def si_sdr(self) -> float:
        """Mean SI-SDR of the epoch so far in dB; NaN if nothing was learned from."""
        if not self.utterances:
            return float("nan")
        return -self.loss_sum / self.utterances

    def add_row(
        self,
        meta: Mapping[str, float],
        train: Mapping[str, float],
        valid: Mapping[str, float],
    ) -> None:
        """Adds the row of a finished epoch."""
        row = dict(meta)
        row.update({f"train_{name}": value for name, value in train.items()})
        row.update({f"valid_{name}": value for name, value in valid.items()})
        self.history.append(row)

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Writes all counts, exactly."""
        state = {**vars(self), "ranks": world_size()}
        Path(path).write_text(json.dumps(state), encoding="utf-8")

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        """Reads what ``save`` wrote; within an epoch by as many ranks only."""
        state: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        ranks = state.pop("ranks", world_size())
        if not end_of_epoch and ranks != world_size():
            raise UserError(
                f"{Path(path).parent} was saved in the middle of an epoch with world "
                f"size {ranks}, and each process goes on where it was: take as many, "
                f"not {world_size()}, or move the folder away and lose the epoch."
            )
        vars(self).update(state)
