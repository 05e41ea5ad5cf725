"""Workers on Ray give the files of one process, also if one of them is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_spgm.cli import main
from tests.bulk.test_corpus import read, tree, write

ROWS = 200  # enough for both workers to begin, although one starts later
MISSING = "needs Ray, which is large: pip install 'ray[data]'"


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder with in.jsonl, whose second row is bad."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        x = 0.1 * rng.standard_normal(rng.integers(800, 8000))
        soundfile.write(tmp_path / f"{i}.wav", x, 8000)
        rows.append({"audio_filepath": f"{i}.wav"})
    (tmp_path / "1.wav").write_bytes(b"RIFF")
    write(tmp_path / "in.jsonl", rows)
    return tmp_path


def family(pid: int) -> list[int]:
    """The children of a process, theirs, and so on."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(word) for file in listed for word in file.read_text().split()]
    return children + [each for child in children for each in family(child)]


def title(pid: int) -> str:
    """What a process calls itself; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_killed_worker_is_not_missed(published, recordings):
    pytest.importorskip("ray.data", reason=MISSING)

    def words(output: str, *more: str) -> list[str]:
        manifest, out = str(recordings / "in.jsonl"), str(recordings / output)
        model = ["--model", str(published), "--device", "cpu"]
        return ["separate", "--manifest", manifest, "--output", out, *model, *more]

    assert main(words("one")) == 2
    process = subprocess.Popen(
        [sys.executable, "-m", "speechbrain_spgm"]
        + words("ray", "--engine", "ray", "--workers", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out = recordings / "ray"
    while process.poll() is None and len(list(out.glob(".spgm/journal*"))) < 2:
        time.sleep(0.01)
    workers = [pid for pid in family(process.pid) if "MapWorker" in title(pid)]
    os.kill(workers[0], signal.SIGKILL)
    stdout, stderr = process.communicate()
    assert len(workers) == 2
    assert process.returncode == 2, stderr
    assert f"Separated {ROWS - 1} recordings" in stdout
    assert tree(out) == tree(recordings / "one")
    assert [row["audio_filepath"] for row in read(out / "failed.jsonl")] == ["1.wav"]
    assert len(list(out.glob(".spgm/journal*"))) >= 2
    assert all(
        "key" in json.loads(line)
        for file in out.glob(".spgm/journal*")
        for line in file.read_text().splitlines()
    )
