"""Mixtures from disk and from lists: right samples, and every mistake is named."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_spgm.data import (
    ManifestDataset,
    MixtureBatch,
    MixtureList,
    UserError,
)
from speechbrain_spgm.data.manifests import ManifestRow, write_manifest

HEADER = "mixture_ID,source_1_path,source_1_gain,source_2_path,source_2_gain\n"


@pytest.fixture
def corpus(tmp_path):
    """Two noises, 1.0 s at 8 kHz and 1.5 s at 16 kHz, and a list of them."""
    rng = np.random.default_rng(0)
    for name, frames, rate in (("a", 8000, 8000), ("b", 24000, 16000)):
        soundfile.write(tmp_path / f"{name}.flac", rng.uniform(-0.5, 0.5, frames), rate)
    (tmp_path / "mix.csv").write_text(HEADER + "a_b,a.flac,0.5,b.flac,0.25\n")
    return tmp_path


def read_list(folder, **options) -> MixtureList:
    settings = {"num_spks": 2, "sample_rate": 8000, **options}
    return MixtureList(folder / "mix.csv", folder, **settings)


@pytest.fixture
def prepared(tmp_path):
    """Two mixtures at 8 kHz on disk, 1.0 s and 1.5 s, with noise, and a manifest."""
    rng = np.random.default_rng(0)
    rows = []
    for id, frames in (("x", 8000), ("y", 12000)):
        parts = rng.integers(-9000, 9000, (3, frames)).astype(np.int16)
        paths = [tmp_path / f"{id}-{part}.wav" for part in ("s1", "s2", "noise", "mix")]
        for path, samples in zip(paths, [*parts, parts.sum(0)], strict=True):
            soundfile.write(path, samples.astype(np.int16), 8000)
        s1, s2, noise, mix = paths
        rows.append(ManifestRow(id, frames / 8000, mix, (s1, s2), noise))
    write_manifest(tmp_path / "train.csv", rows)
    return tmp_path


def read_prepared(folder, **options) -> ManifestDataset:
    settings = {"num_spks": 2, "sample_rate": 8000, **options}
    return ManifestDataset(folder / "train.csv", **settings)


def test_a_manifest_gives_what_the_files_hold(prepared):
    mixtures = read_prepared(prepared)
    assert [mixture.id for mixture in mixtures] == ["x", "y"]
    assert mixtures.seconds == [1.0, 1.5]
    for id, mix, sources in mixtures:
        waves = {
            part: torch.from_numpy(
                soundfile.read(prepared / f"{id}-{part}.wav", dtype="float32")[0]
            )
            for part in ("mix", "s1", "s2", "noise")
        }
        assert torch.equal(mix, waves["mix"])
        assert torch.equal(sources, torch.stack([waves["s1"], waves["s2"]], -1))
        torch.testing.assert_close(mix - sources.sum(-1), waves["noise"])
    assert [mixture.id for mixture in read_prepared(prepared, limit=1)] == ["x"]


def test_a_segment_lies_at_one_place_in_mixture_and_sources(prepared):
    whole = read_prepared(prepared)[1]
    segments = read_prepared(prepared, segment_seconds=1.25, seed=3)
    assert segments.seconds == [1.0, 1.25]
    assert torch.equal(segments[0].mix, read_prepared(prepared)[0].mix)
    starts = set()
    for epoch in range(5):
        segments.set_epoch(epoch)
        _, mix, sources = segments[1]
        assert torch.equal(mix, segments[1].mix)
        (start,) = [
            s for s in range(2001) if torch.equal(mix, whole.mix[s : s + 10000])
        ]
        assert torch.equal(sources, whole.sources[start : start + 10000])
        starts.add(start)
    assert len(starts) == 5


def test_sources_get_speeds_of_their_own_and_noise_keeps_its(prepared):
    times = np.arange(12000) / 8000
    hum = 0.1 * np.sin(2 * np.pi * 1000 * times)
    tones = [0.2 * np.sin(2 * np.pi * hertz * times) for hertz in (300, 500)]
    for part, samples in zip(
        ("s1", "s2", "mix"), (*tones, sum(tones) + hum), strict=True
    ):
        soundfile.write(prepared / f"y-{part}.wav", samples, 8000)

    def pitch(samples: torch.Tensor) -> float:
        return torch.fft.rfft(samples).abs().argmax().item() * 8000 / len(samples)

    mixtures = read_prepared(prepared, speeds=[80, 125], seed=1)
    heard = set()
    for epoch in range(24):
        mixtures.set_epoch(epoch)
        _, mix, sources = mixtures[1]
        assert torch.equal(mix, mixtures[1].mix)
        speeds = tuple(
            round(pitch(source) / hertz, 2)
            for source, hertz in zip(sources.T, (300, 500), strict=True)
        )
        heard.add(speeds)
        assert len(mix) == len(sources) == 12000 / max(1, *speeds)
        assert pitch(mix - sources.sum(-1)) == pytest.approx(1000, abs=1)
    assert heard == {(0.8, 0.8), (0.8, 1.25), (1.25, 0.8), (1.25, 1.25)}


@pytest.mark.parametrize("speeds", [[95, 105], [80], [100]])
def test_segments_are_full_at_any_speed(prepared, speeds):
    mixtures = read_prepared(prepared, speeds=speeds, segment_seconds=1.0)
    for epoch in range(3):
        mixtures.set_epoch(epoch)
        assert len(mixtures[1].mix) == 8000


def test_augmented_mixtures_of_a_manifest_hold_their_noise_once(prepared):
    options = {"augmentations": ["equalise", "reverberate", "drop_chunks"]}
    whole, varied = read_prepared(prepared)[0], read_prepared(prepared, **options)[0]
    assert torch.equal(varied.mix, read_prepared(prepared, **options)[0].mix)
    gate = (varied.sources != 0).any(-1)
    assert 0 < (~gate).sum() < 7000
    noise = whole.mix - whole.sources.sum(-1)
    torch.testing.assert_close(
        varied.mix - varied.sources.sum(-1), noise * gate, atol=1e-5, rtol=0
    )
    options["augmentations"] = ["equalise", "reverberate"]
    voices = read_prepared(prepared, **options)[0].sources
    torch.testing.assert_close(voices.square().sum(0), whole.sources.square().sum(0))


def test_a_list_is_varied_as_well(corpus):
    mixtures = read_list(corpus, speeds=[125], augmentations=["change_gain"])
    id, mix, sources = mixtures[0]
    assert sources.shape == (6400, 2)
    torch.testing.assert_close(mix, sources.sum(-1))


def damage(kind, folder):
    """Breaks one file of mixture y; returns the file's name."""
    path = folder / ("y-mix.wav" if kind == "old" else "y-s2.wav")
    samples, rate = soundfile.read(path, dtype="int16")
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "rate":
        soundfile.write(path, samples, 2 * rate)
    elif kind == "shorter":
        soundfile.write(path, samples[:-1], rate)
    elif kind == "longer":
        soundfile.write(path, np.pad(samples, (0, 1)), rate)
    elif kind == "old":
        for part in ("mix", "s1", "s2"):
            soundfile.write(folder / f"y-{part}.wav", samples[:6000], rate)
    return path.name


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", "does not exist"),
        ("truncated", "is truncated"),
        ("rate", "is at 16000 Hz, but sample_rate is 8000"),
        ("shorter", "has 11999 samples, but its mixture .*y-mix.wav has 12000"),
        ("longer", "has 12001 samples"),
        ("old", "lasts 0.75 s, but 1.50 s in the manifest"),
    ],
)
def test_a_bad_file_of_a_manifest_is_named_at_the_start(prepared, kind, complaint):
    name = damage(kind, prepared)
    with pytest.raises(UserError, match=f"{name} {complaint}") as error:
        read_prepared(prepared)
    assert "\n" not in str(error.value)


