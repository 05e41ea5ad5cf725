"""Toy runs of the LibriMix recipe, as a user starts it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
with open(Path(__file__).with_name("LibriMix.csv"), newline="") as file:
    ROWS = {Path(row["Hparam_file"]).name: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the debug flags in LibriMix.csv expect below the current folder."""
    folder = tmp_path_factory.mktemp("recipe")
    samples = folder / "tests" / "samples"
    rng = np.random.default_rng(0)
    for split, speakers in (("train-clean-100", "123"), ("dev-clean", "456")):
        lines = ["mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain"]
        for speaker in speakers:
            path = f"{split}/{speaker}/1/{speaker}-1-0000.flac"
            (samples / "LibriSpeech" / path).parent.mkdir(parents=True)
            noise = rng.uniform(-0.5, 0.5, 16000 + 800 * int(speaker))
            soundfile.write(samples / "LibriSpeech" / path, noise, 16000)
            lines.append(f"{speaker}_x,{path},0.5,{split}/{speakers[0]}/1/")
            lines[-1] += f"{speakers[0]}-1-0000.flac,0.25"
        # The first line would mix a recording with itself.
        name = "dev.csv" if split == "dev-clean" else "train.csv"
        (samples / name).write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    return folder


def train(folder: Path, yaml: str, *flags: str) -> subprocess.CompletedProcess:
    """Starts train.py with the row's debug flags; later flags replace earlier ones."""
    row = ROWS[yaml]
    merged = dict.fromkeys([f"--output_folder={folder}/out-{yaml}"])
    for flag in [*row["test_debug_flags"].split(), *flags]:
        name = flag.split("=")[0]
        merged = {f: None for f in merged if f.split("=")[0] != name} | {flag: None}
    command = [sys.executable, ROOT / row["Script_file"], ROOT / row["Hparam_file"]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *merged],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def epochs(output: Path) -> list[str]:
    lines = (output / "train_log.txt").read_text().splitlines()
    return [line.split(", ")[0].split(" - ")[0] for line in lines]


@pytest.mark.parametrize("yaml", sorted(ROWS))
def test_a_run_trains_resumes_and_tests(folder, yaml):
    run = train(folder, yaml)
    assert run.returncode == 0, run.stderr
    output = folder / f"out-{yaml}"
    wanted = ROWS[yaml]["test_debug_checks"].removeprefix("file_exists=[").rstrip("]")
    for name in wanted.split(","):
        assert (output / name).is_file(), name
    assert json.loads((output / "test_summary.json").read_text())["n"] == 2
    assert "2 utterances" in run.stdout and "SI-SDRi" in run.stdout
    assert epochs(output) == ["epoch: 1", "epoch loaded: 1"]

    # The second epoch, on the mixtures of a list.
    run = train(
        folder,
        yaml,
        "--number_of_epochs=2",
        "--dynamic_mixing=False",
        "--train_list=tests/samples/train.csv",
    )
    assert run.returncode == 0, run.stderr
    assert epochs(output)[2] == "epoch: 2"


@pytest.mark.parametrize("yaml", sorted(ROWS))
def test_mistakes_end_with_one_sentence(folder, yaml):
    flag = "--train_splits=[train-clean-100,dev-clean]"
    run = train(folder, yaml, flag, f"--output_folder={folder}/none")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("Error: Speaker 4 of the list")
    assert "Traceback" not in run.stderr
    assert not list(folder.glob("none/*.*"))
