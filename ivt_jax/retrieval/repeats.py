"""Finds the results of a search that repeat a better one."""

import numpy as np

from ivt_jax.common.likeness import likeness, read_colours
from ivt_jax.encoding.images import open_image
from ivt_jax.retrieval.stores.store import Row
from ivt_jax.retrieval.stores.where import Value

_LEAST_LIKENESS = 0.9  # least correlation of colours; different persons of PEDES-Synth's test split reach 0.88


class Repeats:
    """What repeats what among the results of one search.

    drop: whether repeats are dropped. by_look: whether it compares thumbnails. values: those of the field `group` that
    have been found, with the ids of their best rows.

    A result repeats the best one with its value of the field `group`, otherwise the most similar of the better ones
    that repeat none, if their cosine similarity exceeds `distinct` and, with `fold`, both look alike. Only better
    results decide, so the repeats of a list are the first of those of a longer list.
    """

    def __init__(self, group: str, distinct: float | None, fold: bool, top: int):
        self.group, self.values = group, dict[Value, int]()
        self.drop, self.by_look = bool(group or distinct is not None) and not fold, fold and distinct is not None
        self._distinct, self._kept, self._top = distinct, list[Row](), top
        self._vectors = np.empty((0, 0), np.float32)  # of these rows
        self._looks = dict[int, np.ndarray]()  # id of a row -> colours of its thumbnail

    def find(self, row: Row) -> int | None:
        """Returns the id of the better row that a row repeats, None if it repeats none. Rows come best first."""
        value = row.metadata.get(self.group)
        better = None if value is None else self.values.get(value)
        if better is None and self._distinct is not None:
            better = self._most_similar(row, self._distinct)
        if better is None and value is not None:
            self.values[value] = row.id
        return better

    def _most_similar(self, row: Row, least: float) -> int | None:
        vector, count = np.asarray(row.vector, np.float32), len(self._kept)
        if not count:
            self._vectors = np.empty((self._top, len(vector)), np.float32)
        similarities = self._vectors[:count] @ vector
        for place in np.argsort(-similarities, kind="stable")[: (similarities > least).sum()]:
            if not self.by_look or self._look_alike(row, self._kept[place]):
                return self._kept[place].id
        self._vectors[count] = vector
        self._kept.append(row)
        return None

    def _look_alike(self, row: Row, other: Row) -> bool:
        if row.digest == other.digest:  # also a picture of one tone, which is not like itself
            return True
        return likeness(self._look(row), self._look(other)) >= _LEAST_LIKENESS

    def _look(self, row: Row) -> np.ndarray:
        if row.id not in self._looks:
            self._looks[row.id] = read_colours(open_image(row.path, row.thumbnail))
        return self._looks[row.id]
