"""The published layout: exact, strict, and never running code."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file, save_file
from speechbrain.lobes.models.dual_path import (
    Decoder,
    Dual_Path_Model,
    Encoder,
    SBTransformerBlock,
)

from speechbrain_spgm.inference import (
    ModelError,
    SPGMSeparation,
    load_published,
    save_published,
)
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.models.config import build, config_of

PARTS = ("encoder", "masknet", "decoder")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def change_file(folder: Path, name: str, change) -> None:
    """Rewrites one tensor file with ``change`` applied to its dict of tensors."""
    state = load_file(folder / name)
    change(state)
    save_file(state, folder / name)


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """A copy of the published folder that a test may spoil."""
    for file in published.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_what_is_saved_is_loaded(config, tmp_path):
    parts = build(config)
    save_published(tmp_path / "model", *parts, config, card={"licence": "CC0"})
    model = load_published(tmp_path / "model")
    assert model.config == {**config, "speechbrain_spgm": {"licence": "CC0"}}
    for saved, loaded in zip(parts, model[:3], strict=True):
        state = loaded.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in saved.state_dict().items())
        assert not loaded.training
    written = {file.name: file.stat() for file in (tmp_path / "model").iterdir()}
    assert written.keys() == {"config.json", "model.safetensors"}
    assert len({stat.st_mode for stat in written.values()}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"masknet_numspks": 3, "masknet_chunksize": 25, "encoder_kernel_size": 5},
        {"encoder_kernel_size": 2, "spgm_block_pool": "lem", "masknet_numspks": 1},
        {"spgm_block_att_h": 6, "intra_use_positional": False},
        {"masknet_useextralinearlayer": True, "masknet_extraskipconnection": False},
        {"masknet_norm": "gln", "intra_norm_before": False, "spgm_block_pool": "max"},
        {"spgm_block_pool": "none"},
    ],
)
def test_config_means_what_it_means_to_speechbrain(config, tmp_path, change):
    """The same weights in SpeechBrain's own modules give the same voices."""
    config |= change
    save_published(tmp_path, *build(config), config)
    encoder, masknet, decoder, _ = load_published(tmp_path)
    assert config_of(encoder, masknet, decoder, 8000, "random") == config

    N, kernel = config["encoder_out_nchannels"], config["encoder_kernel_size"]
    theirs = [
        Encoder(kernel, N),
        Dual_Path_Model(
            N,
            N,
            SBTransformerBlock(
                config["intra_numlayers"],
                N,
                config["intra_nhead"],
                config["intra_dffn"],
                use_positional_encoding=config["intra_use_positional"],
                norm_before=config["intra_norm_before"],
            ),
            SPGMBlock(N, config["spgm_block_pool"], config["spgm_block_att_h"]),
            config["masknet_numlayers"],
            config["masknet_norm"],
            config["masknet_chunksize"],
            config["masknet_numspks"],
            config["masknet_extraskipconnection"],
            config["masknet_useextralinearlayer"],
        ),
        Decoder(N, 1, kernel, stride=kernel // 2, bias=False),
    ]
    weights = load_file(tmp_path / "model.safetensors")
    for name, part in zip(PARTS, theirs, strict=True):
        part.load_state_dict(
            {k[len(name) + 1 :]: v for k, v in weights.items() if k.startswith(name)}
        )
        part.eval()
    mixes = torch.randn(1, 700), torch.randn(1, 1)
    with torch.no_grad():
        expected = [separate(*theirs, mix) for mix in mixes]
        found = [separate(encoder, masknet, decoder, mix) for mix in mixes]
    # The single sample is a sum that may cancel, so the long voices are its scale too.
    scale = expected[0].abs().max()
    for ours, other in zip(found, expected, strict=True):
        assert (ours - other).abs().max() <= 2e-6 * scale


@pytest.mark.parametrize("change", ["activation", "stride", "inter"])
def test_parts_that_the_layout_cannot_express(config, change):
    encoder, masknet, decoder = build(config)
    if change == "activation":
        masknet.dual_mdl[0].intra_mdl.mdl.layers[0].pos_ffn.ffn[1] = torch.nn.GELU()
        words = "not with GELU"
    elif change == "stride":
        decoder.stride = (7,)
        words = "stride 8, not with 7"
    else:
        masknet.dual_mdl[0].inter_mdl = torch.nn.Identity()
        words = "not of SBTransformerBlock and Identity"
    with pytest.raises(ModelError, match=words):
        config_of(encoder, masknet, decoder, 8000, "random")


@pytest.mark.parametrize("pool", ["att", "attff", "avg", "max", "lem"])
def test_golden_tensors_of_the_published_implementation(shared, pool):
    folder = shared / "reference" / f"model-{pool}"
    model = SPGMSeparation.from_pretrained(folder, device="cpu")
    golden = load_file(folder / "golden.safetensors")
    for name in (name for name in golden if name.startswith("mix.")):
        expected = golden[name.replace("mix", "est")]
        assert relative_error(model.separate_batch(golden[name]), expected) <= 2e-6


@pytest.mark.parametrize("name", ["spgm-base", "spgm-opt"])
def test_names_shapes_and_counts_of_the_published_models(shared, name):
    known = json.loads(
        (shared / "reference" / "published-checkpoints.json").read_text()
    )
    with torch.device("meta"):
        parts = torch.nn.ModuleDict(
            dict(zip(PARTS, build(known[name]["config"]), strict=True))
        )
    shapes = {key: list(value.shape) for key, value in parts.state_dict().items()}
    assert shapes == known[name]["state"]
    assert sum(p.numel() for p in parts.parameters()) == known[name]["parameters"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "bert"}, 'model_type is "bert", but must be "spgm"'),
        (
            {"sample_rate": "8k"},
            'sample_rate is "8k", but must be a whole number from 1',
        ),
        ({"sample_rate": 8000.5}, "sample_rate is 8000.5"),
        ({"encoder_kernel_size": 1}, "encoder_kernel_size is 1"),
        ({"encoder_in_nchannels": 2}, "encoder_in_nchannels is 2, but must be 1"),
        ({"encoder_out_nchannels": 10**12}, "encoder_out_nchannels is 1000000000000"),
        ({"masknet_chunksize": -24}, "masknet_chunksize is -24"),
        ({"masknet_numlayers": True}, "masknet_numlayers is true"),
        ({"masknet_norm": "bn"}, 'masknet_norm is "bn", but must be "ln" or "gln"'),
        ({"intra_dropout": 1.0}, "intra_dropout is 1.0"),
        ({"intra_norm_before": 1}, "intra_norm_before is 1, but must be true or false"),
        ({"spgm_block_pool": "sum"}, 'spgm_block_pool is "sum", but must be "att" or'),
        ({"spgm_block_att_h": 0}, "spgm_block_att_h is 0, but must be null or a whole"),
        ({"intra_nhead": 3}, "intra_nhead is 3, but must divide the 16 filters"),
        ({"encoder_out_nchannels": 15, "intra_nhead": 5}, "but must be even"),
        ({"masknet_chunksize": 3000}, "encoding ends at 2500 frames"),
        ({"intra_dffn": -1, "masknet_numspks": 0}, "0, but must be a whole number"),
    ],
)
def test_wrong_values_are_named(copy, change, words):
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError) as error:
        load_published(copy)
    assert str(file) in str(error.value) and words in str(error.value)
    assert all(name in str(error.value) for name in change if len(change) == 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", ": encoder_kernel_size is missing; encoder_in_nchannels is missing"),
    ],
)
def test_a_broken_config_is_one_sentence(copy, text, words):
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        load_published(copy)


