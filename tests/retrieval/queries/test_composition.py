import numpy as np
import pytest

from ivt_jax.retrieval.queries.composition import Part, compose, spread_ratio

X, Y, Z = np.eye(3, dtype=np.float32)


def test_one_part_is_itself():
    np.testing.assert_array_equal(compose([Part(X, 3.0, 5)]), X)
    np.testing.assert_array_equal(compose([Part(X, -2.0, 5)]), -X)
    np.testing.assert_array_equal(compose([], Part(X, 0.5), ratio=4.0), X)


def test_a_sentence_counts_as_its_phrases():
    np.testing.assert_allclose(compose([Part(X, 1.0, 3), Part(Y, 2.0)]), [3 / 5, 2 / 5, 0], rtol=1e-6)


def test_an_unwanted_part_has_a_third_of_everything_wanted():
    """Shares 3 and 1; unwanted 4 / 3 and half of that; in all 6."""
    parts = [Part(X, 1.0, 3), Part(Y, -1.0, 7), Part(X, 1.0), Part(Z, -0.5)]
    np.testing.assert_allclose(compose(parts), [4 / 6, -4 / 18, -2 / 18], rtol=1e-6)


def test_a_picture_has_two_thirds_of_the_words_in_units_of_spread():
    """Shares 3, and 2 / 4 for the picture. An unwanted part has a third of 3 + 2, whatever the spread."""
    np.testing.assert_allclose(compose([Part(X, 1.0, 3)], Part(Y, 1.0), 4.0), [3 / 3.5, 0.5 / 3.5, 0], rtol=1e-6)
    found = compose([Part(X, 1.0, 3), Part(Z, -1.0)], Part(Y, 1.0))
    np.testing.assert_allclose(found, np.array([3, 2, -5 / 3]) / (5 + 5 / 3), rtol=1e-6)


def test_a_picture_alone_is_wanted_or_unwanted():
    np.testing.assert_allclose(compose([Part(X, -1.0)], Part(Y, 1.0)), [-1 / 4, 3 / 4, 0], rtol=1e-6)
    np.testing.assert_allclose(compose([Part(X, 1.0, 3)], Part(Y, -1.0)), [3 / 4, -1 / 4, 0], rtol=1e-6)


def test_rejected_pictures_take_a_quarter_away():
    """Of (3/5, 4/5) the length is 1, of half of it a half."""
    both = [Part(np.array([0.6, 0.8, 0], np.float32), 1.0)]
    np.testing.assert_allclose(compose(both, rejected=np.stack([Y, Z])), [0.6, 0.8 - 1 / 8, -1 / 8], rtol=1e-6)
    half = [Part(X, 1.0), Part(Y, 1.0)]  # (1/2, 1/2), of length sqrt(1/2)
    np.testing.assert_allclose(compose(half, rejected=Z[None]), [0.5, 0.5, -np.sqrt(0.5) / 4], rtol=1e-6)


def test_parts_that_cancel_are_no_query():
    assert compose([Part(X, 1.0), Part(X, -3.0)]) is None


def test_the_ratio_is_of_standard_deviations():
    """Of four rows with x of 0, 0, 2, 2 and y of 0, 0, 1, 1 the deviations are 1 and 0.5."""
    sample = np.array([[0, 0, 0], [0, 0, 0], [2, 1, 0], [2, 1, 0]], np.float32)
    assert spread_ratio(sample, X, np.stack([Y, Y])) == pytest.approx(2)
    assert spread_ratio(sample, Z, np.stack([Y])) == 1  # all alike: no ratio
