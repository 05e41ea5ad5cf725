"""Dynamic mixing: who is drawn, from where, how loud, and always the same."""

from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from speechbrain_spgm.data import (
    DynamicMixing,
    MixtureBatch,
    UserError,
    find_voices,
    read_voices,
)
from speechbrain_spgm.data.dynamic import active_level_db

PITCH = {"10": 300.0, "20": 500.0, "30": 800.0, "40": 1300.0}


@pytest.fixture
def folder(tmp_path, write_tone):
    """Four speakers; the first has ten times as much speech as the others."""
    for speaker, hertz in PITCH.items():
        for seconds in [3.0, 2.0, 5.0, 10.0] if speaker == "10" else [1.0, 1.0]:
            write_tone(speaker, hertz, seconds)
    write_tone("90", 200.0, 2.0, split="dev")
    return tmp_path


def mixing(folder, **options) -> DynamicMixing:
    settings = {"num_spks": 2, "sample_rate": 8000, "segment_seconds": 0.5, **options}
    return DynamicMixing(find_voices(folder, "train*"), **settings)


def pitch(source: torch.Tensor) -> float:
    """The strongest frequency of a source [T] at 8 kHz."""
    power = torch.fft.rfft(source).abs()
    return power.argmax().item() * 8000 / len(source)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")
def test_draws_depend_on_seed_epoch_and_index_only(folder):
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


def test_levels_are_in_range_and_nothing_clips(folder):
    dataset = mixing(folder, loudness_db=(-30, -20))
    levels = [
        active_level_db(source, 8000)
        for i in range(40)
        for source in dataset[i].sources.T
    ]
    assert -30.01 < min(levels) < -28 and -22 < max(levels) < -19.99
    loud = mixing(folder, loudness_db=(0, 0))
    for i in range(5):
        _, mix, sources = loud[i]
        assert max(mix.abs().max(), sources.abs().max()) == pytest.approx(0.9)
        torch.testing.assert_close(mix, sources.sum(-1))


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
    with pytest.raises(UserError, match="above 0"):
        mixing(folder, segment_seconds=0)
    (folder / "train" / "40" / "1" / "9.flac").write_text("no audio")
    with pytest.raises(UserError, match="9.flac"):
        mixing(folder)


def test_four_speakers(folder):
    id, mix, sources = mixing(folder, num_spks=4)[0]
    assert sorted(id.split("_")) == sorted(PITCH)
    torch.testing.assert_close(mix, sources.sum(-1))
