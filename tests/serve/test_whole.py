"""The server over a real index and a real model, though a tiny one."""

import base64
import io

import httpx
import pytest
from PIL import Image

from ivt_jax.retrieval.build import build
from ivt_jax.retrieval.searcher import Searcher
from ivt_jax.retrieval.sources import read_folder
from tests.gallery.conftest import picture, write_model
from tests.serve.conftest import served


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A client of the server, and the searcher that it has."""
    folder, gallery = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("gallery")
    for seed in range(6):
        (gallery / f"{seed}.png").write_bytes(picture(seed))
    build(folder / "index", read_folder(gallery), write_model(tmp_path_factory.mktemp("model")))
    searcher = Searcher.open(folder / "index")
    with served(searcher) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client, searcher


def test_the_page_answers_as_the_searcher_does(whole):
    client, searcher = whole
    given = client.post("/api/search", json={"terms": [{"text": "a man in a red coat"}], "top": 4}).json()
    expected = searcher.search("a man in a red coat", top=4)
    assert [(x["id"], x["path"]) for x in given["results"]] == [(x.id, x.path) for x in expected.results]
    assert [x["score"] for x in given["results"]] == pytest.approx([x.score for x in expected.results])
    assert given["searched"] == 6 and given["good"] is None


def test_an_uploaded_crop_finds_itself_and_a_row_its_like(whole):
    client, _ = whole
    image = base64.b64encode(picture(3)).decode()
    found = client.post("/api/search", json={"image": image, "top": 1}).json()["results"]
    assert found[0]["path"] == "3.png" and found[0]["score"] == pytest.approx(1, abs=1e-5)
    alike = client.post("/api/search", json={"like": found[0]["id"]}).json()["results"]
    assert len(alike) == 5 and found[0]["id"] not in [x["id"] for x in alike]


def test_thumbnails_and_heat_are_pictures(whole):
    client, searcher = whole
    assert client.get("/api/thumbnails/0").content == searcher.thumbnail(0)
    (heat,) = client.post("/api/heat/0", json={"phrases": ["red coat"]}).json()["images"]
    drawn = Image.open(io.BytesIO(base64.b64decode(heat.removeprefix("data:image/jpeg;base64,"))))
    assert drawn.size == (20, 30)


def test_mistakes_in_filters_are_told(whole):
    client, _ = whole
    response = client.post("/api/search", json={"terms": [{"text": "a hat"}], "where": "camera = 3"})
    assert response.status_code == 422 and "the index has no such field" in response.json()["error"]
