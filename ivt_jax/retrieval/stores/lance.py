"""An index in the Lance format: one table in a local folder or a bucket, without a server.

    id, path, digest, size, changed     as in `store.Row`; the field metadata of `id` hold `About` as JSON
    m_NAME                              a field of metadata (`store.column`)
    vector, thumbnail, odd              the last one is missing from indexes of older versions

Each addition and each deletion creates a version of the table, whole or not at all, so readers never see half of one.
The first search reads all vectors into memory, and a later search reads them again if there is a new version. Above
EXACT_ROWS rows Lance's approximate index is used, except for filters that few rows meet: it would miss many of them.
"""

import collections
import contextlib
import copy
import dataclasses
import datetime
import logging
import math
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_remote
from ivt_jax.gallery.nearest import best_of, nearest
from ivt_jax.retrieval.stores.store import LANCE_FOLDER, About, Found, NoIndexError, Row, column, one_line
from ivt_jax.retrieval.stores.where import Comparison, Condition, Contains, Joined, Missing, Not, OneOf, Value

if "LANCE_LOG" not in os.environ:  # Lance's own variable
    logging.getLogger("pylance").setLevel(logging.WARNING)  # it logs how long an index took to build
EXACT_ROWS = 2_000_000  # larger indexes are searched approximately
_ABOUT = "ivt_jax"
_TYPES = {
    "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "text": pa.string(),
    "time": pa.timestamp("us", "UTC"),
}  # fmt: skip
_ODD = pa.field("odd", pa.string())
_OWN = ["id", "path", "digest", "size", "changed"]
_SAMPLE = 100  # rows at most for the estimate of recall
_KEPT = datetime.timedelta(minutes=10)  # old versions stay this long for their readers
_AT_ONCE = 4096  # rows of one read
_PARTS = 96  # bytes of a quantised vector, or fewer if the dimension is no multiple
_PROBED = 0.2  # share of the partitions that an approximate search reads
_REFINED = 20  # candidates per result that are scored exactly
_READ_THROUGH = 200_000  # if no more rows meet a condition, all of them are scored
_MOST = 10_000  # results of an approximate search; for more, all rows are scored