def test_unknown_fields_do_no_harm(copy):
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["X"]}))
    load_published(copy)


def drop(name):
    return lambda state: state.pop(name)


def put(name, value):
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("decoder.weight"), "it lacks decoder.weight;"),
        (put("extra", torch.zeros(1)), "it has the unknown extra;"),
        (
            put("decoder.weight", torch.zeros(16, 1, 8)),
            r"has decoder.weight of shape \[16, 1, 8\], not \[16, 1, 16\]",
        ),
        (
            put("decoder.weight", torch.full((16, 1, 16), float("nan"))),
            "NaN or infinity",
        ),
        (put("decoder.weight", torch.zeros(16, 1, 16).int()), "are floating-point"),
        (lambda state: [state.pop(name) for name in list(state)[4:]], "too few"),
    ],
)
def test_weights_must_be_those_of_the_config(copy, change, words):
    change_file(copy, "model.safetensors", change)
    with pytest.raises(ModelError, match=words):
        load_published(copy)


@pytest.mark.parametrize("keep", [0, 4, 0.1, 0.99])
def test_truncated_weights(copy, keep):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(
        whole[: keep if isinstance(keep, int) else int(keep * len(whole))]
    )
    with pytest.raises(ModelError, match="truncated or no safetensors"):
        load_published(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ModelError, match=f"has no {name}"):
        load_published(copy)


