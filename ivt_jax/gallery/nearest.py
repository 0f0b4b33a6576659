"""The nearest vectors of a gallery, exactly, in one pass over memory."""

import numpy as np

_CHUNK = 65536  # rows whose products are in memory at once


def nearest(
    queries: np.ndarray, vectors: np.ndarray, k: int, chosen: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k rows of vectors (N, D) with the largest products with queries (Q, D) float32.

    Returns scores (Q, k) float32 and rows (Q, k) int64, best first, ties by row; fewer than k if there are no more.
    vectors: float32 or float16, in memory or mapped; each row is read once. chosen (N,) bool: the rows to consider,
    None for all.
    """
    best_scores, best_rows = (np.empty((len(queries), 0), dtype) for dtype in (np.float32, np.int64))
    for start in range(0, len(vectors), _CHUNK):
        chunk, rows = vectors[start : start + _CHUNK], np.arange(start, min(start + _CHUNK, len(vectors)))
        if chosen is not None:
            chunk, rows = chunk[chosen[rows]], rows[chosen[rows]]
        # The large matrix first: BLAS reads it once, whatever the number of queries.
        scores = (chunk.astype(np.float32, copy=False) @ queries.T).T
        found = np.hstack([best_scores, scores]), np.hstack([best_rows, np.broadcast_to(rows, scores.shape)])
        best_scores, best_rows = best_of(*found, k)
    return best_scores, best_rows


def best_of(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k highest scores of each line and their rows, best first, ties by row."""
    if scores.shape[1] > k:
        least = np.partition(scores, -k, axis=1)[:, [-k]]
        chosen = [np.flatnonzero(line >= limit) for line, limit in zip(scores, least, strict=True)]
    else:
        chosen = [np.arange(scores.shape[1])] * len(scores)
    order = np.stack([c[np.lexsort((rows[i, c], -scores[i, c]))[:k]] for i, c in enumerate(chosen)])
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
