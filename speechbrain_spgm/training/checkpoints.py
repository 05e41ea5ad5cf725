"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import METAFNAME, Checkpoint, Checkpointer


class WholeCheckpointer(Checkpointer):
    """A Checkpointer that a kill in the middle of saving cannot fool.

    SpeechBrain writes the file that makes a folder count as a checkpoint first, so a
    run killed while saving leaves a newest checkpoint that does not load. Here that
    file gets its name last.

    Arguments
    ---------
    checkpoints_dir, recoverables, ...
        As in SpeechBrain's Checkpointer.

    Example
    -------
    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpointer = WholeCheckpointer(folder, {"net": torch.nn.Linear(1, 1)})
    ...     _ = checkpointer.save_checkpoint()
    ...     len(checkpointer.list_checkpoints())
    1
    """

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """As in SpeechBrain; the checkpoint appears when all of it is written."""
        checkpoint = super().save_checkpoint(*args, **kwargs)
        if checkpoint is not None:  # the main process
            os.replace(
                partial_name(checkpoint.path / METAFNAME), checkpoint.path / METAFNAME
            )
        return checkpoint

    def _save_checkpoint_metafile(
        self, fpath: Path, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        return super()._save_checkpoint_metafile(partial_name(fpath), *args, **kwargs)


def partial_name(path: Path) -> Path:
    """The name of a file that is not finished."""
    return path.with_name(path.name + ".partial")
