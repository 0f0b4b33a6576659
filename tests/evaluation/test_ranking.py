import numpy as np
import pytest
from scipy.stats import binom

from ivt_jax import evaluation
from ivt_jax.common.errors import UserError
from ivt_jax.evaluation import ranking
from ivt_jax.evaluation.ranking import (
    bootstrap_interval,
    first_found,
    mean_scores,
    query_scores,
    rank_both_ways,
    rank_embeddings,
    rank_queries,
    retrieval_metrics,
    with_trapezoid,
)

# Two queries, five items. The first query finds its person at ranks 1 and 4, the second at ranks 2, 3 and 5.
SIMILARITY = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]] * 2)
QUERY_IDS = np.array([7, 8])
GALLERY_IDS = np.array([7, 8, 8, 7, 8])
STANDARD = [(1 + 2 / 4) / 2, (1 / 2 + 2 / 3 + 3 / 5) / 3]
TRAPEZOID = [
    ((1 + 1) / 2 + (1 / 3 + 2 / 4) / 2) / 2,
    ((0 / 1 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 4 + 3 / 5) / 2) / 3,
]


@pytest.mark.parametrize(("rule", "precision"), [("standard", STANDARD), ("trapezoid", TRAPEZOID)])
def test_metrics_worked_by_hand(rule, precision):
    metrics = retrieval_metrics(SIMILARITY, QUERY_IDS, GALLERY_IDS, rule)
    expected = {"R1": 50, "R5": 100, "R10": 100, "mAP": 50 * sum(precision), "mINP": 50 * (2 / 4 + 3 / 5)}
    assert metrics == pytest.approx(expected, abs=1e-12)


def test_the_order_of_the_gallery_does_not_matter():
    order = np.array([3, 0, 4, 2, 1])
    permuted = retrieval_metrics(SIMILARITY[:, order], QUERY_IDS, GALLERY_IDS[order])
    assert permuted == retrieval_metrics(SIMILARITY, QUERY_IDS, GALLERY_IDS)


def test_a_tie_counts_against_the_model():
    # The right items tie with one wrong item each: ranks 2 and 4, not 1 and 3.
    ranks = rank_queries(np.array([[0.5, 0.5, 0.2, 0.2]]), np.array([1]), np.array([1, 2, 1, 2]))
    assert (ranks.first[0], ranks.average_precision[0], ranks.inverse_penalty[0]) == (2, (1 / 2 + 2 / 4) / 2, 2 / 4)
    constant = retrieval_metrics(np.zeros((1, 4)), np.array([1]), np.array([1, 1, 2, 2]))
    assert constant["R1"] == 0 and constant["mAP"] == pytest.approx(100 * (1 / 3 + 2 / 4) / 2)


def test_right_items_that_tie_with_each_other_lose_nothing():
    assert retrieval_metrics(np.array([[0.5, 0.5, 0.2]]), np.array([1]), np.array([1, 1, 2]))["mAP"] == 100


def test_queries_without_a_match_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="1 of 3 queries"):
        metrics = retrieval_metrics(SIMILARITY[[0, 0, 1]], np.array([7, 99, 8]), GALLERY_IDS)
    assert metrics == retrieval_metrics(SIMILARITY, QUERY_IDS, GALLERY_IDS)


def test_a_gallery_of_one_item():
    assert set(retrieval_metrics(np.array([[-0.3]]), np.array([4]), np.array([4])).values()) == {100.0}
    with pytest.raises(UserError, match="nothing to score"):
        retrieval_metrics(np.array([[0.3]]), np.array([4]), np.array([5]))


def test_similarities_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="not a number"):
        retrieval_metrics(np.array([[np.nan, 0.1]]), np.array([1]), np.array([1, 2]))


def test_unknown_rule_is_refused():
    with pytest.raises(UserError, match="trapezoid"):
        retrieval_metrics(SIMILARITY, QUERY_IDS, GALLERY_IDS, "coco")


