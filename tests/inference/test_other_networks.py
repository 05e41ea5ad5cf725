"""Other separators of SpeechBrain: the command line does what Python does."""

from pathlib import Path

import pytest
import soundfile
import torch
from speechbrain.lobes.models.dual_path import (
    Decoder,
    DPTNetBlock,
    Dual_Path_Model,
    Encoder,
    SBTransformerBlock,
)
from torch import nn

from speechbrain_spgm.cli import main
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.inference.memory import estimate_bytes
from speechbrain_spgm.lobes.separator import count_voices, longest_mixture
from speechbrain_spgm.models.safe_yaml import load_safely

YAMLS = Path(__file__).resolve().parents[1] / "yamls"


@pytest.fixture(params=[2, 3])
def resepformer(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder in the form of SpeechBrain's RE-SepFormer; 2 or 3 voices."""
    folder = tmp_path / "resepformer"
    folder.mkdir()
    text = (YAMLS / "resepformer.yaml").read_text()
    text = text.replace("num_spks: 2", f"num_spks: {request.param}")
    (folder / "hyperparams.yaml").write_text(text)
    hparams = load_safely(folder.joinpath, "hyperparams.yaml")
    for name, module in hparams["modules"].items():
        torch.save(module.state_dict(), folder / f"{name}.ckpt")
    return folder


def test_resepformer_on_the_command_line(
    resepformer: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = SPGMSeparation.from_hparams(resepformer, run_opts={"device": "cpu"})
    assert main(["info", str(resepformer), "--device", "cpu"]) == 0
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {label.strip(): value.strip() for label, value in shown.items()}
    assert int(shown["speakers"]) == model.num_spks
    assert shown["receptive chunk"] == "30 ms (30 frames)"
    assert shown["of them SPGM"].startswith("0 ")

    soundfile.write(tmp_path / "a.wav", (0.1 * torch.randn(24000)).numpy(), 8000)
    command = ["--model", str(resepformer), "--device", "cpu"]
    out = tmp_path / "out"
    assert (
        main(["separate", str(tmp_path / "a.wav"), *command, "--output", str(out)]) == 0
    )
    voices = sorted(out.glob("*.wav"))
    assert len(voices) == model.num_spks
    est = model.separate_file(tmp_path / "a.wav")[0]
    for path, voice in zip(voices, est.T, strict=True):
        written = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        torch.testing.assert_close(written, voice, rtol=0, atol=1e-5)
    for window in (None, 2):
        options = {} if window is None else {"mode": "stitched", "window": window}
        est = model.separate_file(tmp_path / "a.wav", **options)
        assert est.shape == (1, 24000, model.num_spks)


@pytest.mark.parametrize("network", ["RE-SepFormer", "DPTNet"])
def test_utterances_do_not_hear_each_other(tmp_path: Path, network: str) -> None:
    text = (YAMLS / "resepformer.yaml").read_text().replace("layer: 1", "layer: 2")
    (tmp_path / "deep.yaml").write_text(text)
    hparams = load_safely(tmp_path.joinpath, "deep.yaml")
    if network == "DPTNet":
        block = DPTNetBlock(32, 2, 16)
        hparams["modules"]["masknet"] = Dual_Path_Model(32, 32, block, block, K=20)
    model = SPGMSeparation(hparams["modules"], {}, {"device": "cpu"})
    mix = torch.randn(2, 900)
    alone = model.separate_batch(mix[:1])
    torch.testing.assert_close(model.separate_batch(mix)[:1], alone)


def test_a_sepformer_ends_where_its_positions_do() -> None:
    def transformer() -> SBTransformerBlock:
        return SBTransformerBlock(1, 8, 2, 16, use_positional_encoding=True)

    masknet = Dual_Path_Model(8, 8, transformer(), transformer(), K=4)
    parts = {"encoder": Encoder(4, 8), "masknet": masknet}
    parts["decoder"] = Decoder(8, 1, 4, stride=2, bias=False)
    model = SPGMSeparation(parts, {"sample_rate": 1000}, {"device": "cpu"})
    longest = longest_mixture(model.mods.encoder, model.mods.masknet)
    mix = torch.randn(1, longest + 1)
    assert model.separate_batch(mix[:, :-1]).shape == (1, longest, 2)
    with pytest.raises(UserError, match=f"mix has {longest + 1} samples"):
        model.separate_batch(mix)
    options = {"window": 6.0, "views": 1}
    assert model.separate_audio(mix[0], 1000, **options).shape == (1, longest + 1, 2)
    with pytest.raises(UserError, match="ends after .* use the stitched mode"):
        model.separate_audio(mix[0], 1000, mode="exact", **options)
    with pytest.raises(UserError, match="window is 12 s, but .* ends after 10 s"):
        model.separate_audio(mix[0], 1000, window=12, views=1)


def test_the_estimate_covers_the_attention_of_a_sepformer() -> None:
    def model(heads: int) -> SPGMSeparation:
        block = SBTransformerBlock(1, 16, heads, 16)
        masknet = Dual_Path_Model(16, 16, block, block, K=50)
        parts = {"encoder": Encoder(16, 16), "masknet": masknet}
        parts["decoder"] = Decoder(16, 1, 16, stride=8, bias=False)
        return SPGMSeparation(parts, {"sample_rate": 8000}, {"device": "cpu"})

    # 15 s took 588 MiB; a minute has 2400 chunks, and twice the pairs for each head.
    assert 588 * 2**20 < estimate_bytes(model(4), 15 * 8000, 8000) < 2**30
    one, two = (estimate_bytes(model(heads), 60 * 8000, 8000) for heads in (1, 2))
    assert two - one >= 2 * 50 * 2400**2 * 4


def test_who_says_how_many_voices() -> None:
    wrapped = nn.Module()
    wrapped.module = nn.Module()
    wrapped.module.num_spk = 3
    assert count_voices(wrapped) == 3
    assert count_voices(nn.Identity(), stated=2) == 2
    with pytest.raises(ValueError, match="Identity does not say how many voices"):
        count_voices(nn.Identity())
