"""The ONNX file: the same voices at any length, in another program."""

import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import soundfile
import torch

from speechbrain_spgm.cli import main
from speechbrain_spgm.inference import SPGMSeparation, onnx, save_published
from speechbrain_spgm.models.config import build

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "onnx.md"
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
needs_onnx = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("onnx", "onnxscript", "onnxruntime")
    ),
    reason="the extra onnx is not installed",
)
VARIANTS = [
    {"spgm_block_pool": pool, "masknet_norm": norm, "intra_norm_before": before}
    for pool, norm, before in [
        ("att", "ln", True),
        ("max", "gln", False),
        ("lem", "ln", True),
        ("avg", "ln", True),
        ("none", "ln", True),
    ]
] + [
    {"spgm_block_att_h": 8, "masknet_numspks": 3, "masknet_chunksize": 25},
    {"masknet_useextralinearlayer": True, "masknet_extraskipconnection": False},
    {"encoder_kernel_size": 5, "intra_use_positional": False},
]


@pytest.mark.parametrize("change", VARIANTS)
def test_what_is_exported_is_the_model(config, tmp_path, change):
    """The plain operations give the engine's voices, shortest lengths included."""
    config |= change
    save_published(tmp_path, *build(config), config)
    model = SPGMSeparation.from_pretrained(tmp_path, device="cpu")
    mods = model.mods
    plain = onnx.PlainSeparator(mods.encoder, mods.masknet, mods.decoder).eval()
    for samples in (24, 25, 200, 3001):
        mix = torch.randn(1, samples)
        with torch.no_grad():
            found = plain(mix)
        assert torch.allclose(found, model.separate_batch(mix), atol=2e-6)


@needs_onnx
def test_export(config, tmp_path, capsys, monkeypatch):
    """From 1 to 30 s and down to two frames, at lengths it was not exported with."""
    import onnxruntime

    config |= {"masknet_numlayers": 1}
    card = {"licence": "CC0-1.0"}
    save_published(tmp_path / "model", *build(config), config, card)
    path = tmp_path / "new" / "model.onnx"
    assert main(["export", str(tmp_path / "model"), str(path)]) == 0
    output = capsys.readouterr()
    assert "30 s: differs from PyTorch by at most" in output.out
    assert f"Wrote {path} (ONNX, opset 18)." in output.out and output.err == ""

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["sample_rate"] == "8000" and facts["num_spks"] == "2"
    assert facts["speechbrain_spgm"] == '{"licence": "CC0-1.0"}'
    model = SPGMSeparation.from_pretrained(tmp_path / "model", device="cpu")
    for samples in (24, 25, 192, 8001, 100_003):
        mix = torch.randn(1, samples)
        (est,) = session.run(None, {"mix": mix.numpy()})
        assert est.shape == (1, samples, 2)
        assert (torch.from_numpy(est) - model.separate_batch(mix)).abs().max() <= 1e-5

    # The program that the documentation shows.
    monkeypatch.chdir(path.parent)
    soundfile.write("mixture.wav", torch.randn(4000).numpy() / 9, 8000, "FLOAT")
    program = EXAMPLE.search(DOCUMENTATION.read_text(encoding="utf-8"))[1]
    (path.parent / "example.py").write_text(program)
    runpy.run_path("example.py")
    mix = torch.from_numpy(soundfile.read("mixture.wav", dtype="float32")[0])
    voices = model.separate_batch(mix.unsqueeze(0))[0]
    written = soundfile.read("voice2.wav", dtype="float32")[0]
    assert len(written) == 4000
    assert (torch.from_numpy(written) - voices[:, 1]).abs().max() <= 1e-4


class Program:
    """In place of what PyTorch exports."""

    def __init__(self):
        self.model = self
        self.metadata_props = {}

    def save(self, path):
        path.write_bytes(b"")


@needs_onnx
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_callers_model_stays_as_it_is(published, tmp_path, monkeypatch, precision):
    model = SPGMSeparation.from_pretrained(published, device="cpu", precision=precision)
    model.mods.double().train()
    compared = []

    def compare(path, model):
        assert model.precision == "fp32" and model.mods.masknet.int8 is None
        compared.extend(model.mods.parameters())
        return {1.0: 0.0}

    monkeypatch.setattr(onnx, "trace", lambda *_: Program())
    monkeypatch.setattr(onnx, "compare", compare)
    onnx.export_onnx(model, tmp_path / "a.onnx")
    assert all(part.training for part in model.mods.modules())
    assert {weight.dtype for weight in model.mods.parameters()} == {torch.float64}
    assert {weight.dtype for weight in compared} == {torch.float32}


@needs_onnx
def test_a_file_that_differs_is_not_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "trace", lambda *_: Program())
    monkeypatch.setattr(onnx, "compare", lambda *_: {1.0: 0.0, 30.0: 3e-4})
    with pytest.raises(onnx.ModelError, match="differ by 3.0e-04 at 30.0 s"):
        onnx.export_onnx(model, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["export", "spgm-small-8k", str(tmp_path / "a.onnx")]) == 2
    error = capsys.readouterr().err
    assert "run pip install onnx onnxscript onnxruntime." in error
    assert error.count("\n") == 1
