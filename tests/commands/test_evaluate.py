"""``spgm evaluate`` on a small random model: its table, its files, its errors."""

import csv
import errno
import json
import os
import sys
from pathlib import Path

import pytest
import soundfile
import torch

from speechbrain_spgm.cli import main
from speechbrain_spgm.commands.evaluate import level_groups
from speechbrain_spgm.data import Mixture, MixtureBatch
from speechbrain_spgm.data.manifests import ManifestRow, write_manifest
from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss
from speechbrain_spgm.models.config import build
from tests.conftest import CONFIG

SPEAKERS = "speaker,gender\n61,M\n84,F\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model for two voices at 8 kHz."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "random"
    save_published(folder, *build(CONFIG), CONFIG)
    return folder


def write_set(folder: Path, rate: int = 8000, spks: int = 2) -> Path:
    """Three mixtures of noise, of unequal length, and their manifest."""
    rows = []
    for b, length in enumerate((3000, 1200, 2000)):
        sources = 0.1 * torch.randn(length, spks)
        files = [folder / f"{b}_{k}.wav" for k in range(1 + spks)]
        for file, wave in zip(files, [sources.sum(-1), *sources.T], strict=True):
            soundfile.write(file, wave.numpy(), rate, "FLOAT")
        id = f"61-{b}-0_84-{b}-0"
        rows.append(ManifestRow(id, length / rate, files[0], tuple(files[1:])))
    write_manifest(folder / "test.csv", rows)
    return folder / "test.csv"


def evaluate(model: Path, manifest: Path, *options: str) -> int:
    command = ["evaluate", "--model", str(model), "--manifest", str(manifest)]
    return main([*command, "--device", "cpu", *options])


@pytest.mark.parametrize("gain, offset", [(1, 0), (1e-13, 0), (1, 0.2)])
def test_level_differences_depend_on_no_level_or_offset(gain, offset):
    tones = torch.sin(torch.arange(8000.0).outer(torch.tensor([0.5, 0.8])))
    sources = gain * tones * torch.tensor([0.1, 0.07]) + offset  # 3.1 dB apart
    batch = MixtureBatch.collate([Mixture("a", sources.sum(-1), sources)])
    assert level_groups(batch) == {"a": "2 to 5 dB"}


def test_table_and_files(model, tmp_path, capsys):
    manifest = write_set(tmp_path)
    (tmp_path / "speakers.csv").write_text(SPEAKERS)
    speakers = ("--speakers", str(tmp_path / "speakers.csv"))
    output = tmp_path / "output"
    assert evaluate(model, manifest, *speakers, "--output", str(output)) == 0
    table = capsys.readouterr().out
    assert "| 3 utterances" in table and "| SDRi " in table and "| F+M | 3 |" in table
    assert evaluate(model, manifest, *speakers, "--batch-size", "1") == 0
    assert capsys.readouterr().out == table  # each alone

    with (output / "test_results.csv").open() as file:
        rows = list(csv.DictReader(file))
    network = SPGMSeparation.from_pretrained(model, device="cpu")
    for b, row in enumerate(rows):
        waves = [soundfile.read(tmp_path / f"{b}_{k}.wav")[0] for k in range(3)]
        mix, *sources = (torch.from_numpy(wave).float() for wave in waves)
        estimates = network.separate_batch(mix[None], level=True)
        estimates = estimates / estimates.abs().amax(1)  # so that no floor counts
        loss = pit_si_sdr_loss(estimates, torch.stack(sources, dim=-1)[None]).loss
        assert row["id"] == f"61-{b}-0_84-{b}-0"
        assert float(row["si_sdr"]) == pytest.approx(-loss.item(), abs=1e-3)
    summary = json.loads((output / "test_summary.json").read_text())
    assert summary["n"] == 3 and summary["test_set"] == "test"
    assert summary["views"] == 1
    # Three utterances, each: mixture, 2 estimates, 2 references, picture.
    assert len(list((output / "worst").iterdir())) == 18

    assert evaluate(model, manifest, "--views", "2", "--output", str(output)) == 0
    captured = capsys.readouterr()
    assert captured.out != table and "mean of 2 views" in captured.err
    assert json.loads((output / "test_summary.json").read_text())["views"] == 2
    assert evaluate(model, manifest, "--views", "0") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "views is 0, but must be a whole number from 1 to 8" in line


