"""A slow, plain index in memory, to compare the stores with."""

import collections
import dataclasses

import numpy as np

from ivt_jax.retrieval.stores.where import OPERATORS, PATH, Comparison, Contains, Joined, Missing, Not, OneOf


def meets(condition, row):
    """Whether a row meets a condition."""
    return condition is None or holds(condition, {**row.metadata, PATH: row.path})


def holds(condition, metadata):
    """Whether metadata meet a condition; a comparison with a missing value is false."""
    match condition:
        case Comparison(field, symbol, value):
            return metadata[field] is not None and OPERATORS[symbol](metadata[field], value)
        case OneOf(field, values):
            return metadata[field] in values
        case Contains(field, text):
            return metadata[field] is not None and text in metadata[field]
        case Missing(field):
            return metadata[field] is None
        case Not(part):
            return not holds(part, metadata)
        case Joined("and", parts):
            return all(holds(part, metadata) for part in parts)
        case Joined("or", parts):
            return any(holds(part, metadata) for part in parts)


class MemoryStore:
    """A `VectorStore` in memory that checks its callers.

    Attributes: rows, by id; written, the number of rows of each call of `add`; asked, k and exact of each search.
    """

    def __init__(self, about):
        self.about, self.rows, self._had = about, {}, set()
        self.written, self.asked = [], []

    def add(self, rows):
        ids = [row.id for row in rows]
        assert len({*ids}) == len(ids) and not self._had & {*ids}, "an id is used twice"
        for row in rows:
            assert row.vector.shape == (self.about.dimension,) and row.vector.dtype == self.about.dtype
            assert row.metadata.keys() == self.about.fields.keys() and isinstance(row.thumbnail, bytes)
        self.rows |= {row.id: row for row in rows}
        paths = collections.Counter(row.path for row in self.rows.values())
        assert max(paths.values(), default=0) <= 2, "a path has more rows than its old one and its new one"
        self._had |= {*ids}
        self.written.append(len(rows))

    def delete(self, ids):
        for number in ids:
            self.rows.pop(number, None)

    def search(self, queries, k, where=None, exact=None):
        assert queries.dtype == np.float32 and queries.shape == (1, self.about.dimension)
        self.asked.append((k, exact))
        found = [row for row in self.rows.values() if meets(where, row)]
        scores = {row.id: float(queries[0] @ row.vector) for row in found}
        ids = sorted(scores, key=lambda id: (-scores[id], id))[:k]
        return np.float32([[scores[id] for id in ids]]), np.array([ids], np.int64)

    def count(self, where=None):
        return sum(meets(where, row) for row in self.rows.values())

    def ids(self):
        return np.array(sorted(self.rows), np.int64)

    def value_counts(self, field, most):
        values = [row.metadata[field] for row in self.rows.values()]
        found = collections.Counter(value for value in values if value is not None)
        return dict(sorted(found.items())) if len(found) <= most else None

    def scan(self, vectors=False, thumbnails=False):
        return iter(self.get(sorted(self.rows), vectors, thumbnails))

    def get(self, ids, vectors=False, thumbnails=False):
        without = {name: None for name, kept in (("vector", vectors), ("thumbnail", thumbnails)) if not kept}
        return [self.rows[number]._replace(**without) for number in ids if number in self.rows]

    def set_about(self, about):
        for row in self.get([*self.rows], vectors=True, thumbnails=True):
            known = {name: row.metadata[name] for name, kind in about.fields.items() if self._keeps(name, kind)}
            self.rows[row.id] = row._replace(metadata={**dict.fromkeys(about.fields), **known})
        self.about = about

    def _keeps(self, name, kind):
        return self.about.fields.get(name) == kind

    def optimize(self):
        return ""

    def copy(self):
        """Returns an independent copy."""
        other = MemoryStore(dataclasses.replace(self.about))
        other.rows, other._had = dict(self.rows), set(self._had)
        return other
