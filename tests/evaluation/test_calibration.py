import json

import numpy as np
import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.evaluation import calibration
from ivt_jax.evaluation.calibration import (
    Calibration,
    TopScores,
    fit_calibration,
    judge,
    probability,
    roc,
    top_scores,
)


def scores(top, right=None, absent=None, gallery=100):
    top = np.array(top, float)
    right = np.zeros(len(top), bool) if right is None else np.array(right, bool)
    return TopScores(top, right, np.array(top if absent is None else absent, float), gallery)


def auc(given):
    return judge(given, Calibration(1.0, 0.0, 0.0, 0.05, 0.0, 1))["auc"]


def platt(top, right):
    fitted = fit_calibration(scores(top, right))
    return fitted.slope, fitted.offset


def test_top_scores_worked_by_hand():
    similarity = np.array(
        [[0.5, 0.75, 0.25], [0.5, 0.5, 0.25], [0.75, 0.25, 0.75], [1, 1, 1], [0, 0.25, 0.5]], np.float32
    )
    found = top_scores(similarity, np.eye(3, dtype=np.float32), np.array([1, 1, 1, 9, 2]), np.array([1, 2, 1]))
    # The gallery's persons are 1, 2, 1. The second query's own image ties with a wrong one; the fourth has no match.
    np.testing.assert_array_equal(found.top, [0.75, 0.5, 0.75, 0.5])
    np.testing.assert_array_equal(found.right, [False, False, True, False])
    np.testing.assert_array_equal(found.absent, [0.75, 0.5, 0.25, 0.5])
    assert found.gallery == 3


def test_the_gallery_without_a_person_equals_a_smaller_gallery():
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((12, 4)), rng.standard_normal((20, 4))
    ids, gallery_ids = rng.integers(0, 4, 12), np.arange(20) % 4
    found = top_scores(queries, gallery, ids, gallery_ids)
    for query, person in enumerate(ids):
        assert found.top[query] == pytest.approx((gallery @ queries[query]).max())
        assert found.right[query] == (gallery_ids[(gallery @ queries[query]).argmax()] == person)
        assert found.absent[query] == pytest.approx((gallery[gallery_ids != person] @ queries[query]).max())


def test_a_gallery_of_one_person_has_nothing_left_without_it():
    found = top_scores(np.array([[0.5]]), np.array([[1.0], [0.5]]), np.array([3]), np.array([3, 3]))
    assert found.right.all() and found.absent[0] == -np.inf
    assert auc(found) == 1 and fit_calibration(found).caught == 1


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    queries, gallery = (rng.integers(-8, 9, (n, 6)).astype(np.float32) for n in (23, 15))  # exact products, ties
    arguments = queries, gallery, rng.integers(0, 6, 23), rng.integers(0, 5, 15)
    whole = top_scores(*arguments)
    for chunk in (1, 4, 23):
        monkeypatch.setattr(calibration, "_CHUNK", chunk)
        for one, other in zip(top_scores(*arguments), whole, strict=True):
            np.testing.assert_array_equal(one, other)


def test_mistakes_are_refused():
    one = np.ones((1, 1), np.float32)
    with pytest.raises(UserError, match="nothing to calibrate"):
        top_scores(one, one, np.array([1]), np.array([2]))
    with pytest.raises(UserError, match="not a finite number"):
        top_scores(one * np.nan, one, np.array([1]), np.array([1]))
    for miss in (-0.1, 1.0):
        with pytest.raises(UserError, match="between 0 and 1"):
            fit_calibration(scores([0.5]), miss)


def test_roc_worked_by_hand():
    # Present: 1 2 2 4. Absent: 0 2 3. Called absent up to 0: 0 of 4, 1 of 3; up to 1: 1, 1; 2: 3, 2; 3: 3, 3; 4: 4, 3.
    given = scores([2, 1, 4, 2], absent=[3, 0, 2])
    false_alarm, caught = roc(given)
    np.testing.assert_allclose(false_alarm, [0, 0, 1 / 4, 3 / 4, 3 / 4, 1])
    np.testing.assert_allclose(caught, [0, 1 / 3, 1 / 3, 2 / 3, 1, 1])
    # Of 12 pairs absent 0 is below all 4, absent 2 below one and level with two, absent 3 below one: 4 + 2 + 1.
    assert auc(given) == pytest.approx(7 / 12)


