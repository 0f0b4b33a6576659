"""k-reciprocal re-ranking of text-to-image retrieval, after Zhong et al., CVPR 2017, sections 3.2 to 3.5.

An image that a query finds is the more believable, the more neighbours the two share. All vectors have length 1, and
the distance d is 1 - cosine (half the squared Euclidean one): it orders as the similarities that everything else here
is ranked by. No label is used.

Images, as in the paper. N(g, k) is the image g and its k nearest others; R(g, k) those of them that have g among
theirs. Every q in R(g, k1) adds its own R(q, k1/2) where at least 2/3 of that lies in R(g, k1). The encoding of g is
exp(-d(g, i)) for each image i of this set, divided by its sum; it is then replaced by the mean of the encodings of g
and of its k2 - 1 nearest others.

Queries are sentences and cannot be encoded so. A sentence lies in no image's neighbourhood, for images are as a rule
nearer to each other than to a sentence (the modality gap): reciprocity would leave next to nothing. To compare with
other queries instead would make a result depend on who else asks. So N(query, k1), its k1 nearest images, stands for R,
and the rest is the same: its members add their R(q, k1/2) by the same rule, the weights are divided by their sum, which
takes the gap out of them, and the query's encoding is averaged with those of its k2 - 1 nearest images.

The final distance is (1 - weight) * Jaccard distance of the encodings + weight * d. Ties go to the lower index, up to
the rounding of float32 products; an odd k1/2 is rounded up. The defaults are the paper's. Re-ranking gathers images
that look alike: mINP and mAP gain more by it than R@1, and all may lose where a description fits several persons.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array

from ivt_jax.common.errors import UserError


def rerank(
    queries: np.ndarray, gallery: np.ndarray, *, k1: int = 20, k2: int = 6, weight: float = 0.3, chunk: int = 512
) -> Iterator[tuple[slice, np.ndarray]]:
    """Re-ranks the gallery (G, D) for every query (Q, D), both float32 with rows of length 1.

    Yields, `chunk` queries at a time, (which queries, their similarities (q, G) float32): 1 - the final distance, so
    weight 1 gives back the cosines. A query's result depends on it and the gallery alone. k1 and k2 may exceed the
    gallery. UserError for k1 or k2 under 1, a weight outside 0..1, and vectors that are not finite.
    """
    if k1 < 1 or k2 < 1:
        raise UserError(f"re-ranking needs k1 and k2 of 1 or more, not {k1} and {k2}")
    if not 0 <= weight <= 1:
        raise UserError(f"the weight of the original distance lies between 0 and 1, not {weight}")
    if not np.isfinite(queries).all() or not np.isfinite(gallery).all():
        raise UserError("an embedding is not finite: the parameters are not finite")
    return _chunks(queries, gallery, k1, k2, weight, chunk)


def _chunks(
    queries: np.ndarray, gallery: np.ndarray, k1: int, k2: int, weight: float, chunk: int
) -> Iterator[tuple[slice, np.ndarray]]:
    half, encodings, averaged = _encode_gallery(gallery, k1, k2, chunk)
    inverted = averaged.T.tocsr()  # row i: which images have image i in their encoding
    for start in range(0, len(queries), chunk):
        some = slice(start, start + chunk)
        similarity = queries[some] @ gallery.T
        nearest = _nearest(similarity, max(k1, k2 - 1))
        members = _expand(_sets(nearest[:, :k1], len(gallery)), half)
        own = _encode(members, similarity[members.nonzero()])
        others = _sets(nearest[:, : k2 - 1], len(gallery))
        encoded = ((own + others @ encodings) / (1 + min(k2 - 1, len(gallery)))).tocsr()
        for row, shared in enumerate(_shared(encoded, inverted)):
            # Encodings sum to 1, so the sum of their maxima is 2 less that of their minima.
            similarity[row] = (1 - weight) * shared / (2 - shared) + weight * similarity[row]
        yield some, similarity


def _encode_gallery(gallery: np.ndarray, k1: int, k2: int, chunk: int) -> tuple[csr_array, csr_array, csr_array]:
    """The sets R(., k1/2) and the encodings before and after averaging, all (G, G) sparse."""
    nearest = []
    for start in range(0, len(gallery), chunk):
        similarity = gallery[start : start + chunk] @ gallery.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = np.inf  # an image comes before its duplicates
        nearest.append(_nearest(similarity, max(k1 + 1, k2)))
    neighbours = np.concatenate(nearest)
    half = _reciprocal(neighbours[:, : (k1 + 1) // 2 + 1])
    members = _expand(_reciprocal(neighbours[:, : k1 + 1]), half)
    rows, columns = members.nonzero()
    step = 32 * chunk  # pairs: about as much memory as a chunk of similarities
    parts = (slice(i, i + step) for i in range(0, len(rows), step))
    cosines = np.concatenate([np.einsum("nd,nd->n", gallery[rows[i]], gallery[columns[i]]) for i in parts])
    encodings = _encode(members, cosines)
    return half, encodings, _sets(neighbours[:, :k2], len(gallery)) @ encodings / min(k2, len(gallery))


def _nearest(similarity: np.ndarray, k: int) -> np.ndarray:
    """The k most similar of each row of (n, G), best first, of ties the lower index first -> (n, min(k, G)) int."""
    k = min(k, similarity.shape[1])
    least = np.partition(similarity, -k, axis=1)[:, -k, None]
    rows, columns = np.nonzero(similarity >= least)  # k of each row, and what ties with the last of them
    order = np.lexsort((-similarity[rows, columns], rows))  # stable
    starts = np.searchsorted(rows, np.arange(len(similarity)))
    return columns[order][starts[:, None] + np.arange(k)]


def _sets(items: np.ndarray, size: int) -> csr_array:
    """(n, k) indices of images -> (n, size) sparse, 1 where a row has the image."""
    n, k = items.shape
    columns = items.flatten()  # a copy, for scipy may sort its indices in place
    return csr_array((np.ones(n * k), columns, k * np.arange(n + 1)), shape=(n, size))


def _reciprocal(neighbours: np.ndarray) -> csr_array:
    """R of every image from its N, (G, k + 1) indices -> (G, G) sparse, 1 or nothing."""
    near = _sets(neighbours, len(neighbours))
    return near.multiply(near.T).tocsr()


def _expand(members: csr_array, half: csr_array) -> csr_array:
    """Adds to each row of `members` (n, G) the R(q, k1/2) of those members q that share 2/3 of it -> 1 or more."""
    agreeing = members.multiply(members @ half).tocsr()  # |row and R(q, k1/2)|, for `half` is symmetric
    agreeing.data = (3 * agreeing.data >= 2 * half.sum(axis=1)[agreeing.indices]).astype(float)
    agreeing.eliminate_zeros()
    return (members + agreeing @ half).tocsr()


def _encode(members: csr_array, cosines: np.ndarray) -> csr_array:
    """Weights exp(-d) of the members, divided by their sum; cosines: one for each stored member, row by row."""
    weights = np.exp(cosines.astype(float))
    sums = np.add.reduceat(weights, members.indptr[:-1])  # no row is empty
    weights /= np.repeat(sums, np.diff(members.indptr))
    return csr_array((weights, members.indices, members.indptr), shape=members.shape)


def _shared(encoded: csr_array, inverted: csr_array) -> Iterator[np.ndarray]:
    """For each encoding of (q, G): the sums of its minima with those of all images, (G,) float64."""
    for start, end in pairwise(encoded.indptr):
        found = inverted[encoded.indices[start:end]]
        smaller = np.minimum(found.data, np.repeat(encoded.data[start:end], np.diff(found.indptr)))
        yield np.bincount(found.indices, smaller, inverted.shape[1])
