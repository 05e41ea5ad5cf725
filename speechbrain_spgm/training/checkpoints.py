"""Checkpoints that are whole or not there, and averages of the weights in them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.checkpoints import (
    METAFNAME,
    Checkpoint,
    Checkpointer,
    average_checkpoints,
    ckpt_recency,
)
from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.logger import get_logger
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from speechbrain_spgm.errors import UserError, writing

logger = get_logger(__name__)


class WholeCheckpointer(Checkpointer):
    """A Checkpointer that a kill in the middle of saving or deleting cannot fool.

    SpeechBrain writes the file that makes a folder count as a checkpoint first, so a
    run killed while saving leaves a newest checkpoint that does not load. Here that
    file gets its name last, and loses it first when the checkpoint is deleted.

    With several processes the main one alone decides, writes and deletes, while the
    others wait. (In SpeechBrain each process lists the folder for itself and then waits
    once per checkpoint that it would delete: if two lists differ, both wait forever.)

    Example
    -------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpointer = WholeCheckpointer(folder, {"net": torch.nn.Linear(1, 1)})
    ...     _ = checkpointer.save_checkpoint()
    ...     len(checkpointer.list_checkpoints())
    1
    """

    @main_process_only
    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint:
        """As in SpeechBrain; the checkpoint appears when all of it is written."""
        self._sweep()
        try:
            with writing(
                f"A checkpoint in {self.checkpoints_dir}",
                "make room, the same command goes on from the checkpoint before",
            ):
                checkpoint = super().save_checkpoint(*args, **kwargs)
                metafile = checkpoint.path / METAFNAME
                os.replace(partial_name(metafile), metafile)
        except UserError:
            with suppress(OSError):
                self._sweep()
            raise
        return checkpoint

    @main_process_only
    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Sequence[str] | None = None,
        max_keys: Sequence[str] | None = None,
        importance_keys: Sequence[Callable] = (ckpt_recency,),
        ckpt_predicate: Callable | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """As in SpeechBrain, decided and done by the main process."""
        orders = [{"min_key": key} for key in min_keys or ()]
        orders += [{"max_key": key} for key in max_keys or ()]
        orders += [{"importance_key": key} for key in dict.fromkeys(importance_keys)]
        considered, kept = set(), set()
        for order in orders:
            ranked = self.find_checkpoints(**order, ckpt_predicate=ckpt_predicate)
            considered.update(ranked)
            kept.update(ranked[:num_to_keep])
        for checkpoint in considered - kept:
            delete(checkpoint.path)
            logger.log(verbosity, f"Deleted checkpoint in {checkpoint.path}")

    @main_process_only
    def keep_newest_and_best(self, best: int, max_key: str) -> None:
        """Deletes all but the newest checkpoint and the best ones by ``max_key``."""
        kept = {self.find_checkpoint()}
        kept.update(self.find_checkpoints(max_key=max_key, max_num_checkpoints=best))
        for checkpoint in set(self.list_checkpoints()) - kept:
            delete(checkpoint.path)

    def _save_checkpoint_metafile(
        self, fpath: Path, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        return super()._save_checkpoint_metafile(partial_name(fpath), *args, **kwargs)

    def _sweep(self) -> None:
        """Removes what killed runs left unfinished: checkpoints without their yaml."""
        for folder in self.checkpoints_dir.glob("CKPT+*"):
            if folder.is_dir() and not (folder / METAFNAME).exists():
                shutil.rmtree(folder)


def partial_name(path: Path) -> Path:
    """The name of a file that is not finished."""
    return path.with_name(path.name + ".partial")


def delete(folder: Path) -> None:
    """Removes a checkpoint; from the first moment on it does not count as one."""
    os.replace(folder / METAFNAME, partial_name(folder / METAFNAME))
    shutil.rmtree(folder)


def moving_average(modules: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of parameters; it starts at the first update.

    ``decay``, from 0 to below 1, is the share of the old average in the new one.

    Example
    -------
    >>> net = nn.Linear(1, 1)
    >>> average = moving_average(net, decay=0.75)
    >>> for value in (0.0, 4.0):
    ...     _ = nn.init.constant_(net.weight, value)
    ...     average.update_parameters(net)
    >>> average.module.weight.item()
    1.0
    """
    if not 0 <= decay < 1:
        raise UserError(f"The ema_decay is {decay}, but must be from 0 to below 1.")
    average = AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return average.eval().requires_grad_(False)


def load_best_average(
    checkpointer: WholeCheckpointer,
    modules: dict[str, nn.Module],
    number: int,
    max_key: str | None = None,
    min_key: str | None = None,
) -> int:
    """Gives modules the mean of their parameters in the best checkpoints.

    Checkpoints inside epochs, which nothing has scored, do not count. Returns how many
    of at most ``number`` were averaged; with 0 the modules stay.

    Example
    -------
    >>> net = nn.Linear(1, 1)
    >>> checkpointer = WholeCheckpointer(getfixture("tmp_path"), {"net": net})
    >>> for value in (1.0, 3.0):
    ...     _ = nn.init.constant_(net.weight, value)
    ...     _ = checkpointer.save_checkpoint()
    >>> load_best_average(checkpointer, {"net": net}, 2), net.weight.item()
    (2, 2.0)
    """
    found = checkpointer.find_checkpoints(
        max_key=max_key,
        min_key=min_key,
        max_num_checkpoints=number,
        ckpt_predicate=lambda checkpoint: checkpoint.meta["end-of-epoch"],
    )
    if found:
        for name, module in modules.items():
            module.load_state_dict(average_checkpoints(found, name, load_state))
    return len(found)


def load_state(path: Path, map_location: str) -> dict[str, torch.Tensor]:
    """A state dict with floating-point entries, so that it can be averaged."""
    state = torch.load(path, map_location=map_location, weights_only=True)
    # Integer buffers are counts; SpeechBrain's in-place sum would overflow or round.
    return {
        name: value if value.is_floating_point() else value.double()
        for name, value in state.items()
    }
