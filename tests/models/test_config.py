"""The table of fields: a new pooling or a new field is one entry."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from speechbrain_spgm.cli import main
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.lobes import pooling
from speechbrain_spgm.models import config as fields
from speechbrain_spgm.models.config import FIELDS, Field, build, check_config, config_of
from speechbrain_spgm.models.published import load_published
from speechbrain_spgm.models.tensors import ModelError
from speechbrain_spgm.publishing.assemble import assemble
from speechbrain_spgm.training.saving import save_model
from speechbrain_spgm.training.settings import read_settings

CPU = {"device": "cpu"}
ROOT = Path(__file__).resolve().parents[2]


class Power(nn.Module):
    """A pooling with a parameter, and a size of its own."""

    def __init__(self, n_embd: int, att_h: int | None, att_dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(att_h or 1, n_embd))
        self.dropout = nn.Dropout(att_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.weight.mean(0) * x.square().mean(dim=1))


def trained(folder, config: dict, parts=None) -> dict:
    """The built yaml of a run with these parts."""
    names = ("encoder", "masknet", "decoder")
    folder.mkdir()
    return {
        "modules": dict(zip(names, parts or build(config), strict=True)),
        "sample_rate": config["sample_rate"],
        "num_spks": config["masknet_numspks"],
        "output_folder": str(folder),
        "seed": 1,
        "model_name": "new",
        "card": {"licence": "CC0-1.0", "training_data": "none"},
    }


def convert(source, target, to: str) -> None:
    assert main(["convert", str(source), str(target), "--to", to]) == 0


SUMMARY = {"n": 3, "si_sdri": {"mean": 1.0, "ci95": 0.5, "n": 3}}


def test_a_new_pooling_is_one_entry(config, tmp_path, monkeypatch, caplog):
    with pytest.raises(ModelError, match='must be "att" or .* or "none"'):
        check_config(config | {"spgm_block_pool": "power"})
    yaml = str(ROOT / "recipes/WSJ0Mix/separation/hparams/spgm.yaml")
    with pytest.raises(UserError, match="pool is .power., but must be att or"):
        read_settings([yaml, "--pool=power"])
    kind = pooling.Kind(Power, hidden=True)
    monkeypatch.setitem(pooling.POOLINGS, "power", kind)
    assert read_settings([yaml, "--pool=power", "--att_h=3"]).values["pool"] == "power"
    config |= {"spgm_block_pool": "power", "spgm_block_att_h": 3}
    config |= {"spgm_block_att_dropout": 0.25}
    hparams = trained(tmp_path / "run", config)
    with caplog.at_level(logging.WARNING):
        save_model(hparams, SUMMARY)
    assert not caplog.records
    home = tmp_path / "run" / "model"
    assert (home / "config.json").is_file() and not (home / "hyperparams.yaml").exists()
    *parts, found = load_published(home)
    assert {name: found[name] for name in FIELDS} == {n: config[n] for n in FIELDS}
    assert isinstance(parts[1].dual_mdl[1].inter_mdl.pool.model, Power)

    mix = torch.randn(1, 900)
    voices = SPGMSeparation.from_pretrained(home, device="cpu").separate_batch(mix)
    convert(home, tmp_path / "b", "speechbrain")
    convert(tmp_path / "b", tmp_path / "c", "published")
    other = SPGMSeparation.from_hparams(tmp_path / "b", run_opts=CPU)
    again = SPGMSeparation.from_pretrained(tmp_path / "c", device="cpu")
    assert torch.equal(other.separate_batch(mix), voices)
    assert torch.equal(again.separate_batch(mix), voices)

    (home / "test_summary.json").write_text(json.dumps(SUMMARY))
    assemble(home, tmp_path / "d", "user/new")
    for load in (SPGMSeparation.from_pretrained, SPGMSeparation.from_hparams):
        assert torch.equal(
            load(tmp_path / "d", run_opts=CPU).separate_batch(mix), voices
        )


def test_a_new_field_is_one_entry(config, tmp_path, monkeypatch):
    rows = Field(
        fields.either(fields.one_of((None,)), fields.whole(1, 99)),
        lambda built: built.masknet.rows_per_step,
        ("MaskNet.rows_per_step",),
        default=None,
    )
    monkeypatch.setitem(FIELDS, "masknet_rows", rows)
    check = pytest.raises(ModelError, match="masknet_rows is 0, but must be null or a")
    with check:
        check_config(config | {"masknet_rows": 0})
    parts = build(config | {"masknet_rows": 7})
    found = config_of(*parts, 8000, "random")
    assert parts[1].rows_per_step == 7 and found == config | {"masknet_rows": 7}
    save_published(tmp_path / "a", *parts, found)
    convert(tmp_path / "a", tmp_path / "b", "speechbrain")
    assert "    rows_per_step: 7\n" in (tmp_path / "b/hyperparams.yaml").read_text()
    convert(tmp_path / "b", tmp_path / "c", "published")
    assert load_published(tmp_path / "c").config["masknet_rows"] == 7
    # A model from before the field has its default.
    old = {key: value for key, value in found.items() if key != "masknet_rows"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(old))
    assert load_published(tmp_path / "a").config["masknet_rows"] is None


def test_why_a_model_is_not_in_the_published_layout_is_said(config, tmp_path, caplog):
    parts = build(config)
    for block in parts[1].dual_mdl:
        block.intra_mdl.mdl.layers[0].pos_ffn.ffn[1] = nn.GELU()
    hparams = trained(tmp_path / "run", config, parts)
    definition = "{encoder: 1, masknet: 2, decoder: 3}"
    (tmp_path / "run" / "hyperparams.yaml").write_text(f"modules: {definition}\n")
    with caplog.at_level(logging.WARNING):
        save_model(hparams, SUMMARY)
    assert "SpeechBrain's layout" in caplog.text and "not with GELU" in caplog.text


def test_half_a_character_goes_back_as_its_escape(tmp_path):
    """JSON may hold a lone surrogate, which no file in UTF-8 can."""
    fields.write_json(tmp_path / "config.json", {"é": "\ud800"})
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"é": "\ud800"} and "é" in text