@pytest.mark.parametrize("seed", range(5))
def test_the_area_counts_pairs_and_equals_that_under_the_curve(seed):
    rng = np.random.default_rng(seed)
    present, absent = rng.integers(0, 9, 40) / 8, rng.integers(0, 7, 40) / 8
    given = scores(present, absent=absent)
    false_alarms, caughts = roc(given)
    pairs = [(a < p) + 0.5 * (a == p) for a in absent for p in present]
    assert auc(given) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert np.trapezoid(caughts, false_alarms) == pytest.approx(auc(given), abs=1e-12)
    for false_alarm, caught in zip(false_alarms, caughts, strict=True):  # each point is some threshold's
        assert any(((present < t).mean(), (absent < t).mean()) == (false_alarm, caught) for t in np.arange(0, 10) / 8)


@pytest.mark.parametrize(("miss", "threshold"), [(0, 0.0), (0.05, 0.01), (0.0499, 0.0), (0.29, 0.05), (0.999, 0.19)])
def test_the_threshold_is_the_highest_with_few_enough_misses(miss, threshold):
    # 20 present scores 0.00, 0.01 ... 0.19: 5% is one of them, 4.99% none, 29% five.
    fitted = fit_calibration(scores(np.random.default_rng(0).permutation(20) / 100), miss)
    assert fitted.threshold == threshold


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_keeps_its_promise_with_ties(seed):
    rng = np.random.default_rng(seed)
    top, absent = rng.integers(3, 12, 100) / 8, rng.integers(0, 8, 100) / 8
    fitted = fit_calibration(scores(top, absent=absent), 0.29)
    assert np.sum(top < fitted.threshold) <= 29 < np.sum(top <= fitted.threshold)
    assert fitted.caught == np.mean(absent < fitted.threshold)


def test_a_calibration_survives_json():
    rng = np.random.default_rng(0)
    fitted = fit_calibration(scores(rng.standard_normal(50), rng.random(50) < 0.5, rng.standard_normal(50), 321))
    assert Calibration(**json.loads(json.dumps(fitted._asdict()))) == fitted
    assert fitted.gallery == 321 and fitted.miss == 0.05