def slow_metrics(similarity, query_ids, gallery_ids, rule):
    """The definitions as they are written, one query and one item at a time."""
    results = []
    for row, person in zip(similarity.astype(np.float64), query_ids, strict=True):
        right = [g == person for g in gallery_ids]
        if not any(right):
            continue
        ranking = sorted(range(len(row)), key=lambda i: (-row[i], right[i]))
        places = [place for place, item in enumerate(ranking) if right[item]]
        precision = 0.0
        for j, r in enumerate(places):
            now, old = (j + 1) / (r + 1), 1.0 if r == 0 else j / r
            precision += (now if rule == "standard" else (old + now) / 2) / len(places)
        recalls = [float(places[0] < k) for k in (1, 5, 10)]
        results.append([*recalls, precision, len(places) / (places[-1] + 1)])
    return dict(zip(("R1", "R5", "R10", "mAP", "mINP"), 100 * np.mean(results, axis=0), strict=True))


@pytest.mark.filterwarnings("ignore:.*no match")
@pytest.mark.parametrize("rule", ["standard", "trapezoid"])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_the_slow_definition_with_many_ties(seed, rule):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 6, (40, 30)).astype(np.float32)
    query_ids, gallery_ids = rng.integers(0, 12, 40), rng.integers(0, 10, 30)
    expected = slow_metrics(similarity, query_ids, gallery_ids, rule)
    assert retrieval_metrics(similarity, query_ids, gallery_ids, rule) == pytest.approx(expected, abs=1e-10)


def test_ranking_in_chunks_equals_ranking_at_once(monkeypatch):
    monkeypatch.setattr(ranking, "_CHUNK", 3)
    rng = np.random.default_rng(0)
    queries, gallery = (rng.standard_normal((n, 4)).astype(np.float32) for n in (10, 7))
    query_ids, gallery_ids = rng.integers(0, 3, 10), rng.integers(0, 3, 7)
    chunked = rank_embeddings(queries, gallery, query_ids, gallery_ids)
    np.testing.assert_array_equal(chunked, rank_queries(queries @ gallery.T, query_ids, gallery_ids))


@pytest.mark.filterwarnings("ignore:.*no match")
@pytest.mark.parametrize("part", [1, 3, 7, 100])
@pytest.mark.parametrize("seed", range(4))
def test_both_ways_equal_the_slow_definition_wherever_the_parts_end(monkeypatch, seed, part):
    # Small whole numbers: their products are exact and tie often, also across parts. Some persons are on one side only,
    # some have more queries than a part.
    monkeypatch.setattr(ranking, "_PART", part)
    rng = np.random.default_rng(seed)
    queries, gallery = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (29, 23))
    query_ids, gallery_ids = rng.integers(0, 7, 29), rng.integers(-2, 5, 23)
    there, back = rank_both_ways(queries, gallery, query_ids, gallery_ids)
    for ranks, similarity, ids in (
        (there, queries @ gallery.T, (query_ids, gallery_ids)),
        (back, gallery @ queries.T, (gallery_ids, query_ids)),
    ):
        np.testing.assert_array_equal(ranks, rank_queries(similarity, *ids))  # in the order of the queries
        for rule, given in (("standard", ranks), ("trapezoid", with_trapezoid(ranks))):
            expected = slow_metrics(similarity, *ids, rule)
            assert mean_scores(query_scores(given)) == pytest.approx(expected, abs=1e-10)


def test_both_ways_an_encoder_that_maps_all_to_one_point_scores_worst(monkeypatch):
    monkeypatch.setattr(ranking, "_PART", 64)
    # Exact in float32: otherwise products of equal vectors may differ in the last bit, even within one BLAS call.
    point = np.repeat(np.float32([0.5, 0]), [4, 764])
    queries, gallery = np.tile(point, (333, 1)), np.tile(point, (217, 1))
    query_ids, gallery_ids = np.arange(333) % 50, np.arange(217) % 50
    there, back = rank_both_ways(queries, gallery, query_ids, gallery_ids)
    np.testing.assert_array_equal(there.first, 218 - np.bincount(gallery_ids)[query_ids])
    np.testing.assert_array_equal(back.first, 334 - np.bincount(query_ids)[gallery_ids])


