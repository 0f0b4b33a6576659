"""An index in Qdrant: a collection of a server, which handles shards and replicas, for more rows than a machine holds.

The place is `http://HOST:6333/NAME`. The environment variable QDRANT_API_KEY holds the key, if the server requires one.
A point is a row: id, vector, and a payload with the other values, the fields of metadata by `store.column` and the
thumbnail in Base64. The metadata of the collection, a feature since Qdrant 1.16, hold `About` as JSON.

Differences to Lance: text cannot be ordered (<, <=, >, >=); `contains` reads the field of all rows, because the server
finds only whole words in a text, and words differ with its version; integers beyond 2**53 are rounded to doubles; the
server chooses among rows with equal scores for the last place; a scan sees rows that are written during the scan.
"""

import base64
import datetime
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from ivt_jax.common.errors import UserError
from ivt_jax.retrieval.stores.store import About, Found, NoIndexError, Row, column, one_line
from ivt_jax.retrieval.stores.where import Comparison, Condition, Contains, Joined, Missing, Not, OneOf, Value

_ABOUT = "ivt_jax"
_PLACE = re.compile(r"(https?://[^/\s]+)/([A-Za-z0-9_.-]+)/?")
_OWN = ("path", "digest", "size", "changed")
_AT_ONCE = 1000  # rows of one read
_SECONDS = 60  # until a request times out
_BRIEF = models.PayloadSelectorExclude(exclude=["thumbnail"])  # all of a payload but its picture
_BOUNDS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


class QdrantStore:
    """A `store.VectorStore`: a connected client and the name of a collection."""

    def __init__(self, client: QdrantClient, name: str):
        self._client, self._name = client, name
        with _one_line(name):
            if not client.collection_exists(name):
                raise NoIndexError(f"{name} is not a collection of the server: make it with python -m ivt_jax.index")
        self.about = self._read_about()

    @classmethod
    def open(cls, place: str) -> "QdrantStore":
        return cls(*_connect(place))

    @classmethod
    def create(cls, place: str, about: About) -> "QdrantStore":
        return cls.create_in(*_connect(place), about)

    @classmethod
    def create_in(cls, client: QdrantClient, name: str, about: About) -> "QdrantStore":
        """Creates the collection with a connected client."""
        datatype = models.Datatype(about.dtype)
        vectors = models.VectorParams(size=about.dimension, distance=models.Distance.DOT, datatype=datatype)
        with _one_line(name):
            client.create_collection(name, vectors_config=vectors, metadata={_ABOUT: about.to_json()})
        store = cls(client, name)
        store._index_fields()
        return store

    def add(self, rows: Sequence[Row]) -> None:
        if not rows:  # the server refuses an empty request
            return
        with _one_line(self._name):
            self._client.upsert(self._name, [self._point(row) for row in rows], wait=True)

    def delete(self, ids: Sequence[int]) -> None:
        if not len(ids):
            return
        with _one_line(self._name):
            self._client.delete(self._name, models.PointIdsList(points=[*map(int, ids)]), wait=True)

    def search(self, queries: np.ndarray, k: int, where: Condition | None = None, exact: bool | None = None) -> Found:
        wanted, scores, ids = self._filter(where), [], []
        k = min(k, self._count(wanted))
        if not k:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for query in queries:
            with _one_line(self._name):
                points = self._client.query_points(
                    self._name,
                    query=query.tolist(),
                    limit=k,
                    query_filter=wanted,
                    search_params=models.SearchParams(exact=True) if exact else None,
                    with_payload=False,
                ).points
            points.sort(key=lambda point: (-point.score, point.id))
            scores.append([point.score for point in points])
            ids.append([point.id for point in points])
        least = min(map(len, ids))  # fewer than k if rows were deleted meanwhile, or if the graph does not reach them
        return np.array([own[:least] for own in scores], np.float32), np.array([own[:least] for own in ids], np.int64)

    def count(self, where: Condition | None = None) -> int:
        return self._count(self._filter(where))

    def _count(self, wanted: models.Filter | None) -> int:
        self.about = self._read_about()  # another process may have replaced it
        with _one_line(self._name):
            return self._client.count(self._name, count_filter=wanted, exact=True).count

    def ids(self) -> np.ndarray:
        return np.array([point.id for point in self._scroll(10 * _AT_ONCE, False, False)], np.int64)

    def value_counts(self, field: str, most: int) -> dict[Value, int] | None:
        with _one_line(self._name):
            hits = self._client.facet(self._name, column(field), limit=most + 1, exact=True).hits
        return None if len(hits) > most else dict(sorted((hit.value, hit.count) for hit in hits))

    def scan(self, vectors: bool = False, thumbnails: bool = False) -> Iterator[Row]:
        return map(self._row, self._scroll(_AT_ONCE, vectors, thumbnails or _BRIEF))

    def get(self, ids: Sequence[int], vectors: bool = False, thumbnails: bool = False) -> list[Row]:
        with _one_line(self._name):
            points = self._client.retrieve(
                self._name, [*map(int, ids)], with_vectors=vectors, with_payload=thumbnails or _BRIEF
            )
        found = {point.id: self._row(point) for point in points}
        return [found[id] for id in ids if id in found]

    def set_about(self, about: About) -> None:
        gone = [column(name) for name, kind in self.about.fields.items() if about.fields.get(name) != kind]
        with _one_line(self._name):
            if gone:
                self._client.delete_payload(self._name, keys=gone, points=models.Filter(), wait=True)
            self._client.update_collection(self._name, metadata={_ABOUT: about.to_json()})
        self.about = about
        self._index_fields()

    def optimize(self) -> str:
        return ""  # the server tidies by itself

    def _read_about(self) -> About:
        with _one_line(self._name):
            stated = self._client.get_collection(self._name).config.metadata or {}
        return About.from_json(stated.get(_ABOUT, ""), f"the collection {self._name}")

    def _filter(self, where: Condition | None) -> models.Filter | None:
        return None if where is None else models.Filter(must=[to_filter(where, self._containing)])

    def _containing(self, field: str, text: str) -> list[int]:
        """Returns the ids of the rows whose field contains a text."""
        name = column(field)
        found = ((point.id, point.payload.get(name)) for point in self._scroll(10 * _AT_ONCE, False, [name]))
        return [id for id, value in found if value is not None and text in value]

    def _index_fields(self) -> None:
        """Indexes the fields: filters get faster, and `values` requires it."""
        kinds = {"integer": "integer", "number": "float", "boolean": "bool", "text": "keyword", "time": "datetime"}
        with _one_line(self._name):
            for name, kind in self.about.fields.items():
                schema = models.PayloadSchemaType(kinds[kind])
                self._client.create_payload_index(self._name, column(name), field_schema=schema, wait=True)

    def _scroll(self, at_once: int, vectors: bool, payload: Any) -> Iterator[Any]:
        """Yields all points in the order of their ids."""
        start: Any = 0
        while start is not None:
            with _one_line(self._name):
                points, start = self._client.scroll(
                    self._name, limit=at_once, offset=start, with_vectors=vectors, with_payload=payload
                )
            yield from points

    def _point(self, row: Row) -> models.PointStruct:
        assert row.vector is not None and row.thumbnail is not None
        payload: dict[str, Any] = {name: getattr(row, name) for name in (*_OWN, "odd")}
        for name in self.about.fields:
            value = row.metadata.get(name)
            payload[column(name)] = value.isoformat() if isinstance(value, datetime.datetime) else value
        payload["thumbnail"] = base64.b64encode(row.thumbnail).decode()
        return models.PointStruct(id=row.id, vector=row.vector.astype(np.float32).tolist(), payload=payload)

    def _row(self, point: Any) -> Row:
        payload, metadata = point.payload, dict[str, Value | None]()
        for name, kind in self.about.fields.items():
            value = payload.get(column(name))
            is_time = kind == "time" and value is not None
            metadata[name] = datetime.datetime.fromisoformat(value) if is_time else value
        vector = None if point.vector is None else np.array(point.vector, self.about.dtype)
        thumbnail = base64.b64decode(payload["thumbnail"]) if "thumbnail" in payload else None
        own = {name: payload[name] for name in _OWN}
        odd = payload.get("odd")  # points of older versions have none
        return Row(id=point.id, metadata=metadata, vector=vector, thumbnail=thumbnail, odd=odd, **own)


