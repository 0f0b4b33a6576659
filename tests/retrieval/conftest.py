"""A tiny tower with random parameters, a folder of pictures, and a builder whose indexes are in memory."""

import os

import numpy as np
import pytest

from ivt_jax.encoding.embedding import embed_images
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.encoding.images import load_image
from ivt_jax.retrieval.indexing import build
from ivt_jax.retrieval.stores.store import About, NoIndexError
from tests.gallery.conftest import picture
from tests.retrieval.memory import MemoryStore

NOON = "2024-05-01T12:00:00+00:00"
SECONDS = 1714564800  # noon of that day


@pytest.fixture(scope="session")
def encoder(workdir):
    return Encoder(workdir)


@pytest.fixture(scope="session")
def vector_of(encoder):
    """The embedding, as in evaluation, of each `tests.gallery.conftest.picture`, by its seed."""
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


def fails(monkeypatch, name, error, function="scandir"):
    """Makes os.scandir, or another function of os, raise the error for all paths that end with the name."""
    real = getattr(os, function)

    def call(path=".", *arguments, **options):
        if str(path).endswith(name):
            raise OSError(error, os.strerror(error), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, function, call)


@pytest.fixture
def stores(monkeypatch):
    """Place -> MemoryStore; `build` opens and creates its indexes here."""
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


@pytest.fixture
def about(tmp_path):
    """An index of tmp_path/pictures with a folder a/b below, all of an hour before its last build."""
    (tmp_path / "pictures/a/b").mkdir(parents=True)
    for folder in ("pictures/a/b", "pictures/a", "pictures"):
        os.utime(tmp_path / folder, (SECONDS - 3600, SECONDS - 3600))
    root = str(tmp_path / "pictures")
    known = {"made": "i" * 32, "updated": NOON, "passed": {"hidden": 2}, "kept": {"the folder is missing": 3}}
    return About("m" * 64, "t", 4, "float32", {}, {}, "w", root, **known)
