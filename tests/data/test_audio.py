"""Reading recordings: bad files are named, rates and speeds are right."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_spgm import audio
from speechbrain_spgm.audio import (
    change_rate,
    frames_needed,
    open_audio,
    read_frames,
)
from speechbrain_spgm.data import UserError

ID3 = b"ID3\x04\0\0\0\0\x01\x02" + bytes(130)


def tone(frequency: float, rate: int, seconds: float = 1.0) -> torch.Tensor:
    """A sine [T]."""
    times = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return torch.sin(2 * torch.pi * frequency * times).float()


def make_bad_file(kind: str, path: Path) -> None:
    """Writes a file that is no whole mono recording."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 20000)
    if kind == "text":
        path.write_text("this is no audio")
    elif kind == "empty":
        soundfile.write(path, noise[:0], 8000)
    elif kind == "stereo":
        soundfile.write(path, noise.reshape(-1, 2), 8000)
    elif kind == "truncated":
        soundfile.write(path, noise, 8000)
        path.write_bytes(path.read_bytes()[:20000])


@pytest.mark.parametrize("suffix", ["flac", "wav"])
@pytest.mark.parametrize("kind", ["missing", "text", "empty", "stereo", "truncated"])
def test_bad_files_are_named(kind, suffix, tmp_path):
    path = tmp_path / f"bad.{suffix}"
    make_bad_file(kind, path)
    with pytest.raises(UserError, match=f"bad.{suffix}") as error:
        open_audio(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("front", [b"", ID3])
def test_an_mp3_file_without_a_tag_is_as_long_as_it_sounds(
    front, untagged_mp3, tmp_path
):
    """libsndfile guesses its length from its size, and is wrong."""
    path = tmp_path / "a.mp3"
    path.write_bytes(front + untagged_mp3)
    assert soundfile.info(path).frames > 200 * 576
    file = open_audio(path)
    assert file.frames == len(read_frames(file)) == 200 * 576


@pytest.mark.parametrize("front", [b"", ID3])
def test_a_cut_mp3_file_with_a_tag_is_named(front, tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, tone(440, 8000).numpy(), 8000)
    data = front + path.read_bytes()
    path.write_bytes(data)
    assert open_audio(path).frames == 8000
    path.write_bytes(data[:-1000])
    with pytest.raises(UserError, match="a.mp3 is truncated"):
        open_audio(path)


def test_a_part_is_what_the_whole_has_there(tmp_path):
    samples = np.arange(-500, 500) / 1024
    soundfile.write(tmp_path / "a.flac", samples, 16000)
    file = open_audio(tmp_path / "a.flac")
    assert (file.frames, file.rate) == (1000, 16000)
    part = read_frames(file, start=300, frames=50)
    np.testing.assert_array_equal(part, samples[300:350].astype(np.float32))


@pytest.mark.parametrize(
    "kind",
    ["OGG VORBIS", "AIFF DWVW_16", "WAV GSM610", "AU G723_24", "WAV NMS_ADPCM_16"],
)
def test_a_part_of_what_cannot_be_entered_anywhere(kind, tmp_path, monkeypatch):
    container, subtype = kind.split()
    x = np.random.default_rng(0).uniform(-0.5, 0.5, 63877)
    soundfile.write(tmp_path / "a", x, 16000, format=container, subtype=subtype)
    file = open_audio(tmp_path / "a")
    whole = read_frames(file)
    assert len(x) <= len(whole) == file.frames <= len(x) + 320
    monkeypatch.setattr(audio, "VORBIS_PAGE", 20_000)
    for start in range(1000, len(x), 7000):
        part = read_frames(file, start, 3000)
        np.testing.assert_array_equal(part, whole[start : start + 3000])
    assert len(read_frames(file, len(whole))) == 0


@pytest.mark.parametrize(
    ("rate", "speed", "heard"), [(16000, 100, 440.0), (8000, 105, 462.0)]
)
def test_rate_keeps_the_pitch_and_speed_raises_it(rate, speed, heard):
    changed = change_rate(tone(440.0, rate), rate, 8000, speed)
    expected = tone(heard, 8000)[: len(changed)]
    inside = slice(200, -200)  # the resampling filter needs neighbours
    torch.testing.assert_close(changed[inside], expected[inside], atol=5e-3, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100])
@pytest.mark.parametrize("speed", [95, 100, 105])
def test_frames_needed_are_enough(rate, speed):
    frames = frames_needed(12345, rate, 8000, speed)
    assert len(change_rate(torch.zeros(frames), rate, 8000, speed)) >= 12345
