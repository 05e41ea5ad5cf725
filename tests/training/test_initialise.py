"""What training starts from."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from speechbrain.lobes.models.dual_path import Decoder, Encoder
from torch import nn

from speechbrain_spgm.data.errors import UserError
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
