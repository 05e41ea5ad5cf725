"""Segmentation against SpeechBrain's, and overlap-add as its inverse."""

import pytest
import torch
from speechbrain.lobes.models.dual_path import Dual_Path_Model

from speechbrain_spgm.lobes.chunking import count_chunks, overlap_add, segment


@pytest.mark.parametrize("K", [2, 7, 10])
@pytest.mark.parametrize("L", [1, 4, 5, 15, 31])
def test_rows_are_speechbrains_chunks(K: int, L: int) -> None:
    x = torch.rand(L, 3)
    rows, chunks = segment([x], K)
    expected, _ = Dual_Path_Model._Segmentation(
        _Padding(), x.t().unsqueeze(0), K
    )  # [1, N, K, S]
    assert chunks == [count_chunks(L, K)]
    assert torch.equal(rows, expected[0].permute(2, 1, 0))


class _Padding:
    _padding = Dual_Path_Model._padding


@pytest.mark.parametrize("K", [2, 7, 10])
def test_overlap_add_undoes_segmentation_of_every_utterance(K: int) -> None:
    lengths = [1, 40, 5, 17]
    frames = [torch.rand(L, 3) for L in lengths]
    rows, chunks = segment(frames, K)
    assert rows.shape == (sum(chunks), K, 3)
    for back, x in zip(overlap_add(rows, chunks, lengths), frames, strict=True):
        assert torch.equal(back, 2 * x)
