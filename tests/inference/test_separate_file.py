"""Audio files of every kind: right output or one clear sentence."""

import io
import math
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample as torchaudio_resample

from speechbrain_spgm import audio as audio_module
from speechbrain_spgm.audio import read_audio, write_audio, write_voices
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import AudioFileError
from speechbrain_spgm.inference.files import explain
from speechbrain_spgm.inference.level import fit_mixture, scale_to_peak


def noise(frames: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Frames [T, channels] that fit into 16 bits."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (frames, channels))


def least_squares(est: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """The level that outputs [T, spks] should have."""
    return est * np.linalg.lstsq(est, mix, rcond=None)[0]


@pytest.mark.parametrize(
    ("name", "rate", "channels", "kind"),
    [
        ("stereo.wav", 44100, 2, {}),
        ("mono.wav", 16000, 1, {}),
        ("int16.wav", 8000, 1, {"subtype": "PCM_16"}),
        ("int24.wav", 8000, 1, {"subtype": "PCM_24"}),
        ("uint8.wav", 8000, 1, {"subtype": "PCM_U8"}),
        ("float.wav", 8000, 1, {"subtype": "FLOAT"}),
        ("double.wav", 11025, 3, {"subtype": "DOUBLE"}),
        ("a.flac", 44100, 1, {}),
        ("a.ogg", 48000, 2, {}),
        ("a.opus", 48000, 1, {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", 44100, 2, {}),
        ("a.aiff", 22050, 1, {}),
        ("no_extension", 8000, 1, {"format": "WAV"}),
        ("odd rate.wav", 7993, 1, {}),
    ],
)
def test_every_format_keeps_rate_and_length(
    model, tmp_path, name, rate, channels, kind
):
    soundfile.write(tmp_path / name, noise(9001, channels), rate, **kind)
    frames, _ = soundfile.read(tmp_path / name, always_2d=True)
    est = model.separate_file(tmp_path / name)
    assert est.shape == (1, len(frames), 2) and est.isfinite().all()
    # The outputs have the level of the downmixed file: fitting again changes nothing.
    found = est[0].double().numpy()
    expected = least_squares(found, frames.mean(axis=1))
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def test_file_at_the_rate_of_the_model(model, tmp_path):
    """Separated at one level, and only the voices' level is set."""
    samples = noise(4000)[:, 0].astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    raw = model.separate_batch(torch.from_numpy(samples)[None], level=True)[0]
    raw -= raw.mean(dim=0)
    expected = least_squares(raw.double().numpy(), samples)
    est = model.separate_file(str(tmp_path / "a.wav"))[0]
    assert np.abs(est.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()

    peak = model.separate_file(tmp_path / "a.wav", normalize="peak")[0]
    assert torch.allclose(peak, raw / raw.abs().amax(dim=0), atol=1e-5)


def test_resampled_in_and_back(model, tmp_path):
    samples = noise(4001)[:, 0].astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    low = torch.from_numpy(samples - samples.mean())  # at its edges no steps ring
    low = torchaudio_resample(low, 16000, 8000).unsqueeze(0)
    raw = model.separate_batch(low, level=True)[0].T
    high = torchaudio_resample(raw, 8000, 16000)[:, :4001]
    high -= high.mean(1, keepdim=True)
    expected = least_squares(high.T.double().numpy(), samples)
    est = model.separate_file(tmp_path / "a.wav")[0]
    assert np.abs(est.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def test_channels_are_averaged(model, tmp_path):
    stereo = noise(3000, 2)
    soundfile.write(tmp_path / "stereo.wav", stereo, 8000, subtype="DOUBLE")
    soundfile.write(tmp_path / "mono.wav", stereo.mean(axis=1), 8000, subtype="DOUBLE")
    est = model.separate_file(tmp_path / "stereo.wav")
    assert torch.allclose(est, model.separate_file(tmp_path / "mono.wav"), atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 15])
@pytest.mark.parametrize("rate", [8000, 44100, 4000, 7999, 192000])
def test_the_shortest_files(model, tmp_path, frames, rate):
    soundfile.write(tmp_path / "a.wav", np.full(frames, 0.25), rate)
    est = model.separate_file(tmp_path / "a.wav")
    assert est.shape == (1, frames, 2) and est.isfinite().all()


@pytest.mark.parametrize("normalize", [None, "peak"])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_silence_gives_silence(model, tmp_path, rate, normalize):
    soundfile.write(tmp_path / "a.wav", np.zeros(5000), rate)
    est = model.separate_file(tmp_path / "a.wav", normalize=normalize)
    assert torch.equal(est, torch.zeros(1, 5000, 2))


def test_bytes_objects_and_arrays_give_what_the_file_gives(model, tmp_path):
    frames = (noise(3000, 2) * 32768).astype(np.int16)
    path = tmp_path / "a.wav"
    soundfile.write(path, frames, 16000)
    expected = model.separate_file(path)
    with open(path, "rb") as file:
        for source in (path.read_bytes(), file, io.BytesIO(path.read_bytes())):
            assert torch.equal(model.separate_file(source), expected)
    floats = frames.astype(np.float32) / 32768
    for samples in (frames, floats, torch.from_numpy(floats)):
        assert torch.equal(model.separate_audio(samples, 16000), expected)
    left = model.separate_file(path, channel=1)
    assert torch.equal(model.separate_audio(frames[:, 0], 16000), left)
    outputs = [tmp_path / "1.flac", tmp_path / "2.flac"]
    facts = model.separate_to_files(path.read_bytes(), outputs, subtype="16")
    assert facts["file"] == "the recording" and facts["missing_samples"] == 0
    assert {soundfile.info(output).subtype for output in outputs} == {"PCM_16"}
    for rate in (100, 10**7, 8000.5, None, math.nan, math.inf, "8k"):
        with pytest.raises(AudioFileError, match=f"a sample rate of {rate}"):
            model.separate_audio(floats, rate)


def test_outputs_that_cannot_be_are_named_before_anything_is_read(model, tmp_path):
    voice, report = tmp_path / "v.wav", tmp_path / "new" / "r.json"
    same = tmp_path / "new" / ".." / "v.wav"
    for outputs, options in (
        *(([voice, voice], {}), ([voice, same], {})),
        ([tmp_path / "w.wav", voice], {"report": voice}),
    ):
        with pytest.raises(UserError, match="v.wav is named for two files"):
            model.separate_to_files("absent.wav", outputs, **options)
    (tmp_path / "file").touch()
    for outputs, options in (
        ([tmp_path / "a" / "1.wav", tmp_path / "file" / "x"], {}),
        ([voice, tmp_path / "w.wav"], {"report": tmp_path / "file" / "x"}),
    ):
        with pytest.raises(AudioFileError, match="file/x cannot be written: File exis"):
            model.separate_to_files("absent.wav", outputs, **options)
    (tmp_path / "d.wav").mkdir()
    for outputs, options in (
        ([voice, tmp_path / "d.wav"], {}),
        ([voice, tmp_path / "w.wav"], {"report": tmp_path / "d.wav"}),
    ):
        with pytest.raises(AudioFileError, match="d.wav is a folder: give the name of"):
            model.separate_to_files("absent.wav", outputs, **options)
    os.mkfifo(tmp_path / "pipe.wav")
    for place, words in (
        ("pipe.wav", "pipe.wav is a device or a pipe: give the name of a file"),
        ("n" * 300, r"n cannot be written \(File name too long\): give another name"),
    ):
        with pytest.raises(UserError, match=words):
            model.separate_to_files("absent.wav", [voice, tmp_path / place])
    soundfile.write(tmp_path / "a.wav", noise(500), 8000)
    with (tmp_path / "a.wav").open("rb") as file:
        outputs = [voice, tmp_path / "a.wav"]
        with pytest.raises(UserError, match="a.wav is the recording itself: name anot"):
            model.separate_to_files(file, outputs)
    (tmp_path / "link.wav").symlink_to("a.wav")
    for source, outputs, options in (
        ("a.wav", ["a.wav", "w.wav"], {}),
        ("link.wav", ["w.wav", "a.wav"], {}),
        ("a.wav", ["v.wav", "w.wav"], {"report": tmp_path / "a.wav"}),
    ):
        outputs = [tmp_path / output for output in outputs]
        with pytest.raises(UserError, match="a.wav is the recording itself: name anot"):
            model.separate_to_files(str(tmp_path / source), outputs, **options)
    outputs = [tmp_path / "b" / "1.wav", tmp_path / "c" / "2.wav"]
    model.separate_to_files(tmp_path / "a.wav", outputs, report=report)
    assert all(path.is_file() for path in (*outputs, report))


def test_rounding_at_full_scale_is_not_called_clipping(model, tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", noise(500), 8000)
    outputs = [tmp_path / "1.flac", tmp_path / "2.flac"]
    facts = model.separate_to_files(
        tmp_path / "a.wav", outputs, "peak", format="flac", views=1
    )
    assert 0.999 < facts["gain"] < 1 and not caplog.records
    assert not explain(facts)


def test_nothing_is_printed_or_left_behind(model, tmp_path, monkeypatch, capfd):
    soundfile.write(tmp_path / "a.wav", noise(1000), 16000)
    monkeypatch.chdir(tmp_path)
    model.separate_file("a.wav")
    model.separate_file("./a.wav", savedir=tmp_path / "saved")
    assert os.listdir(tmp_path) == ["a.wav"]
    assert capfd.readouterr().out == ""


def test_lost_bandwidth_is_logged(model, tmp_path, caplog):
    for rate in (44100, 8000, 4000):
        soundfile.write(tmp_path / f"{rate}.wav", noise(500), rate)
        model.separate_file(tmp_path / f"{rate}.wav")
    (record,) = caplog.records
    assert (
        "44100.wav has 44100 Hz, the model 8000 Hz: content above 4000"
        in record.message
    )


def test_a_cut_off_file_is_separated_with_a_warning(model, tmp_path, caplog):
    soundfile.write(tmp_path / "a.mp3", noise(40000), 8000)
    whole = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(whole[: len(whole) // 2])
    T = model.separate_file(tmp_path / "a.mp3").shape[1]
    assert 10000 < T < 30000
    assert f"is cut off: it holds {T} of 40000 samples" in caplog.text


def test_an_mp3_file_that_states_no_length_is_not_called_cut_off(
    model, untagged_mp3, tmp_path, caplog
):
    (tmp_path / "a.mp3").write_bytes(untagged_mp3)
    assert model.separate_file(tmp_path / "a.mp3").shape[1] == 200 * 576
    assert "cut off" not in caplog.text


def spoilt(folder: Path) -> dict[str, str]:
    """Files that cannot be separated, and what is said about them."""
    one = np.array([0.1, 0.2])
    soundfile.write(folder / "nan.wav", one * np.nan, 8000, subtype="FLOAT")
    soundfile.write(folder / "inf.wav", one * np.inf, 44100, subtype="FLOAT")
    soundfile.write(folder / "loud.wav", np.full(9000, 3e38), 8000, subtype="FLOAT")
    soundfile.write(folder / "no_frames.wav", one[:0], 8000)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("This is no sound.\n" * 100)
    (folder / "text.mp3").write_text("This is no sound.\n" * 100)
    (folder / "raw.raw").write_bytes(bytes(1000))
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "cut.flac", noise(40000), 8000)
    whole = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[:200])
    soundfile.write(folder / "slow.wav", one, 2)
    soundfile.write(folder / "fast.wav", one, 100_000_007)
    return {
        "nan.wav": "holds samples that are NaN or infinite",
        "inf.wav": "holds samples that are NaN or infinite",
        "loud.wav": "is too loud for the model",
        "no_frames.wav": "holds no samples",
        "empty.wav": "is an empty file",
        "text.wav": "is damaged or no audio file",
        "text.mp3": "is damaged or no audio file",
        "raw.raw": "is damaged or no audio file",
        "cut.flac": "is damaged or no audio file",
        "slow.wav": "has a sample rate of 2 Hz, but it must be from 1000 to",
        "fast.wav": "has a sample rate of 100000007 Hz, but it must be",
        "folder.wav": "is a folder",
        "missing.wav": "does not exist",
    }


def test_every_bad_file_is_one_sentence(model, tmp_path):
    for name, words in spoilt(tmp_path).items():
        with pytest.raises(AudioFileError) as error:
            model.separate_file(tmp_path / name)
        assert isinstance(error.value, ValueError)
        assert str(error.value).startswith(f"{tmp_path / name} {words}")
        assert "\n" not in str(error.value)


def test_unknown_normalisation(model, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(500), 8000)
    with pytest.raises(ValueError, match="normalize is 'rms', but must be None or"):
        model.separate_file(tmp_path / "a.wav", normalize="rms")


@pytest.mark.parametrize("spks", [1, 2, 3])
def test_level_and_polarity_are_found_again(spks):
    voices = torch.from_numpy(noise(2000, spks)).float()
    scales = torch.tensor([1e-6, -3.0, 1e4])[:spks]
    assert torch.allclose(
        fit_mixture(voices * scales, voices.sum(-1)), voices, atol=1e-5
    )


def test_level_by_hand():
    # Normal equations [[2, 1], [1, 1]] g = [5, 3]: g = [2, 1].
    est = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    mix = torch.tensor([3.0, 2.0])
    assert torch.allclose(fit_mixture(est, mix), torch.tensor([[2.0, 1.0], [2.0, 0.0]]))


def test_level_of_silent_and_of_equal_outputs():
    voice = torch.from_numpy(noise(2000))[:, 0].float()
    silent = torch.zeros_like(voice)
    est = fit_mixture(torch.stack([5 * voice, silent], -1), voice)
    assert torch.allclose(est, torch.stack([voice, silent], -1), atol=1e-6)
    # Copies share the mixture, whatever rounding makes of them.
    copies = torch.stack([voice, voice * 3 + 1e-7], -1)
    assert torch.allclose(fit_mixture(copies, voice)[:, 0], voice / 2, atol=1e-5)
    assert not fit_mixture(torch.zeros(9, 2), torch.zeros(9)).any()
    assert not scale_to_peak(torch.zeros(9, 2)).any()


def test_written_audio_does_not_clip(tmp_path):
    samples = torch.tensor([1.7, -2.5, 1e-8])
    write_audio(tmp_path / "a.wav", samples, 44100)
    assert torch.equal(read_audio(tmp_path / "a.wav").samples, samples)
    assert soundfile.info(tmp_path / "a.wav").samplerate == 44100


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_voices_are_written_together_or_not_at_all(tmp_path, monkeypatch, error):
    old = torch.tensor([0.5])
    paths = [tmp_path / "a_spk1.wav", tmp_path / "a_spk2.wav"]
    write_audio(paths[0], old, 8000)
    write = soundfile.SoundFile.write
    calls = []

    def fail_late(file, samples):
        write(file, samples)
        calls.append(file)
        if len(calls) == 2:
            raise error

    monkeypatch.setattr(soundfile.SoundFile, "write", fail_late)
    with pytest.raises((AudioFileError, KeyboardInterrupt)) as raised:
        write_voices(paths, torch.zeros(9, 2), 8000)
    if isinstance(error, OSError):
        assert str(raised.value).endswith("cannot be written: No space left on device.")
    assert os.listdir(tmp_path) == ["a_spk1.wav"]
    assert torch.equal(read_audio(paths[0]).samples, old)


def test_resampled_length_is_rounded_up():
    for old, new, T in [
        *((44100, 8000, 1), (8000, 44100, 7), (7999, 8000, 100)),
        *((44100, 8000, 361_835), (44100, 8000, 0), (7999, 8000, 0)),
    ]:
        resampled = audio_module.resample(torch.zeros(2, T), old, new)
        assert resampled.shape == (2, math.ceil(T * new / old))


def test_the_last_sample_of_a_long_signal_is_what_a_short_one_has():
    """It is the first of its period: a fraction that float32 does not hold."""
    long = torch.randn(361_835)
    whole = audio_module.resample(long, 44100, 8000)
    short = audio_module.resample(long[441 * 800 :], 44100, 8000)
    assert torch.allclose(whole[80 * 810 :], short[80 * 10 :], rtol=0, atol=1e-6)
