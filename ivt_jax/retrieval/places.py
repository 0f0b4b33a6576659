"""Where indexes are: the place tells which store keeps one.

DIR, s3://BUCKET/DIR, gs://BUCKET/DIR    LanceDB: a folder, no server (`ivt_jax.retrieval.lance`)
http://HOST:6333/NAME, https://...       Qdrant: the collection NAME of a server (`ivt_jax.retrieval.qdrant`)
"""

import dataclasses
import uuid
from pathlib import Path
from typing import Any

from ivt_jax.common.errors import UserError
from ivt_jax.common.messages import install
from ivt_jax.retrieval.store import FORMAT, About, NoIndexError, Row, VectorStore

UNFINISHED = "of a copy that is not finished"


def open_store(place: Path | str) -> VectorStore:
    """Opens the index. Raises NoIndexError where there is none, UserError where it is damaged, or of a later format."""
    store: VectorStore = _kind(place).open(str(place))
    if store.about.format > FORMAT:
        raise UserError(
            f"{place} has format {store.about.format}, this ivt_jax reads format {FORMAT} and older: update ivt_jax"
        )
    return store


def create_store(place: Path | str, about: About) -> VectorStore:
    """Makes an empty index. Raises UserError where there is one already, or it cannot be written."""
    return _kind(place).create(str(place), about)


def _kind(place: Path | str) -> Any:
    """The class of the store that keeps indexes there. Raises UserError where what it needs is not installed."""
    if not str(place).startswith(("http://", "https://")):
        from ivt_jax.retrieval.lance import LanceStore

        return LanceStore
    try:
        from ivt_jax.retrieval.qdrant import QdrantStore
    except ModuleNotFoundError as error:
        if error.name != "qdrant_client":
            raise
        raise UserError(f"Qdrant's client is not installed: {install('qdrant')}") from None
    return QdrantStore


def snapshot(store: VectorStore, place: Path | str, rows_at_once: int = 500) -> VectorStore:
    """Copies an index as it is now to a new place, of either kind. Raises UserError as `create_store`.

    Until it is whole, the copy is of a model that nobody has, so it is not taken for an index.
    """
    about = dataclasses.replace(store.about, made=uuid.uuid4().hex)
    copy, batch = create_store(place, dataclasses.replace(about, model=UNFINISHED)), list[Row]()
    for row in store.scan(vectors=True, thumbnails=True):
        batch.append(row)
        if len(batch) == rows_at_once:
            copy.add(batch)
            batch = []
    if batch:
        copy.add(batch)
    copy.optimize()
    copy.set_about(about)
    return copy


def refuse_taken(place: Path | str) -> None:
    """Raises UserError where there is an index already, or none can be reached."""
    try:
        open_store(place)
    except NoIndexError:
        return
    raise UserError(f"{place} is an index already: remove it, or name another place for the copy")
