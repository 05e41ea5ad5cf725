"""The networks of the experiment yamls are the published ones."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from speechbrain_spgm.models.config import config_of
from tests.training.test_experiment import load_hparams

ROOT = Path(__file__).resolve().parents[2]
BASE = {
    "model_type": "spgm",
    "sample_rate": 8000,
    "config_name": "spgm",
    "encoder_kernel_size": 16,
    "encoder_in_nchannels": 1,
    "encoder_out_nchannels": 256,
    "masknet_chunksize": 250,
    "masknet_numlayers": 4,
    "masknet_norm": "ln",
    "masknet_useextralinearlayer": False,
    "masknet_extraskipconnection": True,
    "masknet_numspks": 2,
    "intra_numlayers": 8,
    "intra_nhead": 8,
    "intra_dffn": 1024,
    "intra_dropout": 0,
    "intra_use_positional": True,
    "intra_norm_before": True,
    "spgm_block_pool": "att",
    "spgm_block_att_h": None,
    "spgm_block_att_dropout": 0,
}
OPT = {"masknet_chunksize": 500, "masknet_numlayers": 16, "intra_numlayers": 2}


def modules(recipe: str, name: str, overrides: str = "") -> nn.ModuleDict:
    """The network of a yaml, without memory for its parameters."""
    yaml = ROOT / "recipes" / recipe / "separation" / "hparams" / f"{name}.yaml"
    with torch.device("meta"):
        return nn.ModuleDict(load_hparams(yaml, overrides)["modules"])


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("recipe", ["LibriMix", "WSJ0Mix"])
@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [("spgm", {}, 26_208_773), ("spgm-opt", OPT, 27_809_297)],
)
def test_spgm_is_the_published_network(recipe, name, shape, size):
    network = modules(recipe, name)
    assert parameters(network) == size
    config = config_of(**network, sample_rate=8000, name=name)
    assert config == {**BASE, "config_name": name, **shape}


@pytest.mark.parametrize(
    ("name", "published"), [("spgm", "spgm-base"), ("spgm-opt", "spgm-opt")]
)
def test_states_have_the_published_names_and_shapes(shared, name, published):
    text = (shared / "reference" / "published-checkpoints.json").read_text()
    state = modules("WSJ0Mix", name).state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    assert shapes == json.loads(text)[published]["state"]


def test_the_baseline_has_the_size_of_spgm():
    spgm = parameters(modules("WSJ0Mix", "spgm"))
    sepformer = parameters(modules("WSJ0Mix", "sepformer"))
    assert sepformer == 25_679_361  # as SpeechBrain's recipe builds it
    assert abs(sepformer / spgm - 1) < 0.03


@pytest.mark.parametrize("recipe", ["LibriMix", "WSJ0Mix"])
def test_one_key_changes_the_pooling(recipe):
    sizes = {
        flags: parameters(modules(recipe, "spgm", flags))
        for flags in ("pool: att", "pool: lem", "att_h: 64", "pool: none")
    }
    blocks, N = 4, 256
    assert sizes["pool: att"] - sizes["pool: lem"] == blocks * (N + 1)
    assert sizes["att_h: 64"] - sizes["pool: lem"] == blocks * (64 * N + 64 + 64 + 1)
    assert sizes["pool: lem"] - sizes["pool: none"] == blocks * 2 * N * (N + 1)
