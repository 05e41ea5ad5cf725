"""SPGMBlock against the published code, and in SpeechBrain's Dual_Path_Model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_spgm.lobes.spgm import SPGMBlock

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("block-*.safetensors"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("chunk_size", [None, 24])
def test_golden(path: Path, chunk_size: int | None) -> None:
    tensors = load_file(path)
    prefix = "weights."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if prefix in k}
    pool = path.stem.removeprefix("block-")
    att_h = 16 if pool == "attff" else None
    block = SPGMBlock(32, pool.removesuffix("ff"), att_h, chunk_size=chunk_size)
    block.load_state_dict(weights)
    error = block(tensors["input"]) - tensors["output"]
    assert error.abs().max() <= 1e-6 * tensors["output"].abs().max()


def test_all_poolings_have_a_golden_tensor() -> None:
    assert len(GOLDEN) == 5


@pytest.mark.parametrize("pool", ["att", "avg", "max", "lem"])
def test_chunk_size_keeps_utterances_apart(pool: str) -> None:
    x = torch.randn(3 * 10, 4, 8)  # [B*K, S, N]
    block = SPGMBlock(8, pool, chunk_size=10)
    alone = torch.cat([block(x[start : start + 10]) for start in (0, 10, 20)])
    torch.testing.assert_close(block(x), alone)
    block.chunk_size = None  # the published code: one global vector for the batch
    assert (block(x) - alone).abs().max() > 1e-4


def test_wrong_chunk_size_is_refused() -> None:
    with pytest.raises(ValueError, match="30 rows.*chunk_size 7"):
        SPGMBlock(8, "avg", chunk_size=7)(torch.randn(30, 4, 8))


def test_without_modulation_nothing_is_left_of_the_block() -> None:
    block = SPGMBlock(8, "none", chunk_size=10)
    x = torch.randn(20, 4, 8)
    assert block(x) is x
    assert not block.state_dict()
    assert torch.equal(block.modulation(torch.randn(2, 8)), torch.ones(2, 8))
