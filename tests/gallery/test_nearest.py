"""The nearest vectors, against a full sort; ties and chunks."""

import numpy as np
import pytest

from ivt_jax.gallery import nearest as module
from ivt_jax.gallery.nearest import nearest

RNG = np.random.default_rng(0)
# Small whole numbers: products are exact in float32, and many are equal.
VECTORS = RNG.integers(-3, 4, (64, 5)).astype(np.float32)
QUERIES = RNG.integers(-3, 4, (3, 5)).astype(np.float32)


def full_sort(k):
    """The definition: all products in float64, best first, ties by row."""
    scores = QUERIES.astype(np.float64) @ VECTORS.T.astype(np.float64)
    rows = np.array([sorted(range(64), key=lambda i, line=line: (-line[i], i))[:k] for line in scores])
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.mark.parametrize("chunk", [7, 32, 1000])
@pytest.mark.parametrize("k", [1, 10, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_they_are_those_of_a_full_sort(monkeypatch, chunk, k, dtype):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    scores, rows = nearest(QUERIES, VECTORS.astype(dtype), k)
    expected = full_sort(k)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(scores, expected[0])
    assert scores.dtype == np.float32


def test_a_gallery_mapped_from_a_file_is_read_as_it_is(tmp_path):
    np.save(tmp_path / "vectors.npy", VECTORS)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    np.testing.assert_array_equal(nearest(QUERIES, mapped, 4)[1], full_sort(4)[1])


@pytest.mark.parametrize("chunk", [7, 1000])
def test_only_the_chosen_rows_count(monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    chosen = np.arange(64) % 16 >= 13  # in chunks of 7 several hold none
    scores, rows = nearest(QUERIES, VECTORS, 20, chosen)
    expected = full_sort(64)
    for query in range(3):
        kept = [i for i in expected[1][query] if i % 16 >= 13]
        assert rows[query].tolist() == kept and len(kept) == 12
        np.testing.assert_array_equal(scores[query], np.sort(expected[0][query][chosen[expected[1][query]]])[::-1])
    assert nearest(QUERIES, VECTORS, 5, np.zeros(64, bool))[1].shape == (3, 0)
