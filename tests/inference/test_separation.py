"""SPGMSeparation: sources of models, batches, and stock SpeechBrain beside it."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from speechbrain.inference.separation import SepformerSeparation
from speechbrain.lobes.models.dual_path import (
    Decoder,
    Dual_Path_Model,
    Encoder,
    SBTransformerBlock,
)

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import ModelError, SPGMSeparation, save_published
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.models import sources as module
from speechbrain_spgm.models.config import build

LENGTHS = [800, 3, 511, 16]
CPU = {"device": "cpu"}

# A SpeechBrain-style folder; MASKNET and INTER are put in by the tests.
YAML = """
sample_rate: 8000
num_spks: 3
Encoder: !new:speechbrain.lobes.models.dual_path.Encoder
    kernel_size: 16
    out_channels: 16
intra: !new:speechbrain.lobes.models.dual_path.SBTransformerBlock
    num_layers: 1
    d_model: 16
    nhead: 2
    d_ffn: 32
    dropout: 0
    use_positional_encoding: true
    norm_before: true
inter: !new:INTER
MaskNet: !new:MASKNET
    num_spks: !ref <num_spks>
    in_channels: 16
    out_channels: 16
    num_layers: 2
    K: 25
    intra_model: !ref <intra>
    inter_model: !ref <inter>
    norm: ln
    linear_layer_after_inter_intra: false
    skip_around_intra: true
Decoder: !new:speechbrain.lobes.models.dual_path.Decoder
    in_channels: 16
    out_channels: 1
    kernel_size: 16
    stride: 8
    bias: false
modules:
    encoder: !ref <Encoder>
    masknet: !ref <MaskNet>
    decoder: !ref <Decoder>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        encoder: !ref <Encoder>
        masknet: !ref <MaskNet>
        decoder: !ref <Decoder>
"""
DUAL_PATH = "speechbrain.lobes.models.dual_path.Dual_Path_Model"
PACKED = "speechbrain_spgm.lobes.masknet.SPGMMaskNet"
SPGM = """speechbrain_spgm.lobes.spgm.SPGMBlock
    n_embd: 16
    pool: att"""
TRANSFORMER = """speechbrain.lobes.models.dual_path.SBTransformerBlock
    num_layers: 1
    d_model: 16
    nhead: 2
    d_ffn: 32
    dropout: 0
    use_positional_encoding: true
    norm_before: true"""


def speechbrain_folder(folder: Path, masknet: str, inter: str) -> Path:
    """A trained model as a SpeechBrain recipe leaves it."""
    folder.mkdir()
    text = YAML.replace("MASKNET", masknet).replace("INTER", inter)
    (folder / "hyperparams.yaml").write_text(text)
    torch.manual_seed(1)
    spgm = SPGMBlock(16, "att") if inter == SPGM else transformer()
    parts = {
        "encoder": Encoder(16, 16),
        "masknet": Dual_Path_Model(
            16, 16, transformer(), spgm, 2, "ln", 25, 3, True, False
        ),
        "decoder": Decoder(16, 1, 16, stride=8, bias=False),
    }
    for name, part in parts.items():
        torch.save(part.state_dict(), folder / f"{name}.ckpt")
    return folder


def transformer() -> SBTransformerBlock:
    return SBTransformerBlock(
        1, 16, 2, 32, dropout=0.0, use_positional_encoding=True, norm_before=True
    )


def padded_batch(model: SPGMSeparation) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Unequal mixtures in one batch, NaN beyond their ends, and each alone."""
    torch.manual_seed(2)
    mixes = [torch.randn(1, length) for length in LENGTHS]
    batch = torch.full((len(mixes), max(LENGTHS)), float("nan"))
    for row, mix in zip(batch, mixes, strict=True):
        row[: mix.shape[1]] = mix
    return batch, [model.separate_batch(mix)[0] for mix in mixes]


def assert_same(est: torch.Tensor, alone: list[torch.Tensor]) -> None:
    for found, expected in zip(est, alone, strict=True):
        T = len(expected)
        assert (found[:T] - expected).norm() <= 1e-5 * expected.norm()
        assert not found[T:].any()


@pytest.mark.parametrize(
    "change",
    [{"spgm_block_pool": pool} for pool in ("att", "avg", "max", "lem")]
    + [{"spgm_block_att_h": 8, "masknet_numspks": 3, "masknet_chunksize": 25}],
)
def test_alone_equals_batched(config, tmp_path, change):
    save_published(tmp_path, *build(config | change), config | change)
    model = SPGMSeparation.from_pretrained(tmp_path, device="cpu")
    batch, alone = padded_batch(model)
    est = model.separate_batch(batch, torch.tensor(LENGTHS))
    assert_same(est, alone)
    assert torch.equal(est, model.separate_batch(batch, LENGTHS))
    relative = torch.tensor(LENGTHS) / batch.shape[1]
    assert torch.equal(est, model.separate_batch(batch, relative))


