import numpy as np
import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.evaluation.ranking import retrieval_metrics
from ivt_jax.evaluation.reranking import rerank


def reranked(queries, gallery, **options):
    parts = list(rerank(queries, gallery, **options))
    covered = np.concatenate([np.arange(len(queries))[chunk] for chunk, _ in parts])
    np.testing.assert_array_equal(covered, np.arange(len(queries)))
    return np.concatenate([similarity for _, similarity in parts])


def slow_rerank(queries, gallery, k1, k2, weight):
    """The definition word by word, with sets and dicts in float64."""
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    images = range(len(gallery))

    def distance(x, g):
        return 1 - float(x @ gallery[g])

    def nearest(x, k, among=images):
        return sorted(among, key=lambda g: (distance(x, g), g))[:k]

    near = [[g, *nearest(gallery[g], len(gallery), [i for i in images if i != g])] for g in images]

    def reciprocal(g, k):
        return {i for i in near[g][: k + 1] if g in near[i][: k + 1]}

    def encode(x, members):
        expanded = set(members)
        for q in members:
            candidate = reciprocal(q, (k1 + 1) // 2)
            if len(candidate & members) >= 2 / 3 * len(candidate) - 1e-12:
                expanded |= candidate
        weights = {g: np.exp(-distance(x, g)) for g in expanded}
        return {g: value / sum(weights.values()) for g, value in weights.items()}

    def mean(encodings):
        return {g: sum(e.get(g, 0) for e in encodings) / len(encodings) for g in images}

    plain = [encode(gallery[g], reciprocal(g, k1)) for g in images]
    averaged = [mean([plain[i] for i in near[g][:k2]]) for g in images]
    result = np.empty((len(queries), len(gallery)))
    for row, x in enumerate(queries):
        own = encode(x, set(nearest(x, k1)))
        own = mean([own, *(plain[i] for i in nearest(x, k2 - 1))])
        for g in images:
            smaller = sum(min(own[i], averaged[g][i]) for i in images)
            larger = sum(max(own[i], averaged[g][i]) for i in images)
            result[row, g] = 1 - ((1 - weight) * (1 - smaller / larger) + weight * distance(x, g))
    return result


def clusters(rng, persons, each, queries, width=16, noise=(0.7, 1.2)):
    """Images and queries around their persons' centres. Multiples of 1/64: their products are exact in float32."""
    centres = rng.standard_normal((persons, width))

    def around(ids, scale):
        x = centres[ids] + scale * rng.standard_normal((len(ids), width))
        return (np.round(64 * x / np.linalg.norm(x, axis=1, keepdims=True)) / 64).astype(np.float32)

    image_ids, query_ids = np.arange(persons * each) % persons, rng.integers(0, persons, queries)
    return around(query_ids, noise[1]), around(image_ids, noise[0]), query_ids, image_ids


@pytest.mark.parametrize(
    ("persons", "each", "k1", "k2", "weight"),
    [
        (8, 5, 6, 3, 0.3),
        (6, 10, 20, 6, 0.3),
        (12, 3, 5, 2, 0.0),
        (5, 4, 1, 1, 0.5),
        (5, 4, 2, 7, 0.1),
        (3, 2, 20, 9, 0.3),
    ],
)
def test_equals_the_slow_definition(persons, each, k1, k2, weight):
    rng = np.random.default_rng(persons)
    queries, gallery, _, _ = clusters(rng, persons, each, 9)
    fast = reranked(queries, gallery, k1=k1, k2=k2, weight=weight, chunk=4)
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, slow_rerank(queries, gallery, k1, k2, weight), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("k1", "k2"), [(3, 1), (4, 3), (20, 6)])
def test_equals_the_slow_definition_with_duplicates(k1, k2):
    queries, gallery, _, _ = clusters(np.random.default_rng(1), 5, 4, 6)
    gallery = gallery[[0, 1, 2, 3, 0, 0, 0, 5, 6, 7, 5, 8, 9, 0, 12]]
    fast = reranked(queries, gallery, k1=k1, k2=k2, weight=0.3, chunk=5)
    np.testing.assert_allclose(fast, slow_rerank(queries, gallery, k1, k2, 0.3), atol=1e-5, rtol=0)


