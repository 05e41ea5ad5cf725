"""``spgm stream``: what comes in comes out, whatever ends it."""

import io
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_spgm import cli, pcm
from speechbrain_spgm.audio import resample
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.models.config import build
from speechbrain_spgm.pcm import PCM, Microphone, Pipe
from tests.conftest import CONFIG
from tests.inference.test_augment import with_views

RATE = 8000


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder with a small random model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "random"
    card = {"licence": "CC0-1.0", "training_data": "none", "quality": {"-": "0 dB"}}
    save_published(folder, *build(CONFIG), CONFIG, card)
    return str(folder)


@pytest.fixture
def run(capfdbinary, model, monkeypatch):
    """Runs the command on bytes; gives its exit code, stdout and stderr's lines."""

    def run(data: bytes, *arguments: object) -> tuple[int, bytes, list[str]]:
        stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data)))
        monkeypatch.setattr(sys, "stdin", stdin)
        words = ["stream", "--model", model, *map(str, arguments)]
        code = cli.main(words)
        out, err = capfdbinary.readouterr()
        assert b"Traceback" not in err
        return code, out, err.decode().splitlines()

    return run


def noise(n: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(n) * 0.1).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", **options})
    return file.getvalue()


def test_files_hold_what_the_stream_gives(run, model, tmp_path) -> None:
    mix = noise(20_000)
    code, out, err = run(wav(mix, subtype="FLOAT"), "--output", tmp_path, "--name", "a")
    assert code == 0 and out.startswith(b"Separated 2.5 s into ")
    assert "2.5 s, load" in err[-1]
    stream = SPGMSeparation.from_pretrained(model, device="cpu").stream()
    wanted = torch.cat([stream.push(mix), stream.finish()]).numpy()
    for k in range(2):
        voice, rate = soundfile.read(tmp_path / f"a_spk{k + 1}.wav", dtype="float32")
        assert rate == RATE
        np.testing.assert_allclose(voice, wanted[:, k], atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 2  # and nothing temporary


def test_the_card_says_how_many_views(run, model, tmp_path) -> None:
    two, mix = with_views(Path(model), tmp_path / "two", 2), noise(20_000)
    read = [
        run(wav(mix), "--raw", "f32le", *options)[1]
        for options in ([], ["--views", 2], ["--model", two], ["--views", 1])
    ]
    assert read[0] == read[3] != read[1] == read[2]


@pytest.mark.parametrize("rate", [16000, 44100, 8000, 11025])
def test_other_rates_come_back_at_their_own_with_no_sample_lost(
    run, model, rate
) -> None:
    t = np.arange(rate * 2 + 7) / rate
    mix = 0.1 * np.sin(2 * np.pi * 440 * t) * (1 + np.sin(9 * t))
    raw = (mix * 2**15).astype("<i2").tobytes()
    options = ("--format", "s16le", "--rate", rate, "--raw", "f32le")
    code, out, _ = run(raw, *options)
    voices = np.frombuffer(out, "<f4").reshape(-1, 2)
    assert code == 0 and len(voices) == len(mix)
    stream = SPGMSeparation.from_pretrained(model, device="cpu").stream()
    mix = torch.from_numpy(np.frombuffer(raw, "<i2") / 2.0**15)
    parts = [stream.push(resample(mix, rate, RATE)), stream.finish()]
    wanted = resample(torch.cat(parts).t().double(), RATE, rate)[:, : len(mix)].t()
    np.testing.assert_allclose(voices, wanted, atol=1e-5)
    _, one, _ = run(raw, *options, "--voice", 2)
    assert np.array_equal(np.frombuffer(one, "<f4"), voices[:, 1])


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 7999])
def test_no_sound_gives_empty_files(run, rate, tmp_path) -> None:
    raw = ("--format", "s16le", "--rate", rate)
    for data, options in ((b"", raw), (wav(noise(0), rate), ())):
        code, _, _ = run(data, *options, "--output", tmp_path)
        facts = [soundfile.info(path) for path in tmp_path.iterdir()]
        assert code == 0
        assert [(fact.frames, fact.samplerate) for fact in facts] == 2 * [(0, rate)]


