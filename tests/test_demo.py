"""The demo: real voices, the shipped model, a better SI-SDR and whole files."""

import importlib.util
from pathlib import Path
from types import ModuleType

import matplotlib.image
import pytest
import soundfile
import torch

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import save_published
from speechbrain_spgm.models.config import build

DEMO = Path(__file__).resolve().parents[1] / "demo" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_demo_improves_both_voices(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    demo.main(["--output", str(tmp_path)])
    table = capsys.readouterr().out
    gains = [float(line.split()[-1]) for line in table.splitlines()[1:4]]
    assert min(gains) > 1.5 and gains[2] > 2  # both voices; on average

    references, sample_rate = demo.read_voices()
    mixture, _ = soundfile.read(tmp_path / "mixture.wav")
    assert torch.allclose(
        torch.from_numpy(mixture).float(), references.sum(0), atol=1e-4
    )
    for number, reference in enumerate(references, start=1):
        voice, rate = soundfile.read(tmp_path / f"spk{number}.wav", dtype="float32")
        assert rate == sample_rate
        voice = torch.from_numpy(voice)
        gain = demo.si_sdr(voice, reference) - demo.si_sdr(references.sum(0), reference)
        assert gain == pytest.approx(gains[number - 1], abs=0.2)
    assert matplotlib.image.imread(tmp_path / "demo.png").shape[1] > 1000


def test_best_order_undoes_a_swap(demo: ModuleType) -> None:
    references = torch.randn(2, 800)
    estimates = references.flip(0) + 0.1 * torch.randn(2, 800)
    scores, ordered = demo.si_sdr_of_best_order(estimates, references)
    assert torch.equal(ordered, estimates.flip(0))
    assert torch.allclose(scores, torch.tensor([20.0, 20.0]), atol=1.5)


def test_model_for_three_people_is_refused(
    demo: ModuleType, tmp_path: Path, config: dict
) -> None:
    config["masknet_numspks"] = 3
    save_published(tmp_path / "model", *build(config), config)
    with pytest.raises(UserError, match="mixes 2 people, but this model separates 3"):
        demo.main(["--model", str(tmp_path / "model"), "--output", str(tmp_path)])
