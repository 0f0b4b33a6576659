import tracemalloc

import numpy as np
import pytest

from input_pipeline.pairs.order import KeyedPlan, key_of, permutation
from ivt_jax.common.errors import UserError

MASK = (1 << 64) - 1


def mix(z):
    """SplitMix64's finaliser in Python's integers."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def slow_permutation(index, count, key):
    width = (count - 1).bit_length()
    low_bits = width // 2
    while True:
        low, high = index & (1 << low_bits) - 1, index >> low_bits
        for number in range(8):
            low ^= mix((key + number * 0x9E3779B97F4A7C15 & MASK) ^ high) & (1 << low_bits) - 1
            high ^= mix(((key ^ MASK) + number * 0x9E3779B97F4A7C15 & MASK) ^ low) & (1 << width - low_bits) - 1
        index = high << low_bits | low
        if index < count:
            return index


@pytest.mark.parametrize("count", [*range(1, 70), 127, 128, 129, 1000, 4097])
def test_every_index_has_one_place(count):
    places = permutation(np.arange(count), count, key_of(7, count))
    assert places.dtype == np.int64
    np.testing.assert_array_equal(np.sort(places), np.arange(count))


@pytest.mark.parametrize("count", [1, 2, 5, 1000, 100_000_000, (1 << 40) + 3])
def test_places_are_those_of_pythons_integers(count):
    indices, key = np.unique(np.linspace(0, count - 1, 25).astype(np.int64)), key_of(1, 2)
    expected = [slow_permutation(int(index), count, int(key)) for index in indices]
    assert permutation(indices, count, key).tolist() == expected


def test_the_order_never_changes_between_versions():
    """Runs resume in the middle of an epoch: these numbers are fixed for good."""
    assert int(key_of(3, 1)) == 10320916663971271344
    assert permutation(np.arange(5), 100_000_000, key_of(3, 1)).tolist() == [
        11992649, 47104652, 1387943, 2965311, 42124972,
    ]  # fmt: skip


def chi_square(counts):
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_first_places_and_neighbours_are_uniform():
    count, keys = 11, np.array([key_of(0, epoch) for epoch in range(4400)])
    first, second = (permutation(np.full(len(keys), i), count, keys) for i in (0, 1))
    # 10 degrees of freedom: above 29.6 with probability 0.001; 109: above 159.
    assert chi_square(np.bincount(first, minlength=count)) < 29.6
    both = np.bincount(first * count + second, minlength=count**2).reshape(count, count)
    assert np.trace(both) == 0
    assert chi_square(both[~np.eye(count, dtype=bool)]) < 159
    # In one long permutation: the step from one place to the next, in 20 bins.
    places = permutation(np.arange(20_000), 20_000, key_of(5))
    steps = (np.diff(places) % 20_000) // 1000
    assert chi_square(np.bincount(steps, minlength=20)) < 43.8  # 19 degrees of freedom


def test_other_keys_give_other_orders():
    orders = {tuple(permutation(np.arange(50), 1000, key_of(seed, epoch))) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert len({int(key_of(*numbers)) for numbers in [(1,), (1, 0), (0, 1), (10,), (1 << 32, 0), (0, 1 << 32)]}) == 6


def test_a_hundred_million_pairs_take_no_memory():
    plan = KeyedPlan([100_000_000], 64, seed=2)
    tracemalloc.start()
    batches = [plan.rows(step)[2] for step in (0, 1, 1_562_499, 1_562_500, 10**9)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    assert all(batch.min() >= 0 and batch.max() < 100_000_000 for batch in batches)


def test_an_epoch_has_every_pair_once():
    plan = KeyedPlan([7, 13], 4, seed=3)
    assert plan.epoch_starts(3).tolist() == [0, 5, 10, 15]
    assert plan.locate(12) == (2, 2)
    epochs = [np.concatenate([plan.rows(step)[2] for step in range(5 * e, 5 * e + 5)]) for e in range(2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
    assert not np.array_equal(*epochs)
    epoch, first, pairs = plan.rows(8)
    assert (epoch, first) == (1, 12)
    np.testing.assert_array_equal(pairs, epochs[1][12:16])


def test_an_incomplete_last_batch_is_dropped():
    plan = KeyedPlan([10], 4)
    assert plan.epoch_starts(2).tolist() == [0, 2, 4]
    assert len({*plan.rows(2)[2], *plan.rows(3)[2]}) == 8


def test_weights_share_an_epoch_and_pass_through_each_source_in_turn():
    """Of 30 rows, a source of 4 pairs gets two thirds: five passes. One of 26 gets 10 rows, all different."""
    plan = KeyedPlan([4, 26], 30, seed=1, weights=[2, 1])
    for step in range(3):
        epoch, first, pairs = plan.rows(step)
        assert (epoch, first) == (step, 0)
        assert np.bincount(pairs, minlength=30)[:4].tolist() == [5] * 4
        assert sorted(np.bincount(pairs, minlength=30)[4:]) == [0] * 16 + [1] * 10
    # The passes of one epoch have different orders: position j of the source is known by undoing the mix.
    mixed = permutation(np.arange(30), 30, key_of(1, 0))
    in_order = plan.rows(0)[2][np.argsort(mixed)][:20].reshape(5, 4)
    assert (np.sort(in_order, 1) == np.arange(4)).all()
    assert len({tuple(order) for order in in_order.tolist()}) > 1


def test_weights_may_have_any_sum():
    np.testing.assert_array_equal(
        KeyedPlan([5, 7], 12, 0, [1, 3]).rows(0)[2], KeyedPlan([5, 7], 12, 0, [10, 30]).rows(0)[2]
    )
    counts = np.bincount(KeyedPlan([5, 7], 12, 0, [1, 3]).rows(0)[2] >= 5)
    assert counts.tolist() == [3, 9]


def test_too_few_pairs_for_a_batch_are_an_error():
    with pytest.raises(UserError, match=r"batch_size 9 is more than the 8 .* Lower data.batch_size"):
        KeyedPlan([3, 5], 9)
