"""Two processes (gloo) learn what one learns, and end with the same parameters."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.training import ranks


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes ends with; one launch for all tests."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, ranks.__file__, folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance)


def test_all_ranks_end_with_the_same_bits(two):
    for part in ("step", "learned", "tested"):
        assert_close(two[0][part], two[1][part], tolerance=0)


def test_two_ranks_step_like_one_with_twice_the_batch(two, tmp_path):
    double = ranks.one_step(tmp_path / "double", 2)
    accumulated = ranks.one_step(tmp_path / "two", 1, grad_accumulation_factor=2)
    expected = double.networks.state_dict()
    assert_close(accumulated.networks.state_dict(), expected, 1e-6)
    assert_close(two[0]["step"], expected, tolerance=1e-6)


def test_two_ranks_run_like_one_with_twice_the_batch(two, tmp_path, monkeypatch):
    """With a mixture on one rank that is not finite, and 7 mixtures to score."""
    monkeypatch.setattr(ranks.pictures, "save", ranks.touch)
    alone = ranks.several_steps(tmp_path / "alone", 2)
    for result in two:
        assert [row["train_skipped"] for row in result["history"]] == [1, 1]
        for row, expected in zip(
            result["history"], alone.progress.history, strict=True
        ):
            for name in ("train_si_sdr", "train_skipped", "valid_si_sdri", "lr"):
                assert row[name] == pytest.approx(expected[name], abs=1e-3), name
        expected = {score.id: score.si_sdri for score in alone.scores}
        assert [id for id, _ in result["scores"]] == sorted(expected)
        assert dict(result["scores"]) == pytest.approx(expected, abs=5e-3)
