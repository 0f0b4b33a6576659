"""Ranking scores: R@k, average precision and INP of each query, their means, and bootstrap intervals over persons.

A match is an item with the query's person id. Ties count against the model: another person's item with the same
similarity ranks first. So no score depends on the order of the gallery or on a sort. Products of equal vectors may
differ in the last bit, by their position in BLAS's blocks; these are not ties.
"""

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError

_CHUNK = 1024  # queries whose similarities are held at once
_PART = 4096  # queries in a part of `rank_both_ways`: fewer parts are faster, but take more memory


class Ranks(NamedTuple):
    """The result of each query, four (Q,) float64 arrays; nan for a query without a match.

    With the j-th of R matches (j from 0) at 0-based rank r_j, average precision is 1/R sum (j+1)/(r_j+1), as IRRA and
    the field; trapezoid averages each term with j/r_j (1 at r_j = 0), as the release.
    """

    first: np.ndarray  # rank of the best match, from 1
    average_precision: np.ndarray  # in [0, 1]
    trapezoid: np.ndarray  # in [0, 1]
    inverse_penalty: np.ndarray  # INP, in [0, 1]: number of matches / rank of the worst of them


def rank_queries(similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> Ranks:
    """Ranks the gallery for every query: similarity (Q, G) float, person ids (Q,) and (G,) int."""
    score, counts = _match_scores(similarity, query_ids, gallery_ids)
    return _ranks(score, counts, _count_as_similar(similarity, score, counts))


def _match_scores(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the similarities of all M matches, query by query, best first, nan last: (M,); their counts (Q,) int."""
    by_person = np.argsort(gallery_ids, kind="stable")
    starts, ends = (np.searchsorted(gallery_ids[by_person], query_ids, side) for side in ("left", "right"))
    counts = ends - starts
    query = np.repeat(np.arange(len(counts)), counts)
    score = similarity[query, by_person[np.repeat(ends - np.cumsum(counts), counts) + np.arange(len(query))]]
    return score[np.lexsort((-score, query))], counts


def _count_as_similar(similarity: np.ndarray, score: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Counts the items in the query's row of (Q, G) that are at least as similar as each match: (M,) int.

    score, counts: from `_match_scores`. Raises UserError if a similarity is nan.
    """
    as_similar = np.empty(len(score), np.int64)
    end = 0
    for row, count in zip(similarity, counts, strict=True):
        start, end = end, end + count
        if count:
            # Sorts only the items as similar as the worst match, a small part of a trained model's row.
            found = row.take((~(row < score[end - 1])).nonzero()[0])  # not >=, which would drop nan
            found.sort()
            if found.size and found[-1] != found[-1]:  # np.isnan is slow for one number
                raise UserError("a similarity is not a number: the parameters are not finite")
            as_similar[start:end] = found.size - found.searchsorted(score[start:end])
    return as_similar


def _ranks(score: np.ndarray, counts: np.ndarray, as_similar: np.ndarray) -> Ranks:
    """Computes the ranks from the results of `_match_scores` and `_count_as_similar`."""
    matched, last = counts > 0, np.cumsum(counts) - 1
    query = np.repeat(np.arange(len(counts)), counts)
    found = np.arange(1, len(query) + 1) - np.repeat(last + 1 - counts, counts)  # 1, 2, ... of each query
    # 1-based ranks: the other persons' items that are as similar or more, then the matches up to this one.
    ends_tie = np.flatnonzero(np.append((score[1:] != score[:-1]) | (query[1:] != query[:-1]), True))
    right = found[ends_tie[np.searchsorted(ends_tie, np.arange(len(query)))]]  # matches as similar or more
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
    """Ranks by the dot products of (Q, D) and (G, D) float32, as `rank_queries`, in chunks that bound memory.

    Yields (slice of the queries, their similarities (q, G), their ranks).
    """
    for start in range(0, len(queries), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        similarity = queries[chunk] @ gallery.T
        yield chunk, similarity, rank_queries(similarity, query_ids[chunk], gallery_ids)


def rank_embeddings(queries: np.ndarray, gallery: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> Ranks:
    """Returns the ranks of all queries; arguments as `rank_chunks`."""
    return joined([ranks for _, _, ranks in rank_chunks(queries, gallery, query_ids, gallery_ids)])


def joined(parts: Sequence[Ranks]) -> Ranks:
    """Concatenates the ranks of parts of the queries."""
    return Ranks(*map(np.concatenate, zip(*parts, strict=True)))


def rank_both_ways(
    queries: np.ndarray, gallery: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> tuple[Ranks, Ranks]:
    """Ranks the gallery for every query, and the queries for every gallery item, from one matrix product.

    Arguments as `rank_chunks`. Sorts both sides by person and cuts them into parts that contain all matches of their
    items. In the second direction, an item's similarities with earlier queries are kept until its matches are known: at
    most a quarter of the whole matrix.
    """
    by_query, by_item = np.argsort(query_ids, kind="stable"), np.argsort(gallery_ids, kind="stable")
    queries, query_ids = queries[by_query], query_ids[by_query]
    gallery, gallery_ids = gallery[by_item], gallery_ids[by_item]
    count = -(-len(queries) // _PART)
    # The first person of every part but the first; the parts are about equally large.
    firsts = np.unique(query_ids[np.arange(1, count) * len(queries) // max(count, 1)])
    rows, columns = (_parts(ids, firsts) for ids in (query_ids, gallery_ids))
    waiting: list[list[np.ndarray]] = [[] for _ in columns]
    forth, matches, as_similar = [], [], []
    most = max(chunk.stop - chunk.start for chunk in rows)
    buffer = np.empty((most, len(gallery)), queries.dtype)  # allocated once: fresh memory is slow
    for part, chunk in enumerate(rows):
        similarity = np.matmul(queries[chunk], gallery.T, out=buffer[: chunk.stop - chunk.start])
        forth.append(rank_queries(similarity, query_ids[chunk], gallery_ids))
        for other, items in enumerate(columns):
            waiting[other].append(_transposed(similarity[:, items]))
            if other == part:
                matches.append(_match_scores(waiting[other][-1], gallery_ids[items], query_ids[chunk]))
                as_similar.append(np.zeros(len(matches[part][0]), np.int64))
            while other <= part and waiting[other]:
                as_similar[other] += _count_as_similar(waiting[other].pop(), *matches[other])
    back = [_ranks(*match, count) for match, count in zip(matches, as_similar, strict=True)]
    return _in_order(forth, by_query), _in_order(back, by_item)


def _transposed(x: np.ndarray) -> np.ndarray:
    """Copies x.T in blocks of rows that fit into the cache: four times as fast for large arrays."""
    out = np.empty(x.shape[::-1], x.dtype)
    for start in range(0, len(x), 256):
        out[:, start : start + 256] = x[start : start + 256].T
    return out


def _parts(ids: np.ndarray, firsts: np.ndarray) -> list[slice]:
    """Cuts sorted person ids (n,) before each of the persons `firsts`."""
    edges = [0, *np.searchsorted(ids, firsts).tolist(), len(ids)]
    return [slice(*edge) for edge in pairwise(edges)]


def _in_order(parts: Sequence[Ranks], order: np.ndarray) -> Ranks:
    """Joins the ranks of queries that were sorted by `order`, and undoes the sort."""
    return Ranks(*np.stack(joined(parts))[:, np.argsort(order)])


def first_found(scores: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the `count` best scores of (G,), best first. right (G,) bool: matches, last in a tie."""
    least = np.partition(scores, -count)[-count] if count < len(scores) else -np.inf
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.lexsort((right[candidates], -scores[candidates]))[:count]]


def query_scores(ranks: Ranks) -> dict[str, np.ndarray]:
    """Returns R1, R5, R10, mAP and mINP of every query: (Q,) float64 in percent, nan without a match."""
    recalls = {f"R{k}": np.where(np.isnan(ranks.first), np.nan, 100.0 * (ranks.first <= k)) for k in (1, 5, 10)}
    return recalls | {"mAP": 100 * ranks.average_precision, "mINP": 100 * ranks.inverse_penalty}


def with_trapezoid(ranks: Ranks) -> Ranks:
    """Replaces the average precision by the release's, for `query_scores`."""
    return ranks._replace(average_precision=ranks.trapezoid)


def mean_scores(scores: dict[str, np.ndarray]) -> dict[str, float]:
    """Averages over the queries that have a match; warns about the others. Raises UserError if none has one."""
    without = int(np.isnan(scores["R1"]).sum())
    if without == len(scores["R1"]):
        raise UserError("no query has an item of its person in the gallery: there is nothing to score")
    if without:
        warnings.warn(f"{without} of {len(scores['R1'])} queries have no match and are left out", stacklevel=2)
    return {name: float(np.nanmean(values)) for name, values in scores.items()}


def retrieval_metrics(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray, average_precision: str = "standard"
) -> dict[str, float]:
    """Returns R1, R5, R10, mAP and mINP in percent; arguments as `rank_queries`.

    average_precision: "standard" or "trapezoid". Leaves out queries without a match, with a warning (the release counts
    them as misses). Raises UserError if none has one.
    """
    if average_precision not in ("standard", "trapezoid"):
        raise UserError(f'average_precision is "standard" or "trapezoid", not {average_precision!r}')
    ranks = rank_queries(similarity, query_ids, gallery_ids)
    return mean_scores(query_scores(ranks if average_precision == "standard" else with_trapezoid(ranks)))


def bootstrap_interval(
    values: np.ndarray, persons: np.ndarray, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Returns the 95% percentile interval of the mean of `values` (Q,), leaving out nan.

    persons (Q,): person ids. The queries of a person fail together, so whole persons are resampled.
    """
    known = ~np.isnan(values)
    names, index = np.unique(persons[known], return_inverse=True)
    sums, counts = np.bincount(index, values[known]), np.bincount(index)
    draws = np.random.default_rng(seed).integers(len(names), size=(samples, len(names)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
