import numpy as np
import pytest

from input_pipeline.sampling import EpochPlans, keyed_rng, traded_captions
from ivt_jax.common.errors import UserError

# Persons 0..7 with 1, 2, 3, 4, 5, 8, 9 and 12 pairs, in mixed order.
PERSONS = np.random.default_rng(0).permutation(np.repeat(np.arange(8), [1, 2, 3, 4, 5, 8, 9, 12]))


def batches(plans, epoch):
    return plans.epoch(epoch).reshape(-1, plans.batch_size)


def test_uniform_epochs_are_permutations_that_differ():
    plans = EpochPlans(np.arange(60) // 3, 12, "uniform", seed=5)
    orders = [plans.epoch(e) for e in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(60))
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])


def test_uniform_drops_the_incomplete_batch():
    order = EpochPlans(np.arange(10), 4, "uniform").epoch(0)
    assert len(order) == 8 == len(set(order))


def test_identity_batches_hold_p_persons_with_k_pairs_each():
    plans = EpochPlans(PERSONS, 12, "identity", instances=4, seed=1)
    for epoch in range(20):
        for batch in batches(plans, epoch):
            groups = PERSONS[batch].reshape(3, 4)
            assert (groups == groups[:, :1]).all()
            assert len(set(groups[:, 0])) == 3


def test_identity_uses_each_pair_once_except_where_a_person_has_too_few():
    plans = EpochPlans(PERSONS, 12, "identity", instances=4, seed=1)
    for epoch in range(20):
        pairs, counts = np.unique(plans.epoch(epoch), return_counts=True)
        repeated = PERSONS[pairs[counts > 1]]
        assert (np.bincount(PERSONS)[repeated] < 4).all()


def test_identity_stops_only_when_fewer_than_p_persons_have_groups_left():
    groups = np.array([1, 1, 1, 1, 1, 2, 2, 3])  # of PERSONS' counts 1, 2, 3, 4, 5, 8, 9, 12 in fours, at least one
    plans = EpochPlans(PERSONS, 12, "identity", instances=4, seed=2)
    lengths = set()
    for epoch in range(50):
        given = np.bincount(PERSONS[plans.epoch(epoch)], minlength=8) // 4
        left = groups - given
        assert (left >= 0).all() and (left > 0).sum() < 3
        lengths.add(len(batches(plans, epoch)))
    assert lengths == {3, 4}  # 12 groups, of which the last may be those of one or two persons


def test_identity_by_hand_when_every_person_is_drawn():
    """Two persons with 4 and 8 pairs, P = 2: one batch, person 0's four and some four of person 1's."""
    persons = np.array([0] * 4 + [1] * 8)
    seen = set()
    for epoch in range(40):
        (batch,) = batches(EpochPlans(persons, 8, "identity", instances=4), epoch)
        by_person = {persons[group[0]]: set(group) for group in batch.reshape(2, 4)}
        assert by_person[0] == {0, 1, 2, 3}
        assert len(by_person[1]) == 4 and by_person[1] <= set(range(4, 12))
        seen |= by_person[1]
    assert seen == set(range(4, 12))


def test_the_released_batch_by_hand():
    """P = 7 and K = 4 make 28. Seven persons with 8, 9, 11 pairs: two groups each, so two batches, in each of which
    everybody gives four pairs; of 8 pairs none is left, of 9 one, of 11 three."""
    counts = [8, 9, 11, 8, 8, 8, 8]
    persons = np.repeat(np.arange(7), counts)
    for epoch in range(5):
        order = batches(EpochPlans(persons, 28, "identity", instances=4, seed=1234), epoch)
        assert order.shape == (2, 28)
        for batch in order:
            assert sorted(persons[batch].tolist()) == sorted([*range(7)] * 4)
        used = np.bincount(persons[np.unique(order)], minlength=7)
        assert used.tolist() == [8] * 7 and len(np.unique(order)) == 56
    one_more = np.repeat(np.arange(8), [4] * 8)  # eight groups: one batch, and one person waits for the next epoch
    assert batches(EpochPlans(one_more, 28, "identity", instances=4, seed=1234), 0).shape == (1, 28)


def test_a_person_with_too_few_pairs_draws_each_of_them_with_replacement():
    """Two pairs, four draws: 0 to 4 of them are the first pair, in 1, 4, 6, 4 and 1 of 16 epochs."""
    plans = EpochPlans(np.array([0, 0, 1, 1, 1, 1]), 8, "identity", instances=4)
    firsts = [int((plans.epoch(epoch) == 0).sum()) for epoch in range(2000)]
    assert all(int((plans.epoch(epoch) < 2).sum()) == 4 for epoch in range(50))
    for count, share in enumerate(np.array([1, 4, 6, 4, 1]) / 16):
        deviation = np.sqrt(2000 * share * (1 - share))
        assert abs(firsts.count(count) - 2000 * share) < 5 * deviation


