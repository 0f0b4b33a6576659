"""k-reciprocal re-ranking of text-to-image retrieval, after Zhong et al., CVPR 2017, sections 3.2 to 3.5.

A result is more credible if query and image share neighbours. All vectors have length 1; the distance d is 1 - cosine,
half the squared Euclidean distance. No label is used.

Images are encoded as in the paper. N(g, k) holds the image g and its k nearest others; R(g, k) holds the members of
N(g, k) whose own N contains g. Every q in R(g, k1) adds R(q, k1/2) if R(g, k1) contains at least 2/3 of it. The
encoding of g is exp(-d(g, i)) for each image i of this set, divided by its sum, and then averaged with the encodings of
the k2 - 1 nearest other images.

Queries are sentences, which are nobody's neighbours: images are nearer to each other than to a sentence (the modality
gap). So N(query, k1), the k1 nearest images, replaces R; the other steps stay the same. Dividing the weights by their
sum cancels the gap. Comparing queries with each other would make a result depend on the other queries.

The final distance is (1 - weight) * Jaccard distance of the encodings + weight * d. In a tie the lower index is first,
up to the rounding of float32 products; an odd k1/2 is rounded up. The defaults are the paper's. mINP and mAP gain more
than R@1, since images that look alike move up together; all may lose if a description fits several persons.
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

    Yields (slice of `chunk` queries, their similarities (q, G) float32). A similarity is 1 - the final distance, with
    weight 1 the cosine; it depends on its query and the gallery only. k1 and k2 may exceed the gallery. Raises
    UserError, before any work, for k1 or k2 under 1, a weight outside 0..1, or vectors that are not finite.
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
    inverted = averaged.T.tocsr()  # row i: the images whose encoding contains image i
    for start in range(0, len(queries), chunk):
        some = slice(start, start + chunk)
        similarity = queries[some] @ gallery.T
        nearest = _nearest(similarity, max(k1, k2 - 1))
        members = _expand(_sets(nearest[:, :k1], len(gallery)), half)
        own = _encode(members, similarity[members.nonzero()])
        others = _sets(nearest[:, : k2 - 1], len(gallery))
        encoded = ((own + others @ encodings) / (1 + min(k2 - 1, len(gallery)))).tocsr()
        for row, shared in enumerate(_shared(encoded, inverted)):
            # Encodings sum to 1, so their maxima sum to 2 minus the sum of their minima.
            similarity[row] = (1 - weight) * shared / (2 - shared) + weight * similarity[row]
        yield some, similarity


def _encode_gallery(gallery: np.ndarray, k1: int, k2: int, chunk: int) -> tuple[csr_array, csr_array, csr_array]:
    """Returns the sets R(., k1/2) and the encodings before and after averaging, all (G, G) sparse."""
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
    """Returns the k most similar of each row of (n, G), best first, ties by index: (n, min(k, G)) int."""
    k = min(k, similarity.shape[1])
    least = np.partition(similarity, -k, axis=1)[:, -k, None]
    rows, columns = np.nonzero(similarity >= least)  # k of each row, and ties with the last of them
    order = np.lexsort((-similarity[rows, columns], rows))  # stable
    starts = np.searchsorted(rows, np.arange(len(similarity)))
    return columns[order][starts[:, None] + np.arange(k)]


def _sets(items: np.ndarray, size: int) -> csr_array:
    """Converts (n, k) image indices to (n, size) sparse, 1 at each index of the row."""
    n, k = items.shape
    columns = items.flatten()  # a copy: scipy may sort its indices in place
    return csr_array((np.ones(n * k), columns, k * np.arange(n + 1)), shape=(n, size))


def _reciprocal(neighbours: np.ndarray) -> csr_array:
    """Returns the sets R, (G, G) sparse with 1 for each member, from the sets N, (G, k + 1) indices."""
    near = _sets(neighbours, len(neighbours))
    return near.multiply(near.T).tocsr()


def _expand(members: csr_array, half: csr_array) -> csr_array:
    """Adds R(q, k1/2) to each row of `members` (n, G) for each member q, if the row contains 2/3 of it."""
    agreeing = members.multiply(members @ half).tocsr()  # |row and R(q, k1/2)|; `half` is symmetric
    agreeing.data = (3 * agreeing.data >= 2 * half.sum(axis=1)[agreeing.indices]).astype(float)
    agreeing.eliminate_zeros()
    return (members + agreeing @ half).tocsr()


def _encode(members: csr_array, cosines: np.ndarray) -> csr_array:
    """Returns exp(-d) of the members, divided by the sum of the row. cosines: of the stored members, row by row."""
    weights = np.exp(cosines.astype(float))
    sums = np.add.reduceat(weights, members.indptr[:-1])  # no row is empty
    weights /= np.repeat(sums, np.diff(members.indptr))
    return csr_array((weights, members.indices, members.indptr), shape=members.shape)


def _shared(encoded: csr_array, inverted: csr_array) -> Iterator[np.ndarray]:
    """Yields, for each encoding of (q, G), its sums of minima with the encodings of all images: (G,) float64."""
    for start, end in pairwise(encoded.indptr):
        found = inverted[encoded.indices[start:end]]
        smaller = np.minimum(found.data, np.repeat(encoded.data[start:end], np.diff(found.indptr)))
        yield np.bincount(found.indices, smaller, inverted.shape[1])
