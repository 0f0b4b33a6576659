"""The protocols on a split worked out by hand: three images, the first of them named by two records."""

import numpy as np
import pytest

from ivt_jax.evaluation import protocols
from ivt_jax.evaluation.protocols import (
    Embeddings,
    image_records,
    protocol_scores,
    release,
    reranked,
    standard,
    standard_dedup,
)
from ivt_jax.evaluation.ranking import mean_scores, query_scores

# Person 1 has images 0 (two records) and 2, person 2 has image 1. Captions: two of image 0, one of 1, one of 2, and one
# more of image 1. Similarities with the images:
SIMILARITY = np.array([[0.9, 0.5, 0.1], [0.2, 0.8, 0.4], [0.9, 0.7, 0.3], [0.1, 0.6, 0.7], [0.3, 0.6, 0.2]], np.float32)
SPLIT = Embeddings(
    image=np.eye(3, dtype=np.float32),
    text=SIMILARITY,
    image_person=np.array([1, 2, 1]),
    text_person=np.array([1, 1, 2, 1, 2]),
    text_image=np.array([0, 0, 1, 2, 1]),
    image_copies=np.array([2, 1, 1]),
)


def test_every_image_once():
    t2i = standard_dedup(SPLIT)["t2i"]
    np.testing.assert_array_equal(t2i.first, [1, 2, 2, 1, 1])
    np.testing.assert_allclose(t2i.average_precision, [(1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, 1 / 2, (1 + 2 / 3) / 2, 1])


def test_an_image_that_two_records_name_is_in_the_gallery_twice():
    np.testing.assert_array_equal(image_records(SPLIT), [0, 0, 1, 2])
    ranks = standard(SPLIT)
    t2i = ranks["t2i"]
    np.testing.assert_array_equal(t2i.first, [1, 2, 3, 1, 1])
    expected = [(1 + 1 + 3 / 4) / 3, (1 / 2 + 2 / 3 + 3 / 4) / 3, 1 / 3, (1 + 2 / 3 + 3 / 4) / 3, 1]
    np.testing.assert_allclose(t2i.average_precision, expected)
    assert len(ranks["i2t"].first) == 4


def test_the_release_has_every_second_pair_in_its_gallery():
    # Captions 0, 2 and 4: images 0, 1 and 1. Caption 1 finds image 0 last, behind both entries of image 1.
    ranks = release(SPLIT, "cuhk_pedes")
    np.testing.assert_array_equal(ranks.first, [1, 3, 2, 3, 1])
    # Trapezoid, hits at 0-based ranks: 0; 2; 1 and 2; 2; 0 and 1.
    expected = [1, (0 + 1 / 3) / 2, ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2, (0 + 1 / 3) / 2, 1]
    np.testing.assert_allclose(ranks.average_precision, expected)


def test_the_release_has_every_record_in_its_gallery_on_icfg():
    np.testing.assert_array_equal(release(SPLIT, "icfg_pedes").first, standard(SPLIT)["t2i"].first)


@pytest.mark.filterwarnings("ignore:.*no match")
def test_a_query_without_a_match_is_left_out_or_a_miss():
    stranger = SPLIT._replace(text_person=np.array([9, 1, 2, 1, 2]))
    scores = protocol_scores(stranger, "cuhk_pedes", standard(stranger)["t2i"])
    assert set(scores) == {"standard", "standard-dedup", "release"}
    assert scores["standard-dedup"]["R1"] == 50  # of four queries
    assert scores["release"]["R1"] == 20  # of five


@pytest.mark.parametrize("dataset", ["cuhk_pedes", "icfg_pedes"])
@pytest.mark.parametrize("copies", [[2, 1, 1], [1, 1, 1]])
def test_scores_by_every_protocol_are_those_of_the_protocol_ranked_on_its_own(dataset, copies):
    split = SPLIT._replace(image_copies=np.array(copies))
    scores = protocol_scores(split, dataset, standard(split)["t2i"])
    for name, ranks in (("standard-dedup", standard_dedup(split)["t2i"]), ("release", release(split, dataset))):
        assert scores[name] == pytest.approx(mean_scores(query_scores(ranks)), abs=1e-10)


def test_re_ranking_has_the_gallery_of_standard_and_chunks_stay_with_their_queries(monkeypatch):
    """A stand-in returns the cosines in chunks of two queries, so the ranks are those of `standard`."""

    def rerank(text, image):
        assert len(image) == 4
        for start in (0, 2, 4):
            chunk = slice(start, min(start + 2, 5))
            yield chunk, text[chunk] @ image.T

    monkeypatch.setattr(protocols, "rerank", rerank)
    np.testing.assert_array_equal(reranked(SPLIT), standard(SPLIT)["t2i"])