def test_persons_of_a_first_batch_are_drawn_uniformly():
    persons = np.repeat(np.arange(6), 4)
    plans = EpochPlans(persons, 8, "identity", instances=4)
    drawn = np.bincount(np.concatenate([persons[batches(plans, e)[0][::4]] for e in range(3000)]))
    # 3000 draws of 2 of 6: each person 1000 +- 26 times; 5 standard deviations.
    assert np.abs(drawn - 1000).max() < 130


def slow_identity_lengths(counts, P, K, epochs):
    """Batches per epoch by the literal procedure, with another generator."""
    rng = np.random.default_rng(99)
    lengths = []
    for _ in range(epochs):
        left = {person: max(count // K, 1) for person, count in enumerate(counts)}
        batches = 0
        while len(left) >= P:
            for person in rng.choice(list(left), P, replace=False):
                left[person] -= 1
                if not left[person]:
                    del left[person]
            batches += 1
        lengths.append(batches)
    return np.array(lengths)


def test_lengths_are_distributed_as_those_of_the_literal_procedure():
    counts = np.bincount(PERSONS)
    ours = np.diff(EpochPlans(PERSONS, 12, "identity", instances=4, seed=3).epoch_starts(1000))
    theirs = slow_identity_lengths(counts, 3, 4, 1000)
    assert abs(ours.mean() - theirs.mean()) < 5 * np.hypot(ours.std(), theirs.std()) / np.sqrt(1000)


def test_steps_map_to_epochs_of_varying_length():
    plans = EpochPlans(PERSONS, 12, "identity", instances=4, seed=2)
    starts = plans.epoch_starts(30)
    assert len(set(np.diff(starts))) > 1
    expected = [(epoch, b) for epoch in range(30) for b in range(starts[epoch + 1] - starts[epoch])]
    assert [EpochPlans(PERSONS, 12, "identity", 4, 2).locate(len(expected) - 1)] == expected[-1:]
    for step, (epoch, batch) in enumerate(expected):
        assert plans.locate(step) == (epoch, batch)
        got_epoch, first, pairs = plans.rows(step)
        assert (got_epoch, first) == (epoch, 12 * batch)
        np.testing.assert_array_equal(pairs, batches(plans, epoch)[batch])


@pytest.mark.parametrize("sampling", ["identity", "uniform"])
def test_plans_are_a_function_of_seed_and_epoch(sampling):
    one, same, other = (EpochPlans(PERSONS, 12, sampling, 4, seed) for seed in (7, 7, 8))
    one.epoch(0)
    np.testing.assert_array_equal(one.epoch(5), same.epoch(5))
    assert not np.array_equal(one.epoch(5)[:12], other.epoch(5)[:12])
    assert not np.array_equal(one.epoch(5)[:12], one.epoch(6)[:12])


def test_rows_and_epochs_have_generators_of_their_own():
    draws = {keyed_rng(*key).integers(2**62) for key in [(0, 0), (0, 0, 0), (0, 0, 1), (0, 1), (0, 1, 0), (1, 0)]}
    assert len(draws) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PERSONS, 14, "identity", 4), "data.batch_size 14 is not a multiple of data.instances 4"),
        ((PERSONS, 36, "identity", 4), "needs 9 persons; the split has 8"),
        ((PERSONS, 45, "uniform", 4), "data.batch_size 45 is more than the 44 .* of the split: lower it"),
        ((PERSONS, 12, "random", 4), 'data.sampling is "random"'),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        EpochPlans(*arguments)


def test_label_noise_has_a_share_of_the_captions_trade_places():
    shown = traded_captions(1000, 0.3, seed=7)
    assert sorted(shown.tolist()) == list(range(1000))  # every caption is still used once
    assert (shown != np.arange(1000)).sum() == 300
    np.testing.assert_array_equal(shown, traded_captions(1000, 0.3, seed=7))
    assert (shown != traded_captions(1000, 0.3, seed=8)).any()
    np.testing.assert_array_equal(traded_captions(10, 0.0, seed=7), np.arange(10))


def test_plans_are_as_released_by_default():
    default, released = EpochPlans(PERSONS, 12), EpochPlans(PERSONS, 12, "identity", instances=4, seed=0)
    np.testing.assert_array_equal(default.epoch(3), released.epoch(3))


def test_the_draws_of_a_seed_never_change():
    """A run that an older version began continues with the same batches: version 0.1 draws these numbers."""
    first = [int(keyed_rng(*key).integers(2**62)) for key in ((0, 0), (1, 2, 3), (7, 0, 0))]
    assert first == [53250005300491814, 1620117339795459834, 474160158019279555]
    assert traded_captions(8, 0.5, 3).tolist() == [0, 4, 1, 2, 3, 5, 6, 7]
    identity, uniform = (EpochPlans(PERSONS, 12, sampling, 4, seed=7).epoch(1) for sampling in ("identity", "uniform"))
    assert identity[:24].tolist() == [
        17, 19, 40, 28, 36, 31, 20, 30, 14, 2, 38, 2, 21, 29, 32, 41, 39, 34, 6, 13, 43, 11, 25, 4,
    ]  # fmt: skip
    assert uniform[:12].tolist() == [12, 3, 13, 43, 11, 35, 19, 10, 23, 32, 38, 21]