def test_equals_the_slow_definition_with_many_ties():
    # Four entries of 1/2 or -1/2: cosines are multiples of 1/4.
    rng = np.random.default_rng(2)
    vectors = np.zeros((45, 6), np.float32)
    for row in vectors:
        row[rng.permutation(6)[:4]] = rng.choice([-0.5, 0.5], 4)
    for options in ((4, 2, 0.3), (7, 4, 0.0)):
        fast = reranked(vectors[:10], vectors[10:], **dict(zip(("k1", "k2", "weight"), options, strict=True)))
        np.testing.assert_allclose(fast, slow_rerank(vectors[:10], vectors[10:], *options), atol=1e-5, rtol=0)


def test_worked_by_hand():
    # Images at 0, 10, 60 and 65 degrees, a query at 30. k1 = 1: N of 0 is {0, 1}, of 1 {1, 0}, of 2 {2, 3}, of 3
    # {3, 2}, all reciprocal, and expansion adds nothing. The query's N is {1}; only half of R(1, 1) = {0, 1} is in it,
    # so that is not added. k2 = 1: nothing is averaged.
    angle = np.radians([0, 10, 60, 65])
    gallery, query = np.stack([np.cos(angle), np.sin(angle)], 1), np.array([[np.cos(np.pi / 6), np.sin(np.pi / 6)]])
    inside = 1 / (1 + np.exp(np.cos(angle[1]) - 1))  # the weight of an image in its own encoding
    # The query's encoding is 1 at image 1. Minima with 0's: 1 - inside at 1; with 1's: inside; maxima: 2 less that.
    jaccard = np.array([(1 - inside) / (1 + inside), inside / (2 - inside), 0, 0])
    expected = 0.7 * jaccard + 0.3 * np.cos(angle - np.pi / 6)
    found = reranked(query.astype(np.float32), gallery.astype(np.float32), k1=1, k2=1)
    np.testing.assert_allclose(found, expected[None], atol=1e-6)
    # k2 = 2: the query's is averaged with 1's own; images 0 and 1 have the mean of both encodings, a half at each.
    own = np.array([(1 - inside) / 2, (1 + inside) / 2])
    shared = np.minimum(own, 0.5).sum()
    expected = 0.7 * np.array([shared / (2 - shared)] * 2 + [0, 0]) + 0.3 * np.cos(angle - np.pi / 6)
    found = reranked(query.astype(np.float32), gallery.astype(np.float32), k1=1, k2=2)
    np.testing.assert_allclose(found, expected[None], atol=1e-6)


def test_a_gallery_of_one_image():
    # One encoding, 1 at the only image, for image and query: the Jaccard distance is 0.
    found = reranked(np.array([[0.6, 0.8]], np.float32), np.array([[1, 0]], np.float32))
    np.testing.assert_allclose(found, [[0.7 + 0.3 * 0.6]], atol=1e-6)


def test_weight_1_gives_the_cosines_back():
    queries, gallery, _, _ = clusters(np.random.default_rng(3), 6, 4, 7)
    np.testing.assert_array_equal(reranked(queries, gallery, weight=1), queries @ gallery.T)


def test_a_result_depends_neither_on_other_queries_nor_on_chunks():
    queries, gallery, _, _ = clusters(np.random.default_rng(4), 10, 4, 23)
    whole = reranked(queries, gallery, k1=6, k2=3)
    for chunk in (1, 7, 23, 100):
        np.testing.assert_array_equal(reranked(queries, gallery, k1=6, k2=3, chunk=chunk), whole)
    order = np.array([20, 3, 3, 11])
    np.testing.assert_array_equal(reranked(queries[order], gallery, k1=6, k2=3), whole[order])


def test_the_defaults_are_the_papers():
    queries, gallery, _, _ = clusters(np.random.default_rng(6), 10, 6, 9)
    np.testing.assert_array_equal(reranked(queries, gallery), reranked(queries, gallery, k1=20, k2=6, weight=0.3))


def test_noisy_queries_find_their_clusters_better():
    queries, gallery, query_ids, image_ids = clusters(np.random.default_rng(5), 20, 20, 100, 64, (1.0, 3.0))
    before = retrieval_metrics(queries @ gallery.T, query_ids, image_ids)
    after = retrieval_metrics(reranked(queries, gallery), query_ids, image_ids)
    assert after["mAP"] > before["mAP"] + 10


def test_mistakes_are_refused_before_any_work():
    x = np.eye(3, dtype=np.float32)
    for options, message in (
        ({"k1": 0}, "k1 and k2"), ({"k2": 0}, "k1 and k2"), ({"weight": 1.1}, "0 and 1"), ({"weight": -0.1}, "0 and 1"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            rerank(x, x, **options)
    with pytest.raises(UserError, match="not finite"):
        rerank(x * np.nan, x)
