"""What the endpoints give, and that what they cannot take is message in one line."""

import base64
import dataclasses
import datetime
import hashlib
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from ivt_jax.pages.render import INTENDED_USE
from ivt_jax.retrieval.stores.store import StoreError
from tests.serve.conftest import PERSONS, WORN, Person, StandIn, jpeg, served


def search(client, **asked):
    return client.post("/api/search", json=asked)


def test_a_sentence_finds_the_person(client):
    answer = search(client, terms=[{"text": "a man in a red coat and blue trousers"}], top=3).json()
    assert answer["searched"] == 12 and answer["good"] is True and answer["verdict"].startswith("90% likely")
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


def test_an_answer_says_what_it_rests_on_and_what_the_model_cannot_tell(client):
    answer = search(client, terms=[{"text": "red coat"}, {"text": "glasses"}, {"text": "a rde coat"}]).json()
    assert [phrase["score"] for phrase in answer["results"][0]["phrases"][:2]] == [1.0, None]
    assert answer["without_fit"] == "this model cannot tell: glasses"
    assert answer["suggestions"] == {"a rde coat": "a red coat"} and answer["terms"][1]["text"] == "glasses"
    assert answer["basis"]["kept"] == {"the folder is missing": 3}
    assert answer["basis"]["passed"] == {"hidden": 2} and answer["basis"]["outdated"] == "the list has changed since"
    assert answer["results"][1]["odd"] == "more than 6 times as high as wide" and answer["results"][0]["odd"] == ""


def test_an_odd_picture_is_named_and_rows_can_be_rejected(client):
    frame = base64.b64encode(jpeg(PERSONS[4].image.resize((1920, 1080)))).decode()
    told = "the query's picture is wider than high, as a full frame is: cut the person out first"
    assert search(client, image=frame).json()["odd"] == told
    left = search(client, terms=[{"text": "red coat"}], unlike=[0, 1]).json()["results"]
    assert len(left) == 10 and not {0, 1} & {result["id"] for result in left}
    assert search(client, terms=[{"text": "red coat"}], unlike=[0] * 101).status_code == 422


def test_an_answer_that_fits_nobody_says_so(client):
    answer = search(client, terms=[{"text": "yellow coat"}]).json()
    assert answer["good"] is False and answer["verdict"] == "no good match: nobody fits"


def test_phrases_thumbnails_and_heat(client):
    split = client.post("/api/phrases", json={"text": "a red coat and a gun, without a hat"}).json()
    assert split == {"terms": [{"text": "red coat", "weight": 1.0}, {"text": "hat", "weight": -1.0}], "rest": "gun"}
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
        "fields": {"camera": "integer", "zone": "text", "seen": "time"}, "calibrated": True, "fits": True,
        "max_body": 10_000_000,
        "max_top": 1000, "max_terms": 16, "max_unlike": 100,
    }  # fmt: skip
    assert client.get("/api/values").json()["values"] == {
        "camera": [{"value": camera, "pictures": 4} for camera in (0, 1, 2)],
        "zone": [{"value": "gate", "pictures": 6}],
    }


