"""From one layout to the other: no bit of weights and no word of a card is lost."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from speechbrain.inference.separation import SepformerSeparation

from speechbrain_spgm.cli import main
from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.models.config import build
from speechbrain_spgm.models.safe_yaml import load_safely
from tests.inference.test_separation import (
    DUAL_PATH,
    PACKED,
    SPGM,
    TRANSFORMER,
    speechbrain_folder,
)

CPU = {"device": "cpu"}
CARD = {"licence": "CC0-1.0", "notes": "(see README) <N> !new:os.system"}


def convert(source, target, to: str) -> int:
    return main(["convert", str(source), str(target), "--to", to])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def as_others_publish(folder: Path, config: dict) -> Path:
    """A published folder made by others: half precision, odd fields."""
    folder.mkdir()
    torch.manual_seed(1)
    parts = dict(zip(("encoder", "masknet", "decoder"), build(config), strict=True))
    state = torch.nn.ModuleDict(parts).state_dict()
    save_file({k: v.half() for k, v in state.items()}, folder / "model.safetensors")
    fields = {"architectures": ["SPGM"], **config, "speechbrain_spgm": CARD}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "README.md").write_bytes("---\r\nlicense: cc0-1.0\r\n---\r\nä".encode())
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"masknet_numlayers": 4, "intra_numlayers": 2, "intra_dropout": 0},  # spgm-base
        {
            "encoder_kernel_size": 32,
            "masknet_chunksize": 25,
            "masknet_numspks": 3,
            "masknet_useextralinearlayer": True,
            "spgm_block_pool": "lem",
            "spgm_block_att_dropout": 0.5,  # without effect, but kept
        },
        {
            "masknet_norm": "gln",
            "intra_norm_before": False,
            "spgm_block_att_h": 8,
            "spgm_block_att_dropout": 0.1,
        },
    ],
)
def test_there_and_back_again(config, tmp_path, capsys, change):
    source = as_others_publish(tmp_path / "a", config | change)
    before = contents(source)
    assert convert(source, tmp_path / "b", "speechbrain") == 0
    assert convert(tmp_path / "b", tmp_path / "c", "published") == 0
    assert contents(source) == before

    first, last = (load_file(tmp_path / x / "model.safetensors") for x in "ac")
    assert first.keys() == last.keys()
    for name, value in first.items():
        assert value.dtype == last[name].dtype and torch.equal(value, last[name])
    for name in "ab":
        card = (tmp_path / name / "README.md").read_bytes()
        assert card == (tmp_path / "c" / "README.md").read_bytes()
    first, last = (json.loads((tmp_path / x / "config.json").read_text()) for x in "ac")
    assert list(first.items()) == list(last.items())
    interface = json.loads((tmp_path / "b" / "config.json").read_text())
    assert interface["speechbrain_interface"] == "SepformerSeparation"

    mix = torch.randn(1, 900)
    expected = SPGMSeparation.from_pretrained(source, device="cpu").separate_batch(mix)
    ours = SPGMSeparation.from_hparams(tmp_path / "b", run_opts=CPU)
    assert torch.equal(ours.separate_batch(mix), expected)
    assert ours.hparams.config["speechbrain_spgm"] == CARD
    stock = SepformerSeparation.from_hparams(tmp_path / "b", run_opts=CPU)
    assert torch.equal(stock.separate_batch(mix), expected)
    capsys.readouterr()
    assert main(["info", str(tmp_path / "b"), "--device", "cpu"]) == 0
    assert "(see README) <N> !new:os.system" in capsys.readouterr().out


@pytest.mark.parametrize("masknet", [DUAL_PATH, PACKED])
def test_a_recipes_folder_becomes_published(tmp_path, masknet):
    source = speechbrain_folder(tmp_path / "trained", masknet, SPGM)
    (source / "config.json").write_text('{"sample_rate": 8000.0}')  # no whole number
    assert convert(source, tmp_path / "new" / "b", "published") == 0
    config = json.loads((tmp_path / "new" / "b" / "config.json").read_text())
    assert config["config_name"] == "trained" and config["masknet_numspks"] == 3
    mix = torch.randn(1, 900)
    ours = SPGMSeparation.from_pretrained(tmp_path / "new" / "b", device="cpu")
    trained = SPGMSeparation.from_hparams(source, run_opts=CPU)
    assert torch.equal(ours.separate_batch(mix), trained.separate_batch(mix))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b"]


@pytest.mark.parametrize("to", ["published", "speechbrain"])
def test_half_precision_is_half_the_size_and_sounds_alike(published, tmp_path, to):
    once, twice = tmp_path / "once", tmp_path / "twice"
    for source, target in [(published, once), (once, twice)]:
        assert main(["convert", str(source), str(target), "--to", to, "--half"]) == 0
    sizes = [
        sum(
            x.stat().st_size
            for x in path.iterdir()
            if x.suffix in {".safetensors", ".ckpt"}
        )
        for path in (published, once)
    ]
    assert sizes[1] < 0.55 * sizes[0]
    assert contents(once).keys() == contents(twice).keys()

    load = SPGMSeparation.from_pretrained
    models = [load(published, device="cpu")]
    if to == "speechbrain":
        load = SPGMSeparation.from_hparams
    models += [load(path, run_opts=CPU) for path in (once, twice)]
    mix = torch.randn(1, 900)
    full, half, again = (model.separate_batch(mix) for model in models)
    assert torch.equal(half, again) and not torch.equal(half, full)
    assert (half - full).norm() < 0.01 * full.norm()


def test_weights_beyond_half_precision(config, tmp_path, capsys):
    parts = build(config)
    torch.nn.init.constant_(parts[0].conv1d.weight, 1e5)
    save_published(tmp_path / "large", *parts, config)
    command = ["convert", str(tmp_path / "large"), str(tmp_path / "out")]
    assert main([*command, "--to", "published", "--half"]) == 2
    error = capsys.readouterr().err
    name = f"encoder.conv1d.weight of {tmp_path / 'large'}"
    assert f"{name} holds 100000, too large" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_what_cannot_be_converted(published, tmp_path, capsys):
    sepformer = speechbrain_folder(tmp_path / "sepformer", DUAL_PATH, TRANSFORMER)
    (tmp_path / "empty").mkdir()
    half = shutil.copytree(published, tmp_path / "half")
    (half / "config.json").unlink()
    for source, to, words in [
        (half, "published", "has no config.json"),
        (sepformer, "published", "not of SBTransformerBlock and SBTransformerBlock"),
        (sepformer, "speechbrain", "is in SpeechBrain's layout already"),
        (published, "published", "is in the published layout already"),
        (tmp_path / "empty", "published", "it is no model"),
        (
            tmp_path / "nothing",
            "published",
            "is no folder, no model that goes by a name",
        ),
    ]:
        assert convert(source, tmp_path / "out", to) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"sample_rate:": "config: text\nsample_rate:"}, None),
        ({"    decoder: !ref <Decoder>\n": ""}, "The decoder of .* is a NoneType, but"),
        (
            {
                "        decoder: !ref <Decoder>\n": "",
                "    decoder: !ref <Decoder>\n": "    decoder: 3\n",
            },
            "The decoder of .* is a int, but",
        ),
        ({"num_layers: 1\n": "num_layers: 0\n"}, "lacks layers, or has others than"),
    ],
)
def test_a_strangers_yaml(published, tmp_path, capsys, edits, words):
    assert convert(published, tmp_path / "a", "speechbrain") == 0
    (tmp_path / "a" / "config.json").unlink()
    yaml = tmp_path / "a" / "hyperparams.yaml"
    for old, new in edits.items():
        assert old in yaml.read_text()
        yaml.write_text(yaml.read_text().replace(old, new))
    masknet = load_safely(yaml.parent.joinpath)["modules"]["masknet"]
    if "num_layers: 0" in yaml.read_text():
        torch.save(masknet.state_dict(), yaml.with_name("masknet.ckpt"))
    capsys.readouterr()
    assert convert(tmp_path / "a", tmp_path / "b", "published") == (2 if words else 0)
    error = capsys.readouterr().err
    if words:
        assert re.search(words, error) and error.count("\n") == 1


def test_only_earlier_conversions_are_replaced(published, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    assert convert(published, mine, "speechbrain") == 0  # empty
    first = contents(mine)
    assert convert(published, mine, "speechbrain") == 0
    assert contents(mine).keys() == first.keys()

    (mine / "notes.txt").write_text("mine")
    assert convert(published, mine, "speechbrain") == 2
    assert "is not empty and no earlier conversion" in capsys.readouterr().err
    other = shutil.copytree(published, tmp_path / "other")
    before = contents(other)
    assert convert(mine, other, "published") == 2
    assert contents(other) == before
    (tmp_path / "link").symlink_to(mine)
    assert convert(published, tmp_path / "link", "speechbrain") == 2
    assert (mine / "notes.txt").read_text() == "mine"
    capsys.readouterr()
    below = mine / "notes.txt" / "below"
    assert convert(published, below, "speechbrain") == 2
    assert f"{below} cannot be written (File exists)" in capsys.readouterr().err


def test_a_failed_conversion_leaves_what_was_there(published, tmp_path, monkeypatch):
    target = tmp_path / "b"
    assert convert(published, target, "speechbrain") == 0
    before = contents(target)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("speechbrain_spgm.models.convert.check_same", interrupted)
    assert convert(published, target, "speechbrain") == 130
    assert contents(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_golden_models_of_the_published_implementation(shared, tmp_path):
    """Made by others: converted, stock SpeechBrain gives the voices that they gave."""
    source = shared / "reference" / "model-att"
    assert convert(source, tmp_path / "b", "speechbrain") == 0
    golden = load_file(source / "golden.safetensors")
    stock = SepformerSeparation.from_hparams(tmp_path / "b", run_opts=CPU)
    for name in (name for name in golden if name.startswith("mix.")):
        expected = golden[name.replace("mix", "est")]
        if golden[name].shape[1] < 100:  # stock SpeechBrain needs some samples
            continue
        found = stock.separate_batch(golden[name])
        assert (found - expected).norm() <= 2e-6 * expected.norm()


def test_a_conversion_that_would_sound_different_is_refused(config, tmp_path, capsys):
    """A yaml may build what config.json has no field for."""
    source = tmp_path / "a"
    save_published(source, *build(config), config)
    assert convert(source, tmp_path / "b", "speechbrain") == 0
    yaml = tmp_path / "b" / "hyperparams.yaml"
    old = "    bias: false\n"
    assert old in yaml.read_text()
    yaml.write_text(yaml.read_text().replace(old, f"{old}    padding: 3\n"))
    (tmp_path / "b" / "config.json").unlink()
    assert convert(tmp_path / "b", tmp_path / "c", "published") == 2
    error = capsys.readouterr().err
    assert "cannot express something in this model" in error
    assert not (tmp_path / "c").exists()
