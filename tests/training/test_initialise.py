"""What training starts from."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from speechbrain.lobes.models.dual_path import Decoder, Encoder, SBTransformerBlock
from torch import nn

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.training.initialise import initialise, load_weights


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
    load_weights({"masknet": wide}, tmp_path / "narrow")
    frames = torch.randn(3, 5, 8)
    torch.testing.assert_close(wide(frames), narrow(frames))
    wide(frames).square().sum().backward()
    ffn = wide.mdl.layers[0].pos_ffn.ffn
    assert torch.count_nonzero(ffn[3].weight.grad[:, 4:])
    assert torch.count_nonzero(ffn[0].weight[4:])
    with pytest.raises(UserError, match="of another network"):
        load_weights({"masknet": block(d_ffn=2)}, tmp_path / "narrow")


def test_training_goes_on_from_fewer_layers(tmp_path: Path) -> None:
    """A deeper network computes at first what the shallow one did, and learns to use
    all of its layers; a network cannot become shallower."""
    block = partial(SBTransformerBlock, d_model=8, d_ffn=4, nhead=2, dropout=0.0)
    shallow, deep = block(num_layers=1), block(num_layers=3)
    save_file(nn.ModuleDict({"masknet": shallow}).state_dict(), tmp_path / "shallow")
    save_file(nn.ModuleDict({"masknet": deep}).state_dict(), tmp_path / "deep")
    load_weights({"masknet": deep}, tmp_path / "shallow")
    frames = torch.randn(3, 5, 8)
    torch.testing.assert_close(deep(frames), shallow(frames))
    deep(frames).square().sum().backward()
    for layer in deep.mdl.layers[1:]:
        assert torch.count_nonzero(layer.self_att.att.out_proj.weight.grad)
        assert torch.count_nonzero(layer.pos_ffn.ffn[3].weight.grad)
        assert torch.count_nonzero(layer.pos_ffn.ffn[0].weight)
    with pytest.raises(UserError, match="of another network"):
        load_weights({"masknet": shallow}, tmp_path / "deep")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("missing", "does not exist"),
        ("other", "of another network"),
        ("broken", "is no model"),
    ],
)
def test_wrong_weights_are_one_sentence(tmp_path: Path, file: str, words: str) -> None:
    save_file({"encoder.weight": torch.ones(3, 3)}, tmp_path / "other")
    (tmp_path / "broken").write_text("no weights")
    encoder = nn.Linear(2, 1)
    before = encoder.weight.clone()
    with pytest.raises(UserError, match=words):
        load_weights({"encoder": encoder}, tmp_path / file)
    assert torch.equal(encoder.weight, before)
