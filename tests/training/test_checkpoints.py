"""Checkpoints on full disks and after kills in the middle of a save."""

import errno
import os

import pytest
import torch

from speechbrain_spgm.data import UserError
from speechbrain_spgm.training.checkpoints import WholeCheckpointer


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 576"),
    ],
)
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, error):
    net = torch.nn.Linear(1, 1)
    checkpointer = WholeCheckpointer(tmp_path, {"net": net})
    kept = checkpointer.save_checkpoint()

    def full(state, path, *_, **__):
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match="make room, the same command") as raised:
            checkpointer.save_checkpoint()
        assert str(tmp_path) in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [kept.path.name]
    assert checkpointer.recover_if_possible().path == kept.path


@pytest.mark.parametrize("left", [(), ("CKPT.yaml.partial",), ("net.ckpt",)])
def test_what_a_kill_left_is_swept(tmp_path, left):
    checkpointer = WholeCheckpointer(tmp_path, {"net": torch.nn.Linear(1, 1)})
    unfinished, other = tmp_path / "CKPT+2020", tmp_path / "notes"
    for folder in (unfinished, other):
        folder.mkdir()
    for name in left:
        (unfinished / name).touch()
    assert checkpointer.list_checkpoints() == []
    checkpointer.save_checkpoint()
    assert not unfinished.exists() and other.is_dir()
    assert len(os.listdir(tmp_path)) == 2
