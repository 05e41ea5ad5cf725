"""Other separators of SpeechBrain: the command line does what Python does."""

from pathlib import Path

import pytest
import soundfile
import torch
from torch import nn

from speechbrain_spgm.cli import main
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.lobes.separator import count_voices
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


def test_who_says_how_many_voices() -> None:
    wrapped = nn.Module()
    wrapped.module = nn.Module()
    wrapped.module.num_spk = 3
    assert count_voices(wrapped) == 3
    assert count_voices(nn.Identity(), stated=2) == 2
    with pytest.raises(ValueError, match="Identity does not say how many voices"):
        count_voices(nn.Identity())