def test_relative_lengths_are_rounded_as_in_speechbrain(model):
    mix = torch.randn(1, 1000)
    est = model.separate_batch(mix, [0.2996])  # 299.6 samples
    assert torch.equal(est, model.separate_batch(mix, [300]))
    for kind in ("uint16", "uint32", "uint64"):
        lengths = np.array([300], kind)
        assert torch.equal(est, model.separate_batch(mix, lengths))


@pytest.mark.parametrize("word", ["running", "whole"])
def test_statistics_of_a_batch_are_no_word(model, word):
    with pytest.raises(UserError, match=f"^statistics is '{word}'.*statistics_of"):
        model.separate_batch(torch.randn(1, 100), statistics=word)


@pytest.mark.parametrize(
    "lengths",
    [[100], [[100, 100]], 100, [101, 100], [0, 100], [-1, 100], [1.01, 1.0], [0.0, 1.0]]
    + [[float("nan"), 1.0], [1e-9, 1.0], torch.tensor([True, True])]
    + [np.array([101, 100], "uint32"), torch.tensor([1j, 1j])],
)
def test_wrong_lengths_are_one_sentence(model, lengths):
    with pytest.raises(ValueError, match="^lengths is .*one per utterance: whole"):
        model.separate_batch(torch.randn(2, 100), lengths)


