"""What training starts from."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from speechbrain.lobes.models.dual_path import (
    Decoder,
    Dual_Path_Model,
    Encoder,
    SBTransformerBlock,
)
from torch import Tensor, nn

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.models.config import build
from speechbrain_spgm.models.published import save_published
from speechbrain_spgm.training.initialise import initialise, start_from
from tests.conftest import CONFIG
from tests.hub_server import Repository
from tests.training.tiny import Tones, fit, make_brain

PARTS = ("encoder", "masknet", "decoder")


def test_fourier_encoder_and_decoder_give_the_mixture_back() -> None:
    encoder = Encoder(kernel_size=64, out_channels=128)
    decoder = Decoder(128, 1, kernel_size=64, stride=32, bias=False)
    initialise({"encoder": encoder, "decoder": decoder}, "fourier")
    mix = torch.randn(2, 3200)
    decoded = decoder(encoder(mix))
    torch.testing.assert_close(decoded[:, 32:-32], mix[:, 32:-32], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "N", "words"),
    [("mel", 128, "no filterbank mel: choose random or"), ("fourier", 30, "N is 30")],
)
def test_impossible_filterbanks_are_one_sentence(name: str, N: int, words: str) -> None:
    modules = {
        "encoder": Encoder(kernel_size=64, out_channels=N),
        "decoder": Decoder(N, 1, kernel_size=64, stride=32, bias=False),
    }
    with pytest.raises(UserError, match=words):
        initialise(modules, name)


def test_training_goes_on_from_narrower_feed_forward_layers(tmp_path: Path) -> None:
    """A wider network computes at first what the narrower one did, and learns to use
    all of its units."""
    block = partial(SBTransformerBlock, num_layers=2, d_model=8, nhead=2, dropout=0.0)
    narrow, wide = block(d_ffn=4), block(d_ffn=12)
    save_file(nn.ModuleDict({"masknet": narrow}).state_dict(), tmp_path / "narrow")
    start_from({"masknet": wide}, tmp_path / "narrow")
    frames = torch.randn(3, 5, 8)
    torch.testing.assert_close(wide(frames), narrow(frames))
    wide(frames).square().sum().backward()
    ffn = wide.mdl.layers[0].pos_ffn.ffn
    assert torch.count_nonzero(ffn[3].weight.grad[:, 4:])
    assert torch.count_nonzero(ffn[0].weight[4:])
    wider = partial(SBTransformerBlock, num_layers=2, d_model=16, nhead=2)
    for other in (block(d_ffn=2), wider(d_ffn=12)):
        with pytest.raises(UserError, match="of another network"):
            start_from({"masknet": other}, tmp_path / "narrow")


def test_training_goes_on_from_fewer_layers(tmp_path: Path) -> None:
    """A deeper network computes at first what the shallow one did, and learns to use
    all of its layers; a network cannot become shallower."""
    block = partial(SBTransformerBlock, d_model=8, d_ffn=4, nhead=2, dropout=0.0)
    shallow, deep = block(num_layers=1), block(num_layers=3)
    save_file(nn.ModuleDict({"masknet": shallow}).state_dict(), tmp_path / "shallow")
    save_file(nn.ModuleDict({"masknet": deep}).state_dict(), tmp_path / "deep")
    start_from({"masknet": deep}, tmp_path / "shallow")
    frames = torch.randn(3, 5, 8)
    torch.testing.assert_close(deep(frames), shallow(frames))
    deep(frames).square().sum().backward()
    for layer in deep.mdl.layers[1:]:
        assert torch.count_nonzero(layer.self_att.att.out_proj.weight.grad)
        assert torch.count_nonzero(layer.pos_ffn.ffn[3].weight.grad)
        assert torch.count_nonzero(layer.pos_ffn.ffn[0].weight)
    with pytest.raises(UserError, match="of another network"):
        start_from({"masknet": shallow}, tmp_path / "deep")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("missing", "check its name"),
        ("other", "of another network"),
        ("broken", "no file of weights|is damaged"),
    ],
)
def test_wrong_weights_are_one_sentence(tmp_path: Path, file: str, words: str) -> None:
    save_file({"encoder.weight": torch.ones(3, 3)}, tmp_path / "other")
    (tmp_path / "broken").write_text("no weights")
    encoder = nn.Linear(2, 1)
    before = encoder.weight.clone()
    with pytest.raises(UserError, match=words):
        start_from({"encoder": encoder}, tmp_path / file)
    assert torch.equal(encoder.weight, before)


def network(
    blocks: int = 2, layers: int = 1, sepformer: bool = False, norm: str = "ln"
) -> dict[str, nn.Module]:
    """The network of tiny.py, or the SepFormer that it comes from."""
    N, K = 16, 20
    transformer = partial(
        SBTransformerBlock, layers, N, 2, d_ffn=32, dropout=0.0, norm_before=True
    )
    inter = transformer() if sepformer else SPGMBlock(N, "att", chunk_size=K)
    kind = Dual_Path_Model if sepformer else SPGMMaskNet
    masknet = kind(
        N,
        N,
        transformer(),
        inter,
        num_layers=blocks,
        norm=norm,
        K=K,
        linear_layer_after_inter_intra=False,
    )
    encoder, decoder = Encoder(16, N), Decoder(N, 1, 16, stride=8, bias=False)
    modules = {"encoder": encoder, "masknet": masknet, "decoder": decoder}
    initialise(modules)
    for name, value in masknet.named_parameters():  # norms as a training leaves them
        if "norm" in name:
            nn.init.uniform_(value, 0.5, 1.5)
    return modules


def speechbrain_layout(folder: Path, modules: dict[str, nn.Module]) -> Path:
    folder.mkdir()
    for name, module in modules.items():
        torch.save(module.state_dict(), folder / f"{name}.ckpt")
    (folder / "hyperparams.yaml").write_text("anything: at all\n")
    return folder


class Silence(nn.Module):
    """An inter model that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("norm", ["ln", "gln"])
