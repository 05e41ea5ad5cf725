"""WSJ0-mix: levels, lengths and names as the original script makes them."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from speechbrain_spgm.corpora.active_level import active_level
from speechbrain_spgm.corpora.generation import generate
from speechbrain_spgm.corpora.wsj0mix import plan_wsj0mix, scan_wsj0mix
from speechbrain_spgm.data import UserError

BIT = 1 / 32768
NAMES = [
    "wsj0/si_tr_s/01t/01to030v.wav",
    "wsj0/si_tr_s/40a/40aa010k.wav",
    "wsj0/si_tr_s/40n/40na010x.wav",
]
GAINS = ["1.9857", "-1.9857", "0"]
FRAMES = [32001, 24000, 28003]


@pytest.fixture
def wsj0(tmp_path) -> Path:
    """Three recordings at 16 kHz: bursts of noise, loud, quiet and with pauses."""
    rng = np.random.default_rng(0)
    for i, (name, frames) in enumerate(zip(NAMES, FRAMES, strict=True)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        bursts = np.repeat(rng.uniform(0, 1, 9)[rng.permutation(9)], 4000)[:frames]
        bursts[4000 : 4000 * (i + 1)] = 0
        smooth = np.convolve(rng.standard_normal(frames), np.ones(4) / 4, "same")
        soundfile.write(path, 0.1 / (i + 1) * bursts * smooth, 16000)
    return tmp_path


def write_list(folder: Path, spks: int, *lines: str) -> Path:
    path = folder / f"mix_{spks}_spk_tr.txt"
    words = zip(NAMES[:spks], GAINS[:spks], strict=True)
    default = " ".join(f"{name} {gain}" for name, gain in words)
    path.write_text("\n".join(lines or [default, ""]))
    return path


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("spks", [2, 3])
def test_a_mixture_as_the_original_script_makes_it(wsj0, spks, rate, mode):
    plans = plan_wsj0mix(wsj0, write_list(wsj0, spks), wsj0, "tr", rate, mode)
    assert generate(plans) == (spks + 1, 0, 0)
    folder = wsj0 / f"{spks}speakers" / f"wav{rate // 1000}k" / mode / "tr"
    id = "01to030v_1.9857_40aa010k_-1.9857" + "_40na010x_0" * (spks == 3)
    read = {}
    for name in ("mix", *(f"s{i + 1}" for i in range(spks))):
        read[name], found = soundfile.read(folder / name / f"{id}.wav")
        assert found == rate and soundfile.info(folder / name / f"{id}.wav").frames
    mix, *sources = read.values()
    lengths = [-(-frames * rate // 16000) for frames in FRAMES[:spks]]
    assert {len(x) for x in read.values()} == {(min if mode == "min" else max)(lengths)}
    assert np.abs(mix - sum(sources)).max() <= (spks + 1) / 2 * BIT
    assert max(np.abs(x).max() for x in read.values()) == pytest.approx(0.9, abs=BIT)

    # Line by line, for the proportion of the sources.
    waves = []
    for name, gain, frames in zip(NAMES, GAINS, lengths, strict=False):
        wave, own = soundfile.read(wsj0 / name)
        level = active_level(resample_poly(wave, 1, 2), 8000)  # at 8 kHz, always
        wave = wave if rate == own else resample_poly(wave, 1, 2)
        assert len(wave) == frames
        wave = 10 ** (float(gain) / 20) * wave / math.sqrt(level)
        waves.append(np.pad(wave, (0, len(mix)))[: len(mix)])
    peak = max(np.abs(x).max() for x in (*waves, sum(waves)))
    for source, wave in zip(sources, waves, strict=True):
        assert np.abs(source - 0.9 / peak * wave).max() <= 0.51 * BIT


def test_speakers_differ_by_their_gains(wsj0):
    (plan,) = plan_wsj0mix(wsj0, write_list(wsj0, 3), wsj0, "tr", 8000, "max")
    generate([plan])
    levels = []
    for part in ("s1", "s2", "s3"):
        samples, _ = soundfile.read(plan.path(part))
        levels.append(10 * math.log10(active_level(samples, 8000)))
    assert levels[0] - levels[1] == pytest.approx(2 * 1.9857, abs=0.3)
    assert levels[0] - levels[2] == pytest.approx(1.9857, abs=0.3)


def test_the_wsj0_folder_itself_may_be_given(wsj0):
    path = write_list(wsj0, 2)
    inner = plan_wsj0mix(wsj0 / "wsj0", path, wsj0, "tr")
    outer = plan_wsj0mix(wsj0, path, wsj0, "tr")
    assert inner == outer


def test_the_same_line_twice_is_one_mixture(wsj0):
    line = f"{NAMES[0]} 1.5 {NAMES[1]} -1.5"
    path = write_list(wsj0, 2, line, "", line)
    assert len(plan_wsj0mix(wsj0, path, wsj0, "tr")) == 1


@pytest.mark.parametrize(
    "line, message",
    [
        (f"{NAMES[0]} 1 {NAMES[1]}", "Line 1 of .* is not path gain path gain"),
        (f"{NAMES[0]} 1", "Line 1 of .* is not path gain path gain"),
        (f"{NAMES[0]} 1 {NAMES[1]} x", "has the gain 'x'"),
        (f"{NAMES[0]} 1 {NAMES[1]} inf", "has the gain 'inf'"),
        (f"{NAMES[0]} 1 wsj0/gone.wav 1", "gone.wav does not exist"),
        ("\n", "is empty"),
    ],
)
def test_broken_lists_are_named(wsj0, line, message):
    with pytest.raises(UserError, match=message):
        plan_wsj0mix(wsj0, write_list(wsj0, 2, line), wsj0, "tr")


def test_lines_have_as_many_sources(wsj0):
    words = [f"{name} 0" for name in NAMES]
    path = write_list(wsj0, 2, " ".join(words[:2]), " ".join(words))
    with pytest.raises(
        UserError, match="Line 2 of .* has 3 sources, .* first one has 2"
    ):
        plan_wsj0mix(wsj0, path, wsj0, "tr")


@pytest.mark.parametrize("ending", [".wv1", ".wav"])
def test_sphere_files_are_named_with_the_remedy(wsj0, ending):
    path = wsj0 / NAMES[1]
    path.unlink()
    path = path.with_suffix(ending)
    path.write_bytes(b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00")
    for listed in (NAMES[1], NAMES[1].replace(".wav", ending)):
        lines = write_list(wsj0, 2, f"{NAMES[0]} 1 {listed} -1")
        with pytest.raises(UserError, match=f"{path.name} is a NIST.* sph2pipe -f wav"):
            plan_wsj0mix(wsj0, lines, wsj0, "tr")


def test_silence_cannot_be_normalised(wsj0):
    soundfile.write(wsj0 / NAMES[1], np.zeros(16000), 16000)
    plans = plan_wsj0mix(wsj0, write_list(wsj0, 2), wsj0, "tr")
    with pytest.raises(UserError, match="40aa010k.wav is silent"):
        generate(plans)
    assert not list(wsj0.glob("2speakers/**/*.wav"))


@pytest.fixture
def made(wsj0) -> Path:
    """The folder of a split with two mixtures of two speakers."""
    lines = [f"{NAMES[0]} 1 {NAMES[1]} -1", f"{NAMES[2]} 2 {NAMES[1]} -2"]
    plans = plan_wsj0mix(wsj0, write_list(wsj0, 2, *lines), wsj0 / "mixes", "tr")
    generate(plans)
    return plans[0].folder


@pytest.mark.parametrize("depth", range(4))
def test_any_folder_above_the_splits_may_be_scanned(made, depth):
    rows = scan_wsj0mix(made.parents[depth], "tr")
    ids = ["01to030v_1_40aa010k_-1", "40na010x_2_40aa010k_-2"]
    assert [row.id for row in rows] == ids
    assert [row.duration for row in rows] == [12000 / 8000, 12000 / 8000]
    assert rows[0].sources == tuple(made / s / f"{ids[0]}.wav" for s in ("s1", "s2"))
    assert rows[0].noise is None


def test_what_is_missing_or_wrong_in_a_folder_is_named(made):
    mixes = made.parents[3]

    def refused(message: str, folder: Path = mixes, **options) -> None:
        with pytest.raises(UserError, match=message) as error:
            scan_wsj0mix(folder, options.pop("split", "tr"), **options)
        assert str(error.value).count(". ") == 0  # one sentence

    refused("mixes/x does not exist: give", mixes / "x")
    refused(
        "has no 3speakers/wav8k/min/tr/mix: .*mixes holds only 2speakers", num_spks=3
    )
    refused("2speakers holds only wav8k", sample_rate=16000)
    refused("wav8k holds only min", mode="max")
    refused("min holds only metadata, tr", split="tt")
    refused("at 8000 Hz, but sample_rate is 16000", made.parent, sample_rate=16000)
    refused("tr/s3 does not exist or has no WAV", made.parent, num_spks=3)
    refused("has a source s2, but num_spks is 1", made.parent, num_spks=1)

    path = made / "s2" / "40na010x_2_40aa010k_-2.wav"
    content = path.read_bytes()
    path.unlink()
    refused("s2/40na010x_2_40aa010k_-2.wav is missing")
    path.write_bytes(content[:-100])
    refused("40na010x_2_40aa010k_-2.wav is truncated")
    soundfile.write(path, np.zeros(100), 8000)
    refused("has 100 samples, but its mixture .* has 12000")
    soundfile.write(path, np.zeros(24000), 16000)
    refused("at 16000 Hz, but sample_rate is 8000")
    path.write_bytes(content)
    path.with_name("more.wav").write_bytes(content)
    refused("s2/more.wav belongs to no mixture, .* has 2 and .* 3")


def test_real_voices(shared, tmp_path):
    speech = shared / "voices" / "LibriSpeech"
    voices = sorted(speech.glob("dev-clean/*/*/*.flac"))[::8][:3]
    names = [str(path.relative_to(speech)) for path in voices]
    lines = tmp_path / "mix_3_spk_cv.txt"
    lines.write_text(f"{names[0]} 2.3 {names[1]} -2.3 {names[2]} 0")
    (plan,) = plan_wsj0mix(speech, lines, tmp_path, "cv", 8000, "max")
    generate([plan])
    levels = []
    for part, path in zip(("s1", "s2", "s3"), voices, strict=True):
        samples, _ = soundfile.read(plan.path(part))
        levels.append(10 * math.log10(active_level(samples, 8000)))
        assert len(samples) == max(soundfile.info(p).frames for p in voices), path
    assert levels[0] - levels[1] == pytest.approx(4.6, abs=0.1)
    assert levels[0] - levels[2] == pytest.approx(2.3, abs=0.1)