@pytest.mark.parametrize("shape", [(100,), (1, 1, 100), (0, 100), (1, 0)])
def test_wrong_shapes_are_one_sentence(model, shape):
    with pytest.raises(ValueError, match="^mix has shape"):
        model.separate_batch(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_valid_part_is_refused(model, value):
    mix = torch.randn(2, 100)
    mix[1, 60] = value
    with pytest.raises(ValueError, match="Utterance 1 of mix holds NaN"):
        model.separate_batch(mix, [100, 61])
    assert model.separate_batch(mix, [100, 60]).isfinite().all()


def test_input_is_converted_and_no_graph_is_kept(model):
    mix = torch.randn(1, 100, requires_grad=True)
    est = model.separate_batch(mix)
    assert not est.requires_grad and est.dtype == torch.float32
    assert torch.equal(model.separate_batch(mix.detach().double()), est)
    integers = torch.arange(-50, 50).unsqueeze(0)
    floats = model.separate_batch(integers.float())
    assert torch.equal(model.separate_batch(integers.to(torch.int16)), floats)


def test_threads_share_a_model(model):
    mixes = [torch.randn(1, 100 * n) for n in range(1, 9)]
    alone = [model.separate_batch(mix) for mix in mixes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model.separate_batch, mixes))
    for found, expected in zip(together, alone, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("masknet", [DUAL_PATH, PACKED])
def test_speechbrain_folder(tmp_path, monkeypatch, masknet):
    """Both kinds of yaml, in our class and in SpeechBrain's own, without a trace."""
    source = speechbrain_folder(tmp_path / "model", masknet, SPGM)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = sorted(tmp_path.rglob("*"))
    ours = SPGMSeparation.from_hparams(source, run_opts=CPU)
    stock = SepformerSeparation.from_hparams(source, run_opts=CPU)
    assert sorted(tmp_path.rglob("*")) == before

    assert isinstance(ours.mods.masknet, SPGMMaskNet)
    for T in (16, 799):
        mix = torch.randn(1, T)
        expected = stock.separate_batch(mix)
        found = ours.separate_batch(mix)
        assert found.shape == (1, T, 3)
        assert (found - expected).norm() <= 2e-6 * expected.norm()
    batch, alone = padded_batch(ours)
    assert_same(ours.separate_batch(batch, LENGTHS), alone)


def test_a_sepformer_stays_what_it_is(tmp_path):
    source = speechbrain_folder(tmp_path / "model", DUAL_PATH, TRANSFORMER)
    model = SPGMSeparation.from_hparams(source, run_opts=CPU)
    stock = SepformerSeparation.from_hparams(source, run_opts=CPU)
    assert type(model.mods.masknet) is Dual_Path_Model
    batch, alone = padded_batch(model)
    assert_same(model.separate_batch(batch, LENGTHS), alone)
    expected = stock.separate_batch(batch[:1])[0]
    assert torch.allclose(alone[0], expected, atol=1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_spgm_that_cannot_be_packed_still_keeps_utterances_apart(caplog, wrapped):
    torch.manual_seed(3)
    masknet = Dual_Path_Model(16, 16, transformer(), SPGMBlock(16, "att"), 2, "cln", 25)
    masknet = torch.nn.Sequential(masknet) if wrapped else masknet
    modules = {
        "encoder": Encoder(16, 16),
        "masknet": masknet,
        "decoder": Decoder(16, 1, 16, stride=8, bias=False),
    }
    model = SPGMSeparation(modules, {"sample_rate": 8000}, CPU)
    assert model.mods.masknet is masknet and "runs unpacked" in caplog.text
    mix = torch.randn(2, 500)
    alone = [model.separate_batch(row.unsqueeze(0))[0] for row in mix]
    assert_same(model.separate_batch(mix), alone)


def test_overrides_and_savedir_reach_speechbrain(tmp_path):
    source = speechbrain_folder(tmp_path / "model", DUAL_PATH, SPGM)
    model = SPGMSeparation.from_hparams(
        str(source),
        savedir=tmp_path / "saved",
        overrides={"sample_rate": 16000},
        run_opts=CPU,
    )
    assert model.sample_rate == 16000
    assert (tmp_path / "saved" / "masknet.ckpt").exists()


def test_layouts_point_to_each_other(published, tmp_path):
    source = speechbrain_folder(tmp_path / "model", DUAL_PATH, SPGM)
    with pytest.raises(ModelError, match="load it by from_hparams"):
        SPGMSeparation.from_pretrained(source)
    with pytest.raises(ModelError, match="load it by from_pretrained"):
        SPGMSeparation.from_hparams(published)


@pytest.mark.parametrize(
    "load", [SPGMSeparation.from_pretrained, SPGMSeparation.from_hparams]
)
@pytest.mark.parametrize(
    "source", ["no/such/folder", "/no/such", "nothing", Path("x/y")]
)
def test_a_source_that_is_nothing(load, source):
    with pytest.raises(ModelError, match=f"^{source} is no folder"):
        load(source)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ModelError, match="has no config.json"):
        SPGMSeparation.from_pretrained(tmp_path)


def test_a_missing_device_is_one_sentence(published):
    with pytest.raises(ModelError, match="The device cuda:99 cannot be used"):
        SPGMSeparation.from_pretrained(published, device="cuda:99")
    with pytest.raises(ModelError, match="The device bogus cannot be used"):
        SPGMSeparation.from_pretrained(published, run_opts={"device": "bogus"})


def test_a_missing_module_is_named():
    with pytest.raises(ModelError, match="no masknet and no decoder"):
        SPGMSeparation({"encoder": Encoder(16, 16)}, {"sample_rate": 8000})


def test_shipped_models_are_found_by_name(published, monkeypatch):
    monkeypatch.setattr(module, "SHIPPED_MODELS", published.parent)
    monkeypatch.setattr(module, "DEFAULT_MODEL", published.name)
    mix = torch.randn(1, 100)
    expected = SPGMSeparation.from_pretrained(published, device="cpu").separate_batch(
        mix
    )
    for source in (None, published.name):
        model = SPGMSeparation.from_pretrained(source, device="cpu")
        assert torch.equal(model.separate_batch(mix), expected)
    with pytest.raises(
        ModelError, match=rf"goes by a name \({published.name}, spgm-base"
    ):
        SPGMSeparation.from_pretrained("another")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_hub_repository_from_the_cache(published, tmp_path, offline):
    """The two files are taken from the Hub's cache; traps beside them are not."""
    commit = "0123456789abcdef" * 2 + "01234567"
    cache = tmp_path / "models--user--random"
    snapshot = cache / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    (cache / "blobs").mkdir()
    for file in published.iterdir():
        (cache / "blobs" / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    (snapshot / "encoder.ckpt").write_bytes(pickle.dumps(print))
    model = SPGMSeparation.from_pretrained(
        "user/random", cache_dir=tmp_path, device="cpu"
    )
    assert model.hparams.config["config_name"] == "random"

    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="user/random is not in the cache"):
        SPGMSeparation.from_pretrained("user/random", cache_dir=tmp_path)


@pytest.mark.parametrize(
    "load", [SPGMSeparation.from_pretrained, SPGMSeparation.from_hparams]
)
def test_hub_out_of_reach(load, offline):
    with pytest.raises(
        ModelError, match="user/nowhere is not in the cache and the Hub"
    ):
        load("user/nowhere")