@pytest.mark.parametrize(("blocks", "layers"), [(2, 1), (4, 1), (2, 3), (3, 2)])
def test_a_sepformer_starts_spgm(tmp_path: Path, blocks: int, layers: int, norm: str):
    """At first the network is the SepFormer whose inter transformers add nothing, in
    all its blocks and layers; then all that is new learns."""
    sepformer = network(sepformer=True, norm=norm)
    folder = speechbrain_layout(tmp_path / "sepformer", sepformer)
    spgm = network(blocks, layers, norm=norm)
    start_from(spgm, folder)
    for block in sepformer["masknet"].dual_mdl:
        block.inter_mdl, block.inter_norm = Silence(), nn.Identity()
    mix = torch.randn(1, 900)
    expected = separate(*sepformer.values(), mix)
    torch.testing.assert_close(separate(*spgm.values(), mix), expected)

    optimizer = torch.optim.SGD(nn.ModuleDict(spgm).parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        separate(*spgm.values(), mix).square().mean().backward()
        optimizer.step()
    silent = [
        name
        for name, value in spgm["masknet"].named_parameters()
        if not torch.count_nonzero(value.grad)
    ]
    assert not [name for name in silent if "inter_" in name and "pool" not in name]


def test_every_source_starts_a_training(tmp_path, hub, monkeypatch) -> None:
    """A folder in each layout, a file, a run, a short name, a Hub repository."""
    torch.manual_seed(1)
    trained = dict(zip(PARTS, build(CONFIG), strict=True))
    state = nn.ModuleDict(trained).state_dict()
    save_published(tmp_path / "run" / "model", **trained, config=CONFIG)
    published = tmp_path / "run" / "model"
    folder = tmp_path / "bin"
    folder.mkdir()
    torch.save(load_file(published / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "config.json").write_bytes((published / "config.json").read_bytes())
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name in ("yipjiaqi/spgm-opt", "user/model"):
        hub.repositories[name] = Repository()
        hub.repositories[name].commit("main", files)
    speechbrain = speechbrain_layout(tmp_path / "speechbrain", trained)
    files = {file.name: file.read_bytes() for file in speechbrain.iterdir()}
    hub.repositories["user/speechbrain"] = Repository()
    hub.repositories["user/speechbrain"].commit("main", files)
    monkeypatch.chdir(tmp_path)
    for source in (
        published,
        published / "model.safetensors",
        folder,
        folder / "pytorch_model.bin",
        tmp_path / "run",
        speechbrain,
        "spgm-opt",
        "user/model",
        "user/speechbrain",
    ):
        modules = dict(zip(PARTS, build(CONFIG), strict=True))
        start_from(modules, source)
        found = nn.ModuleDict(modules).state_dict()
        assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_sepformer_is_a_better_start_than_random_weights(tmp_path: Path) -> None:
    """After equal steps of a toy training, with the same seeds."""
    sepformer = network(sepformer=True)
    initialise(sepformer)
    teacher = make_brain(tmp_path / "teacher", epochs=12, modules=sepformer)
    fit(teacher, Tones(seed=1, number=30))
    folder = speechbrain_layout(tmp_path / "sepformer", sepformer)
    reached = []
    for start in (None, folder):
        modules = network()
        initialise(modules)
        if start is not None:
            start_from(modules, start)
        brain = make_brain(tmp_path / str(len(reached)), epochs=1, modules=modules)
        fit(brain, Tones(seed=3))
        reached.append(brain.progress.history[0]["valid_si_sdr"])
    random, warm = reached
    assert warm > random + 1
