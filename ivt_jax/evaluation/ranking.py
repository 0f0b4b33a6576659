"""How good a ranking is: R@k, AP and INP of each query as pure functions, their means, and intervals over persons.

A query is right where it finds any item of its own person. Ties count against the model: a wrong item with the same
similarity ranks first. So no figure depends on the order of the gallery or on a sort, and where all similarities are
equal the score is the worst instead of luck. That holds for similarities as they are given: in a matrix product even
equal vectors may get values that differ in the last bit, by where BLAS has them.
"""

import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError

_CHUNK = 1024  # queries whose similarities are held at once
_PART = 4096  # the same where both directions are ranked: fewer parts are faster, and take more memory


class Ranks(NamedTuple):
    """How each query did, four (Q,) float64 arrays; nan where the gallery has no item of the query's person.

    With the j-th right item (j from 0) of R at 0-based rank r_j, average precision is 1/R sum (j+1)/(r_j+1), as IRRA
    and the field; trapezoid averages each term with j/r_j (1 at r_j = 0), as released.
    """

    first: np.ndarray  # rank of the best right item, from 1
    average_precision: np.ndarray  # in [0, 1]
    trapezoid: np.ndarray  # in [0, 1]
    inverse_penalty: np.ndarray  # INP, in [0, 1]: right items / rank of the worst of them