def test_wrong_settings_for_a_manifest_are_named(prepared):
    with pytest.raises(UserError, match="2 source.* but num_spks is 3"):
        read_prepared(prepared, num_spks=3)
    with pytest.raises(UserError, match="at 8000 Hz, but sample_rate is 16000"):
        read_prepared(prepared, sample_rate=16000)
    with pytest.raises(UserError, match="segment_seconds is 0"):
        read_prepared(prepared, segment_seconds=0)
    with pytest.raises(UserError, match="none.csv does not exist"):
        ManifestDataset(prepared / "none.csv", num_spks=2, sample_rate=8000)


def test_a_streamed_wav_file_is_not_called_truncated(prepared):
    path = prepared / "y-s2.wav"
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[4:8] = data[place : place + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    assert read_prepared(prepared)[1].sources.shape == (12000, 2)


@pytest.mark.parametrize(("mode", "length"), [("min", 8000), ("max", 12000)])
def test_a_mixture_is_the_sum_of_gain_times_source(corpus, mode, length):
    id, mix, sources = read_list(corpus, mode=mode)[0]
    assert id == "a_b"
    assert mix.shape == (length,) and sources.shape == (length, 2)
    assert read_list(corpus, mode=mode).seconds == [length / 8000]
    torch.testing.assert_close(mix, sources.sum(-1))
    recorded, _ = soundfile.read(corpus / "a.flac", dtype="float32")
    torch.testing.assert_close(sources[:8000, 0], 0.5 * torch.from_numpy(recorded))
    assert not sources[8000:, 0].any()


def test_a_crop_is_a_part_of_the_mixture_and_can_be_drawn_again(corpus):
    whole = read_list(corpus)[0].mix
    crops = read_list(corpus, segment_seconds=0.25, seed=3)
    drawn = set()
    for epoch in range(5):
        crops.set_epoch(epoch)
        crop = crops[0].mix
        assert torch.equal(crop, crops[0].mix)
        starts = [s for s in range(6001) if torch.equal(crop, whole[s : s + 2000])]
        assert len(starts) == 1
        drawn.update(starts)
    assert len(drawn) == 5
    longer = read_list(corpus, segment_seconds=2.0)
    assert torch.equal(longer[0].mix, whole)


def test_a_batch_pads_at_the_end_and_keeps_the_lengths(corpus):
    short = read_list(corpus, segment_seconds=0.5)[0]
    long = read_list(corpus)[0]
    batch = MixtureBatch.collate([short, long])
    assert batch.lengths.tolist() == [4000, 8000]
    assert torch.equal(batch.mix[0, :4000], short.mix)
    assert not batch.sources[0, 4000:].any()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mixture_ID,source_1_path\nx,a.flac\n", "no column source_1_gain"),
        (HEADER, "has no rows"),
        (HEADER + "x,a.flac,1\n", "Line 2"),
        (HEADER + "x,a.flac,1,gone.flac,1\n", "gone.flac does not exist"),
        (HEADER + "x,a.flac,1,b.flac,loud\n", "'loud' of mixture x"),
        (HEADER.replace("source_2_gain", "gain") + "x,a.flac,1,b.flac,1\n", "_2_gain"),
    ],
)
def test_mistakes_in_a_list_are_named(corpus, text, complaint):
    (corpus / "mix.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_list(corpus)


def test_wrong_settings_are_named(corpus):
    with pytest.raises(UserError, match="2 sources per mixture, but num_spks is 3"):
        read_list(corpus, num_spks=3)
    with pytest.raises(UserError, match="mode is mean"):
        read_list(corpus, mode="mean")
    with pytest.raises(UserError, match="nowhere does not exist"):
        MixtureList(corpus / "mix.csv", corpus / "nowhere", 2, 8000)
    with pytest.raises(UserError, match="no.csv does not exist"):
        MixtureList(corpus / "no.csv", corpus, 2, 8000)


def test_lists_of_real_mixtures_agree_with_their_gains(shared):
    voices = shared / "voices"
    for spks in (2, 3):
        name = f"LibriMix-metadata/libri{spks}mix_dev-clean.csv"
        mixtures = MixtureList(
            voices / name, voices / "LibriSpeech", num_spks=spks, sample_rate=8000
        )
        assert len(mixtures) == {2: 150, 3: 60}[spks]
        id, mix, sources = mixtures[0]
        assert sources.shape == (len(mix), spks)
        # LibriMix's ids are the names of the sources.
        assert len(id.split("_")) == spks
        torch.testing.assert_close(mix, sources.sum(-1))
