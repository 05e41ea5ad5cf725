"""What kills leave behind is removed by the next run, and nothing else is."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.faults import Child
from speechbrain_spgm import files
from speechbrain_spgm.cli import main
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.files import (
    TEMPORARY,
    replacing,
    replacing_folder,
    temporary_folder,
    temporary_name,
)

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import sys, time
from pathlib import Path
from speechbrain_spgm.files import replacing, temporary_folder
with replacing(Path("kept.txt")) as file, temporary_folder(Path()) as folder:
    (folder / "inner").mkdir()
    file.write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    """Each test looks into its folders as a new process does."""
    monkeypatch.setattr(files, "_swept", set())


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if TEMPORARY.fullmatch(p.name))


def test_a_live_process_keeps_its_files_and_a_dead_one_does_not(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        held = left(tmp_path)
        assert len(held) == 2
        with replacing(tmp_path / "other.txt"):
            assert set(held) < set(left(tmp_path))
        assert left(tmp_path) == held
    finally:
        process.kill()
    files._swept.clear()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but not buried
    for write in (replacing, replacing_folder):
        with write(tmp_path / write.__name__):
            assert not set(held) & set(left(tmp_path))
    process.communicate()
    assert not left(tmp_path)


def renamed(name: str, **parts: str) -> str:
    found = TEMPORARY.fullmatch(name)
    for part, value in parts.items():
        name = name.replace(found[part], value)
    return name


def test_whose_files_are_kept(tmp_path, monkeypatch):
    mine = temporary_name(tmp_path).name
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    cases = {
        mine: True,
        renamed(mine, process=str(dead.pid)): False,
        renamed(mine, process="9" * 30): False,
        renamed(mine, began="0" * 8): False,  # its number was given again
        renamed(mine, process="1"): False,  # likewise: 1 began before this process
        renamed(mine, machine="0" * 8, process=str(dead.pid)): True,  # another host
        f".{'0a' * 16}.part": True,  # of an earlier version: nobody knows whose
        renamed(mine, process=str(dead.pid)).replace("spgm", "mine"): True,
        renamed(mine, process=str(dead.pid)) + ".wav": True,
    }
    assert len(cases) == 9
    for name in cases:
        (tmp_path / name).touch()
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").touch()
    link = tmp_path / renamed(temporary_name(victim).name, process=str(dead.pid))
    link.symlink_to(victim)
    files.sweep(tmp_path)
    assert {name: (tmp_path / name).exists() for name in cases} == cases
    assert not link.is_symlink() and (victim / "file").exists()

    # Without /proc a number that exists may be the same process still.
    monkeypatch.setattr(files, "beginning", lambda _: None)
    assert not files.is_left(renamed(mine, began="0" * 8))
    assert files.is_left(renamed(mine, process=str(dead.pid)))
    # Another user's files stay.
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    other = tmp_path / renamed(mine, process=str(dead.pid))
    other.touch()
    files.sweep(tmp_path)
    assert other.exists()


def test_a_folder_is_looked_at_once(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(files, "sweep", looked.append)
    for _ in range(3):
        for folder in (tmp_path, tmp_path / "missing"):
            temporary_name(folder)
    assert looked == [tmp_path, tmp_path / "missing"]


def test_names_fit_where_long_names_do(tmp_path):
    assert len(temporary_name(tmp_path).name) < 64
    with replacing(tmp_path / ("a" * 255)) as temporary:
        temporary.write_text("whole")
    with temporary_folder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not left(tmp_path)


def commands(folder: Path, model: Path) -> dict[str, list[str]]:
    """Three commands of which each writes into the folder ``out``."""
    rng = np.random.default_rng(0)
    for name in ("mix", "s1", "s2"):
        soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal(24000), 8000)
    row = "id,duration,mix,s1,s2\na,3,mix.wav,s1.wav,s2.wav\n"
    (folder / "test.csv").write_text(row)
    use = ["--model", str(model)]
    out = folder / "out"
    return {
        "separate": ["separate", str(folder / "mix.wav"), *use, "--output", str(out)],
        "convert": ["convert", str(model), str(out / "model"), "--to", "speechbrain"],
        "evaluate": [
            *("evaluate", "--manifest", str(folder / "test.csv"), "--views", "1"),
            *(*use, "--metrics", "si_sdr", "--output", str(out)),
        ],
    }


def stalled(words: list[str], mark: Path) -> int:
    """The command, as it is, but still before anything gets its final name."""

    def stall(*_, **__):
        mark.touch()
        time.sleep(600)

    Path.replace = stall  # in a process that ends with this
    return main(words)


@pytest.mark.parametrize("name", ["separate", "convert", "evaluate"])
def test_after_a_kill_the_next_run_cleans_up(tmp_path, published, name):
    words = commands(tmp_path, published)[name]
    out, mark = tmp_path / "out", tmp_path / "mark"
    for number in (signal.SIGKILL, signal.SIGTERM):
        child = Child(partial(stalled, words, mark))
        while not mark.exists():
            assert time.monotonic() < child.began + 100
            time.sleep(0.01)
        assert left(out)
        os.kill(child.pid, number)
        end = child.wait()
        assert not [p for p in out.glob("*.*") if not TEMPORARY.fullmatch(p.name)]
        if number == signal.SIGTERM:
            assert end.code == 143 and "interrupted" in end.said and not left(out)
            continue
        assert end.code == -signal.SIGKILL and left(out)
        files._swept.clear()
        assert main(words) == 0
        assert not left(out)
        shutil.rmtree(out)
        mark.unlink()


def test_no_file_takes_the_place_of_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(UserError, match="pipe is a device or a pipe: give the name of"),
        replacing(tmp_path / "pipe"),
    ):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
