"""Opens and creates indexes; the form of the place selects the store.

DIR, s3://BUCKET/DIR, gs://BUCKET/DIR    Lance: a folder, no server (`ivt_jax.retrieval.stores.lance`)
http://HOST:6333/NAME, https://...       Qdrant: the collection NAME of a server (`ivt_jax.retrieval.stores.qdrant`)
"""

import dataclasses
import itertools
import uuid
from pathlib import Path
from typing import Any

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_remote, printable
from ivt_jax.common.messages import install
from ivt_jax.retrieval.stores.store import FORMAT, About, NoIndexError, VectorStore


def open_store(place: Path | str) -> VectorStore:
    """Opens the index. Raises NoIndexError if there is none, UserError if it is damaged or of a later format."""
    try:
        store: VectorStore = _store_class(place).open(str(place))
    except NoIndexError:
        _refuse_vectors(place)
        raise
    if store.about.format > FORMAT:
        reason = f"{place} has format {store.about.format}, this ivt_jax reads format {FORMAT} and older"
        raise UserError(f"{reason}: update ivt_jax")
    return store


def _refuse_vectors(place: Path | str) -> None:
    """Raises UserError if the place is what `ivt_jax.embed` wrote."""
    from ivt_jax.gallery.vectors import ABOUT

    if not is_remote(place) and Path(place, ABOUT).is_file():
        name = printable(place)
        make = f"python -m ivt_jax.index --vectors={name} --images=FOLDER --workdir=RUN --index=DIR"
        raise UserError(f"{name} holds vectors of python -m ivt_jax.embed, which are no index: make one with {make}")


def create_store(place: Path | str, about: About) -> VectorStore:
    """Creates an empty index. Raises UserError if there is one already, or if it cannot be written."""
    return _store_class(place).create(str(place), about)


def _store_class(place: Path | str) -> Any:
    """Returns LanceStore or QdrantStore. Raises UserError if Qdrant's client is needed and not installed."""
    if not str(place).startswith(("http://", "https://")):
        from ivt_jax.retrieval.stores.lance import LanceStore

        return LanceStore
    try:
        from ivt_jax.retrieval.stores.qdrant import QdrantStore
    except ModuleNotFoundError as error:
        if error.name != "qdrant_client":
            raise
        raise UserError(f"Qdrant's client is not installed: {install('qdrant')}") from None
    return QdrantStore


def snapshot(store: VectorStore, place: Path | str, rows_at_once: int = 500) -> VectorStore:
    """Copies an index to a new place, in either store. Raises UserError like `create_store`.

    An incomplete copy states a model that does not exist, so it cannot be searched by mistake.
    """
    about = dataclasses.replace(store.about, made=uuid.uuid4().hex)
    copy = create_store(place, dataclasses.replace(about, model="of a copy that is not finished"))
    rows = store.scan(vectors=True, thumbnails=True)
    while batch := list(itertools.islice(rows, rows_at_once)):
        copy.add(batch)
    copy.optimize()
    copy.set_about(about)
    return copy


def refuse_taken(place: Path | str) -> None:
    """Raises UserError if there is an index already, or if the place cannot be reached."""
    try:
        open_store(place)
    except NoIndexError:
        return
    raise UserError(f"{place} is an index already: remove it, or name another place for the copy")
