"""The report for a machine with a GPU, at toy size on the CPU."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import gpu


def make_voices(folder: Path) -> None:
    """Four speakers of LibriSpeech's layout."""
    for speaker in range(4):
        for number in range(2):
            path = folder / "train" / f"s{speaker}" / f"{number}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(speaker).normal(size=8000 + 100 * number)
            soundfile.write(path, 0.1 * noise, gpu.RATE)


def test_toy_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PRECISIONS", {"fp32": None, "bf16": gpu.torch.bfloat16})
    make_voices(tmp_path / "LibriSpeech")
    archive, folder = tmp_path / "voices.tar", tmp_path / "out"
    gpu.main(["--pack", str(tmp_path / "LibriSpeech"), "--archive", str(archive)])
    settings = ["--toy", "--minutes", "0.02", "--folder", str(folder)]
    gpu.main([*settings, "--archive", str(archive)])
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "ailed" not in text
    errors = [
        line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| fp32")
    ]
    assert all(float(cell) < 1e-4 for row in errors for cell in row[2:4])
    for title in ("Inference", "A training step", "One rank, gloo", "8 recordings"):
        assert title in text
    assert list((folder / "save").glob("CKPT*"))
    assert "train_log.txt" in {path.name for path in folder.iterdir()}


def test_packs_speakers_in_turn(tmp_path: Path) -> None:
    make_voices(tmp_path / "a")
    size = max(path.stat().st_size for path in tmp_path.rglob("*.flac")) + 1024
    archive = tmp_path / "voices.tar"
    assert gpu.pack(tmp_path / "a", archive, 5 * size / 2**20) in (4, 5)
    with tarfile.open(archive) as tar:
        assert len({name.split("/")[1] for name in tar.getnames()}) == 4
    with pytest.raises(gpu.UserError, match="raise --mebibytes"):
        gpu.pack(tmp_path / "a", archive, 0.001)


def test_other_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_text("no")
    with pytest.raises(gpu.UserError, match="x.tar is no archive"):
        gpu.open_voices(tmp_path / "x.tar", tmp_path)
