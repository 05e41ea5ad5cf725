"""The comparison of networks is fair, and the study of the modulation is exact."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks import evidence, first_steps, modulation
from speechbrain_spgm.data.manifests import read_manifest
from speechbrain_spgm.data.recordings import read_voices
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.models.config import build
from speechbrain_spgm.training.experiment import open_datasets
from tests.training.test_experiment import load_hparams


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    return {
        name: evidence.count_parameters(cell, evidence.network_of(name))
        for name, cell in evidence.CELLS.items()
    }


def test_all_cells_have_as_many_parameters(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        assert size == pytest.approx(sizes["spgm"], rel=0.02), name


def test_a_cell_runs_the_recipe_and_becomes_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the training itself, of which ``train.py``'s own tests take care."""
    for part in ("LibriSpeech", "LibriMix-metadata"):
        (tmp_path / part).mkdir()
    commands = []

    def train(words: list[str]) -> None:
        commands.append(words)
        folder = Path(words[words.index("--output_folder") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        score = 2.0 + len(commands)
        summary = {key: {"mean": score, "ci95": 0.1} for key in ("si_sdri", "sdri")}
        (folder / "test_summary.json").write_text(json.dumps({"n": 300, **summary}))

    monkeypatch.setattr(evidence, "train", train)
    docs = tmp_path / "new" / "docs"
    where = ["--voices", tmp_path, "--runs", tmp_path / "runs", "--output", docs]
    for cell, seed in [("spgm", 0), ("sepformer", 0), ("spgm", 1), ("spgm", 0)]:
        evidence.main(["--cell", cell, "--seed", str(seed), *map(str, where)])

    for words in commands:  # every key is one of the yaml, with a value it takes
        flags = words[3 : words.index("--noprogressbar")]
        pairs = zip(flags[::2], flags[1::2], strict=True)
        overrides = "\n".join(f"{name[2:]}: {value}" for name, value in pairs)
        hparams = load_hparams(evidence.RECIPE / words[2], overrides)
        assert hparams["lr_annealing"].value_at_epoch[-1] == pytest.approx(1e-4)
        assert hparams["net"]["MaskNet"].K == evidence.NETWORK["K"]
        hours = round(1000 * hparams["dynamic_seconds"] / 3600, 2)  # of the budget

    with (docs / "evidence.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cell"], row["seed"]) for row in rows] == [
        ("spgm", "0"),
        ("sepformer", "0"),
        ("spgm", "1"),
        ("spgm", "0"),
    ]
    assert rows[0]["steps"] == "500" and float(rows[0]["audio_hours"]) == hours
    text = (docs / "evidence.md").read_text(encoding="utf-8")
    assert "| 2 | 4.00 ± 12.71 | 4.00 |" in text  # spgm: 3 and 5; t of one is 12.71
    assert "| 1 | 4.00 | 4.00 | -1.00 | 20.1 |" in text  # sepformer: 3 - 4 at seed 0
    # A repeated run is not in the means.
    assert "spgm, seed 0, budget cpu: 6.00 dB (first 3.00 dB)" in text


