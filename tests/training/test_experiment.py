"""What a user may get wrong on the command line of a train.py."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from ruamel.yaml import YAML

from speechbrain_spgm.data import UserError
from speechbrain_spgm.training.experiment import (
    build,
    keep_apart,
    open_mixing,
    user_errors,
)
from speechbrain_spgm.training.settings import check_settings, parse, plain, resolve


def load_hparams(path, overrides=""):
    """What a yaml describes, checked and built as a recipe does."""
    text = resolve(path, overrides)
    check_settings(plain(parse(text)))
    return build(path, text)


@pytest.fixture
def yaml(tmp_path):
    path = tmp_path / "net.yaml"
    path.write_text("folder: !PLACEHOLDER\nlr: 0.1\nhalf: !ref <lr> / 2\n")
    return path


def test_overrides_are_applied(yaml):
    hparams = load_hparams(yaml, "folder: here\nlr: 0.4")
    assert hparams == {"folder": "here", "lr": 0.4, "half": 0.2}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ("lr: 1", "^folder has no value: give it as --folder VALUE.$"),
        ("folder: x\nrate: 1", "rate.* is not a key"),
        ("folder: x\nfolder: y", "^folder is given twice"),
        ("folder: [x", "not valid yaml"),
    ],
)
def test_mistakes_are_one_sentence(yaml, overrides, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        load_hparams(yaml, overrides)
    assert "\n" not in str(error.value)


def test_a_missing_include_is_named(yaml):
    yaml.write_text("net: !include:gone.yaml\n")
    with pytest.raises(UserError, match="gone.yaml does not exist"):
        load_hparams(yaml, "")


def test_a_yaml_stands_on_its_base(yaml):
    (yaml.parent / "parts").mkdir()
    (yaml.parent / "parts" / "net.yaml").write_text("K: 1\ntwice: !ref <K> * 2\n")
    (yaml.parent / "parts" / "base.yaml").write_text(
        "K: 3\nseed: 1\npool: att\ntree: {a: 1}\n"
        "net: !include:net.yaml\n    K: !ref <K>\n"
    )
    yaml.write_text("base: parts/base.yaml\nwithout: [pool]\ntree: {b: 2}\nown: 0\n")
    (yaml.parent / "top.yaml").write_text("base: net.yaml\nseed: !ref <K>\n")
    net = {"K": 5, "twice": 10}
    hparams = {"K": 5, "seed": 5, "tree": {"b": 2}, "net": net, "own": 0}
    assert load_hparams(yaml.parent / "top.yaml", "K: 5") == hparams
    for wrong in ("pool: avg", "base: x", "without: []"):
        with pytest.raises(UserError, match=f"{wrong.split(':')[0]}.* is not a key of"):
            load_hparams(yaml, wrong)
    yaml.write_text("base: top.yaml\n")
    with pytest.raises(UserError, match="net.yaml is its own base"):
        load_hparams(yaml.parent / "top.yaml")
    yaml.write_text("base: gone.yaml\n")
    with pytest.raises(UserError, match="gone.yaml does not exist"):
        load_hparams(yaml)


def test_a_yaml_from_before_a_key_mixes_as_it_did(tmp_path):
    for speaker in "12":
        (tmp_path / "tr" / speaker).mkdir(parents=True)
        soundfile.write(tmp_path / "tr" / speaker / "0.wav", np.full(800, 0.1), 8000)
    base = "../../hparams/training.yaml"
    newer = ("noise_share", "join_recordings", "speaker_power")
    with open(os.path.join(os.path.dirname(__file__), base)) as file:
        hparams = {**YAML().load(file), "levels": "librimix", "mixtures_per_epoch": 1}
    hparams |= {"base_folder_dm": tmp_path, "train_splits": "tr", "dynamic_seconds": 1}
    older = {key: value for key, value in hparams.items() if key not in newer}
    mixes = [open_mixing(keys)[0].mix for keys in (hparams, older)]
    assert mixes[0].equal(mixes[1])


def test_speakers_in_the_names_of_test_mixtures_are_known(caplog):
    train = SimpleNamespace(speakers={"61", "84"})
    for id, told in [("61-1-0_90-2-1", 1), ("62-1-0_90-2-1", 0), ("61", 0)]:
        caplog.clear()
        keep_apart({"train": train, "test": SimpleNamespace(path="a", entries=[[id]])})
        assert len(caplog.records) == told
    keep_apart(
        {"train": train, "test": SimpleNamespace(path="a", entries=[["84-1-0"]])}
    )
    assert "1 of the speakers in a are also trained on, such as 84:" in caplog.text


def test_only_user_errors_lose_their_traceback(capsys):
    with pytest.raises(SystemExit) as exit_, user_errors():
        raise UserError("The list x does not exist.")
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "Error: The list x does not exist.\n"
    with pytest.raises(ZeroDivisionError), user_errors():
        _ = 1 / 0


def test_the_processes_part_before_python_ends():
    """Threads of the group that outlive the interpreter abort the process."""
    script = """
from pathlib import Path
import torch
from speechbrain_spgm.training.experiment import join_processes, user_errors
from torch.nn.parallel import DistributedDataParallel

def threads():
    names = Path("/proc/self/task").glob("*/comm")
    return sum("gloo" in name.read_text() for name in names)

def main():
    join_processes({"distributed_launch": True, "distributed_backend": "gloo"})
    net = DistributedDataParallel(torch.nn.Linear(2, 2))
    net(torch.ones(2)).sum().backward()
    print(threads() > 0)

with user_errors():
    main()
print(threads())
"""
    names = ("RANK", "LOCAL_RANK", "MASTER_PORT")
    environment = {name: "0" for name in names} | {"WORLD_SIZE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment, "MASTER_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ["True", "0"], run.stderr
