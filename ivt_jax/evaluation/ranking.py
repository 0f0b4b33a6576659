"""How good a ranking is: R@k, AP and INP of each query as pure functions, their means, and intervals over persons.

A query is right where it finds any item of its own person. Ties count against the model: a wrong item with the same
similarity ranks first. So no figure depends on the order of the gallery or on a sort, and an encoder that maps all
inputs to one point scores worst instead of by luck.
"""

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from input_pipeline.errors import UserError

_CHUNK = 1024  # queries whose similarities are held at once


class Ranks(NamedTuple):
    """How each query did, three (Q,) float64 arrays; nan where the gallery has no item of the query's person."""

    first: np.ndarray  # rank of the best right item, from 1
    average_precision: np.ndarray  # in [0, 1]
    inverse_penalty: np.ndarray  # INP, in [0, 1]: right items / rank of the worst of them


def rank_queries(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray, average_precision: str = "standard"
) -> Ranks:
    """Ranks the gallery for every query: similarity (Q, G) float, person ids (Q,) and (G,) int.

    average_precision: with the j-th right item (j from 0) of R at 0-based rank r_j, "standard" is
    1/R sum (j+1)/(r_j+1), as IRRA and the field; "trapezoid" averages each term with j/r_j (1 at r_j = 0), as released.
    """
    if average_precision not in ("standard", "trapezoid"):
        raise UserError(f'average_precision is "standard" or "trapezoid", not {average_precision!r}')
    by_person = np.argsort(gallery_ids, kind="stable")
    starts, ends = (np.searchsorted(gallery_ids[by_person], query_ids, side) for side in ("left", "right"))
    counts = ends - starts
    matched, last = counts > 0, np.cumsum(counts) - 1
    # The right items of all queries in one array, query by query, the best first.
    query = np.repeat(np.arange(len(counts)), counts)
    found = np.arange(1, len(query) + 1) - np.repeat(last + 1 - counts, counts)  # 1, 2, ... of each query
    score = similarity[query, by_person[np.repeat(starts, counts) + found - 1]]
    score = score[np.lexsort((-score, query))]
    rows = _sorted_rows(similarity)
    if np.isnan(rows[matched][:, -1:]).any():
        raise UserError("a similarity is not a number: the parameters are not finite")
    # 1-based ranks: the wrong items that are as similar or more, then the right ones up to this.
    ends_tie = np.flatnonzero(np.append((score[1:] != score[:-1]) | (query[1:] != query[:-1]), True))
    right = found[ends_tie[np.searchsorted(ends_tie, np.arange(len(query)))]]  # right items as similar or more
    rank = rows.shape[1] - _count_below(rows, query, score) - right + found
    precision = found / rank
    if average_precision == "trapezoid":
        before = np.where(rank == 1, 1.0, (found - 1) / np.maximum(rank - 1, 1))
        precision = (precision + before) / 2
    ranks = np.full((3, len(counts)), np.nan)
    ranks[0, matched] = rank[(last + 1 - counts)[matched]]
    ranks[1, matched] = np.bincount(query, precision, len(counts))[matched] / counts[matched]
    ranks[2, matched] = counts[matched] / rank[last[matched]]
    return Ranks(*ranks)


def _sorted_rows(similarity: np.ndarray) -> np.ndarray:
    """A copy with each row in ascending order, sorted by all cores."""
    rows = similarity.copy()
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda part: part.sort(axis=1), np.array_split(rows, os.cpu_count() or 1)))
    return rows


def _count_below(rows: np.ndarray, query: np.ndarray, score: np.ndarray) -> np.ndarray:
    """How many items of the sorted row rows[query[i]] are below score[i], which is one of them: a binary search."""
    low, high = np.zeros_like(query), np.full_like(query, rows.shape[1] - 1)
    for _ in range(rows.shape[1].bit_length()):
        middle = (low + high) // 2
        below = rows[query, middle] < score
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    return low


def rank_chunks(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    average_precision: str = "standard",
) -> Iterator[tuple[slice, np.ndarray, Ranks]]:
    """`rank_queries` by the dot products of (Q, D) and (G, D) float32, some queries at a time to bound memory.

    Yields (which queries, their similarities (q, G), their ranks).
    """
    for start in range(0, len(queries), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        similarity = queries[chunk] @ gallery.T
        yield chunk, similarity, rank_queries(similarity, query_ids[chunk], gallery_ids, average_precision)


def rank_embeddings(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    average_precision: str = "standard",
) -> Ranks:
    """The ranks of all queries; arguments as `rank_chunks`."""
    parts = [ranks for _, _, ranks in rank_chunks(queries, gallery, query_ids, gallery_ids, average_precision)]
    return Ranks(*map(np.concatenate, zip(*parts, strict=True)))


def first_found(scores: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` best of a query's scores (G,), best first; right (G,): of its person, last of ties."""
    least = np.partition(scores, -count)[-count] if count < len(scores) else -np.inf
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.lexsort((right[candidates], -scores[candidates]))[:count]]


def query_scores(ranks: Ranks) -> dict[str, np.ndarray]:
    """Every query's share in R1, R5, R10, mAP and mINP: (Q,) float64 in percent, nan where there is no match."""
    recalls = {f"R{k}": np.where(np.isnan(ranks.first), np.nan, 100.0 * (ranks.first <= k)) for k in (1, 5, 10)}
    return recalls | {"mAP": 100 * ranks.average_precision, "mINP": 100 * ranks.inverse_penalty}


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
    """R1, R5, R10, mAP, mINP in percent; arguments as `rank_queries`.

    Queries without an item of their person in the gallery are left out, with a warning (the release counts them as
    misses); UserError where none has one.
    """
    return mean_scores(query_scores(rank_queries(similarity, query_ids, gallery_ids, average_precision)))


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