class LanceStore:
    """A `store.VectorStore` that threads may share."""

    def __init__(self, place: str, table: lance.LanceDataset):
        self._place, self._table, self._lock = place, table, threading.Lock()
        self._cached: tuple[Any, np.ndarray, np.ndarray] | None = None  # version, ascending ids, their vectors
        self.about = self._read_about(table)

    @classmethod
    def open(cls, place: str) -> "LanceStore":
        no_index = NoIndexError(f"{place} is not an index: make it with python -m ivt_jax.index")
        if not is_remote(place) and not Path(_address(place)).is_dir():  # a file there would have another message
            raise no_index
        with one_line(place):
            try:
                table = lance.dataset(_address(place))
            except ValueError as error:
                if "was not found" not in str(error):
                    raise
                raise no_index from None
        return cls(place, table)

    @classmethod
    def create(cls, place: str, about: About) -> "LanceStore":
        fields = [
            pa.field("id", pa.int64(), metadata={_ABOUT: about.to_json()}),
            *[(name, pa.int64() if name in ("size", "changed") else pa.string()) for name in _OWN[1:]],
            *[(column(name), _TYPES[kind]) for name, kind in about.fields.items()],
            ("vector", pa.list_(pa.from_numpy_dtype(np.dtype(about.dtype)), about.dimension)),
            ("thumbnail", pa.binary()),
            _ODD,
        ]
        with one_line(place):
            return cls(place, lance.write_dataset(pa.schema(fields).empty_table(), _address(place)))

    def add(self, rows: Sequence[Row]) -> None:
        vectors = np.array([row.vector for row in rows], self.about.dtype)
        for row, vector in zip(rows, vectors, strict=True):
            if not np.isfinite(vector).all():  # it would take the place of a result
                remedy = "leave the picture out, or look for the fault in the model"
                raise UserError(f"{self._place}: the vector of {row.path!r} is not finite; {remedy}")
        columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in _OWN}
        columns |= {column(name): [row.metadata.get(name) for row in rows] for name in self.about.fields}
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.about.dimension)
        columns |= {name: [getattr(row, name) for row in rows] for name in ("thumbnail", "odd")}
        with self._latest() as table:
            if "odd" not in table.schema.names:
                table.add_columns(_ODD)
            schema = pa.schema([(field.name, field.type) for field in table.schema if field.name in columns])
            lance.write_dataset(pa.table(columns, schema=schema), table, mode="append")

    def delete(self, ids: Sequence[int]) -> None:
        with self._latest() as table:
            for condition in _conditions(ids):
                table.delete(condition)

    def search(self, queries: np.ndarray, k: int, where: Condition | None = None, exact: bool | None = None) -> Found:
        with self._latest() as table:
            if exact is None:
                exact = table.count_rows() <= EXACT_ROWS
            if exact or k > _MOST or not table.has_index:
                ids, vectors = self._all_vectors(table)
                chosen = None if where is None else np.isin(ids, _ids(table, where))
                scores, rows = nearest(queries, vectors, k, chosen)
                return scores, ids[rows]
            if where is not None and table.count_rows(to_sql(where)) <= _READ_THROUGH:
                return self._read_through(table, queries, k, where)
            return self._search_index(table, queries, k, where)

    def count(self, where: Condition | None = None) -> int:
        with self._latest() as table:
            return int(table.count_rows(_filter(where)))

    def ids(self) -> np.ndarray:
        with self._latest() as table:
            return _ids(table)

    def value_counts(self, field: str, most: int) -> dict[Value, int] | None:
        found = collections.Counter[Value]()
        with self._latest() as table:
            for batch in _select(table, [column(field)]).to_batches():
                counts = batch.column(0).drop_null().value_counts().to_pylist()
                found.update({pair["values"]: pair["counts"] for pair in counts})
                if len(found) > most:
                    return None
        return dict(sorted(found.items()))

    def scan(self, vectors: bool = False, thumbnails: bool = False) -> Iterator[Row]:
        with self._latest() as table:
            ids = _ids(table)
        for some in _parts(ids):
            with one_line(self._place):
                rows = self._rows(table, f"id >= {some[0]} AND id <= {some[-1]}", vectors, thumbnails)
            yield from rows

    def get(self, ids: Sequence[int], vectors: bool = False, thumbnails: bool = False) -> list[Row]:
        with self._latest() as table:
            parts = [self._rows(table, condition, vectors, thumbnails) for condition in _conditions(ids)]
        found = {row.id: row for rows in parts for row in rows}
        return [found[id] for id in ids if id in found]

    def set_about(self, about: About) -> None:
        """As in the protocol. Never states a field before its column exists, so a crash leaves a usable index."""
        with self._latest() as table:
            kept = {name: kind for name, kind in self.about.fields.items() if about.fields.get(name) == kind}
            self._write_about(table, dataclasses.replace(about, fields=kept))
            columns = {*map(column, kept), *_OWN, "vector", "thumbnail", "odd"}
            if gone := [name for name in table.schema.names if name not in columns]:
                table.drop_columns(gone)
            if new := [(column(name), _TYPES[kind]) for name, kind in about.fields.items() if name not in kept]:
                table.add_columns(pa.schema(new))
            self._write_about(table, about)

    def optimize(self) -> str:
        with self._latest() as table:
            before, changed = table.has_index, _has_new_fragments(table)
            table.optimize.compact_files()
            table.cleanup_old_versions(older_than=_KEPT)
            table.optimize.optimize_indices()
        count = self.count()
        if count <= EXACT_ROWS or (before and not changed):
            return ""
        if not before:
            self.build_index()
        ids = self.ids()[:: -(-count // _SAMPLE)].tolist()
        queries = np.array([row.vector for row in self.get(ids, vectors=True)], np.float32)
        return f"searched approximately: recall@10 {self.recall(queries, 10):.3f}, of {len(ids)} of its own vectors"

    def build_index(self) -> None:
        """Builds Lance's approximate index: an inverted file of product-quantised vectors."""
        with self._latest() as table:
            partitions = max(1, round(math.sqrt(table.count_rows())))
            parts = math.gcd(self.about.dimension, _PARTS)
            table.create_index(
                "vector", "IVF_PQ", metric="dot", replace=True, num_partitions=partitions, num_sub_vectors=parts
            )

    def recall(self, queries: np.ndarray, k: int) -> float:
        """Returns the share, 0 to 1, of the k nearest rows to queries (Q, D) float32 that approximate search finds."""
        with self._latest() as table:
            true, found = (search(table, queries, k, None)[1] for search in (self._read_through, self._search_index))
        return float(np.mean([np.isin(t, f).mean() for t, f in zip(true, found, strict=True)]))

    def _write_about(self, table: lance.LanceDataset, about: About) -> None:
        table.update_field_metadata({"id": {_ABOUT: about.to_json()}})
        self.about = about

    @contextlib.contextmanager
    def _latest(self) -> Iterator[lance.LanceDataset]:
        """Yields the latest version of the table, maybe written by another process, after reading its `about`.

        Each caller has its own copy, so that no thread changes an object that another one reads.
        """
        with one_line(self._place):
            with self._lock:
                self._table.checkout_latest()
                table = copy.copy(self._table)
                self.about = self._read_about(table)
            yield table

    def _read_about(self, table: lance.LanceDataset) -> About:
        schema = table.schema
        metadata = schema.field("id").metadata if "id" in schema.names else None
        return About.from_json((metadata or {}).get(_ABOUT.encode(), ""), self._place)

    def _all_vectors(self, table: lance.LanceDataset) -> tuple[np.ndarray, np.ndarray]:
        """Returns all ids (N,), ascending, and their vectors (N, D), from memory if the version is still the same."""
        version = self._read_about(table).made, table.version
        with self._lock:
            if self._cached is None or self._cached[0] != version:
                self._cached = None  # before reading, so that the vectors of two versions are never in memory
                self._cached = version, *self._read_vectors(table)
            return self._cached[1:]

    def _read_vectors(self, table: lance.LanceDataset) -> tuple[np.ndarray, np.ndarray]:
        count, about, done = table.count_rows(), self._read_about(table), 0
        ids, vectors = np.empty(count, np.int64), np.empty((count, about.dimension), about.dtype)
        for batch in _select(table, ["id", "vector"]).to_batches():
            rows = slice(done, done + batch.num_rows)
            ids[rows], vectors[rows] = batch["id"].to_numpy(), _matrix(batch["vector"])
            done += batch.num_rows
        if np.any(ids[1:] < ids[:-1]):
            order = np.argsort(ids)
            ids, vectors = ids[order], vectors[order]
        return ids, vectors

    def _rows(self, table: lance.LanceDataset, sql: str, vectors: bool, thumbnails: bool) -> list[Row]:
        """Returns the rows that meet the condition, in the order of their ids."""
        fields = {column(name): name for name in self._read_about(table).fields}
        extra = ["vector"] * vectors + ["thumbnail"] * thumbnails + ["odd"] * ("odd" in table.schema.names)
        found = _select(table, [*_OWN, *fields, *extra], sql).to_table().sort_by("id")
        columns = [found[name].to_pylist() for name in _OWN]
        metadata = found.select([*fields]).rename_columns([*fields.values()]).to_pylist()
        nothing = [None] * found.num_rows
        matrix = _matrix(found["vector"].combine_chunks()) if vectors else nothing
        pictures = found["thumbnail"].to_pylist() if thumbnails else nothing
        odd = found["odd"].to_pylist() if "odd" in extra else nothing
        return list(map(Row, *columns, metadata, matrix, pictures, odd))

    def _read_through(self, table: lance.LanceDataset, queries: np.ndarray, k: int, where: Condition | None) -> Found:
        """As `search`, exactly, but reads the vectors in batches and keeps only the best."""
        scores, ids = (np.empty((len(queries), 0), dtype) for dtype in (np.float32, np.int64))
        for batch in _select(table, ["id", "vector"], _filter(where)).to_batches():
            own, rows = nearest(queries, _matrix(batch["vector"]), k)
            found = np.hstack([scores, own]), np.hstack([ids, batch["id"].to_numpy()[rows]])
            scores, ids = best_of(*found, k)
        return scores, ids

    def _search_index(self, table: lance.LanceDataset, queries: np.ndarray, k: int, where: Condition | None) -> Found:
        """As `search`, approximately; returns fewer than k if the probed partitions hold fewer."""
        probes = max(20, round(_PROBED * math.sqrt(table.count_rows())))
        how = {"column": "vector", "k": k, "metric": "dot", "nprobes": probes, "refine_factor": _REFINED}
        columns = ["id", "vector", "_distance"]
        best = []
        for query in queries:
            found = table.to_table(columns, _filter(where), prefilter=True, nearest={**how, "q": query})
            # Lance's own distances round the query to the dtype of the vectors.
            scores, rows = nearest(query[None], _matrix(found["vector"].combine_chunks()), k)
            best.append(best_of(scores, found["id"].to_numpy()[rows], k))
        least = min(ids.shape[1] for _, ids in best)
        return np.vstack([scores[:, :least] for scores, _ in best]), np.vstack([ids[:, :least] for _, ids in best])


def to_sql(condition: Condition) -> str:
    """Returns the condition in Lance's SQL; a comparison with a missing value is FALSE, not NULL."""
    match condition:
        case Comparison(field, symbol, value):
            return f"COALESCE({column(field)} {symbol} {_literal(value)}, FALSE)"
        case OneOf(field, values):
            return f"COALESCE({column(field)} IN ({', '.join(map(_literal, values))}), FALSE)"
        case Contains(field, text):
            return f"COALESCE(contains({column(field)}, {_literal(text)}), FALSE)"
        case Missing(field):
            return f"({column(field)} IS NULL)"
        case Not(part):
            return f"(NOT {to_sql(part)})"
        case Joined(word, parts):
            return f"({f' {word} '.join(map(to_sql, parts))})"


def _filter(where: Condition | None) -> str | None:
    return None if where is None else to_sql(where)


def _literal(value: Value) -> str:
    if isinstance(value, datetime.datetime):
        text = value.astimezone(datetime.UTC).isoformat()  # a TIMESTAMP in ns would hold only the years 1678 to 2261
        return f"arrow_cast('{text}', 'Timestamp(Microsecond, Some(\"UTC\"))')"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value).upper()


def _parts(ids: Any) -> Iterator[Any]:
    """Yields _AT_ONCE of these ids at a time."""
    return (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))