def test_a_librimix_list_and_the_shipped_model(shared, capsys):
    voices = shared / "voices"
    manifest = voices / "LibriMix-metadata" / "libri2mix_test-clean.csv"
    code = main(
        ["evaluate", "--manifest", str(manifest), "--device", "cpu"]
        + ["--data-folder", str(voices / "LibriSpeech"), "--limit", "2"]
        + ["--metrics", "si_sdr"]
    )
    assert code == 0
    assert "| 2 utterances  |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rate": 16000}, "0_0.wav is at 16000 Hz, but the model's rate is 8000 Hz"),
        ({"spks": 3}, "has 3 sources per mixture, but the model separates 2 voices"),
    ],
)
def test_data_that_do_not_fit_the_model(model, tmp_path, capsys, change, sentence):
    assert evaluate(model, write_set(tmp_path, **change)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_what_is_missing_is_named(model, tmp_path, capsys):
    manifest = write_set(tmp_path)
    librimix = tmp_path / "librimix.csv"
    librimix.write_text("mixture_ID,source_1_path,source_1_gain\na,a.flac,1\n")
    (tmp_path / "speakers.csv").write_text("speaker,gender\n61,M\n")
    speakers = ("--speakers", str(tmp_path / "speakers.csv"))
    for given, sentence in [
        ((tmp_path / "no.csv",), "no.csv does not exist"),
        ((librimix,), "give the LibriSpeech folder by --data-folder"),
        ((librimix, "--data-folder", "no"), "the folder no does not exist: give"),
        (
            (librimix, "--data-folder", str(tmp_path)),
            "librimix.csv has 1 source per mixture, but the model separates 2 voices",
        ),
        ((tmp_path,), f"The list {tmp_path} is a folder: give a CSV file."),
        ((manifest, "--mode", "max"), "--mode goes with a metadata list of LibriMix"),
        ((manifest, "--data-folder", "no"), "--data-folder goes with a metadata list"),
        ((manifest, "--metrics", "si_sdr,snr"), "no metric 'snr'"),
        ((manifest, *speakers), "the speaker 84 of mixture 61-0-0_84-0-0"),
    ]:
        assert evaluate(model, *given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert sentence in line
    (tmp_path / "1_2.wav").unlink()
    assert evaluate(model, manifest) == 2
    assert "1_2.wav does not exist" in capsys.readouterr().err


def test_silent_sets_have_no_score(model, tmp_path, capsys):
    manifest = write_set(tmp_path)
    for b in range(3):
        for k in (1, 2):
            wave, rate = soundfile.read(tmp_path / f"{b}_{k}.wav")
            soundfile.write(tmp_path / f"{b}_{k}.wav", 0 * wave, rate)
    assert evaluate(model, manifest) == 2
    assert "are silent: check them" in capsys.readouterr().err


def test_one_utterance_has_no_interval(model, tmp_path, capsys):
    manifest, output = write_set(tmp_path), tmp_path / "out"
    assert evaluate(model, manifest, "--limit", "1", "--output", str(output)) == 0
    written = (output / "test_results.md").read_text()
    assert "±" not in capsys.readouterr().out + written and "| 1 utterance " in written
    summary = json.loads((output / "test_summary.json").read_text())
    assert summary["si_sdri"]["ci95"] is None
    assert summary["si_sdri"]["mean"] is not None


def test_without_matplotlib_the_worst_can_be_heard(
    model, tmp_path, capsys, monkeypatch
):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    manifest, output = write_set(tmp_path), tmp_path / "out"
    assert evaluate(model, manifest, "--output", str(output)) == 0
    said = capsys.readouterr().err
    assert "the pictures are left out" in said and "pip install matplotlib" in said
    assert len(list((output / "worst").glob("*.wav"))) == 15
    assert not list(output.rglob("*.png"))


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_that_cannot_be_written_costs_no_work(
    model, tmp_path, capsys, monkeypatch, place
):
    manifest = write_set(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(SPGMSeparation, "separate_batch", None)
    assert evaluate(model, manifest, "--output", str(tmp_path / place)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / place) in line and "take another" in line


def test_a_disk_that_fills_up_is_named(model, tmp_path, capsys, monkeypatch):
    """Every file of the results, one after the other."""
    manifest, output = write_set(tmp_path), tmp_path / "out"
    for allowed in range(1, 8):
        left = iter([True] * allowed)
        replace = Path.replace

        def full(path, target, left=left, replace=replace):
            if not next(left, False):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full)
            assert evaluate(model, manifest, "--output", str(output)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "No space left on device" in line and str(output) in line
        assert not list(output.rglob(".*"))
