"""LibriMix: every mixture is the sum of gain times recording, to 16 bits."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from speechbrain_spgm.corpora.generation import generate
from speechbrain_spgm.corpora.librimix import plan_librimix, scan_librimix
from speechbrain_spgm.data import ManifestDataset, MixtureList, UserError
from speechbrain_spgm.data.lists import extend
from speechbrain_spgm.data.manifests import write_manifest

BIT = 1 / 32768
NAME = "libri{}mix_dev-clean.csv"


class Corpus:
    """A LibriSpeech folder with a WHAM! folder and lists, written as tests need it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(0)

    def record(self, name: str, samples: int, rate: int, channels: int = 1) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = self.rng.uniform(-0.5, 0.5, (samples, channels))
        soundfile.write(path, noise if channels > 1 else noise[:, 0], rate)
        return name

    def list(self, rows: list[dict], spks: int = 2) -> Path:
        path = self.folder / NAME.format(spks)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    def row(self, id: str, *sources: tuple, noise: tuple | None = None) -> dict:
        row = {"mixture_ID": id}
        for i, (name, gain) in enumerate(sources, start=1):
            row |= {f"source_{i}_path": name, f"source_{i}_gain": gain}
        if noise:
            row |= {"noise_path": noise[0], "noise_gain": noise[1]}
        return row

    def generate(self, path: Path, *args, **kwargs) -> Path:
        plans = plan_librimix(self.folder, path, self.folder / "out", *args, **kwargs)
        generate(plans)
        return plans[0].folder


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return Corpus(tmp_path)


def read(path: Path) -> np.ndarray:
    samples, _ = soundfile.read(path)
    return samples


def fitted(waves: list[np.ndarray], mode: str) -> list[np.ndarray]:
    if mode == "min":
        return [wave[: min(map(len, waves))] for wave in waves]
    length = max(map(len, waves))
    return [np.pad(wave, (0, length - len(wave))) for wave in waves]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("spks", [2, 3])
def test_mixtures_are_sums_of_gain_times_source(corpus, mode, rate, spks):
    # One recording at 8 kHz, one at 16 kHz, one at 44.1 kHz.
    formats = [("a.flac", 2001, 8000), ("b.wav", 5003, 16000), ("c.flac", 9001, 44100)]
    gains = [0.71234567, 0.3, 0.45]
    sources = [
        (corpus.record(f"dev-clean/{n}", s, r), gain)
        for (n, s, r), gain in zip(formats, gains, strict=True)
    ][:spks]
    path = corpus.list([corpus.row("m", *sources)], spks)
    folder = corpus.generate(path, rate, mode)
    root = corpus.folder / f"out/Libri{spks}Mix/wav{rate // 1000}k/{mode}"
    assert folder == root / "dev"

    waves = []
    for (name, gain), (_, _, own) in zip(sources, formats, strict=False):
        wave = gain * read(corpus.folder / name)
        waves.append(wave if own == rate else resample_poly(wave, rate, own))
    waves = fitted(waves, mode)
    for i, wave in enumerate(waves, start=1):
        file = folder / f"s{i}" / "m.wav"
        assert soundfile.info(file).samplerate == rate
        assert np.abs(read(file) - wave).max() <= 0.51 * BIT
    mix = read(folder / "mix_clean" / "m.wav")
    assert np.abs(mix - sum(waves)).max() <= 0.51 * BIT
    stored = sum(read(folder / f"s{i}" / "m.wav") for i in range(1, spks + 1))
    assert np.abs(mix - stored).max() <= (spks + 1) / 2 * BIT


def test_noise_is_one_more_part(corpus):
    sources = [(corpus.record(f"{n}.flac", 6000, 8000), 0.3) for n in "ab"]
    corpus.record("wham/tr/long.wav", 9000, 8000, channels=2)
    corpus.record("wham/tr/fast.wav", 40000, 16000)
    rows = [
        corpus.row("m1", *sources, noise=("tr/long.wav", 0.2)),
        corpus.row("m2", *sources, noise=("tr/fast.wav", 0.4)),
    ]
    folder = corpus.generate(
        corpus.list(rows),
        mixtures=["mix_single", "mix_clean", "mix_both"],
        noise_folder=corpus.folder / "wham",
    )
    expected = 0.2 * soundfile.read(corpus.folder / "wham/tr/long.wav")[0][:6000, 0]
    assert np.abs(read(folder / "noise/m1.wav") - expected).max() <= 0.51 * BIT
    for id in ("m1", "m2"):
        s1, s2, noise, clean, both, single = (
            read(folder / name / f"{id}.wav")
            for name in ("s1", "s2", "noise", "mix_clean", "mix_both", "mix_single")
        )
        assert len(noise) == 6000 and np.abs(noise).max() > 0.1
        assert np.abs(clean - s1 - s2).max() <= 1.5 * BIT
        assert np.abs(both - s1 - s2 - noise).max() <= 2 * BIT
        assert np.abs(single - s1 - noise).max() <= 1.5 * BIT

    scanned = [
        scan_librimix(corpus.folder / "out", "dev", mixture=mixture)[0]
        for mixture in ("mix_clean", "mix_both", "mix_single")
    ]
    assert [len(row.sources) for row in scanned] == [2, 2, 1]
    noises = [row.noise and row.noise.parent.name for row in scanned]
    assert noises == [None, "noise", "noise"]


