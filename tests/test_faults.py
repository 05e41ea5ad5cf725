"""A small campaign, and that the campaign sees what does not hold."""

import os
import sys

import pytest
import soundfile

from benchmarks import faults
from benchmarks.faults import Campaign, Child, Outcome

KINDS = "audio,kills,disk,rights,temporary,yaml,config,hub"


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(tmp_path_factory.mktemp("campaign"), seed=1, scale=0.01)


@pytest.mark.parametrize("kind", KINDS.split(","))
def test_a_small_campaign(campaign, kind):
    found = list(getattr(campaign, kind)())
    assert found and not any(found)


def fail():
    raise RuntimeError("a fault")


def talk(text, code):
    print(text, file=sys.stderr)
    return code


@pytest.mark.parametrize(
    "work, words",
    [
        (fail, "exit code 1"),
        (lambda: talk("Traceback (most recent call last)", 2), "Traceback"),
        (lambda: talk("a\x1b[2J", 2), "control characters"),
        (lambda: 2, "without a word"),
        (lambda: os.kill(os.getpid(), 9), "exit code -9"),
        (lambda: sys.exit(3), "exit code 3"),
        (lambda: talk("spgm: no.", 2), None),
        (lambda: talk("well", 0), None),
    ],
)
def test_what_does_not_hold_is_seen(work, words):
    trouble = Child(work).wait().trouble(0, 2)
    assert words in trouble if words else not trouble


def test_memory_time_and_unsound_voices_are_seen(tmp_path):
    assert Outcome(0, "", faults.MIB + 1, 0).trouble(0)
    assert Outcome(0, "", 0, faults.SECONDS + 1).trouble(0)
    file = tmp_path / "a.wav"
    assert "not a word" in Campaign.unsound(file, tmp_path, "")
    assert not Campaign.unsound(file, tmp_path, "spgm: a.wav is empty")
    soundfile.write(tmp_path / "a_spk1.wav", [0.0], 8000)
    assert "1 voices" in Campaign.unsound(file, tmp_path, "")
    soundfile.write(tmp_path / "a_spk2.wav", [float("nan")], 8000, subtype="FLOAT")
    assert "1 samples" in Campaign.unsound(file, tmp_path, "")


def test_half_written_files_and_leftovers_are_seen(tmp_path):
    job = faults.Job("broken", lambda out: (out / "a").write_text("half") and 0, "*")
    campaign = object.__new__(Campaign)
    end = Outcome(2, "spgm: no.", 0, 0)
    (tmp_path / "a").write_text("ha")
    assert "half-written" in campaign.after(job, tmp_path, {"a": b"half"}, end, 0)
    (tmp_path / "a").write_text("half")
    left = tmp_path / f".{'0a' * 16}.part"
    left.touch()
    assert "left" in campaign.after(job, tmp_path, {"a": b"half"}, end, 0)
    left.unlink()
    assert not campaign.after(job, tmp_path, {"a": b"half"}, end, 0)
    assert "otherwise" in campaign.after(
        job, tmp_path, {"a": b"half", "b": b""}, end, 0
    )
