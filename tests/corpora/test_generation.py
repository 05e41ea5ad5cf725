"""Generation: whatever happens, files are whole, and a second run changes nothing."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_spgm.corpora.generation import Plan, generate, is_done
from speechbrain_spgm.corpora.librimix import plan_librimix
from speechbrain_spgm.data import UserError

RATE, SAMPLES = 8000, 800


@dataclass(frozen=True)
class Noises(Plan):
    """Two sources of noise that depend on the id."""

    seed: int = 0

    def render(self):
        if self.id == "interrupt":
            raise KeyboardInterrupt
        rng = np.random.default_rng((self.seed, *self.id.encode()))
        return {part: rng.uniform(-0.4, 0.4, SAMPLES) for part in self.made_from}


def plan(folder: Path, id: str, seed: int = 0) -> Noises:
    made_from = {"s1": f"{seed}", "s2": f"{seed}"}
    return Noises(
        id, folder / "tr", RATE, SAMPLES, made_from, {"mix": ("s1", "s2")}, seed
    )


@pytest.fixture
def plans(tmp_path) -> list[Noises]:
    return [plan(tmp_path, f"m{i}") for i in range(6)]


def snapshot(folder: Path) -> dict:
    """Every file's bytes, inode and time of change."""
    return {
        path: (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_run_changes_nothing(tmp_path, plans):
    assert generate(plans) == (18, 0, 0)
    before = snapshot(tmp_path)
    assert generate(plans) == (0, 6, 0)
    assert snapshot(tmp_path) == before


def test_only_what_is_damaged_is_made_again(tmp_path, plans):
    generate(plans)
    before = snapshot(tmp_path)
    plans[0].path("s1").unlink()
    plans[1].path("mix").write_bytes(before[plans[1].path("mix")][0][:-2])
    soundfile.write(plans[2].path("s2"), np.zeros(SAMPLES), 16000)
    soundfile.write(plans[3].path("s2"), np.zeros(SAMPLES + 1), RATE)
    changed = {plans[i].path(n) for i, n in enumerate(["s1", "mix", "s2", "s2"])}
    assert generate(plans) == (4, 2, 0)
    after = snapshot(tmp_path)
    assert {path for path in before if after[path] != before[path]} == changed
    assert all(after[path][0] == before[path][0] for path in before)


def test_an_interrupted_run_leaves_whole_files_and_goes_on(tmp_path, plans):
    everything = [*plans[:3], plan(tmp_path, "interrupt"), *plans[3:]]
    with pytest.raises(KeyboardInterrupt):
        generate(everything)
    assert [is_done(p) for p in plans] == [True] * 3 + [False] * 3
    assert not list(tmp_path.rglob("*.part"))
    assert generate(plans) == (9, 3, 0)


def test_what_a_kill_left_over_is_removed_and_other_files_are_not(tmp_path, plans):
    generate(plans[:1])
    leftover = tmp_path / "tr" / "s1" / f".{'0a' * 16}.part"
    own = tmp_path / "tr" / "s1" / ".notes.part"
    leftover.touch()
    own.touch()
    generate(plans)
    assert own.exists() and not leftover.exists()


def test_other_recordings_or_gains_are_not_mixed_in(tmp_path, plans):
    generate(plans)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="m2 in .*tr was made from 0, not from 1"):
        generate([plan(tmp_path, "new", 1), plan(tmp_path, "m2", 1)])
    assert snapshot(tmp_path) == before
    for name in ("s1", "s2", "mix"):
        plans[2].path(name).unlink()
    assert generate([plan(tmp_path, "new", 1), plan(tmp_path, "m2", 1)]) == (6, 0, 0)


def test_more_mixtures_may_follow(tmp_path, plans):
    generate(plans[:2])
    generate(plans[4:])
    assert generate(plans) == (6, 4, 0)


@pytest.mark.parametrize("id", ["", "..", "a/b", "a\\b", "a\0"])
def test_ids_that_are_no_file_names_are_refused(tmp_path, id):
    with pytest.raises(UserError, match="cannot be a file name"):
        generate([plan(tmp_path, id)])
    assert not list(tmp_path.iterdir())


def test_two_mixtures_cannot_share_a_name(tmp_path):
    with pytest.raises(UserError, match="an id of its own"):
        generate([plan(tmp_path, "a"), plan(tmp_path, "a", 1)])


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/x cannot be made"):
        generate([plan(tmp_path / "file" / "x", "a")])


def test_processes_of_a_launch_share_the_work(tmp_path, plans):
    with pytest.raises(UserError, match="m1 .* due from another process"):
        generate(plans, rank=0, world_size=2, patience=0.01)
    assert [is_done(p) for p in plans] == [True, False] * 3
    assert generate(plans, rank=1, world_size=2) == (9, 0, 0)
    assert generate(plans, rank=0, world_size=2) == (0, 3, 0)


def test_one_process_does_not_clean_up_while_another_works(tmp_path, plans):
    fcntl = pytest.importorskip("fcntl")
    generate(plans[:1])
    unfinished = tmp_path / "tr" / "s1" / f".{'0b' * 16}.part"
    unfinished.touch()
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)  # as the other process holds it
    generate(plans[:2])
    assert unfinished.exists()
    os.close(lock)
    generate(plans)
    assert not unfinished.exists()


SCRIPT = """
import sys
from speechbrain_spgm.corpora.generation import generate
from speechbrain_spgm.corpora.librimix import plan_librimix
generate(plan_librimix(*sys.argv[1:]), jobs=2)
"""


def test_a_killed_run_leaves_nothing_broken_and_is_completed(tmp_path):
    """Two worker processes; what they write is what one process writes."""
    rng = np.random.default_rng(0)
    for i in range(15):
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.4, 0.4, 8000 + i), 16000)
    lines = ["mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain"]
    pairs = [(i, j) for i in range(15) for j in range(i)]
    lines += [f"{i}_{j},{i}.wav,0.7,{j}.wav,0.6" for i, j in pairs]
    (tmp_path / "libri2mix_dev-clean.csv").write_text("\n".join(lines))
    arguments = (tmp_path, tmp_path / "libri2mix_dev-clean.csv")
    plans = plan_librimix(*arguments, tmp_path / "killed")

    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments, tmp_path / "killed"],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("killed/**/*.wav"))) < 6:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    found = list(tmp_path.glob("killed/**/*.wav"))
    assert 6 <= len(found) < 3 * len(plans)
    for path in found:
        samples, _ = soundfile.read(path)
        assert len(samples) >= 4000 and np.abs(samples).max() > 0.1
    leftover = tmp_path / "killed/Libri2Mix/wav8k/min/dev/s1" / f".{'0c' * 16}.part"
    leftover.touch()  # whether or not the kill left one

    report = generate(plans)
    assert 0 < report.written <= 3 * len(plans) - 6
    assert not list(tmp_path.rglob("*.part"))
    whole = plan_librimix(*arguments, tmp_path / "whole")
    generate(whole)
    for one, other in zip(plans, whole, strict=True):
        for name in one.names:
            assert one.path(name).read_bytes() == other.path(name).read_bytes()
