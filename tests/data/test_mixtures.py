"""Mixture lists: sums and lengths are right, mistakes in a list are named."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_spgm.data import MixtureBatch, MixtureList, UserError

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


@pytest.mark.parametrize(("mode", "length"), [("min", 8000), ("max", 12000)])
def test_a_mixture_is_the_sum_of_gain_times_source(corpus, mode, length):
    id, mix, sources = read_list(corpus, mode=mode)[0]
    assert id == "a_b"
    assert mix.shape == (length,) and sources.shape == (length, 2)
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