def to_filter(condition: Condition, containing: Callable[[str, str], list[int]]) -> Any:
    """Returns the condition as a Qdrant filter. Raises UserError if text is compared by <, <=, > or >=.

    containing: returns the ids of the rows whose field contains a text.
    """
    match condition:
        case Comparison(field, "=", value):
            return _equals(field, value)
        case Comparison(field, "!=", value):
            return models.Filter(must_not=[_empty(field), _equals(field, value)])
        case Comparison(field, symbol, str()):
            raise UserError(f"{field or 'path'} {symbol}: Qdrant cannot order text; use =, != or in")
        case Comparison(field, symbol, value):
            return _range(field, value, _BOUNDS[symbol])
        case OneOf(field, values):
            return models.Filter(should=[_equals(field, value) for value in values])
        case Contains(field, text):
            return models.HasIdCondition(has_id=[*containing(field, text)])
        case Missing(field):
            return _empty(field)
        case Not(part):
            return models.Filter(must_not=[to_filter(part, containing)])
        case Joined(word, parts):
            filters = [to_filter(each, containing) for each in parts]
            return models.Filter(must=filters) if word == "and" else models.Filter(should=filters)


def _equals(field: str, value: Value) -> models.FieldCondition:
    if isinstance(value, datetime.datetime | float):
        return _range(field, value, "gte", "lte")
    return models.FieldCondition(key=column(field), match=models.MatchValue(value=value))


def _range(field: str, value: Any, *bounds: str) -> models.FieldCondition:
    kind = models.DatetimeRange if isinstance(value, datetime.datetime) else models.Range
    return models.FieldCondition(key=column(field), range=kind(**dict.fromkeys(bounds, value)))


def _empty(field: str) -> models.IsEmptyCondition:
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=column(field)))


def _connect(place: str) -> tuple[QdrantClient, str]:
    match = _PLACE.fullmatch(place)
    if not match:
        raise UserError(f"{place} names no collection of a Qdrant server; expected http://HOST:6333/NAME")
    key = os.environ.get("QDRANT_API_KEY") or None
    return QdrantClient(url=match[1], api_key=key, timeout=_SECONDS, check_compatibility=False), match[2]


def _one_line(name: str) -> AbstractContextManager[None]:
    return one_line(f"Qdrant, collection {name}", ApiException)