def test_a_file_that_cannot_be_is_told_before_the_talk(run, tmp_path) -> None:
    (tmp_path / "stream_spk2.wav").mkdir()
    code, _, err = run(wav(noise(800)), "--output", tmp_path)
    assert code == 2 and "stream_spk2.wav is a folder" in err[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["stream_spk2.wav"]


def test_a_voice_that_is_the_input_stays(model, tmp_path, monkeypatch, capsys) -> None:
    voice = tmp_path / "stream_spk1.wav"
    voice.write_bytes(wav(noise(800)))
    with voice.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code = cli.main(["stream", "--model", model, "--output", str(tmp_path)])
    assert code == 2 and "spk1.wav is the recording itself" in capsys.readouterr().err
    assert voice.read_bytes() == wav(noise(800)) and os.listdir(tmp_path) == [
        voice.name
    ]


@pytest.mark.parametrize(
    ("code", "dtype", "subtype"),
    [
        ("u8", "u1", "PCM_U8"),
        ("s16le", "<i2", "PCM_16"),
        ("s24le", None, "PCM_24"),
        ("s32le", "<i4", "PCM_32"),
        ("f32le", "<f4", "FLOAT"),
        ("f64le", "<f8", "DOUBLE"),
    ],
)
@pytest.mark.parametrize("size", [None, 0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_wav_streams_with_and_without_an_end(code, dtype, subtype, size) -> None:
    samples = noise(1000).reshape(-1, 2)
    data = wav(samples, 44100, subtype=subtype)
    if size is not None:
        at = data.index(b"data") + 4
        data = data[:at] + struct.pack("<I", size) + data[at + 4 :]
        data = data[:4] + struct.pack("<I", 0xFFFFFFFF) + data[8:]
    else:
        data += b"LIST\4\0\0\0abcd"  # behind the samples, and no sound
    source = Pipe(io.BufferedReader(io.BytesIO(data)))
    assert source.kind == PCM(code, 44100, 2)
    found = np.concatenate(list(source.blocks()))
    wanted = soundfile.read(io.BytesIO(wav(samples, 44100, subtype=subtype)))[0]
    np.testing.assert_allclose(found, wanted.mean(1), atol=1e-7)
    assert source.missing == 0


def test_wide_sizes_have_an_end() -> None:
    """RF64's, and those above 2 GiB; what stands behind the samples is no sound."""
    behind = b"LIST\4\0\0\0abcd"
    data = wav(noise(1000), format="RF64") + behind
    source = Pipe(io.BufferedReader(io.BytesIO(data)))
    assert sum(map(len, source.blocks())) == 1000 and source.missing == 0
    data = wav(noise(1000), subtype="PCM_16").replace(
        b"data" + struct.pack("<I", 2000), b"data" + struct.pack("<I", 3 * 10**9)
    )
    assert Pipe(io.BytesIO(data)).left == 3 * 10**9


@pytest.mark.parametrize("size", [None, 0, 0xFFFFFFFF])
@pytest.mark.parametrize("lost", [0, 1, 2, 500, 501])
def test_what_a_pipe_promises_and_does_not_send_is_told(run, size, lost) -> None:
    data = wav(noise(1000), subtype="PCM_16")
    if size is not None:  # promises nothing
        data = data.replace(
            b"data" + struct.pack("<I", 2000), b"data" + struct.pack("<I", size)
        )
    code, out, err = run(data[: len(data) - lost], "--raw", "s16le", "--voice", 1)
    held = 1000 - (lost + 1) // 2
    assert code == 0 and len(out) == 2 * held
    told = [line for line in err if "cut off" in line]
    line = f"spgm: standard input is cut off: it holds {held} of 1000 samples."
    assert told == ([line] if lost and size is None else [])


def test_what_is_no_sound_becomes_silence_and_is_counted(run) -> None:
    mix = noise(9000)
    mix[[3, 4000]] = np.nan, np.inf
    mix[5000:6000] = 3e38
    raw = mix.astype("<f4").tobytes() + b"\0"  # and half a sample
    code, out, err = run(raw, "--format", "f32le", "--rate", RATE, "--raw", "s16le")
    voices = np.frombuffer(out, "<i2")
    assert code == 0 and len(voices) == 2 * 9000
    assert err[0] == (
        "spgm: 1002 samples of standard input were no numbers: taken as silence."
    )
    silence = bytes(2 * 9000)
    code, out, _ = run(silence, "--format", "s16le", "--rate", RATE, "--raw", "s16le")
    assert code == 0 and not np.frombuffer(out, "<i2").any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one place where the voices go"),
        (["--output", "a", "--raw", "s16le"], "name one place"),
        (["--output", ""], "a path is empty"),
        (["--output", "a", "--voice", "1"], "goes with --raw only"),
        (["--raw", "s16le", "--voice", "3"], "voice is 3, but the model has 2"),
        (["--output", "a", "--name", "b/c"], "name is 'b/c'"),
        (["--output", "a", "--name", "n" * 300], "(File name too long): give another"),
        (["--raw", "s16le", "--name", "b"], "--name goes with --output only"),
        (
            ["--raw", "s16le", "--microphone", "--format", "s16le"],
            "--format is of stan",
        ),
        (["--output", "a", "--microphone", "--channels", "2"], "--channels is of stan"),
        (["--output", "a", "--rate", "8000"], "leave out --rate"),
        (["--output", "a", "--format", "s16le"], "give --rate"),
        (["--output", "a", "--format", "s16le", "--rate", "5"], "sample rate of 5 Hz"),
        (["--output", "a", "--threads", "0"], "threads is 0"),
        (["--output", "a", "--threads", "9" * 30], "threads is 99"),
        (["--output", "a", "--warm-up", "99"], "warm_up is 99.0"),
        (["--output", "a", "--horizon", "0"], "horizon is 0.0"),
        (["--output", "a", "--look-back", "-1"], "look_back is -1.0"),
        (["--output", "a", "--channel", "2"], "has 1 channel, but channel 2"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    run, arguments, said, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(wav(noise(100)), *arguments)
    assert code == 2 and not out and len(err) == 1 and said in err[0]
    assert not list(tmp_path.rglob("*.wav"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "standard input is empty"),
        (b"ID3 or whatever", "does not begin with the header of a WAV file"),
        (wav(noise(10))[:40], "ends within its header"),
        (wav(noise(10), subtype="ULAW"), "samples of 8 bits of kind 7"),
        (wav(noise(10)).replace(b"fmt ", b"junk"), "does not say what its samples"),
    ],
)
def test_other_input_is_one_sentence(run, data, said, tmp_path) -> None:
    code, _, err = run(data, "--output", tmp_path)
    assert code == 2 and len(err) == 1 and said in err[0]


def begin(model: str, *arguments: str, **options: object) -> subprocess.Popen:
    words = [sys.executable, "-m", "speechbrain_spgm", "stream", "--model", model]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*words, *arguments], **pipes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_files(model, tmp_path, number) -> None:
    process = begin(model, "--output", str(tmp_path), stdout=subprocess.PIPE)
    header = wav(noise(0))
    process.stdin.write(header[:40] + b"\xff\xff\xff\xff")  # without an end
    process.stdin.write((noise(24_000) * 2**15).astype("<i2").tobytes())
    process.stdin.flush()
    for _ in range(3000):  # until voices are being written
        parts = list(tmp_path.glob(".*.part"))
        if len(parts) == 2 and min(p.stat().st_size for p in parts) > 40_000:
            break
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and b"Traceback" not in err
    frames = {soundfile.info(tmp_path / f"stream_spk{k}.wav").frames for k in (1, 2)}
    assert len(frames) == 1 and 10_000 < min(frames) <= 24_000
    assert out.startswith(f"Separated {min(frames) / RATE:.1f} s".encode())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_reader_that_leaves_ends_it(model) -> None:
    """And one who reads slowly only slows it down."""
    read, write = os.pipe()
    options = ("--raw", "f32le", "--format", "s16le", "--rate", str(RATE))
    process = begin(model, *options, stdout=write)
    os.close(write)
    block = (noise(8000) * 2**15).astype("<i2").tobytes()
    process.stdin.write(block * 5)
    process.stdin.flush()
    assert len(os.read(read, 1000)) == 1000
    os.close(read)
    try:
        for _ in range(200):
            process.stdin.write(block)
            process.stdin.flush()
        pytest.fail("it read on for nobody")
    except BrokenPipeError:  # it has ended, with input left
        pass
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.stdin = None  # for communicate
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and b"Traceback" not in err and b"Error" not in err


class Card:
    """A sound card in place of sounddevice's."""

    class PortAudioError(Exception):
        pass

    def query_devices(self, device, kind):
        if device == "none":
            raise ValueError("No input device matching 'none'")
        return {"default_samplerate": 8000.0}

    def check_input_settings(self, *_, **__):
        pass

    class InputStream:
        def __init__(self, callback, **options):
            self.callback = callback

        def __enter__(self):
            fine, lost = (SimpleNamespace(input_overflow=x) for x in (False, True))
            for number in range(150):  # more than may wait
                block = np.full((800, 1), number, np.float32)
                self.callback(block, 800, None, lost if number == 3 else fine)

        def __exit__(self, *_):
            pass


def test_a_microphone_counts_what_it_loses(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", Card())
    source = Microphone()
    blocks = source.blocks()
    found = [next(blocks)[0] for _ in range(100)]
    assert found == list(range(100)) and source.dropouts == 51
    with pytest.raises(UserError, match="No input device matching 'none'"):
        Microphone("none")


def test_without_its_package_a_microphone_is_one_sentence(run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    code, _, err = run(b"", "--microphone", "--raw", "s16le")
    assert code == 2
    assert err == [
        "spgm: The microphone needs sounddevice: run pip install sounddevice."
    ]


def test_codes_have_their_widths() -> None:
    widths = {code: PCM(code, RATE).width for code in pcm.CODES}
    assert list(widths.values()) == [1, 2, 3, 4, 4, 8]