def test_an_order_that_several_threads_share_is_read_only():
    order = EpochPlans(PERSONS, 12).epoch(0)
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 1


# ---- shares of sources


# 8 persons with 4 pairs each, then 4 persons with 8 pairs each: of four pairs, 8 groups each.
TWO = np.concatenate([np.repeat(np.arange(8), 4), 8 + np.repeat(np.arange(4), 8)])
SHARES = [(32, 1.0), (32, 3.0)]


def test_a_share_of_groups_by_hand():
    """Of 16 groups, a quarter is the first source's: 4 persons of 8. The second source's 12 are its 8, and 4 again."""
    subsets = set()
    for epoch in range(20):
        order = EpochPlans(TWO, 4, "identity", 4, 3, SHARES).epoch(epoch).reshape(16, 4)  # one person in a batch
        assert (TWO[order] == TWO[order][:, :1]).all()
        groups = np.bincount(TWO[order[:, 0]], minlength=12)
        assert sorted(groups[:8]) == [0] * 4 + [1] * 4
        assert groups[8:].sum() == 12 and groups[8:].min() >= 2 and groups[8:].max() <= 4
        pairs = np.bincount(order.ravel(), minlength=64)
        assert pairs[:32].max() == 1 and set(pairs[32:].tolist()) <= {1, 2}
        subsets.add(tuple(groups))
    assert len(subsets) > 10


def test_nobody_is_twice_in_a_batch_of_shares():
    plans = EpochPlans(TWO, 16, "identity", 4, 3, SHARES)
    for epoch in range(20):
        for batch in batches(plans, epoch):
            assert len(set(TWO[batch].tolist())) == 4
        assert len(batches(plans, epoch)) >= 3
    # Up to the end of an epoch the shares are those of the whole: no source is left over for its end.
    persons = np.concatenate([np.arange(400), 400 + np.arange(100)]).repeat(4)
    plans = EpochPlans(persons, 40, "identity", 4, 3, [(1600, 1.0), (400, 1.0)])
    halves = np.split(persons[plans.epoch(0)] < 400, 2)
    assert all(0.42 < half.mean() < 0.58 for half in halves)  # 100 groups each: 4 standard deviations are 0.14 to 0.2


def test_a_share_of_pairs_by_hand():
    for epoch in range(5):
        times = np.bincount(EpochPlans(TWO, 8, "uniform", 4, 3, SHARES).epoch(epoch), minlength=64)
        assert sorted(times[:32]) == [0] * 16 + [1] * 16 and sorted(times[32:]) == [1] * 16 + [2] * 16


@pytest.mark.parametrize("sampling", ["identity", "uniform"])
def test_shares_are_a_function_of_seed_and_epoch_and_resume_at_any_step(sampling):
    plans = EpochPlans(TWO, 8, sampling, 4, 7, SHARES)
    starts = plans.epoch_starts(4)
    for step in (0, int(starts[1]) - 1, int(starts[1]), int(starts[3]) - 1):
        again = EpochPlans(TWO, 8, sampling, 4, 7, [(32, 2.0), (32, 6.0)])  # weights of another sum
        np.testing.assert_array_equal(again.rows(step)[2], plans.rows(step)[2])
        assert again.rows(step)[:2] == plans.rows(step)[:2]
    assert not np.array_equal(plans.epoch(0)[:24], plans.epoch(1)[:24])
    assert not np.array_equal(EpochPlans(TWO, 8, sampling, 4, 8, SHARES).epoch(0)[:24], plans.epoch(0)[:24])


def test_one_source_is_as_without_shares():
    for sampling in ("identity", "uniform"):
        one = EpochPlans(PERSONS, 12, sampling, 4, 7, [(44, 0.3)])
        np.testing.assert_array_equal(one.epoch(3), EpochPlans(PERSONS, 12, sampling, 4, 7).epoch(3))


def test_shares_that_leave_too_few_persons_are_one_line():
    persons = np.repeat(np.arange(12), 4)  # 2 and 10 persons; 12 groups, 11 of them of the first source
    with pytest.raises(UserError, match=r"^data.weights leave an epoch fewer than 4 persons, as many as one batch has"):
        EpochPlans(persons, 16, "identity", 4, 7, [(8, 11.0), (40, 1.0)]).epoch_starts(1)


@pytest.mark.parametrize("sampling", ["identity", "uniform"])
def test_a_source_without_a_share_is_refused(sampling):
    with pytest.raises(UserError, match=r"^data.weights leave number 1 of data.sources nothing of an epoch"):
        EpochPlans(TWO, 8, sampling, 4, 7, [(32, 1e-9), (32, 1.0)])
