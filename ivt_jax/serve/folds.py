"""Which results repeat a better one: near-duplicates, and other pictures of one value of a field."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ivt_jax.retrieval.stores.where import Value

if TYPE_CHECKING:
    from ivt_jax.retrieval.searcher import Result
    from ivt_jax.retrieval.stores.store import VectorStore


def find_folds(
    store: "VectorStore", results: Sequence["Result"], group: str, distinct: float | None
) -> list[int | None]:
    """Returns for each result the id of the better one that it repeats, None if it repeats none.

    group: a field, "" for none; distinct: the cosine similarity above which pictures are near-duplicates, None for
    none. Only better results decide, so the folds of a list are the first of those of a longer list.
    """
    similarities = None if distinct is None else _similarities(store, results)
    firsts: dict[Value, int] = {}  # value of the field -> id of its best picture
    shown: list[int] = []  # places of the results that repeat none
    folds: list[int | None] = []
    for place, result in enumerate(results):
        value = result.metadata.get(group)
        fold = None if value is None else firsts.get(value)
        if fold is None and similarities is not None and shown:
            nearest = shown[int(similarities[place, shown].argmax())]
            fold = results[nearest].id if similarities[place, nearest] > distinct else None
        if fold is None:
            shown.append(place)
            if value is not None:
                firsts[value] = result.id
        folds.append(fold)
    return folds


def _similarities(store: "VectorStore", results: Sequence["Result"]) -> np.ndarray:
    """Returns (N, N) float32; 0 for a row that was deleted meanwhile."""
    places = {result.id: place for place, result in enumerate(results)}
    vectors = np.zeros((len(results), store.about.dimension), np.float32)
    for row in store.get(list(places), vectors=True):
        vectors[places[row.id]] = row.vector
    return vectors @ vectors.T