def _conditions(ids: Sequence[int]) -> Iterator[str]:
    """Yields SQL conditions for these ids, each for _AT_ONCE of them."""
    return (f"id IN ({', '.join(str(int(id)) for id in some)})" for some in _parts(ids))


def _ids(table: lance.LanceDataset, where: Condition | None = None) -> np.ndarray:
    """Returns the ids of the rows that meet the condition, ascending."""
    return np.sort(_select(table, ["id"], _filter(where)).to_table()["id"].to_numpy())


def _select(table: lance.LanceDataset, columns: list[str], sql: str | None = None) -> Any:
    """Returns the scanner of these columns of the rows that meet the condition, in batches of _AT_ONCE rows."""
    return table.scanner(columns, sql, batch_size=_AT_ONCE)


def _matrix(vectors: pa.FixedSizeListArray) -> np.ndarray:
    return vectors.flatten().to_numpy().reshape(-1, vectors.type.list_size)


def _has_new_fragments(table: lance.LanceDataset) -> bool:
    """Whether rows were added after the approximate index."""
    indexed = {id for index in table.describe_indices() for part in index.segments for id in part.fragment_ids}
    return not indexed.issuperset(table.fragment_ids())


def _address(place: str) -> str:
    folder = place.rstrip("/") if is_remote(place) else Path(place).absolute()  # x:y is a folder, not a URL
    return f"{folder}/{LANCE_FOLDER}"