def rank_queries(similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> Ranks:
    """Ranks the gallery for every query: similarity (Q, G) float, person ids (Q,) and (G,) int."""
    score, counts = _right_scores(similarity, query_ids, gallery_ids)
    return _ranks(score, counts, _count_as_similar(similarity, score, counts))


def _right_scores(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities of the right items of all queries in one array, query by query, the best first; how many each has.

    -> (N,) of the type of `similarity`, (Q,) int. What is not a number comes last.
    """
    by_person = np.argsort(gallery_ids, kind="stable")
    starts, ends = (np.searchsorted(gallery_ids[by_person], query_ids, side) for side in ("left", "right"))
    counts = ends - starts
    query = np.repeat(np.arange(len(counts)), counts)
    score = similarity[query, by_person[np.repeat(ends - np.cumsum(counts), counts) + np.arange(len(query))]]
    return score[np.lexsort((-score, query))], counts


def _count_as_similar(similarity: np.ndarray, score: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many items of the query's row (of (Q, G)) are as similar as each right item or more: (N,) int.

    score, counts: as `_right_scores` gives them.
    """
    as_similar = np.empty(len(score), np.int64)
    end = 0
    for row, count in zip(similarity, counts, strict=True):
        start, end = end, end + count
        if count:
            # Sorted is only what is as similar as the worst right item: of a trained model a small part of the row.
            found = row.take((~(row < score[end - 1])).nonzero()[0])  # not >=, which would lose what is not a number
            found.sort()
            if found.size and found[-1] != found[-1]:  # np.isnan is slow for one number
                raise UserError("a similarity is not a number: the parameters are not finite")
            as_similar[start:end] = found.size - found.searchsorted(score[start:end])
    return as_similar


def _ranks(score: np.ndarray, counts: np.ndarray, as_similar: np.ndarray) -> Ranks:
    """The ranks from what `_right_scores` and `_count_as_similar` give."""
    matched, last = counts > 0, np.cumsum(counts) - 1
    query = np.repeat(np.arange(len(counts)), counts)
    found = np.arange(1, len(query) + 1) - np.repeat(last + 1 - counts, counts)  # 1, 2, ... of each query
    # 1-based ranks: the wrong items that are as similar or more, then the right ones up to this.
    ends_tie = np.flatnonzero(np.append((score[1:] != score[:-1]) | (query[1:] != query[:-1]), True))
    right = found[ends_tie[np.searchsorted(ends_tie, np.arange(len(query)))]]  # right items as similar or more
    rank = as_similar - right + found
    before = np.where(rank == 1, 1.0, (found - 1) / np.maximum(rank - 1, 1))
    ranks = np.full((4, len(counts)), np.nan)
    ranks[0, matched] = rank[(last + 1 - counts)[matched]]
    for into, precision in zip(ranks[1:3], (found / rank, (found / rank + before) / 2), strict=True):
        into[matched] = np.bincount(query, precision, len(counts))[matched] / counts[matched]
    ranks[3, matched] = counts[matched] / rank[last[matched]]
    return Ranks(*ranks)


def rank_chunks(
    queries: np.ndarray, gallery: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, Ranks]]:
    """`rank_queries` by the dot products of (Q, D) and (G, D) float32, some queries at a time to bound memory.

    Yields (which queries, their similarities (q, G), their ranks).
    """
    for start in range(0, len(queries), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        similarity = queries[chunk] @ gallery.T
        yield chunk, similarity, rank_queries(similarity, query_ids[chunk], gallery_ids)


def rank_embeddings(queries: np.ndarray, gallery: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> Ranks:
    """The ranks of all queries; arguments as `rank_chunks`."""
    parts = [ranks for _, _, ranks in rank_chunks(queries, gallery, query_ids, gallery_ids)]
    return Ranks(*map(np.concatenate, zip(*parts, strict=True)))


def rank_both_ways(
    queries: np.ndarray, gallery: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> tuple[Ranks, Ranks]:
    """The ranks of all queries in the gallery, and of the gallery's items in the queries, from one product.

    Arguments as `rank_chunks`. Both sides are taken by person, in parts, so that all that is right for an item lies in
    its own part. For the second direction a part's similarities with the parts before it have to wait until its right
    ones are known: up to a quarter of the whole matrix.
    """
    by_query, by_item = np.argsort(query_ids, kind="stable"), np.argsort(gallery_ids, kind="stable")
    queries, query_ids = queries[by_query], query_ids[by_query]
    gallery, gallery_ids = gallery[by_item], gallery_ids[by_item]
    count = -(-len(queries) // _PART)
    # The persons that the parts but the first begin with; parts are about alike in size.
    firsts = np.unique(query_ids[np.arange(1, count) * len(queries) // max(count, 1)])
    rows, columns = (_parts(ids, firsts) for ids in (query_ids, gallery_ids))
    waiting: list[list[np.ndarray]] = [[] for _ in columns]
    forth, right, as_similar = [], [], []
    most = max(chunk.stop - chunk.start for chunk in rows)
    held = np.empty((most, len(gallery)), queries.dtype)  # once, for memory is slow when it is fresh
    for part, chunk in enumerate(rows):
        similarity = np.matmul(queries[chunk], gallery.T, out=held[: chunk.stop - chunk.start])
        forth.append(rank_queries(similarity, query_ids[chunk], gallery_ids))
        for other, items in enumerate(columns):
            waiting[other].append(_transposed(similarity[:, items]))
            if other == part:
                right.append(_right_scores(waiting[other][-1], gallery_ids[items], query_ids[chunk]))
                as_similar.append(np.zeros(len(right[part][0]), np.int64))
            while other <= part and waiting[other]:
                as_similar[other] += _count_as_similar(waiting[other].pop(), *right[other])
    back = [_ranks(*known, found) for known, found in zip(right, as_similar, strict=True)]
    return _in_order(forth, by_query), _in_order(back, by_item)


def _transposed(x: np.ndarray) -> np.ndarray:
    """A copy of x.T, by some rows at once: so what is read stays in the cache, and large copies are 4 times as fast."""
    out = np.empty(x.shape[::-1], x.dtype)
    for start in range(0, len(x), 256):
        out[:, start : start + 256] = x[start : start + 256].T
    return out


def _parts(ids: np.ndarray, firsts: np.ndarray) -> list[slice]:
    """Sorted person ids (n,), cut where each of the persons `firsts` begins or would."""
    edges = [0, *np.searchsorted(ids, firsts).tolist(), len(ids)]
    return [slice(*edge) for edge in pairwise(edges)]


def _in_order(parts: list[Ranks], order: np.ndarray) -> Ranks:
    """Joins ranks of queries that were taken in `order`."""
    back = np.argsort(order)
    return Ranks(*(np.concatenate(values)[back] for values in zip(*parts, strict=True)))


def first_found(scores: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` best of a query's scores (G,), best first; right (G,): of its person, last of ties."""
    least = np.partition(scores, -count)[-count] if count < len(scores) else -np.inf
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.lexsort((right[candidates], -scores[candidates]))[:count]]


def query_scores(ranks: Ranks) -> dict[str, np.ndarray]:
    """Every query's share in R1, R5, R10, mAP and mINP: (Q,) float64 in percent, nan where there is no match."""
    recalls = {f"R{k}": np.where(np.isnan(ranks.first), np.nan, 100.0 * (ranks.first <= k)) for k in (1, 5, 10)}
    return recalls | {"mAP": 100 * ranks.average_precision, "mINP": 100 * ranks.inverse_penalty}


def with_trapezoid(ranks: Ranks) -> Ranks:
    """The same with the release's average precision in the place of the standard one."""
    return ranks._replace(average_precision=ranks.trapezoid)


def mean_scores(scores: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over the queries that have a match; warns of the others, raises UserError where none has."""
    without = int(np.isnan(scores["R1"]).sum())
    if without == len(scores["R1"]):
        raise UserError("no query has an item of its person in the gallery: there is nothing to score")
    if without:
        warnings.warn(f"{without} of {len(scores['R1'])} queries have no match and are left out", stacklevel=2)
    return {name: float(np.nanmean(values)) for name, values in scores.items()}


def retrieval_metrics(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray, average_precision: str = "standard"
) -> dict[str, float]:
    """R1, R5, R10, mAP, mINP in percent; average_precision: "standard" or "trapezoid", the rest as `rank_queries`.

    Queries without an item of their person in the gallery are left out, with a warning (the release counts them as
    misses); UserError where none has one.
    """
    if average_precision not in ("standard", "trapezoid"):
        raise UserError(f'average_precision is "standard" or "trapezoid", not {average_precision!r}')
    ranks = rank_queries(similarity, query_ids, gallery_ids)
    return mean_scores(query_scores(ranks if average_precision == "standard" else with_trapezoid(ranks)))


def bootstrap_interval(
    values: np.ndarray, persons: np.ndarray, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of the mean of `values` (Q,) under resampling of persons; nan values are left out.

    persons (Q,): each query's. Queries of one person fail together, so persons are drawn, each with all its queries.
    """
    known = ~np.isnan(values)
    names, index = np.unique(persons[known], return_inverse=True)
    sums, counts = np.bincount(index, values[known]), np.bincount(index)
    draws = np.random.default_rng(seed).integers(len(names), size=(samples, len(names)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