def test_a_short_noise_begins_again_without_a_step():
    tone = np.sin(2 * np.pi * np.arange(3000) / 1000)
    long = extend(tone, 10000, rate=1000)
    assert len(long) == 10000
    assert np.array_equal(long[:2499], tone[:2499])
    assert np.abs(np.diff(long)).max() < 0.01
    assert np.array_equal(extend(tone, 2000, 1000), tone[:2000])


def test_noisy_mixtures_may_follow_clean_ones(corpus):
    sources = [(corpus.record(f"{n}.flac", 6000, 8000), 0.3) for n in "ab"]
    corpus.record("wham/n.wav", 9000, 8000)
    path = corpus.list([corpus.row("m", *sources, noise=("n.wav", 0.2))])
    folder = corpus.generate(path)
    assert not (folder / "noise").exists()
    before = (folder / "s1/m.wav").stat()
    corpus.generate(path, mixtures=["mix_both"], noise_folder=corpus.folder / "wham")
    assert (folder / "s1/m.wav").stat().st_mtime_ns == before.st_mtime_ns
    assert (folder / "mix_both/m.wav").is_file()
    with pytest.raises(UserError, match="was made from 0.2 x n.wav"):
        path.write_text(path.read_text().replace("n.wav,0.2", "n.wav,0.1"))
        corpus.generate(
            path, mixtures=["mix_both"], noise_folder=corpus.folder / "wham"
        )


def test_files_that_clip_are_counted_and_not_rescaled(corpus):
    sources = [(corpus.record(f"{n}.flac", 6000, 8000), 1.5) for n in "ab"]
    path = corpus.list([corpus.row("m", *sources)])
    plans = plan_librimix(corpus.folder, path, corpus.folder / "out")
    report = generate(plans)
    assert report == (3, 0, 1)
    assert "1 files clip" in str(report)
    mix = read(plans[0].path("mix_clean"))
    expected = sum(1.5 * read(corpus.folder / name) for name, _ in sources)
    assert np.abs(mix - np.clip(expected, -1, 1 - BIT)).max() <= 0.51 * BIT


def test_the_manifest_serves_training(corpus):
    names = [
        corpus.record(f"{n}.flac", 6000 + 10 * i, 16000) for i, n in enumerate("abc")
    ]
    rows = [
        corpus.row(f"{i}{j}", (names[i], 0.4), (names[j], 0.3))
        for i, j in [(2, 1), (0, 1), (2, 0)]
    ]
    folder = corpus.generate(corpus.list(rows))
    found = scan_librimix(corpus.folder / "out", "dev")
    assert [(row.id, row.duration) for row in found] == [
        ("01", 3000 / 8000),
        ("20", 3000 / 8000),
        ("21", 3005 / 8000),
    ]
    write_manifest(folder.parent / "dev.csv", found)
    dataset = ManifestDataset(folder.parent / "dev.csv", 2, 8000)
    assert [mixture.id for mixture in dataset] == ["01", "20", "21"]
    assert (dataset[0].sources.sum(-1) - dataset[0].mix).abs().max() <= 1.5 * BIT


@pytest.mark.parametrize(
    "change, message",
    [
        ({"source_1_gain": "loud"}, "Line 2 of .* no number as gain for source_1"),
        ({"source_2_gain": "nan"}, "no number as gain for source_2"),
        ({"source_2_path": ""}, "no path"),
        ({"source_2_path": "c.flac"}, "c.flac does not exist"),
        ({"mixture_ID": "../m"}, "cannot be a file name"),
    ],
)
def test_broken_lists_are_named(corpus, change, message):
    sources = [(corpus.record(f"{n}.flac", 600, 8000), 0.3) for n in "ab"]
    path = corpus.list([corpus.row("m", *sources) | change])
    with pytest.raises(UserError, match=message):
        corpus.generate(path)
    assert not (corpus.folder / "out").exists()


def test_what_does_not_fit_together_is_named(corpus):
    sources = [(corpus.record(f"{n}.flac", 600, 8000), 0.3) for n in "ab"]
    path = corpus.list([corpus.row("m", *sources)])
    wham = corpus.folder / "wham"
    wham.mkdir()
    for options, message in [
        ({"mixtures": ["mix_both"]}, "mix_both needs noise"),
        ({"mixtures": ["mix_single"], "noise_folder": wham}, "no column noise_path"),
        ({"mixtures": ["mix_both"], "noise_folder": wham / "x"}, "x does not exist"),
        ({"mixtures": ["mix_all"]}, "mix_all, but must be one of mix_clean"),
        ({"num_spks": 3}, "2 sources per mixture, but num_spks is 3"),
        ({"mode": "mean"}, "mode is mean, but must be min or max"),
    ]:
        with pytest.raises(UserError, match=message):
            corpus.generate(path, **options)
    path = corpus.list([corpus.row("m", *sources), corpus.row("m", *sources)])
    with pytest.raises(UserError, match="Line 3 of .* repeats the mixture_ID m"):
        corpus.generate(path)
    path = corpus.list([corpus.row("m", *sources, noise=("gone_sp08.wav", 1))])
    with pytest.raises(UserError, match="gone_sp08.wav does not exist.*augment"):
        corpus.generate(path, mixtures=["mix_both"], noise_folder=wham)


