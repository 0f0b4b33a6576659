"""An index in LanceDB: one table in a folder, or in a bucket, and no server.

    id, path, digest, size, changed     as `store.Row` has them; what all rows have in common is JSON beside `id`
    m_NAME                              a field of metadata (`store.column`)
    vector, thumbnail

Every addition and deletion is a version of the table, there whole or not at all: whoever reads has what was there
before it or after it. When a picture is replaced, its old row is deleted just after its new one is added. Vectors are
held in memory from the first search on, and read anew when another version has come; above EXACT_ROWS rows LanceDB's
own index over them is asked instead, unless few rows meet a condition: it would miss many of them.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfPq

from ivt_jax.common.errors import UserError, disk_fault
from ivt_jax.common.files import is_remote
from ivt_jax.gallery.nearest import best_of, nearest
from ivt_jax.retrieval.store import About, NoIndexError, Row, StoreError, column
from ivt_jax.retrieval.where import All, Comparison, Condition, Missing, Not, OneOf, Some, Value

EXACT_ROWS = 2_000_000  # the most that are searched one by one
TABLE = "pictures"
_ABOUT = "ivt_jax"
_TYPES = {
    "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "text": pa.string(),
    "time": pa.timestamp("us", "UTC"),
}  # fmt: skip
_OWN = ["id", "path", "digest", "size", "changed"]
_SAMPLE = 100  # rows at most whose recall is told
_KEPT = datetime.timedelta(minutes=10)  # old versions, which somebody may be reading
_AT_ONCE = 4096  # rows that are read together
_PARTS = 96  # bytes to which a vector is quantised, or fewer where its dimension is no multiple
_PROBED = 0.2  # of the partitions of LanceDB's index: what is not found lies in the others
_REFINED = 20  # candidates for each one wanted, of which the exact products are taken
_READ_THROUGH = 200_000  # rows that meet a condition, at most, that are read one by one
_MOST = 10_000  # rows wanted of the index; for more all are read


class LanceStore:
    """As `store.VectorStore`. Threads may share one."""

    def __init__(self, place: str, table: Any):
        self._place, self._table, self._lock = place, table, threading.Lock()
        self._held: tuple[Any, np.ndarray, np.ndarray] | None = None  # of what, ids in ascending order, their vectors
        self.about = self._read_about()

    @classmethod
    def open(cls, place: str) -> "LanceStore":
        if not is_remote(place) and not Path(place, f"{TABLE}.lance").is_dir():  # connecting would make the folder
            raise NoIndexError(f"{place} is not an index: make it with python -m ivt_jax.index")
        with _one_line(place):
            connection = lancedb.connect(place)
            try:
                table = connection.open_table(TABLE)
            except ValueError as error:
                if "was not found" not in str(error):
                    raise
                raise NoIndexError(f"{place} is not an index: make it with python -m ivt_jax.index") from None
        return cls(place, table)

    @classmethod
    def create(cls, place: str, about: About) -> "LanceStore":
        schema = pa.schema(
            [
                pa.field("id", pa.int64(), metadata={_ABOUT: about.to_json()}),
                *[(name, pa.int64() if name in ("size", "changed") else pa.string()) for name in _OWN[1:]],
                *[(column(name), _TYPES[kind]) for name, kind in about.fields.items()],
                ("vector", pa.list_(pa.from_numpy_dtype(np.dtype(about.dtype)), about.dimension)),
                ("thumbnail", pa.binary()),
            ]
        )
        with _one_line(place):
            return cls(place, lancedb.connect(place).create_table(TABLE, schema=schema))

    def add(self, rows: Sequence[Row]) -> None:
        vectors = np.array([row.vector for row in rows], self.about.dtype)
        columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in _OWN}
        columns |= {column(name): [row.metadata.get(name) for row in rows] for name in self.about.fields}
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.about.dimension)
        columns["thumbnail"] = [row.thumbnail for row in rows]
        with _one_line(self._place):
            schema = self._table.schema
            fields = [pa.field(field.name, field.type) for field in schema if field.name in columns]
            self._table.add(pa.table(columns, schema=pa.schema(fields)))

    def delete(self, ids: Sequence[int]) -> None:
        with _one_line(self._place):
            for start in range(0, len(ids), _AT_ONCE):
                self._table.delete(_among(ids[start : start + _AT_ONCE]))

    def search(
        self, queries: np.ndarray, k: int, where: Condition | None = None, exact: bool | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        self._look()
        if exact is None:
            exact = self._count() <= EXACT_ROWS
        if exact or k > _MOST or not self._table.list_indices():
            ids, vectors = self._vectors()
            chosen = None if where is None else np.isin(ids, self._ids(self._table, where))
            scores, rows = nearest(queries, vectors, k, chosen)
            return scores, ids[rows]
        if where is not None and self._count(where) <= _READ_THROUGH:
            return self._read_through(queries, k, where)
        return self._search_index(queries, k, where)

    def count(self, where: Condition | None = None) -> int:
        self._look()
        return self._count(where)

    def ids(self) -> np.ndarray:
        self._look()
        return self._ids(self._table)

    def values(self, field: str, most: int) -> list[Value] | None:
        self._look()
        found = set()
        with _one_line(self._place):
            for batch in self._table.search().select([column(field)]).to_batches(_AT_ONCE):
                found.update(batch.column(0).unique().drop_null().to_pylist())
                if len(found) > most:
                    return None
        return sorted(found)

    def scan(self, vectors: bool = False, thumbnails: bool = False) -> Iterator[Row]:
        self._look()
        with _one_line(self._place):
            table = lancedb.connect(self._place).open_table(TABLE)
            table.checkout(table.version)  # later ones do not matter to it
        ids = self._ids(table)
        for start in range(0, len(ids), _AT_ONCE):
            first, last = ids[start], ids[min(start + _AT_ONCE, len(ids)) - 1]
            yield from self._rows(table, f"id >= {first} AND id <= {last}", vectors, thumbnails)

    def get(self, ids: Sequence[int], vectors: bool = False, thumbnails: bool = False) -> list[Row]:
        self._look()
        found: dict[int, Row] = {}
        for start in range(0, len(ids), _AT_ONCE):
            rows = self._rows(self._table, _among(ids[start : start + _AT_ONCE]), vectors, thumbnails)
            found |= {row.id: row for row in rows}
        return [found[id] for id in ids if id in found]

    def set_about(self, about: About) -> None:
        """Only fields that have their columns are ever stated, so a crash between leaves an index that works."""
        kept = {name: kind for name, kind in self.about.fields.items() if about.fields.get(name) == kind}
        with _one_line(self._place):
            self._state(dataclasses.replace(about, fields=kept))
            columns = {*map(column, kept), *_OWN, "vector", "thumbnail"}
            if gone := [name for name in self._table.schema.names if name not in columns]:
                self._table.drop_columns(gone)
            if new := [(column(name), _TYPES[kind]) for name, kind in about.fields.items() if name not in kept]:
                self._table.add_columns(pa.schema(new))
            self._state(about)

    def optimize(self) -> str:
        with _one_line(self._place):
            before = self._table.list_indices()
            changed = any(self._table.index_stats(index.name).num_unindexed_rows for index in before)
            self._table.optimize(cleanup_older_than=_KEPT)
            count = self.count()
            if count <= EXACT_ROWS:
                return ""
            if not before:
                self.build_index()
            elif not changed:
                return ""
        ids = self.ids()[:: -(-count // _SAMPLE)].tolist()
        queries = np.array([row.vector for row in self.get(ids, vectors=True)], np.float32)
        return f"searched approximately: recall@10 {self.recall(queries, 10):.3f}, of {len(ids)} of its own vectors"

    def build_index(self) -> None:
        """Makes LanceDB's index over the vectors: an inverted file of product-quantised ones."""
        partitions, parts = max(1, round(math.sqrt(self.count()))), math.gcd(self.about.dimension, _PARTS)
        config = IvfPq(distance_type="dot", num_partitions=partitions, num_sub_vectors=parts)
        with _one_line(self._place):
            self._table.create_index("vector", config=config)

    def recall(self, queries: np.ndarray, k: int) -> float:
        """The share of the k nearest of (Q, D) float32 that LanceDB's index finds, 0 to 1; few vectors are held."""
        true, found = self._read_through(queries, k, None)[1], self._search_index(queries, k, None)[1]
        return float(np.mean([np.isin(t, f).mean() for t, f in zip(true, found, strict=True)]))

    def _state(self, about: About) -> None:
        self._table.update_field_metadata({"path": "id", "metadata": {_ABOUT: about.to_json()}})
        self.about = about

    def _look(self) -> None:
        """Goes to the latest version, which another process may have written, and what it states."""
        with self._lock, _one_line(self._place):
            self._table.checkout_latest()
            self.about = self._read_about()

    def _read_about(self) -> About:
        try:
            return About(**json.loads(self._table.schema.field("id").metadata[_ABOUT.encode()]))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{self._place} is not what ivt_jax.index wrote: name another --index") from None

    def _vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """All ids (N,) in ascending order, and their vectors (N, D), in memory."""
        with self._lock, _one_line(self._place):
            now = self.about.made, self._table.version
            if self._held is None or self._held[0] != now:
                self._held = None  # before the next, lest there be two in memory
                self._held = now, *self._read_vectors()
            return self._held[1:]

    def _read_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        count = self._table.count_rows()
        ids, vectors = np.empty(count, np.int64), np.empty((count, self.about.dimension), self.about.dtype)
        done = 0
        for batch in self._table.search().select(["id", "vector"]).to_batches(_AT_ONCE):
            rows = slice(done, done + batch.num_rows)
            ids[rows], vectors[rows] = batch["id"].to_numpy(), _matrix(batch["vector"], self.about.dimension)
            done += batch.num_rows
        if np.any(ids[1:] < ids[:-1]):
            order = np.argsort(ids)
            ids, vectors = ids[order], vectors[order]
        return ids, vectors

    def _count(self, where: Condition | None = None) -> int:
        with _one_line(self._place):
            return int(self._table.count_rows(None if where is None else to_sql(where)))

    def _ids(self, table: Any, where: Condition | None = None) -> np.ndarray:
        """Those of the rows that meet the condition, ascending."""
        with _one_line(self._place):
            query = table.search().select(["id"])
            found = (query if where is None else query.where(to_sql(where))).to_arrow()
        return np.sort(found["id"].to_numpy())

    def _rows(self, table: Any, sql: str, vectors: bool, thumbnails: bool) -> list[Row]:
        """In the order of their ids."""
        fields = {name: column(name) for name in self.about.fields}
        extra = ["vector"] * vectors + ["thumbnail"] * thumbnails
        with _one_line(self._place):
            found = table.search().where(sql).select([*_OWN, *fields.values(), *extra]).to_arrow().sort_by("id")
        if not found.num_rows:
            return []
        columns = [found[name].to_pylist() for name in _OWN]
        metadata = zip(*(found[name].to_pylist() for name in fields.values()), strict=True) if fields else ()
        named = [dict(zip(fields, values, strict=True)) for values in metadata] or [{} for _ in range(found.num_rows)]
        nothing = [None] * found.num_rows
        matrix = _matrix(found["vector"].combine_chunks(), self.about.dimension) if vectors else nothing
        pictures = found["thumbnail"].to_pylist() if thumbnails else nothing
        return list(map(Row, *columns, named, matrix, pictures))

    def _read_through(self, queries: np.ndarray, k: int, where: Condition | None) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, exactly, with no more than the best in memory."""
        scores, ids = (np.empty((len(queries), 0), dtype) for dtype in (np.float32, np.int64))
        with _one_line(self._place):
            query = self._table.search().select(["id", "vector"])
            query = query if where is None else query.where(to_sql(where))
            for batch in query.to_batches(_AT_ONCE):
                own, rows = nearest(queries, _matrix(batch["vector"], self.about.dimension), k)
                found = np.hstack([scores, own]), np.hstack([ids, batch["id"].to_numpy()[rows]])
                scores, ids = best_of(*found, k)
        return scores, ids

    def _search_index(self, queries: np.ndarray, k: int, where: Condition | None) -> tuple[np.ndarray, np.ndarray]:
        """As `search`; fewer than k where the partitions that are looked through hold fewer."""
        probes = max(20, round(_PROBED * math.sqrt(self._count())))
        scores, ids = [], []
        for query in queries:
            with _one_line(self._place):
                asked = self._table.search(query).distance_type("dot").nprobes(probes).refine_factor(_REFINED).limit(k)
                asked = asked if where is None else asked.where(to_sql(where), prefilter=True)
                found = asked.select(["id", "vector", "_distance"]).to_arrow()
            # Lance's own distances round the query to the type of the vectors.
            vectors = _matrix(found["vector"].combine_chunks(), self.about.dimension)
            own, own_ids = vectors.astype(np.float32, copy=False) @ query, found["id"].to_numpy()
            order = np.lexsort((own_ids, -own))
            scores.append(own[order])
            ids.append(own_ids[order])
        least = min(map(len, ids))
        return np.stack([own[:least] for own in scores]), np.stack([own[:least] for own in ids])


def to_sql(condition: Condition) -> str:
    """The condition in Lance's SQL, of two truths: what has no value is false."""
    match condition:
        case Comparison(field, symbol, value):
            return f"COALESCE({column(field)} {symbol} {_literal(value)}, FALSE)"
        case OneOf(field, values):
            return f"COALESCE({column(field)} IN ({', '.join(map(_literal, values))}), FALSE)"
        case Missing(field):
            return f"({column(field)} IS NULL)"
        case Not(part):
            return f"(NOT {to_sql(part)})"
        case All(parts):
            return f"({' AND '.join(map(to_sql, parts))})"
        case Some(parts):
            return f"({' OR '.join(map(to_sql, parts))})"


def _literal(value: Value) -> str:
    if isinstance(value, datetime.datetime):
        text = value.astimezone(datetime.UTC).isoformat()  # as TIMESTAMP it would be in ns, of the years 1678 to 2261
        return f"arrow_cast('{text}', 'Timestamp(Microsecond, Some(\"UTC\"))')"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value).upper()


def _among(ids: Sequence[int]) -> str:
    return f"id IN ({', '.join(str(int(id)) for id in ids)})" if len(ids) else "FALSE"


def _matrix(column: Any, dimension: int) -> np.ndarray:
    return column.flatten().to_numpy().reshape(-1, dimension)


@contextlib.contextmanager
def _one_line(place: str) -> Iterator[None]:
    """LanceDB's errors, of many kinds, as one line."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise StoreError(f"{place}: {disk_fault(error) or _reason(str(error))}") from error


def _reason(said: str) -> str:
    """What an error says without the places in LanceDB's code; of errors within errors the innermost."""
    line = said.partition("\n")[0]
    inner = re.findall('message: "([^"]+)"', line)
    return inner[-1] if inner else re.split(r",? (?:location: |/\S*\.rs:)", line)[0]
