"""Batches: of similar duration, whole, and the same on any number of ranks."""

from itertools import chain

import numpy as np
import pytest

from speechbrain_spgm.data import BucketBatchSampler, UserError

SECONDS = np.random.default_rng(0).uniform(1, 12, 1000).tolist()


def epochs(seconds=SECONDS, *, epoch=1, world_size=1, **options) -> list:
    """The batches of every rank, one list a rank."""
    ranks = []
    for rank in range(world_size):
        sampler = BucketBatchSampler(
            seconds, rank=rank, world_size=world_size, **options
        )
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(sampler) == len(ranks[-1])
    return ranks


def steps(ranks: list) -> list:
    """What all ranks take together in each step, in the order of the ranks."""
    return [list(chain(*batches)) for batches in zip(*ranks, strict=True)]


@pytest.mark.parametrize("number", [1, 3, 7, 16, 1000])
def test_a_step_takes_the_same_utterances_on_any_number_of_ranks(number):
    seconds = SECONDS[:number]
    expected = steps(epochs(seconds, batch_size=12))
    for world_size in (2, 3, 4, 12):
        ranks = epochs(seconds, batch_size=12 // world_size, world_size=world_size)
        assert steps(ranks) == expected
    # Accumulation: twelve batches of one utterance are a step of twelve.
    single = steps(epochs(seconds, batch_size=1))
    assert list(chain(*single)) == list(chain(*expected))[:number]


@pytest.mark.parametrize("options", [{"batch_size": 8}, {"max_batch_seconds": 20.0}])
def test_the_order_depends_on_seed_and_epoch(options):
    first = epochs(epoch=1, seed=3, **options)
    assert first == epochs(epoch=1, seed=3, **options)
    assert first != epochs(epoch=2, seed=3, **options)
    assert first != epochs(epoch=1, seed=4, **options)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("number", [1, 2, 9, 100])
@pytest.mark.parametrize("limits", [(8, None), (None, 20.0), (3, 20.0)])
def test_training_sees_all_with_equally_many_steps(world_size, number, limits):
    batch_size, most = limits
    ranks = epochs(
        SECONDS[:number],
        batch_size=batch_size,
        max_batch_seconds=most,
        world_size=world_size,
    )
    assert len({len(batches) for batches in ranks}) == 1
    seen = list(chain(*steps(ranks)))
    assert set(seen) == set(range(number))
    # What comes twice fills the last step, from the beginning.
    assert sorted(seen[:number]) == list(range(number))
    if number == 100:
        assert seen[number:] == seen[: len(seen) - number]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"max_batch_seconds": 1.0}])
def test_training_in_a_fixed_order_keeps_ranks_together(options):
    ranks = epochs(SECONDS[:5], shuffle=False, even=True, world_size=2, **options)
    assert len({len(batches) for batches in ranks}) == 1
    seen = list(chain(*steps(ranks)))
    assert set(seen) == set(range(5)) and len(seen) > 5
    assert seen[0] == int(np.argmax(SECONDS[:5]))


@pytest.mark.parametrize("world_size", [1, 3, 7])
@pytest.mark.parametrize("number", [1, 5, 100])
@pytest.mark.parametrize("options", [{"batch_size": 8}, {"max_batch_seconds": 20.0}])
def test_evaluation_sees_all_exactly_once(world_size, number, options):
    seconds = SECONDS[:number]
    ranks = epochs(seconds, shuffle=False, world_size=world_size, **options)
    batches = list(chain(*ranks))
    assert sorted(chain(*batches)) == list(range(number))
    for batch in batches:  # the longest first
        assert [seconds[i] for i in batch] == sorted(
            (seconds[i] for i in batch), reverse=True
        )


def test_audio_of_a_batch_is_limited():
    seconds = [*SECONDS, 50.0, 20.0]
    (batches,) = epochs(seconds, max_batch_seconds=20.0)
    totals = [sum(seconds[i] for i in batch) for batch in batches]
    for batch, total in zip(batches, totals, strict=True):
        assert total <= 20 or batch == [1000]
    assert np.mean(totals) > 14
    (batches,) = epochs(seconds, max_batch_seconds=20.0, batch_size=2)
    assert max(len(batch) for batch in batches) == 2


@pytest.mark.parametrize("size", [4, 6, 16])
def test_batches_hold_little_padding_and_come_in_random_order(size):
    (batches,) = epochs(batch_size=size)
    lengths = [[SECONDS[i] for i in batch] for batch in batches]
    padded = sum(max(batch) * len(batch) for batch in lengths)
    assert padded / sum(map(sum, lengths)) < 1.12  # 1.6 and more without buckets
    means = [np.mean(batch) for batch in lengths]
    thirds = [np.mean(part) for part in np.array_split(means, 3)]
    assert max(thirds) - min(thirds) < 3.5
    (later,) = epochs(batch_size=size, epoch=2)
    together = {frozenset(batch) for batch in batches}
    assert len(together & {frozenset(batch) for batch in later}) <= 2


def test_equal_durations_are_plainly_shuffled():
    sampler = BucketBatchSampler([3.0] * 5, batch_size=5)
    drawn = np.zeros((5, 5))
    for epoch in range(500):
        sampler.set_epoch(epoch)
        (order,) = sampler
        drawn[order, np.arange(5)] += 1
    # Every utterance comes at every place 100 times, standard deviation 9.
    assert np.abs(drawn - 100).max() < 40


def test_a_start_in_the_middle_holds_for_one_iteration():
    sampler = BucketBatchSampler(SECONDS, batch_size=8)
    whole = list(sampler)
    sampler.start(5)
    iter(sampler)  # as a DataLoader with workers does, to no end
    assert list(sampler) == whole[5:]
    assert list(sampler) == whole
    assert len(sampler) == len(whole)


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match="no utterance"):
        BucketBatchSampler([], batch_size=1)
    with pytest.raises(UserError, match="batch_size or max_batch_seconds"):
        BucketBatchSampler([1.0])
    with pytest.raises(UserError, match="batch_size is 0"):
        BucketBatchSampler([1.0], batch_size=0)
    with pytest.raises(UserError, match="max_batch_seconds is -1"):
        BucketBatchSampler([1.0], max_batch_seconds=-1)