@pytest.mark.parametrize("spks", [2, 3])
def test_real_lists_and_voices(shared, tmp_path, spks):
    lists = shared / "voices" / "LibriMix-metadata"
    lines = (lists / NAME.format(spks)).read_text().splitlines()[:4]
    path = tmp_path / NAME.format(spks)
    path.write_text("\n".join(lines))
    speech = shared / "voices" / "LibriSpeech"
    plans = plan_librimix(speech, path, tmp_path, 8000, "min", num_spks=spks)
    assert generate(plans).clipped == 0
    for row, plan in zip(csv.DictReader(lines), plans, strict=True):
        expected = 0
        for i in range(1, spks + 1):
            samples, rate = soundfile.read(speech / row[f"source_{i}_path"])
            assert rate == 8000
            gain = float(row[f"source_{i}_gain"])
            expected = expected + gain * samples[: plan.samples]
        error = np.abs(read(plan.path("mix_clean")) - expected).max()
        assert error <= 0.51 * BIT


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("mixture", ["mix_clean", "mix_both", "mix_single"])
@pytest.mark.parametrize("place", ["wham", "wham/tt"])
def test_a_list_is_mixed_as_it_is_generated(corpus, mode, mixture, place):
    """Noise included: longer and shorter than the mixture, and of two channels."""
    rows = []
    for i, frames in enumerate((30_000, 9000)):
        noise = corpus.record(f"wham/tt/{i}.wav", frames, 8000, channels=1 + i)
        files = [corpus.record(f"{i}{k}.flac", 12_000 + 900 * k, 8000) for k in (1, 2)]
        sources = [(name, 0.3 + 0.1 * k) for k, name in enumerate(files)]
        noise = (noise.removeprefix("wham/"), 0.25)
        rows.append(corpus.row(f"m{i}", *sources, noise=noise))
    path = corpus.list(rows)
    folder = corpus.generate(path, 8000, mode, [mixture], corpus.folder / "wham")
    spks = 1 if mixture == "mix_single" else 2
    mixtures = MixtureList(
        path,
        corpus.folder,
        spks,
        8000,
        mode,
        mixture=mixture,
        noise_folder=corpus.folder / place,
    )
    for id, mix, sources in mixtures:
        names = [mixture, *(f"s{k + 1}" for k in range(spks))]
        made = [soundfile.read(folder / name / f"{id}.wav")[0] for name in names]
        for ours, theirs in zip([mix, *sources.T], made, strict=True):
            assert np.abs(ours.numpy() - theirs).max() <= 2 * BIT
        clean = np.abs((mix - sources.sum(-1)).numpy()).max() < 1e-6
        assert clean == (mixture == "mix_clean")


def test_noise_that_is_not_there_is_named(corpus):
    pair = [(corpus.record(f"{k}.flac", 9000, 8000), 0.5) for k in (1, 2)]
    clean = corpus.list([corpus.row("m", *pair)])
    noisy = corpus.list([corpus.row("m", *pair, noise=("tt/n.wav", 0.5))], spks=3)
    for path, options, sentence in [
        (clean, {"mixture": "mix_both"}, "has no column noise_path for mix_both"),
        (noisy, {"mixture": "mix_both"}, "give WHAM!'s folder wham_noise"),
        (noisy, {"mixture": "mix_single"}, "num_spks is 2, but mix_single is one"),
        (
            noisy,
            {"mixture": "mix_both", "noise_folder": corpus.folder},
            "tt/n.wav does not exist",
        ),
    ]:
        with pytest.raises(UserError, match=sentence):
            MixtureList(path, corpus.folder, 2, 8000, **options)


@pytest.mark.parametrize("ending", [".WAV", ".flac", ".Flac"])
def test_folders_of_other_endings(tmp_path, ending):
    folder = tmp_path / "Libri2Mix" / "wav8k" / "min" / "dev"
    for part in ("mix_clean", "s1", "s2"):
        (folder / part).mkdir(parents=True)
        file = folder / part / f"a{ending}"
        soundfile.write(file, np.zeros(800), 8000, format=ending[1:].upper())
    (row,) = scan_librimix(tmp_path, "dev")
    assert row.mix == folder / "mix_clean" / f"a{ending}"
    (folder / "s1" / f"b{ending}").write_bytes(row.mix.read_bytes())
    with pytest.raises(UserError, match="belongs to no mixture"):
        scan_librimix(tmp_path, "dev")