def test_the_fit_finds_known_parameters():
    rng = np.random.default_rng(0)
    top = rng.uniform(0.2, 0.8, 200_000)
    right = rng.random(200_000) < 1 / (1 + np.exp(-(12 * top - 5)))
    assert platt(top, right) == pytest.approx((12, -5), rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_equals_gradient_descent(seed):
    rng = np.random.default_rng(seed)
    top = rng.standard_normal(30)
    right = top + 2 * rng.standard_normal(30) > 0.3
    r, w = right.sum(), (~right).sum()
    a = b = 0.0
    for _ in range(20_000):
        error = 1 / (1 + np.exp(-(a * top + b))) - np.where(right, (r + 1) / (r + 2), 1 / (w + 2))
        a, b = a - 0.05 * (error * top).sum(), b - 0.05 * error.sum()
    assert platt(top, right) == pytest.approx((a, b), abs=1e-6)


def test_the_fit_holds_where_whole_newton_steps_diverge():
    top, right = np.array([0.0, *[1.0] * 100, 10.0]), np.arange(102) == 0
    slope, offset = platt(top, right)
    error = 1 / (1 + np.exp(-(slope * top + offset))) - np.where(right, 2 / 3, 1 / 103)
    np.testing.assert_allclose([error.sum(), (error * top).sum()], 0, atol=1e-6)


def test_separable_scores_have_a_finite_fit():
    # One right, one wrong: both targets can be met, 2/3 at 1 and 1/3 at 0.
    slope, offset = platt([1, 0], [True, False])
    assert (slope, offset) == pytest.approx((2 * np.log(2), -np.log(2)), abs=1e-6)
    slope, offset = platt(np.arange(1000) / 1000, np.arange(1000) >= 500)
    assert np.isfinite([slope, offset]).all() and slope > 0 and -offset / slope == pytest.approx(0.4995)
    # A cosine's range does not matter.
    near = platt(0.5 + 1e-4 * np.arange(1000) / 1000, np.arange(1000) >= 500)
    assert near[0] == pytest.approx(1e4 * slope, rel=1e-4)


def test_all_right_all_wrong_or_all_equal_give_a_constant():
    top = np.random.default_rng(0).standard_normal(8)
    assert platt(top, np.ones(8)) == pytest.approx((0, np.log(9)), abs=1e-6)  # 9/10
    assert platt(top, np.zeros(8)) == pytest.approx((0, -np.log(9)), abs=1e-6)  # 1/10
    slope, offset = platt(np.full(8, 0.1), np.arange(8) < 6)
    share = (6 * 7 / 8 + 2 * 1 / 4) / 8  # the mean target
    assert slope == pytest.approx(0, abs=1e-9) and offset == pytest.approx(np.log(share / (1 - share)), abs=1e-6)


def test_judging_worked_by_hand():
    # With slope log 3 and offset 0 a score of 1 means 3/4, 0 means 1/2 and -1 means 1/4.
    fitted = Calibration(np.log(3), 0.0, 0.5, 0.05, 0.9, 100)
    np.testing.assert_allclose(probability(fitted, np.array([[1], [0], [-1]])), [[3 / 4], [1 / 2], [1 / 4]])
    found = judge(scores([1, -1, 1, 0, 1], [True, False, False, True, True], [0, -1, 0.5, 1, -2]), fitted)
    assert found["false_alarm"] == 2 / 5 and found["caught"] == 3 / 5
    # Bins: -1 with 0 of 1 right, 0 with 1 of 1, 1 with 2 of 3.
    assert found["ece"] == pytest.approx((1 / 4 + 1 / 2 + 3 * (3 / 4 - 2 / 3)) / 5)
    assert found["brier"] == pytest.approx((1 / 16 + 1 / 4 + 2 / 16 + 9 / 16) / 5)
    # Of 25 pairs of an absent and a present score, 15 have the absent one lower and 5 are equal.
    assert found["auc"] == pytest.approx(17.5 / 25)


def test_the_bins_of_the_calibration_error_hold_equally_many():
    # 40 scores in ten bins of four, probabilities p; two of every four right, wherever they stand in the bin.
    top = np.linspace(-3, 3, 40)
    p = 1 / (1 + np.exp(-top))
    expected = np.abs(p.reshape(10, 4).mean(1) - 0.5).mean()
    order = np.random.default_rng(0).permutation(40)
    right = np.tile([True, False, False, True], 10)
    found = judge(scores(top[order], right[order]), Calibration(1.0, 0.0, 0.0, 0.05, 0.0, 1))
    assert found["ece"] == pytest.approx(expected)


def test_the_probability_holds_on_other_scores_of_the_kind():
    rng = np.random.default_rng(0)

    def draw():
        top = rng.normal(0.5, 0.1, 20_000)
        return scores(top, rng.random(20_000) < 1 / (1 + np.exp(-(20 * top - 10))), rng.normal(0.3, 0.1, 20_000))

    found = judge(draw(), fit_calibration(draw()))
    assert found["ece"] < 0.02 and found["false_alarm"] == pytest.approx(0.05, abs=0.01)
    # Present ~ N(0.5, 0.1), absent ~ N(0.3, 0.1): the area is Phi(0.2 / (0.1 sqrt 2)) = Phi(1.414) = 0.921, and below
    # the 5% quantile 0.3355 lie Phi(0.355) = 0.639 of the absent.
    assert found["auc"] == pytest.approx(0.921, abs=0.005) and found["caught"] == pytest.approx(0.639, abs=0.02)