def test_about_describes_the_index_as_it_is_now(monkeypatch):
    searcher = StandIn()
    later = dataclasses.replace(searcher.about, fields={"track": "text"})

    def count(where=None):  # a store reads `about` again when it counts
        searcher.store.about = later
        return len(PERSONS)

    monkeypatch.setattr(searcher.store, "count", count)
    with served(searcher) as address:
        assert httpx.get(f"{address}/api/about").json()["fields"] == {"track": "text"}


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
        "/api/about", "/api/heat/{id}", "/api/originals/{id}", "/api/phrases", "/api/search", "/api/thumbnails/{id}",
        "/api/values", "/login",
    ]  # fmt: skip
    assert INTENDED_USE in described["info"]["description"]
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "the query is empty"),
        ({"terms": [{"text": "x" * 501}]}, "a sentence has more than 500 characters"),
        ({"terms": [{"text": "hat"}] * 17}, "terms has more than 16 entries"),
        ({"terms": {"text": "hat"}}, "terms is not a list"),
        ({"terms": [{}]}, "terms.0.text is missing"),
        ({"terms": [{"text": 1}]}, "terms.0.text is not a text"),
        ({"terms": [{"text": "hat"}], "top": 1001}, "top is above 1000"),
        ({"terms": [{"text": "hat"}], "top": 0}, "top is below 1"),
        ({"terms": [{"text": "hat"}], "top": 1.5}, "top is not a whole number"),
        ({"terms": [{"text": "hat"}], "where": "x" * 2001}, "where has more than 2000 characters"),
        ({"terms": [{"text": "hat"}], "where": "1; DROP"}, "the filter at character 1, '1; DROP': expected a field"),
        ({"terms": [{"text": "hat"}], "path": "/etc/passwd"}, "path is not a part of this request"),
        ({"terms": [{"text": "hat", "weight": "much"}]}, "terms.0.weight is not a number"),
        ({"terms": [{"text": "hat"}], "fold": "often"}, "fold is neither true nor false"),
        ({"terms": [{"text": "hat"}], "fold": True, "group": "hat"}, 'the index has no field "hat" to group by'),
        ({"like": -1}, "like is below 0"),
        ({"image": "no picture"}, "image is not Base64"),
        ({"image": "!!!"}, "image is not Base64"),
        ({"image": "data:image/png;base64,AAAA"}, "image is not Base64"),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(client, asked, message):
    response = search(client, **asked)
    error = response.json()["error"]
    assert response.status_code == 422 and message in error and "\n" not in error and len(error) < 300


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"terms": [{"text": "\\ud800"}]}', b"\xff\xfe"])
def test_what_is_no_json_is_refused(client, content):
    response = client.post("/api/search", content=content, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert response.status_code in (400, 413, 422) and "\n" not in error
    assert response.status_code != 422 or error in (
        "the request is missing", "the request is not JSON", "terms.0.text is not valid Unicode"
    )  # fmt: skip


def test_results_that_repeat_a_better_one_are_folded():
    crowd = [Person(id, *WORN[id % 12]) for id in range(36)]  # each outfit is worn by three
    with served(StandIn(crowd)) as address, httpx.Client(base_url=address) as client:
        asked = {"terms": [{"text": "a red coat"}], "top": 36, "distinct": 0.98}
        for fold, folded in ((True, {id: id % 12 for id in range(12, 36)}), (False, {})):
            results = client.post("/api/search", json={**asked, "fold": fold}).json()["results"]
            assert len(results) == 36
            found = {result["id"]: result["folded_under"] for result in results}
            assert {id: under for id, under in found.items() if under is not None} == folded


def test_the_original_is_the_indexed_file_encoded_again(client):
    answer = client.get("/api/originals/3")
    picture = Image.open(io.BytesIO(answer.content))
    assert answer.headers["content-type"] == "image/jpeg" and picture.size == (128, 256)
    assert b"secret" not in answer.content and not picture.getexif()
    shown = np.asarray(picture.resize((64, 128)), float)
    assert np.abs(shown - np.asarray(PERSONS[3].image, float)).mean() < 8
    assert client.get("/api/originals/12").status_code == 404


def test_no_other_file_is_an_original(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    searcher = StandIn()
    searcher.store.set_about(dataclasses.replace(searcher.about, root=str(root)))
    outside, content = tmp_path / "outside.jpg", jpeg(PERSONS[0].image)
    outside.write_bytes(content)
    (root / "kept.jpg").write_bytes(content)
    (root / "changed.jpg").write_bytes(jpeg(PERSONS[1].image))
    (root / "link.jpg").symlink_to(outside)
    (root / "folder.jpg").mkdir()
    paths = ["kept.jpg", "changed.jpg", "link.jpg", "folder.jpg", "gone.jpg", "../outside.jpg", str(outside)]
    digest = hashlib.sha256(content).hexdigest()
    for id, path in enumerate(paths):  # rows that no build writes, with the right digest
        searcher.store.rows[id] = searcher.store.rows[id]._replace(path=path, digest=digest)
    with served(searcher) as address:
        statuses = [httpx.get(f"{address}/api/originals/{id}").status_code for id in range(len(paths))]
        assert statuses == [200] + [404] * 6


def test_health(capfd):
    searcher = StandIn()
    with served(searcher, token="0123456789abcdef") as address, httpx.Client(base_url=address) as client:
        assert [client.get(f"/health/{name}").status_code for name in ("live", "ready")] == [200, 200]
        searcher.store.about = dataclasses.replace(searcher.about, made="tomorrow")
        assert client.get("/health/ready").json() == {
            "error": "the index cannot be searched; the server's log says why"
        }
        bearer = {"authorization": "Bearer 0123456789abcdef"}
        for path in ("about", "values", "thumbnails/3", "originals/3"):  # the ids are those of other pictures now
            assert client.get(f"/api/{path}", headers=bearer).status_code == 503, path
        searcher.store.count = fail
        for _ in range(2):  # a fault is logged once
            answers = [client.get(f"/health/{name}") for name in ("live", "ready")]
            assert [answer.status_code for answer in answers] == [200, 503]
        del searcher.store.count
        searcher.store.about = dataclasses.replace(searcher.about, made="today")
        assert client.get("/health/ready").status_code == 200
        searcher.store.get = fail  # the rows are gone, and their number is still known
        assert client.get("/health/ready").status_code == 503
    lines = capfd.readouterr().err.splitlines()
    time, first = lines[0].split(" ", 1)
    assert first == "error: another index has replaced the one that is open: open it again, or restart the server"
    assert datetime.datetime.fromisoformat(time).utcoffset() == datetime.timedelta(0)
    health = [line for line in lines if " /api/" not in line and not line.endswith(first)]
    assert health[0].endswith(" error: /data/people: Not found")
    assert health[1].endswith(" the index can be searched again")
    assert health[2].endswith(" error: /data/people: Not found") and len(health) == 3


def fail(*arguments):
    raise StoreError("/data/people: Not found")


def test_metrics_count_requests_by_endpoint_and_status():
    token = {"authorization": "Bearer 0123456789abcdef"}
    searcher = StandIn()
    with served(searcher, token="0123456789abcdef") as address, httpx.Client(base_url=address) as client:
        assert client.get("/metrics").status_code == 401
        client.headers.update(token)
        for id in (1, 2, 99):
            client.get(f"/api/thumbnails/{id}")
        client.get("/api/thumbnails/x")
        client.get("/nowhere/1")
        answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if line[0] != "#")
        counted = {name: float(value) for name, value in lines.items() if name.startswith("ivt_requests_total")}
        assert counted == {
            'ivt_requests_total{path="/metrics",status="401"}': 1,
            'ivt_requests_total{path="/api/thumbnails/{id}",status="200"}': 2,
            'ivt_requests_total{path="/api/thumbnails/{id}",status="404"}': 1,
            'ivt_requests_total{path="other",status="422"}': 1,
            'ivt_requests_total{path="other",status="404"}': 1,
        }
        assert lines['ivt_request_seconds_count{path="/api/thumbnails/{id}"}'] == "3.0"
        gauges = [lines[f"ivt_{name}"] for name in ("index_ready", "index_pictures", "model_waiting")]
        assert gauges == ["1.0", "12.0", "0.0"]
        assert float(lines["process_resident_memory_bytes"]) > 1e6
        searcher.store.count = fail
        assert "ivt_index_ready 0.0\n" in client.get("/metrics").text