def test_both_ways_refuse_what_is_no_number(monkeypatch):
    monkeypatch.setattr(ranking, "_PART", 2)
    gallery, ids = np.eye(4, dtype=np.float32), np.arange(4)
    gallery[3, 0] = np.nan
    with pytest.raises(UserError, match="not a number"):
        rank_both_ways(np.eye(4, dtype=np.float32), gallery, ids, ids)


def test_bootstrap_of_a_perfect_model_has_no_width():
    assert bootstrap_interval(np.full(6, 100.0), np.arange(6)) == (100.0, 100.0)


def test_bootstrap_draws_persons_and_not_queries():
    # Two persons: one fails with its only query, one succeeds with 99. A quarter of the draws holds the first alone
    # and a quarter the second alone. If queries were drawn, the lower end would be near 97.
    values, persons = np.array([0.0] + [100.0] * 99), np.array([5] + [6] * 99)
    assert bootstrap_interval(values, persons) == (0.0, 100.0)


def test_bootstrap_has_2_5_percent_of_the_draws_on_either_side():
    # 400 persons of one query each, every fourth right: the number right among 400 drawn is binomial.
    values, persons = np.where(np.arange(400) % 4, 0.0, 100.0), np.arange(400)
    low, high = bootstrap_interval(values, persons, samples=20_000)
    assert (low, high) == tuple(binom.ppf([0.025, 0.975], 400, 0.25) / 4)  # 83 and 117 of 400


def test_bootstrap_weighs_persons_by_their_queries():
    # 200 persons of one query each, all wrong; 200 of three each, all right: 75% of the queries, 50% of the persons.
    persons = np.append(np.arange(200), np.repeat(np.arange(200, 400), 3))
    low, high = bootstrap_interval(np.where(persons < 200, 0.0, 100.0), persons)
    assert 65 < low < 75 < high < 85


def test_bootstrap_follows_its_seed_and_leaves_out_what_is_unknown():
    rng = np.random.default_rng(0)
    values, persons = rng.uniform(0, 100, 60), rng.integers(0, 20, 60)
    interval = bootstrap_interval(values, persons, seed=1)
    assert interval == bootstrap_interval(values, persons, seed=1) != bootstrap_interval(values, persons, seed=2)
    assert interval[0] < values.mean() < interval[1]
    longer = np.append(values, np.nan), np.append(persons, 99)
    assert bootstrap_interval(*longer, seed=1) == interval


def test_the_bootstrap_has_a_thousand_draws_of_seed_0_by_default():
    rng = np.random.default_rng(1)
    values, persons = rng.uniform(0, 100, 50), np.arange(50)
    # Written out: 1000 draws of 50 persons, the 2.5% and 97.5% percentiles of their means.
    means = np.sort(values[np.random.default_rng(0).integers(50, size=(1000, 50))].mean(1))
    low, high = means[24] + 0.975 * (means[25] - means[24]), means[974] + 0.025 * (means[975] - means[974])
    assert bootstrap_interval(values, persons) == pytest.approx((low, high), rel=1e-12)


def test_the_public_name_is_in_evaluation_too():
    assert evaluation.retrieval_metrics is retrieval_metrics


def test_the_best_are_those_of_a_full_sort_with_ties_against_the_model():
    rng = np.random.default_rng(0)
    for count in (1, 3, 10, 40):
        for _ in range(50):
            scores = rng.integers(0, 12, 30) / 4  # many ties
            right = rng.random(30) < 0.2
            full = sorted(range(30), key=lambda i: (-scores[i], right[i], i))
            assert first_found(scores, right, count).tolist() == full[:count]
