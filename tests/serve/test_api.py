"""What the endpoints give, and that what they cannot take is message in one line."""

import base64
import io
import types

import numpy as np
import pytest
from PIL import Image

from ivt_jax.pages.render import INTENDED_USE
from tests.serve.conftest import PERSONS, StandIn, jpeg


def search(client, **asked):
    return client.post("/api/search", json=asked)


def test_a_sentence_finds_the_person(client):
    answer = search(client, terms=[{"text": "a man in a red coat and blue trousers"}], top=3).json()
    assert answer["searched"] == 12 and answer["good"] is True and answer["verdict"].startswith("if the person")
    first = answer["results"][0]
    assert (first["path"], first["score"], first["probability"]) == ("red/blue_1.jpg", 2.5 / 3, 0.9)
    assert first["phrases"] == [
        {"text": "man", "score": 0.5, "wanted": True}, {"text": "red coat", "score": 1.0, "wanted": True},
        {"text": "blue trousers", "score": 1.0, "wanted": True},
    ]  # fmt: skip
    assert first["metadata"] == {"camera": 1, "zone": "gate", "seen": None} and len(answer["results"]) == 3


def test_weights_signs_and_filters_reach_the_searcher(client):
    terms = [{"text": "red coat"}, {"text": "blue trousers", "weight": -0.5}]
    answer = search(client, terms=terms, where="camera = 1").json()
    # Camera 1 has persons 1, 4, 7 and 10.
    assert [result["path"] for result in answer["results"]] == [
        "red/blue_1.jpg", "blue/green_7.jpg", "black/green_10.jpg", "green/blue_4.jpg",
    ]  # fmt: skip
    assert answer["results"][0]["score"] == pytest.approx((1 - 0.5) / 1.5)


def test_a_picture_and_a_row_find_their_like(client):
    image = base64.b64encode(jpeg(PERSONS[4].image, exif=b"Exif\0\0secret")).decode()
    found = search(client, image=image, top=3).json()["results"]
    assert [result["path"].split("/")[0] for result in found] == ["green"] * 3
    found = search(client, like=0, top=2).json()["results"]
    assert [result["id"] for result in found] == [1, 2]


def test_an_answer_that_fits_nobody_says_so(client):
    answer = search(client, terms=[{"text": "yellow coat"}]).json()
    assert answer["good"] is False and answer["verdict"] == "no good match: nobody fits"


def test_phrases_thumbnails_and_heat(client):
    phrases = client.post("/api/phrases", json={"text": "a red coat, and a hat"}).json()["phrases"]
    assert phrases == ["red coat", "hat"]
    thumbnail = client.get("/api/thumbnails/3")
    assert thumbnail.headers["content-type"] == "image/jpeg" and thumbnail.content == jpeg(PERSONS[3].image)
    images = client.post("/api/heat/0", json={"phrases": ["red coat", "green jeans"]}).json()["images"]
    assert len(images) == 2
    coat, jeans = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image.removeprefix("data:image/jpeg;base64,"))))).astype(int)
        for image in images
    )
    own = np.asarray(PERSONS[0].image).astype(int)
    changed = [np.abs(image - own).sum(-1) > 60 for image in (coat, jeans)]
    assert changed[0][35:60].mean() > 3 * changed[0][80:].mean() and changed[1][85:110].mean() > changed[1][:64].mean()


def test_about_says_what_is_served(client):
    assert client.get("/api/about").json() == {
        "index": "people.index", "pictures": 12, "unfinished": "", "model": "3fa9c1d2e8b4" + 52 * "0",
        "fields": {"camera": "integer", "zone": "text", "seen": "time"}, "calibrated": True, "max_body": 10_000_000,
        "values": {"camera": [0, 1, 2], "zone": ["gate"]},
    }  # fmt: skip


def test_about_describes_the_index_as_it_is_now(client, monkeypatch):
    later = types.SimpleNamespace(**{**vars(StandIn.about), "fields": {"track": "text"}})

    def count():  # a store reads `about` again when it counts
        monkeypatch.setattr(StandIn.store, "about", later)
        return len(PERSONS)

    monkeypatch.setattr(StandIn.store, "count", count)
    monkeypatch.setattr(StandIn.store, "values", lambda field, most: [field])
    told = client.get("/api/about").json()
    assert told["fields"] == {"track": "text"} and told["values"] == {"track": ["track"]}


def test_an_unfinished_index_is_stated_by_every_answer(client, monkeypatch):
    assert search(client, terms=[{"text": "red coat"}]).json()["unfinished"] == ""
    monkeypatch.setattr(StandIn, "unfinished", "the index is unfinished")
    answer = search(client, terms=[{"text": "red coat"}]).json()
    assert answer["unfinished"] == client.get("/api/about").json()["unfinished"] == "the index is unfinished"
    assert answer["verdict"] == "No confidence estimate: the index is unfinished" and answer["good"] is None
    assert answer["results"][0]["probability"] is None


def test_openapi_describes_every_endpoint(client):
    described = client.get("/openapi.json").json()
    assert sorted(described["paths"]) == [
        "/api/about", "/api/heat/{id}", "/api/phrases", "/api/search", "/api/thumbnails/{id}", "/login",
    ]  # fmt: skip
    assert INTENDED_USE in described["info"]["description"]
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "the query is empty"),
        ({"terms": [{"text": "x" * 501}]}, "terms.0.text: String should have at most 500 characters"),
        ({"terms": [{"text": "hat"}] * 17}, "terms: List should have at most 16 items"),
        ({"terms": [{"text": "hat"}], "top": 201}, "top: Input should be less than or equal to 200"),
        ({"terms": [{"text": "hat"}], "where": "x" * 2001}, "where: String should have at most 2000 characters"),
        ({"terms": [{"text": "hat"}], "where": "1; DROP"}, "is not understood"),
        ({"terms": [{"text": "hat"}], "path": "/etc/passwd"}, "path: Extra inputs are not permitted"),
        ({"terms": [{"text": "hat", "weight": "much"}]}, "terms.0.weight: Input should be a valid number"),
        ({"image": "no picture"}, "image: Base64 decoding error"),
        ({"url": "http://127.0.0.1/"}, "url: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(client, asked, message):
    response = search(client, **asked)
    error = response.json()["error"]
    assert response.status_code == 422 and message in error and "\n" not in error and len(error) < 300


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"terms": [{"text": "\\ud800"}]}', b"\xff\xfe"])
def test_what_is_no_json_is_refused(client, content):
    response = client.post("/api/search", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (400, 413, 422) and "\n" not in response.json()["error"]
