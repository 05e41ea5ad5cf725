"""Readers: samples out and samples missing are all that a recording had.

Axes: T samples.
"""

import io
import os
import struct
import time
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_spgm import audio
from speechbrain_spgm.audio import AudioFileError, Format, stream_audio
from speechbrain_spgm.data import UserError

T, RATE = 20_000, 8_000


def loud_then_quiet(T: int = T) -> np.ndarray:
    """Samples [T] whose beginning takes more bytes than the rest, where bytes vary."""
    x = np.random.default_rng(0).uniform(-0.9, 0.9, T)
    x[T // 4 :] *= 0.02
    return x


def by_libsndfile(format: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    if format == "MP3":  # needs a file that it can read again
        file.name = "a.mp3"
    soundfile.write(file, loud_then_quiet(), RATE, format=format, subtype=subtype)
    return file.getvalue()


def by_ffmpeg(format: str, codec: str, rate: int = RATE, **options: str) -> bytes:
    """Written to a stream, which leaves sizes open, with ``stream="1"``."""
    av = pytest.importorskip("av")
    piped, file = options.pop("stream", None), io.BytesIO()
    target = file
    if piped:
        target = type("Pipe", (), {"write": lambda _, data: file.write(data)})()
    samples = (loud_then_quiet() * 32767).astype(np.int16)
    with av.open(target, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64000
        resampler = av.AudioResampler(
            stream.codec_context.format or "s16",
            "mono",
            rate,
        )
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.sample_rate = RATE
        fifo = av.AudioFifo()
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            part.pts = None
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while part := fifo.read(size) or fifo.read(0, partial=True):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


def heard(data: bytes) -> tuple[int, int]:
    """Samples out, and missing."""
    lengths: list[int] = []
    found = stream_audio(data, lambda block: lengths.append(len(block)))
    return sum(lengths), found.missing


def decoded(data: bytes) -> int | None:
    """What FFmpeg decodes; None if it takes it for no sound."""
    av = pytest.importorskip("av")
    total = 0
    try:
        with av.open(io.BytesIO(data)) as container:
            for packet in container.demux(audio=0):
                try:
                    total += sum(frame.samples for frame in packet.decode())
                except av.error.InvalidDataError:
                    continue
    except av.error.FFmpegError:
        return None
    return total


SNDFILE = {
    "wav": ("WAV", "PCM_16"), "wav24": ("WAV", "PCM_24"), "float": ("WAV", "FLOAT"),
    "wavex": ("WAVEX", "PCM_32"), "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"), "au": ("AU", "PCM_16"), "caf": ("CAF", "PCM_16"),
    "w64": ("W64", "PCM_24"),
    "flac": ("FLAC", "PCM_16"), "voc": ("VOC", "PCM_16"), "sph": ("NIST", "PCM_16"),
    "svx": ("SVX", "PCM_16"), "avr": ("AVR", "PCM_16"), "mat": ("MAT5", "PCM_16"),
}  # fmt: skip
FFMPEG = {  # format, codec, rate, options; the last: whether a cut file can be told
    "mp3 with a tag": ("mp3", "libmp3lame", RATE, {}, True),
    "mp3 without a tag": ("mp3", "libmp3lame", RATE, {"write_xing": "0"}, False),
    "streamed wav": ("wav", "pcm_s16le", RATE, {"stream": "1"}, False),
    "streamed flac": ("flac", "flac", RATE, {"stream": "1"}, False),
    "streamed aiff": ("aiff", "pcm_s16be", RATE, {"stream": "1"}, False),
    "streamed au": ("au", "pcm_s16be", RATE, {"stream": "1"}, False),
    "streamed w64": ("w64", "pcm_s16le", RATE, {"stream": "1"}, False),
    "opus": ("ogg", "libopus", 48000, {}, False),
    "m4a": ("ipod", "aac", RATE, {}, None),
    "mp4": ("mp4", "aac", 44100, {}, None),
    "webm": ("webm", "libopus", 48000, {}, None),
    "mkv": ("matroska", "ac3", 48000, {}, None),
    "wma": ("asf", "wmav2", 44100, {}, None),
    "aac": ("adts", "aac", 16000, {}, False),
    "mp2": ("mp2", "mp2", 16000, {}, False),
    "ac3": ("ac3", "ac3", 48000, {}, False),
    "ts": ("mpegts", "aac", 16000, {}, False),
}


@pytest.mark.parametrize("kind", SNDFILE)
def test_whole_joined_and_cut_files_of_libsndfile(kind):
    data = by_libsndfile(*SNDFILE[kind])
    assert heard(data) == (T, 0)
    assert heard(data + data) == (2 * T, 0)
    assert heard(data + data + data) == (3 * T, 0)
    for share in (0.3, 0.77):
        out, missing = heard(data[: int(len(data) * share)])
        assert out + missing == T and abs(out - share * T) < 0.25 * T


@pytest.mark.parametrize("kind", FFMPEG)
def test_whole_joined_and_cut_files_of_ffmpeg(kind):
    format, codec, rate, options, told = FFMPEG[kind]
    data = by_ffmpeg(format, codec, rate, **options)
    whole = decoded(data) or T  # FFmpeg cannot read all that it streams
    assert whole >= T * rate / RATE * 0.98 and heard(data) == (whole, 0)
    out, missing = heard(data + data)
    assert abs(out - 2 * whole) <= 0.02 * whole and missing == 0
    cut = data[: int(len(data) * 0.6)]
    left = decoded(cut)
    if told:
        assert sum(heard(cut)) == whole
    elif left is None and told is None:  # its index is lost
        with pytest.raises(AudioFileError, match="is damaged"):
            heard(cut)
    else:
        out, missing = heard(cut)
        assert out + missing <= whole * 1.02 and not (missing and told is False)
        assert left is None or abs(out - left) <= 1152


@pytest.mark.parametrize("kind", ["wav", "wav24", "float", "aiff", "au", "caf", "w64"])
@pytest.mark.parametrize("claim", [0, 1, 10_001, 2**31 - 1, 2**32 - 1, "more"])
def test_sizes_that_lie(kind, claim):
    """What is there comes out; only a plain promise of more counts as missing."""
    data = bytearray(by_libsndfile(*SNDFILE[kind]))
    wide, order = kind in ("caf", "w64"), "<" if kind[:2] in ("wa", "fl", "w6") else ">"
    name = b"SSND" if kind == "aiff" else b"data"
    at = 8 if kind == "au" else data.rindex(name) + (16 if kind == "w64" else 4)
    form = order + ("Q" if wide else "I")
    held = struct.unpack_from(form, data, at)[0]
    size = {"PCM_24": 3, "FLOAT": 4}.get(SNDFILE[kind][1], 2)
    overhead = {"aiff": 8, "caf": 4, "w64": 24}.get(kind, 0)
    stated = held + 5 * size if claim == "more" else claim + overhead * (claim > 0)
    struct.pack_into(form, data, at, stated % (2**64 if wide else 2**32))
    lost = 5 if claim == "more" else 0
    out, missing = heard(bytes(data))
    if isinstance(claim, int) and claim > 2**30 and wide:
        assert out == T  # 2 GB may be a true size in these
    else:
        assert (out, missing) == (T, lost)


@pytest.mark.parametrize("kind", ["mp3 with a tag", "opus", "m4a", "mp4", "webm"])
def test_what_codecs_put_in_front_is_left_out(kind):
    """Voices of a compressed recording begin when those of the original do."""
    format, codec, rate, options, _ = FFMPEG[kind]
    blocks: list[np.ndarray] = []
    stream_audio(by_ffmpeg(format, codec, rate, **options), blocks.append)
    found = torch.from_numpy(np.concatenate(blocks))
    wanted = torch.from_numpy(loud_then_quiet()).float()
    found = audio.resample(found, rate, RATE)[: len(wanted)]
    size = 2 * len(wanted)
    spectra = [torch.fft.rfft(x, size) for x in (found, wanted)]
    likeness = torch.fft.irfft(spectra[0] * spectra[1].conj(), size)
    assert int(likeness.argmax()) == 0


def test_what_follows_the_audio_is_no_audio():
    """Titles of players, chunks of editors, padding."""
    data = by_libsndfile("WAV", "PCM_16")
    for tail in (
        b"TAG" + bytes(125),
        b"LIST" + struct.pack("<I", 10) + b"INFOabcdef",
        b"id3 " + struct.pack("<I", 4) + b"abcd",
        bytes(64),
    ):
        assert heard(data + tail) == (T, 0)
        if tail.startswith((b"LIST", b"id3")):
            assert heard(data + tail + data) == (2 * T, 0)


@pytest.mark.parametrize("claim", [0, 2000])
def test_silence_behind_a_wrong_size_is_no_padding(claim):
    """A recorder that died, after seconds of silence."""
    samples = np.r_[np.full(1000 * (claim > 0), 0.1), np.zeros(40_000), 0.5]
    soundfile.write(file := io.BytesIO(), samples, RATE, "PCM_16", format="WAV")
    data = bytearray(file.getvalue())
    struct.pack_into("<I", data, data.index(b"data") + 4, claim)
    assert heard(bytes(data)) == (len(samples), 0)


def test_a_flac_file_that_claims_less_than_it_holds():
    data = bytearray(by_libsndfile("FLAC", "PCM_16"))
    numbers = int.from_bytes(data[18:26], "big")
    for claim, missing in ((T - 9000, 0), (T + 77, 77), (0, 0)):
        data[18:26] = (numbers - T + claim).to_bytes(8, "big")
        assert heard(bytes(data)) == (T, missing)


def test_mp3_frames_among_titles():
    """Titles between and behind joined files; a tag that promises too little."""
    data = by_ffmpeg("mp3", "libmp3lame", id3v2_version="3", write_id3v1="1")
    picture = b"ID3\x04\0\0\0\0\x20\0" + bytes(2**12)
    assert heard(picture + data + picture + data) == (2 * T, 0)
    at = data.index(b"Info") if b"Info" in data else data.index(b"Xing")
    less = bytearray(data)
    less[at + 8 : at + 12] = (5).to_bytes(4, "big")
    assert heard(bytes(less))[0] >= T and heard(bytes(less))[1] == 0


def test_mp3_frames_by_chance_are_no_recording():
    """In AAC, and in FLAC behind titles; here as data that a decoder passes over."""
    frames = 3 * (bytes.fromhex("fff314c0") + bytes(20))
    data, at = by_ffmpeg("adts", "aac", 16000), 0
    whole = heard(data)
    for _ in range(5):
        start, at = at, at + ((data[at + 3] & 3) << 11 | data[at + 4] << 3)
        at += data[start + 5] >> 5
    size = at - start + 2 + len(frames)
    head = bytearray(data[start : start + 7])
    head[3:6] = (
        head[3] & 252 | size >> 11,
        size >> 3 & 255,
        size << 5 & 224 | head[5] & 31,
    )
    element = bytes([0x81, len(frames)]) + frames
    data = data[:start] + bytes(head) + element + data[start + 7 :]
    assert heard(data) == whole
    padding = b"\x01" + len(frames).to_bytes(3, "big") + frames  # a block of FLAC
    flac = by_libsndfile("FLAC", "PCM_16")
    flac = b"ID3\x04\0\0\0\0\0\x04" + bytes(4) + flac[:42] + padding + flac[42:]
    assert heard(flac) == (T, 0)


@pytest.mark.parametrize(
    "kind",
    [
        "wav",
        "flac",
        "rf64",
        "streamed flac",
        "streamed wav",
        "streamed au",
        "mp3 without a tag",
    ],
)
def test_recipes_read_the_same_samples(kind, tmp_path):
    if kind in SNDFILE:
        data = by_libsndfile(*SNDFILE[kind])
    else:
        data = by_ffmpeg(*FFMPEG[kind][:3], **FFMPEG[kind][3])
    for content in (data, data + data):
        path = tmp_path / "a"
        path.write_bytes(content)
        file = audio.open_audio(path)
        whole = audio.read_audio(path).samples.numpy()
        assert file.frames == len(whole) == heard(content)[0]
        np.testing.assert_array_equal(audio.read_frames(file), whole)
        if "mp3" not in kind:  # whose frames lean on those before them
            start = len(whole) // 2 - 100
            part = audio.read_frames(file, start, 5000)
            np.testing.assert_array_equal(part, whole[start : start + 5000])
    if kind in SNDFILE:
        path.write_bytes(data[:-5000])
        with pytest.raises(UserError, match="is truncated"):
            audio.open_audio(path)


def test_joined_recordings_of_other_rates_are_said():
    first, second = io.BytesIO(), io.BytesIO()
    soundfile.write(first, loud_then_quiet(), 8000, format="WAV")
    soundfile.write(second, loud_then_quiet(), 16000, format="WAV")
    blocks: list[np.ndarray] = []
    found = stream_audio(first.getvalue() + second.getvalue(), blocks.append)
    assert sum(map(len, blocks)) == T and found.missing == T // 2
    assert "joins recordings of 8000 and 16000 Hz" in found.remarks[0]


def test_what_is_left_out_has_an_end_too():
    """Few bytes of a second rate may be hours of silence."""
    first, second = io.BytesIO(), io.BytesIO()
    soundfile.write(first, loud_then_quiet(8000), 8000, format="FLAC")
    soundfile.write(second, np.zeros(2 * 16000), 16000, format="FLAC")
    data = first.getvalue() + second.getvalue()
    assert audio.read_audio(data, longest=3).missing == 16000
    with pytest.raises(AudioFileError, match=r"is longer than 0\.04.* minutes: cut it"):
        audio.read_audio(data, longest=2.5)


def test_channels_that_cancel_are_said_and_one_can_be_chosen():
    x = loud_then_quiet()
    file = io.BytesIO()
    soundfile.write(file, np.stack([x, -x], 1), RATE, format="WAV", subtype="FLOAT")
    found = stream_audio(file, lambda _: None)
    assert (
        "cancel each other out" in found.remarks[0] and "--channel" in found.remarks[0]
    )
    for channel in (1, 2):
        blocks: list[np.ndarray] = []
        assert stream_audio(file, blocks.append, channel=channel).remarks == []
        assert np.allclose(np.concatenate(blocks), x * (3 - 2 * channel), atol=1e-6)
    with pytest.raises(AudioFileError, match="has 2 channels, but channel 3 was asked"):
        stream_audio(file, lambda _: None, channel=3)
    file = io.BytesIO()
    unrelated = np.random.default_rng(1).uniform(-0.5, 0.5, (T, 8))
    soundfile.write(file, unrelated, RATE, format="WAV")
    assert stream_audio(file, lambda _: None).remarks == []


def test_bytes_objects_and_pipes(tmp_path):
    data = by_libsndfile("WAV", "PCM_16")
    (tmp_path / "a.wav").write_bytes(data)
    expected = audio.read_audio(tmp_path / "a.wav").samples
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(data[:60000])
    with open(reader, "rb") as pipe, open(tmp_path / "a.wav", "rb") as file:
        for source in (data, bytearray(data), io.BytesIO(data), file, pipe):
            assert torch.equal(audio.read_audio(source).samples, expected)
    for source, words in ((io.StringIO("x"), "no binary file"), (b"", "is empty")):
        with pytest.raises(AudioFileError, match=words):
            audio.read_audio(source)


def test_arrays_of_every_type():
    x = (loud_then_quiet() * 32767).astype(np.int16)
    expected = x.astype(np.float32) / 32768

    def taken(samples: object) -> np.ndarray:
        blocks: list[np.ndarray] = []
        audio.from_array(samples, blocks.append, RATE)
        return np.concatenate(blocks)

    for samples in (
        x, x[:, None], np.stack([x, x], 1), torch.from_numpy(x), expected,
        expected.astype(np.float64), torch.from_numpy(expected).double(),
        x.astype(np.int32) * 65536,
    ):  # fmt: skip
        np.testing.assert_allclose(taken(samples), expected, atol=1e-7)
    for wrong in (x[:0], x[None], x.astype(complex), expected * np.nan, "text"):
        with pytest.raises(AudioFileError):
            taken(wrong)


@pytest.mark.parametrize("rate", [999_983, 192_001, 44_101, 7_999])
def test_odd_rates_keep_the_pitch_in_little_memory(rate):
    """The filters of coprime rates are as many as there are samples in a second."""
    x = torch.sin(
        2 * torch.pi * 440 * torch.arange(rate // 5, dtype=torch.float64) / rate
    )
    began = time.process_time()
    low = audio.resample(x.float(), rate, 8000)
    assert len(low) == -(-len(x) * 8000 // rate) and time.process_time() - began < 10
    inside = slice(200, -200)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(len(low)) / 8000)
    assert torch.allclose(low[inside], expected[inside], atol=5e-3)
    back = audio.resample(low, 8000, rate)[: len(x)]
    middle = slice(rate // 20, -rate // 20)
    assert torch.allclose(back[middle], x.float()[middle], atol=1e-2)


def test_the_interpolation_is_torchaudios_filter():
    x = torch.randn(2, 3000)
    for old, new in ((441, 80), (80, 441), (2, 1), (147, 160)):
        expected = audio.torchaudio_resample(x, old, new)
        assert torch.allclose(audio._interpolate(x, old, new), expected, atol=1e-4)


def test_many_channels_take_little_memory():
    """As a damaged header may claim them."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros((50, 1024)), 8000, format="WAV")
    tracemalloc.start()
    try:
        assert len(audio.read_audio(file.getvalue()).samples) == 50
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"RF64\xff\xff\xff\xffWAVEds64\x1c\0\0\0" + bytes(8),
        b".snd\0\0\0\x18" + bytes(8),
        b".snd\0\0\1\0" + bytes(24),
    ],
    ids=["rf64", "au", "au with an offset"],
)
def test_headers_that_end_too_soon(tmp_path, data):
    with pytest.raises(AudioFileError, match="is damaged or no audio file"):
        audio.read_audio(data)
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(AudioFileError, match="is truncated or not audio: replace it"):
        audio.open_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [0x7FFFFFFF, 100_000_007, 999, 1])
def test_rates_out_of_bounds_are_refused_at_once(rate):
    data = bytearray(by_libsndfile("WAV", "PCM_16")[:46])
    struct.pack_into("<I", data, 24, rate)
    struct.pack_into("<I", data, 40, 2)
    began = time.process_time()
    with pytest.raises(AudioFileError, match=f"a sample rate of {rate} Hz"):
        audio.read_audio(bytes(data))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "form", [Format(), Format("aiff", "FLOAT"), Format("flac", "PCM_24")]
)
def test_equal_runs_give_equal_bytes(tmp_path, monkeypatch, form):
    voices = torch.rand(2000, 2)
    paths = [tmp_path / "1", tmp_path / "2"]
    seen = []
    for _ in range(2):
        audio.write_voices(paths, voices, RATE, form)
        seen.append([path.read_bytes() for path in paths])
        time.sleep(1.01 if form == Format() and len(seen) == 1 else 0)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", ["wav", "w64"])
def test_no_samples_are_taken_for_a_clock(tmp_path, name):
    letters = b"PEAK" * 8
    voice = torch.from_numpy(np.frombuffer(letters, "<i2") / 32767).float()
    audio.write_voices([tmp_path / "1"], voice[:, None], RATE, Format(name, "PCM_16"))
    assert letters in (tmp_path / "1").read_bytes()


@pytest.mark.parametrize(
    ("name", "subtype"), [("wav", "16"), ("flac", "24"), ("ogg", None)]
)
def test_voices_do_not_clip(tmp_path, name, subtype):
    voices = torch.stack(
        [torch.sin(torch.arange(8000) / 5) * 3, torch.full((8000,), 0.3)], 1
    )
    form = audio.find_format(name, subtype)
    gain = audio.write_voices([tmp_path / "1", tmp_path / "2"], voices, RATE, form)
    assert 0.33 < gain < 0.3334
    assert soundfile.info(tmp_path / "1").format == {"ogg": "OGG"}.get(
        name, name.upper()
    )
    for path, voice in zip((tmp_path / "1", tmp_path / "2"), voices.T, strict=True):
        found, _ = soundfile.read(path)
        assert np.abs(found[500:-500] - gain * voice.numpy()[500:-500]).max() < 0.05


@pytest.mark.parametrize("rate", [200_001, 384_000])
def test_rates_at_which_ogg_ends_the_process(rate):
    """In libvorbis: there is nothing to catch."""
    form = audio.find_format("ogg")
    audio.check_form(form, 192_000, "x.ogg")
    with pytest.raises(AudioFileError, match=f"x.ogg cannot .* {rate} Hz: take wav"):
        audio.check_form(form, rate, "x.ogg")


def test_rates_at_which_flac_fails_at_the_first_sample():
    form = audio.find_format("flac")
    audio.check_form(form, 96_000, "x.flac")
    with pytest.raises(AudioFileError, match="x.flac cannot .* 96001 Hz: take wav.$"):
        audio.check_form(form, 96_001, "x.flac")


def test_long_voices_are_written_in_parts(tmp_path, monkeypatch):
    """Two million samples at once end the process in libvorbis."""
    sizes, write = [], soundfile.SoundFile.write
    monkeypatch.setattr(audio, "BLOCK", 1000)
    monkeypatch.setattr(
        soundfile.SoundFile, "write", lambda f, x: sizes.append(len(x)) or write(f, x)
    )
    voices = torch.rand(2500, 2)
    audio.write_voices([tmp_path / "1.wav", tmp_path / "2.wav"], voices, RATE)
    assert sizes == 2 * [1000, 1000, 500]
    assert torch.equal(audio.read_audio(tmp_path / "2.wav").samples, voices[:, 1])


def test_large_files_become_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "LARGEST_RIFF", 1000)
    audio.write_voices([tmp_path / "a.wav"], torch.rand(2000, 1), RATE)
    assert soundfile.info(tmp_path / "a.wav").format == "RF64"
    assert len(audio.read_audio(tmp_path / "a.wav").samples) == 2000
    with pytest.raises(AudioFileError, match="above 4 GiB, which aiff cannot hold"):
        form = audio.find_format("aiff")
        audio.write_voices([tmp_path / "a.aiff"], torch.rand(2000, 1), RATE, form)
    assert os.listdir(tmp_path) == ["a.wav"]


def test_formats_that_cannot_be_are_refused():
    for name, subtype in (
        ("flac", "float"),
        ("opus", "16"),
        ("wma", None),
        ("wav", "7"),
    ):
        with pytest.raises(UserError, match=f"{name}|{subtype}"):
            audio.find_format(name, subtype)


def test_without_pyav_the_remedy_is_named(monkeypatch):
    data = by_ffmpeg("ipod", "aac")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(AudioFileError, match="needs av: run pip install av"):
        audio.read_audio(data)
    with pytest.raises(AudioFileError, match="is damaged or no audio file"):
        audio.read_audio(b"no sound at all" * 99)


def test_a_video_and_several_streams(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream(
            "mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p"
        )
        streams = [
            container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in "ab"
        ]
        for stream, gain in zip(streams, (0.5, 0.1), strict=True):
            samples = (loud_then_quiet(8000) * gain * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate = RATE
            container.mux([*stream.encode(frame), *stream.encode(None)])
        image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        container.mux([*picture.encode(image), *picture.encode(None)])
    blocks: list[np.ndarray] = []
    found = stream_audio(path, blocks.append)
    assert "has 2 audio streams: the first is used (pcm_s16le)" in found.remarks[0]
    assert np.allclose(np.concatenate(blocks), loud_then_quiet(8000) * 0.5, atol=1e-3)


@pytest.mark.parametrize("format", ["matroska", "mp4"])
def test_sound_that_is_shorter_than_the_picture_is_not_cut_off(format):
    av = pytest.importorskip("av")
    file, size = io.BytesIO(), {"width": 32, "height": 32, "pix_fmt": "yuv420p"}
    with av.open(file, "w", format=format) as container:
        picture = container.add_stream("mpeg4", rate=5, **size)
        codec = "pcm_s16le" if format == "matroska" else "aac"
        sound = container.add_stream(codec, rate=RATE, layout="mono")
        form = "s16" if format == "matroska" else "fltp"
        silence = np.zeros((1, T), np.int16 if format == "matroska" else np.float32)
        frame = av.AudioFrame.from_ndarray(silence, form, "mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(form, "mono", RATE, sound.frame_size or T)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(sound.encode(part))
        for _ in range(20):  # 4 s
            image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            container.mux(picture.encode(image))
        container.mux(picture.encode(None))
    out, missing = heard(file.getvalue())
    assert T <= out <= T + 2048 and missing == 0


def test_no_noise_is_taken_for_sound():
    """Bytes by chance, and a playlist that names another file."""
    rng = np.random.default_rng(0)
    texts = [rng.bytes(size) for size in (300, 5000, 50_000)]
    texts += [b"\xff\xfb" + rng.bytes(999), b"ID3\x04\0\0\0\0\x7f\x7f" + rng.bytes(99)]
    texts += [
        b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n",
        b"ffconcat version 1.0\nfile a.wav\n",
    ]
    for text in texts:
        with pytest.raises(AudioFileError):
            audio.read_audio(text)


def samples_of(data: audio.Source, *cut: float) -> np.ndarray:
    blocks: list[np.ndarray] = []
    stream_audio(data, blocks.append, cut=audio.Cut(*cut) if cut else None)
    return np.concatenate(blocks)


@pytest.mark.parametrize(
    "kind",
    ["WAV", "FLAC", "OGG", "MP3", "ipod", "adts", "AIFF DWVW_16"]
    + ["WAV NMS_ADPCM_32", "WAV GSM610", "W64 GSM610", "AU G721_32", "AU G723_24"],
)
def test_a_part_is_cut_out_of_the_whole(kind):
    files = {"ipod": "aac", "adts": "aac"}
    if kind in files:
        data = by_ffmpeg(kind, files[kind])
    else:
        data = by_libsndfile(*kind.split())
    whole = samples_of(data)
    for offset, duration in ((0, 0.5), (0.25, 0.5), (2.25, None), (2.25, 9)):
        start = round(offset * RATE)
        stop = None if duration is None else start + round(duration * RATE)
        part = samples_of(data, offset, duration)
        np.testing.assert_allclose(part, whole[start:stop], atol=1e-6)
    with pytest.raises(AudioFileError, match="ends before second 3, where the part"):
        samples_of(data, 3.0, 1.0)


@pytest.mark.parametrize(
    ("format", "codec"), [("matroska", "flac"), ("matroska", "pcm_s16le")]
)
def test_a_part_of_what_counts_milliseconds(format, codec):
    data = by_ffmpeg(format, codec, 44100)
    whole = samples_of(data)
    for offset in (2.1234, 2.2345, 2.4321):
        part = samples_of(data, offset)
        np.testing.assert_array_equal(part, whole[round(offset * 44100) :])


def test_a_part_of_joined_files_is_cut_out_of_the_whole():
    data = by_ffmpeg("ipod", "aac")
    whole = samples_of(data + data)
    assert len(whole) == 2 * len(samples_of(data))
    for offset, duration in ((0.5, None), (2.25, 0.5), (3.0, 1.0)):
        start = round(offset * RATE)
        stop = None if duration is None else start + round(duration * RATE)
        part = samples_of(data + data, offset, duration)
        np.testing.assert_allclose(part, whole[start:stop], atol=1e-6)


def test_mp3_frames_have_the_bits_that_frames_before_them_hold(tmp_path, monkeypatch):
    """In quiet, frames are small and later ones fill them: all need those before."""
    rng, path = np.random.default_rng(0), tmp_path / "a.mp3"
    envelope = np.repeat(rng.uniform(size=30) < 0.5, 1600)
    noise = 0.3 * rng.standard_normal(48_000) * envelope
    small = {"bitrate_mode": "VARIABLE", "compression_level": 0.9}
    soundfile.write(path, noise, 16_000, **small)
    whole = soundfile.read(path, dtype="float32")[0]
    monkeypatch.setattr(audio, "BLOCK", 4000)
    monkeypatch.setattr(audio, "RESERVOIR", 20_000, raising=False)
    found = audio.read_audio(path).samples.numpy()
    np.testing.assert_allclose(found, whole, atol=1e-6)
    file = audio.open_audio(path)
    for start in range(22_000, 46_000, 1777):
        wanted = whole[start : start + 1600]
        found = audio.read_frames(file, start, 1600)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        found = samples_of(path, start / 16_000, 0.1)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_what_lies_before_a_part_is_not_decoded(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(10 * RATE), RATE)
    read = []
    blocks = audio._sound_blocks

    def watched(sound):
        read.append(sound.tell())
        return blocks(sound)

    monkeypatch.setattr(audio, "_sound_blocks", watched)
    found = []
    stream_audio(tmp_path / "a.wav", found.append, cut=audio.Cut(8.0, 1.0))
    assert read == [8 * RATE] and sum(map(len, found)) == RATE