def test_half_precision_weights_are_loaded_in_float32(copy):
    change_file(
        copy,
        "model.safetensors",
        lambda state: state.update({k: v.half() for k, v in state.items()}),
    )
    model = SPGMSeparation.from_pretrained(copy, device="cpu")
    assert model.separate_batch(torch.randn(1, 100)).dtype == torch.float32


def test_a_failed_save_keeps_what_was_there(copy, config):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    parts = build(config)
    with torch.no_grad():
        parts[2].weight[0] = torch.inf
    with pytest.raises(ModelError, match="NaN or infinity in decoder.weight"):
        save_published(copy, *parts, config)
    with pytest.raises(
        ModelError, match=r"decoder.weight of shape \[16, 1, 16\], not \[32"
    ):
        save_published(copy, *build(config), config | {"encoder_out_nchannels": 32})
    with pytest.raises(ModelError, match="card of .* is no JSON"):
        save_published(copy, *build(config), config, card={"licence": object()})
    with pytest.raises(ModelError, match="chunksize is 48 in the config .* but 24 in"):
        save_published(copy, *build(config), config | {"masknet_chunksize": 48})
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def plant_traps(folder: Path, marker: Path) -> None:
    """Pickles and a yaml that leave a mark when anything opens them as such."""
    for name in ("encoder.ckpt", "masknet.ckpt", "decoder.ckpt", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    (folder / "hyperparams.yaml").write_text(f"x: !apply:os.mkdir [{marker}]\n")
    (folder / "custom.py").write_text(f"open({str(marker)!r}, 'w')\n")


def test_nothing_beside_the_weights_is_run(copy, tmp_path_factory):
    marker = tmp_path_factory.mktemp("trap") / "ran"
    plant_traps(copy, marker)
    pickle.loads((copy / "encoder.ckpt").read_bytes())  # the traps work
    marker.unlink()
    load_hyperpyyaml((copy / "hyperparams.yaml").read_text())
    marker.rmdir()
    model = SPGMSeparation.from_pretrained(copy, device="cpu")
    model.separate_batch(torch.randn(1, 100))
    assert not marker.exists()


def test_neither_loading_nor_separating_brings_the_compiler():
    program = (
        "import sys, torch\n"
        "from speechbrain_spgm.inference import SPGMSeparation\n"
        "model = SPGMSeparation.from_pretrained(device='cpu')\n"
        "model.separate_batch(torch.rand(1, 800))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )  # importing it takes seconds
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_pickle_named_safetensors_is_refused(copy, tmp_path_factory):
    marker = tmp_path_factory.mktemp("trap") / "ran"
    (copy / "model.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ModelError):
        load_published(copy)
    assert not marker.exists()
