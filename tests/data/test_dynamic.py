"""Dynamic mixing: who is drawn, from where, how loud, and always the same."""

from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from speechbrain_spgm.data import (
    BucketBatchSampler,
    DynamicMixing,
    MixtureBatch,
    UserError,
    find_noise,
    find_voices,
    read_voices,
)
from speechbrain_spgm.data.augment import MIXTURE, VOICES
from speechbrain_spgm.data.levels import loudness, mean_amplitude, power_db

PITCH = {"10": 300.0, "20": 500.0, "30": 800.0, "40": 1300.0}


@pytest.fixture
def folder(tmp_path, write_tone):
    """Four speakers; the first has ten times as much speech as the others."""
    for speaker, hertz in PITCH.items():
        for seconds in [3.0, 2.0, 5.0, 10.0] if speaker == "10" else [1.0, 1.0]:
            write_tone(speaker, hertz, seconds)
    write_tone("90", 200.0, 2.0, split="dev")
    return tmp_path


@pytest.fixture
def one_thread():
    """As workers have: more threads may round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mixing(folder, **options) -> DynamicMixing:
    settings = {"num_spks": 2, "sample_rate": 8000, "segment_seconds": 0.5, **options}
    return DynamicMixing(find_voices(folder, "train*"), **settings)


def pitch(source: torch.Tensor) -> float:
    """The strongest frequency of a source [T] at 8 kHz."""
    power = torch.fft.rfft(source).abs()
    return power.argmax().item() * 8000 / len(source)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")
def test_draws_depend_on_seed_epoch_and_index_only(folder, one_thread):
    def epoch(number, **options):
        workers = options.pop("workers", 0)
        dataset = mixing(folder, mixtures_per_epoch=6, speeds=[90, 110], **options)
        dataset.set_epoch(number)
        loader = DataLoader(
            dataset, batch_size=2, num_workers=workers, collate_fn=MixtureBatch.collate
        )
        return torch.cat([batch.sources for batch in loader])

    drawn = epoch(1, seed=5)
    assert drawn.shape == (6, 4000, 2)
    assert torch.equal(drawn, epoch(1, seed=5, workers=2))
    assert torch.equal(drawn, epoch(1, seed=5, cache_audio=True))
    assert not torch.equal(drawn, epoch(2, seed=5))
    assert not torch.equal(drawn, epoch(1, seed=6))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 1 worker")
def test_an_epoch_is_the_same_on_two_ranks_and_after_a_pause(folder):
    dataset = mixing(folder, mixtures_per_epoch=6)

    def batches(batch_size, start=0, workers=0, **ranks):
        sampler = BucketBatchSampler(dataset.seconds, batch_size, seed=3, **ranks)
        for counter in (dataset, sampler):
            counter.set_epoch(2)
        sampler.start(start)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=MixtureBatch.collate,
        )
        return [batch.mix for batch in loader]

    alone = batches(2)
    first, second = (batches(1, rank=rank, world_size=2) for rank in (0, 1))
    assert len(alone) == len(first) == len(second) == 3
    for step, halves in zip(alone, zip(first, second, strict=True), strict=True):
        assert torch.equal(step, torch.cat(halves))
    for workers in (0, 1):
        resumed = batches(2, start=2, workers=workers)
        assert len(resumed) == 1 and torch.equal(resumed[0], alone[2])


def test_workers_that_persist_see_a_new_epoch(folder):
    dataset = mixing(folder, mixtures_per_epoch=2)
    loader = DataLoader(
        dataset, num_workers=1, persistent_workers=True, collate_fn=MixtureBatch.collate
    )
    for number in (1, 2):
        dataset.set_epoch(number)
        from_worker = torch.cat([batch.mix for batch in loader])
        assert torch.equal(from_worker, torch.stack([dataset[0].mix, dataset[1].mix]))


def test_speakers_are_drawn_equally_and_never_with_themselves(folder):
    dataset = mixing(folder, mixtures_per_epoch=200)
    counts = Counter()
    for i in range(len(dataset)):
        id, _, sources = dataset[i]
        speakers = id.split("_")
        assert len(set(speakers)) == 2
        heard = [pitch(source) for source in sources.T]
        assert heard == pytest.approx([PITCH[s] for s in speakers], abs=3)
        counts.update(speakers)
    # 400 draws of 4 speakers: 100 each, standard deviation 7.
    assert all(75 < counts[speaker] < 125 for speaker in PITCH)


def test_every_second_of_a_speaker_is_as_likely(folder, write_tone):
    write_tone("50", 600.0, 1.0)
    write_tone("50", 900.0, 9.0)
    voices = [v for v in find_voices(folder, "train") if v.speaker in ("20", "50")]
    dataset = DynamicMixing(voices, 2, 8000, 0.5, mixtures_per_epoch=200)
    mixtures = [dataset[i] for i in range(200)]
    heard = [pitch(m.sources[:, m.id.split("_").index("50")]) for m in mixtures]
    assert 5 < sum(h < 750 for h in heard) < 40  # 20 expected


def test_speakers_may_be_drawn_by_how_much_speech_they_have(folder):
    dataset = mixing(folder, mixtures_per_epoch=300, speaker_power=0.5)
    counts = Counter(s for i in range(300) for s in dataset[i].id.split("_"))
    # 20 s and three times 2 s: the chances of one draw are 3.16 to 1 to 1 to 1.
    first, others = 3.162 / 6.162, 1 / 6.162
    expected = first + 3 * others * first / (1 - others)  # of two without replacement
    assert counts["10"] == pytest.approx(300 * expected, abs=25)
    for power in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=f"speaker_power is {power}, but must be"):
            mixing(folder, speaker_power=power)


def test_short_recordings_are_joined_to_fill_the_crop(folder, write_tone):
    for hertz in (600.0, 700.0, 900.0):
        write_tone("50", hertz, 0.3)
    write_tone("60", 1500.0, 5.0)
    voices = [v for v in find_voices(folder, "train") if v.speaker in ("50", "60")]

    def sources(speaker: str, **options) -> list[torch.Tensor]:
        dataset = DynamicMixing(
            voices, 2, 8000, 2.0, mixtures_per_epoch=20, speeds=[80, 100], **options
        )
        mixtures = [dataset[i] for i in range(20)]
        return [m.sources[:, m.id.split("_").index(speaker)] for m in mixtures]

    for alone, joined in zip(
        sources("50"), sources("50", join_recordings=True), strict=True
    ):
        assert len(joined) == 16000
        assert longest_silence(alone) >= (2 - 0.375) / 2 - 0.01  # at its ends
        assert longest_silence(joined) <= 0.41  # the longest pause
    heard = {round(pitch(voice), -1) for voice in sources("50", join_recordings=True)}
    assert len(heard) > 2
    for voice in sources("60", join_recordings=True):
        assert (
            longest_silence(voice) < 0.01
            and min(abs(pitch(voice) - hertz) for hertz in (1200, 1500)) < 3
        )


def test_all_recordings_are_joined_before_one_is_heard_again(
    tmp_path, write_tone, monkeypatch
):
    for hertz in (400.0, 700.0, 1000.0, 1300.0):
        write_tone("50", hertz, 0.5)
    write_tone("60", 2000.0, 5.0)
    dataset = DynamicMixing(
        find_voices(tmp_path, "train"), 2, 8000, 3.0, join_recordings=True
    )
    files, heard, read = dataset.files["50"], [], dataset._at_speed
    monkeypatch.setattr(
        dataset,
        "_at_speed",
        lambda file, *where: heard.append(file) or read(file, *where),
    )
    for seed in range(20):
        heard.clear()
        dataset._joined(files[0], files, 100, np.random.default_rng(seed))
        assert len(heard) > 4 and len({file.path for file in heard[:4]}) == 4


def longest_silence(source: torch.Tensor) -> float:
    """Seconds of a source [T] at 8 kHz without sound."""
    loud = np.flatnonzero(source.abs() > 1e-3)
    return np.diff(loud, prepend=-1, append=len(source)).max() / 8000


def test_levels_are_in_range_and_nothing_clips(folder):
    dataset = mixing(folder, loudness_db=(-30, -20))
    levels = [
        loudness(source.numpy(), 8000)
        for i in range(40)
        for source in dataset[i].sources.T
    ]
    assert -30.01 < min(levels) < -28 and -22 < max(levels) < -19.99
    loud = mixing(folder, loudness_db=(0, 0))
    for i in range(5):
        _, mix, sources = loud[i]
        assert max(mix.abs().max(), sources.abs().max()) == pytest.approx(0.9)
        torch.testing.assert_close(mix, sources.sum(-1))


@pytest.mark.parametrize("cache_audio", [False, True])
def test_recordings_that_are_quiet_throughout_are_levelled(tmp_path, cache_audio):
    for speaker, hertz in PITCH.items():
        place = tmp_path / "train" / speaker
        place.mkdir(parents=True)
        tone = 5e-4 * np.sin(2 * np.pi * hertz * np.arange(16000) / 8000)
        soundfile.write(place / "0.wav", tone, 8000)
    dataset = mixing(tmp_path, cache_audio=cache_audio)
    levels = [
        loudness(source.numpy(), 8000)
        for i in range(10)
        for source in dataset[i].sources.T
    ]
    assert -33.01 < min(levels) and max(levels) < -24.99


@pytest.mark.parametrize("peak", [3.0, 1e-3])
def test_the_cache_holds_what_16_bits_do_not(tmp_path, peak):
    for speaker in "12":
        place = tmp_path / "train" / speaker
        place.mkdir(parents=True)
        wave = peak * np.random.default_rng(0).uniform(-1, 1, 16000)
        soundfile.write(place / "0.wav", wave, 8000, "FLOAT")
    read = mixing(tmp_path)[0].mix
    assert torch.allclose(mixing(tmp_path, cache_audio=True)[0].mix, read, atol=1e-5)


def test_a_pause_of_a_recording_is_not_raised(tmp_path):
    for speaker in PITCH:
        place = tmp_path / "train" / speaker
        place.mkdir(parents=True)
        wave = 3e-4 * np.random.default_rng(0).standard_normal(80000)
        wave[:80] += 0.1  # the rest is a pause with its noise
        soundfile.write(place / "0.wav", wave, 8000)
    dataset = mixing(tmp_path)
    assert min(dataset[i].sources.abs().max() for i in range(5)) < 0.01


def test_the_same_file_twice_makes_no_longer_epoch(folder):
    voices = find_voices(folder, "train")
    options = {"num_spks": 2, "sample_rate": 8000, "segment_seconds": 0.5}
    assert len(DynamicMixing([*voices, *voices], **options)) == len(voices)


def test_levels_of_wsj0mix(folder):
    dataset = mixing(folder, levels="wsj0mix")
    first, second, peaks = [], [], []
    for i in range(60):
        _, mix, sources = dataset[i]
        levels = [mean_amplitude(source.numpy(), 8000) for source in sources.T]
        first.append(levels[0])
        second.append(levels[1])
        peaks.append(max(mix.abs().max(), sources.abs().max()).item())
    assert peaks == pytest.approx([0.9] * 60)
    differences = np.subtract(second, first)
    # Normal, mean -2.51 and standard deviation 2.66: of 60, 0.34 and 0.24.
    assert abs(differences.mean() + 2.51) < 1.2
    assert abs(differences.std() - 2.66) < 0.9


@pytest.fixture
def noise(tmp_path):
    """Two noises: stereo at 16 kHz with a silent right channel, and a short mono."""
    rng = np.random.default_rng(0)
    place = tmp_path / "noise" / "deep"
    place.mkdir(parents=True)
    long = rng.uniform(-0.01, 0.01, (32000, 1)) * [1, 0]
    soundfile.write(place / "long.wav", long, 16000)
    soundfile.write(place / "short.flac", rng.uniform(-0.001, 0.001, 1000), 8000)
    return place.parent


@pytest.mark.parametrize("kind", ["loudness", "snr"])
def test_noise_is_in_the_mixture_and_in_no_source(folder, noise, kind):
    options = {"noise": find_noise(noise), "segment_seconds": 1.0}
    if kind == "snr":
        options["noise_snr_db"] = (5, 10)
    dataset = mixing(folder, **options)
    measured = []
    for i in range(30):
        _, mix, sources = dataset[i]
        assert sources.shape == (8000, 2)
        added = (mix - sources.sum(-1)).numpy()
        if kind == "snr":
            measured.append(power_db(sources.sum(-1).numpy()) - power_db(added))
        else:
            measured.append(loudness(added, 8000))
    low, high = (5, 10) if kind == "snr" else (-38, -30)
    assert low - 0.1 < min(measured) < low + 2 and high - 2 < max(measured) < high + 0.1
    assert torch.equal(dataset[3].mix, mixing(folder, **options)[3].mix)


def test_a_share_of_the_mixtures_has_noise(folder, noise):
    options = {"noise": find_noise(noise), "segment_seconds": 0.5}
    dataset = mixing(folder, noise_share=0.25, **options)
    drawn = [dataset[i] for i in range(200)]
    noisy = [not torch.allclose(x.mix, x.sources.sum(-1), atol=1e-6) for x in drawn]
    assert 30 <= sum(noisy) <= 70  # of 200, with a standard deviation of 6
    assert torch.equal(
        mixing(folder, noise_share=0.0, **options)[3].sources,
        mixing(folder, segment_seconds=0.5)[3].sources,
    )


@pytest.mark.parametrize("share", [1.5, -0.1, float("nan")])
def test_a_share_of_noise_that_is_none_is_refused(folder, share):
    with pytest.raises(UserError, match=f"noise_share is {share}, but must be from 0"):
        mixing(folder, noise_share=share)


def test_linked_folders_of_noise_are_searched(noise, tmp_path):
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "linked").symlink_to(noise)
    (tmp_path / "n" / "loop").symlink_to(tmp_path / "n")
    assert len(find_noise(tmp_path / "n")) == len(find_noise(noise))


def test_a_quote_without_its_end_takes_no_voices(folder):
    manifest = folder / "voices.csv"
    manifest.write_text('path,speaker\ntrain/10/1/0.flac,"10\ntrain/20/1/0.flac,20\n')
    with pytest.raises(UserError, match="is not a CSV file: unexpected end of data"):
        read_voices(manifest)


def test_a_split_of_librispeech_given_itself_has_its_speakers(tmp_path):
    place = tmp_path / "train-clean-100" / "19" / "198"
    place.mkdir(parents=True)
    soundfile.write(place / "19-198-0000.flac", np.full(800, 0.1), 8000)
    for given in (tmp_path, tmp_path / "train-clean-100"):
        assert [voice.speaker for voice in find_voices(given, "*")] == ["19"]


def test_noise_from_a_list(noise):
    (noise / "noise.csv").write_text("path,split\ndeep/short.flac,train\nx.wav,test\n")
    assert [file.path.name for file in find_noise(noise / "noise.csv")] == [
        "short.flac"
    ]
    assert len(find_noise(noise)) == 2
    for wrong in ("deep/nothing", "none.csv"):
        with pytest.raises(UserError, match="no noise recording"):
            find_noise(noise / wrong)


def test_augmented_mixtures_are_sums_and_can_be_drawn_again(folder, noise):
    options = {
        "augmentations": [*VOICES, *MIXTURE],
        "noise": find_noise(noise),
        "speeds": [95, 105],
    }
    dataset = mixing(folder, **options)
    for i in range(5):
        _, mix, sources = dataset[i]
        again = mixing(folder, **options)[i]
        assert torch.equal(mix, again.mix) and torch.equal(sources, again.sources)
        assert mix.dtype == torch.float32 and mix.isfinite().all()
    without = mixing(folder, **{**options, "noise": ()})[0]
    torch.testing.assert_close(without.mix, without.sources.sum(-1))
    assert not torch.equal(without.sources, mixing(folder, speeds=[95, 105])[0].sources)


def test_wsj0_folders(tmp_path):
    for speaker, name in (
        ("011", "011a0101"),
        ("011", "011a0102"),
        ("01a", "01aa0101"),
    ):
        place = tmp_path / "si_tr_s" / speaker
        place.mkdir(parents=True, exist_ok=True)
        soundfile.write(place / f"{name}.wav", np.zeros(800), 16000)
    voices = find_voices(tmp_path, "si_tr_s")
    assert [voice.speaker for voice in voices] == ["011", "011", "01a"]
    assert find_voices(tmp_path / "si_tr_s", "si_tr_s") == voices  # the split itself
    assert find_voices(tmp_path / "si_tr_s", ["si_*"]) == voices
    with pytest.raises(UserError, match="si_dt_05"):
        find_voices(tmp_path / "si_tr_s", "si_dt_05")
    other = tmp_path / "si_et_05" / "440"
    other.mkdir(parents=True)
    (other / "440c0201.wv1").write_bytes(b"NIST_1A")
    with pytest.raises(UserError, match="convert .*wv1"):
        find_voices(tmp_path, "si_et_05")


def test_a_short_recording_stands_somewhere_in_silence(folder):
    dataset = mixing(folder, segment_seconds=1.5)
    starts = set()
    for i in range(20):
        id, _, sources = dataset[i]
        assert sources.shape == (12000, 2)
        for speaker, source in zip(id.split("_"), sources.T, strict=True):
            if speaker != "10":  # the others have 1 s: 8000 samples, the first is 0
                sounding = source.nonzero()
                assert 7990 <= sounding.max() - sounding.min() < 8000
                starts.add(sounding.min().item())
    assert len(starts) > 10 and max(starts) - min(starts) > 2000


def test_silent_crops_are_drawn_again(tmp_path, write_tone):
    write_tone("1", 300.0, 2.0)
    path = write_tone("2", 500.0, 2.0)
    samples, rate = soundfile.read(path)
    soundfile.write(path, np.pad(samples, (0, len(samples))), rate)
    dataset = mixing(tmp_path)
    quiet = [dataset[i].sources.square().mean(0).min().item() for i in range(40)]
    assert min(quiet) > 0  # 3 of 7 single draws would be silent


def test_a_speaker_without_sound_gives_silence(tmp_path, write_tone):
    write_tone("1", 300.0, 2.0)
    soundfile.write(write_tone("2", 500.0, 2.0), np.zeros(16000), 8000)
    id, mix, sources = mixing(tmp_path)[0]
    assert not sources[:, id.split("_").index("2")].any()
    assert mix.isfinite().all() and mix.any()


def test_a_manifest_adds_its_training_speakers_only(folder, write_tone):
    write_tone("10", 300.0, 1.0, split="other")
    rows = ["train/10/1/0.flac,10,train", "other/10/1/0.flac,10,train"]
    rows += ["dev/90/1/0.flac,90,dev"]
    manifest = folder / "voices.csv"
    manifest.write_text("\n".join(["path,speaker,split", *rows]) + "\n")
    known = find_voices(folder, "train")
    dataset = DynamicMixing(known + read_voices(manifest), 2, 8000, 0.5)
    assert dataset.speakers == set(PITCH)
    # The file that the folder has as well counts once.
    assert len(dataset.files["10"]) == 4 + 1
    manifest.write_text("path,name\nx.flac,y\n")
    with pytest.raises(UserError, match="no column speaker"):
        read_voices(manifest)


def test_wrong_input_is_named(folder):
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_voices(folder / "nowhere")
    with pytest.raises(UserError, match="test-other"):
        find_voices(folder, ["train", "test-other"])
    with pytest.raises(UserError, match="4 speaker.* needs 5"):
        mixing(folder, num_spks=5)
    for options, message in [
        ({"segment_seconds": 0}, "above 0"),
        ({"mixtures_per_epoch": 0}, "above 0"),
        ({"levels": "loud"}, "no level rule loud: choose librimix or wsj0mix"),
        ({"loudness_db": (-20, -30)}, "loudness_db is .* lowest"),
        ({"augmentations": {"echo": 1}}, "no augmentation echo: choose from shift"),
        ({"augmentations": {"shift": 2}}, "probability of shift is 2"),
    ]:
        with pytest.raises(UserError, match=message):
            mixing(folder, **options)
    (folder / "train" / "40" / "1" / "9.flac").write_text("no audio")
    with pytest.raises(UserError, match="9.flac"):
        mixing(folder)


def test_the_sampler_learns_the_durations(folder):
    assert mixing(folder, mixtures_per_epoch=3).seconds == [0.5, 0.5, 0.5]


def test_four_speakers(folder):
    id, mix, sources = mixing(folder, num_spks=4)[0]
    assert sorted(id.split("_")) == sorted(PITCH)
    torch.testing.assert_close(mix, sources.sum(-1))
