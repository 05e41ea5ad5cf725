"""convert_voices.py: from recordings of any kind to voices to train on."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_spgm.corpora.command import run_command
from speechbrain_spgm.data import read_voices

SCRIPT = Path(__file__).resolve().parents[2] / "recipes/LibriMix/convert_voices.py"


def convert(folder: Path, *words: str) -> int:
    spec = importlib.util.spec_from_file_location("convert_voices", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = ["--voices", str(folder / "list.csv"), "--output_folder"]
    return run_command(module.make_parser(), [*options, str(folder / "out"), *words])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A second of a tone within silence, in stereo, too short, and compressed."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    stereo = np.stack([np.pad(tone, 22050), np.zeros(88200)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 44100)
    soundfile.write(tmp_path / "short.flac", tone[:4410], 44100)
    soundfile.write(tmp_path / "packed.ogg", tone, 44100)
    rows = ["path,speaker", "stereo.wav,ann", "short.flac,ann", "packed.ogg,bob"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    return tmp_path


def test_any_recording_becomes_speech_of_one_channel_and_rate(folder, capsys):
    assert convert(folder) == 0
    assert "2 recordings" in capsys.readouterr().out
    voices = read_voices(folder / "out" / "voices.csv")  # refuses several channels
    assert [voice.speaker for voice in voices] == ["ann", "bob"]
    for voice in voices:
        samples, rate = soundfile.read(voice.file.path)
        assert rate == 8000 and len(samples) == pytest.approx(8000, abs=100)
        assert np.abs(np.fft.rfft(samples, 8000)).argmax() == pytest.approx(440, abs=2)
    assert convert(folder, "--shortest", "0.05", "--rate", "16000") == 0
    assert len(read_voices(folder / "out" / "voices.csv")) == 3


def test_nothing_clips_and_lower_rates_are_named(folder, caplog):
    tone = 3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    soundfile.write(folder / "loud.wav", tone, 8000, "FLOAT")
    (folder / "list.csv").write_text("path,speaker\nloud.wav,ann\n")
    assert convert(folder, "--rate", "16000") == 0
    samples, _ = soundfile.read(folder / "out" / "ann" / "00001.wav")
    powers = np.square(np.abs(np.fft.rfft(samples[:16000])))
    assert powers[430:451].sum() > 0.999 * powers.sum() and samples.max() > 0.99
    assert "1 of 1 recordings have a lower rate" in caplog.text


@pytest.mark.parametrize(
    ("row", "words", "message"),
    [
        ("gone.wav,ann", [], "gone.wav does not exist"),
        ("packed.ogg,../ann", [], "is called ../ann, which cannot be a folder's"),
        ("packed.ogg,..", [], "is called .., which cannot be a folder's"),
        ("packed.ogg, ", [], "names no speaker of packed.ogg: add it"),
        ("packed.ogg,ann", ["--shortest", "2"], "No recording of"),
        ("packed.ogg,ann", ["--rate", "0"], "--rate is 0"),
    ],
)
def test_bad_input_gets_a_sentence(folder, capsys, row, words, message):
    (folder / "list.csv").write_text(f"path,speaker\n{row}\n")
    assert convert(folder, *words) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out" / "voices.csv").exists()
