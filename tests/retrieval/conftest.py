"""A tiny tower with random parameters, a folder of pictures, and a store that holds an index in memory."""

import dataclasses

import numpy as np
import pytest

from ivt_jax.evaluation.embedding import embed_images
from ivt_jax.gallery.encoder import ImageEncoder
from ivt_jax.images import load_image
from ivt_jax.retrieval import build
from ivt_jax.retrieval.store import NoIndexError
from tests.gallery.conftest import picture, write_model


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def other_workdir(tmp_path_factory):
    """A model of the same sizes with other parameters."""
    return write_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def encoder(workdir):
    return ImageEncoder(workdir)


@pytest.fixture(scope="session")
def vector_of(encoder):
    """The embedding that evaluation has of a picture of `tests.gallery.conftest.picture`, by its seed."""
    pixels = np.stack([load_image("crop", encoder.size, picture(seed)) for seed in range(40)])
    return embed_images(encoder.model, encoder.params, [pixels])


@pytest.fixture
def gallery(tmp_path):
    """A folder of six pictures, seeds 0 to 5, in the order of their paths."""
    for seed, name in enumerate(GALLERY):
        put(tmp_path / "gallery" / name, seed)
    return tmp_path / "gallery"


GALLERY = ("a.png", "b.png", "cam 1/c.png", "cam 1/d.png", "cam 2/e.png", "f.png")


def put(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed))


class MemoryStore:
    """An index as `VectorStore` has it, as strict as its contract; what is scanned and fetched, and no search."""

    def __init__(self, about):
        self.about, self._rows, self._had = about, {}, set()
        self.written = []  # how many rows each call of add had

    def add(self, rows):
        ids = [row.id for row in rows]
        assert len({*ids}) == len(ids) and not self._had & {*ids}, "an id is used twice"
        for row in rows:
            assert row.vector.shape == (self.about.dimension,) and row.vector.dtype == self.about.dtype
            assert row.metadata.keys() == self.about.fields.keys() and isinstance(row.thumbnail, bytes)
        self._rows |= {row.id: row for row in rows}
        self._had |= {*ids}
        self.written.append(len(rows))
        paths = [row.path for row in self._rows.values()]
        assert len({*paths}) == len(paths), "a path has two rows"

    def delete(self, ids):
        for number in ids:
            self._rows.pop(number, None)

    def count(self, where=None):
        return len(self._rows)

    def scan(self, vectors=False, thumbnails=False):
        return iter(self.get(sorted(self._rows), vectors, thumbnails))

    def get(self, ids, vectors=False, thumbnails=False):
        without = {name: None for name, kept in (("vector", vectors), ("thumbnail", thumbnails)) if not kept}
        return [self._rows[number]._replace(**without) for number in ids if number in self._rows]

    def set_about(self, about):
        for row in self.get([*self._rows], vectors=True, thumbnails=True):
            known = {name: row.metadata[name] for name, kind in about.fields.items() if self._keeps(name, kind)}
            self._rows[row.id] = row._replace(metadata={**dict.fromkeys(about.fields), **known})
        self.about = about

    def _keeps(self, name, kind):
        return self.about.fields.get(name) == kind

    def optimize(self):
        return ""

    def copy(self):
        """One that goes its own way from here."""
        other = MemoryStore(dataclasses.replace(self.about))
        other._rows, other._had = dict(self._rows), set(self._had)
        return other


@pytest.fixture
def stores(monkeypatch):
    """Place -> MemoryStore; `build` finds its indexes here, and makes them here."""
    found = {}

    def open_store(place):
        if place not in found:
            raise NoIndexError(f"{place} holds no index")
        return found[place]

    def create_store(place, about):
        assert place not in found
        return found.setdefault(place, MemoryStore(about))

    monkeypatch.setattr(build, "open_store", open_store)
    monkeypatch.setattr(build, "create_store", create_store)
    return found