def test_known_voices_are_the_longest_and_no_recording_is_in_two_parts(
    tmp_path: Path,
) -> None:
    times = np.arange(4 * 8000) / 8000
    for speaker, recordings in {"5": 20, "6": 14, "7": 21}.items():
        folder = tmp_path / "LibriSpeech" / "train-clean" / speaker / "1"
        folder.mkdir(parents=True)
        for number in range(recordings):
            samples = 0.1 * np.sin(2 * np.pi * 100 * (number + 1) * times)
            soundfile.write(folder / f"{number:02}.wav", samples, 8000)
    data = evidence.known_voices(tmp_path, tmp_path / "known")
    flags = {**data, "dynamic_mixing": True, "output_folder": tmp_path / "run"}
    overrides = "\n".join(f"{name}: {value}" for name, value in flags.items())
    hparams = load_hparams(evidence.RECIPE / "hparams" / "spgm.yaml", overrides)
    datasets = open_datasets(hparams, lambda *_: [])

    voices = {
        part: read_voices(data["extra_voices"], split=part)
        for part in ("train", "dev", "test")
    }
    for those in voices.values():
        assert {voice.speaker for voice in those} == {"5", "7"}
    files = [voice.file.path for those in voices.values() for voice in those]
    assert len(files) == len(set(files)) == 41
    assert [len(those) for those in voices.values()] == [30, 4, 7]
    assert datasets.train.speakers == {"5", "7"}
    assert len(datasets.valid) == 20 and len(datasets.test) == 150
    for row in read_manifest(data["test_manifest"]):  # of each voice's last recordings
        for source in row.sources:
            samples, _ = soundfile.read(source)
            spectrum = np.abs(np.fft.rfft(samples[: 2 * 8000]))  # [F], 0.5 Hz apart
            assert spectrum.argmax() / 2 / 100 - 1 >= 17


def test_the_first_steps_are_those_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("LibriSpeech", "LibriMix-metadata"):
        (tmp_path / part).mkdir()

    def train(words: list[str]) -> None:
        flags = dict(zip(words[3:-1:2], words[4::2], strict=True))
        overrides = "\n".join(f"{name[2:]}: {flags[name]}" for name in flags)
        hparams = load_hparams(evidence.RECIPE / words[2], overrides)
        assert hparams["batch_size"] == 1  # so a mixture is a step
        rates = list(hparams["lr_annealing"].value_at_epoch)
        assert rates == pytest.approx([hparams["lr"]] * first_steps.PARTS)
        folder = Path(flags["--output_folder"])
        folder.mkdir(parents=True)
        (folder / "train_log.txt").write_text(
            f"epoch: 1, lr: 1e-3 - train si_sdr: -{flags['--seed']}.0, train skipped: "
            "0 - valid si_sdr: 1, valid si_sdri: 0.25\nepoch loaded: 1 - test: 1"
        )

    monkeypatch.setattr(first_steps, "train", train)
    docs = tmp_path / "new" / "docs"
    where = ["--voices", tmp_path, "--runs", tmp_path / "runs", "--output", docs]
    first_steps.main(["--seeds", "4", "8", *map(str, where)])
    text = (docs / "first_steps.md").read_text(encoding="utf-8")
    assert "| 50 | -6.00 ± 2.83 | 0.25 ± 0.00 |" in text
    assert (docs / "first_steps.png").is_file()


def test_missing_voices_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        evidence.main(["--cell", "spgm", "--voices", str(tmp_path / "nowhere")])
    assert "nowhere/LibriSpeech: give --voices" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        evidence.main(["--output", str(tmp_path)])
    assert "evidence.csv: run a cell first" in capsys.readouterr().err


@torch.no_grad()
def test_modulations_of_the_study_agree_with_the_network(config: dict) -> None:
    parts = build(config)
    for part in parts:
        part.eval()
    model = modulation.Model(*parts, config["sample_rate"])
    mix = 0.1 * torch.randn(1, 3000)
    wanted = separate(*parts, mix)

    def same(modulate: modulation.Modulate) -> bool:
        est = modulation.separate(model, mix, modulate)
        return torch.allclose(est, wanted, atol=1e-6)

    assert same(modulation.own)
    assert same(modulation.given(list(modulation.record(model, mix))))
    assert not same(modulation.ones)
    assert not same(modulation.past(1))


@torch.no_grad()
def test_the_past_is_a_mean_over_the_last_chunks(config: dict) -> None:
    block = build(config)[1].dual_mdl[0].inter_mdl
    pooled = torch.randn(5, 16)
    c = modulation.past(2)(0, block, pooled)
    torch.testing.assert_close(c[0], block.modulation(pooled[0]))
    torch.testing.assert_close(c[4], block.modulation(pooled[3:].mean(0)))
