"""The server over an index that the command has made, with a model: what the stand-in of the other tests stands for."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from ivt_jax import index
from ivt_jax.retrieval.searcher import Searcher
from tests.gallery.conftest import picture, write_model
from tests.serve.conftest import served

TAGGED = 5  # the picture whose file says where it was taken


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A client of a server over six pictures, of cameras 0 and 1, the last two seen in May."""
    folder = tmp_path_factory.mktemp("real")
    lines = ["path,camera,seen"]
    for seed in range(6):
        (folder / f"{seed}.png").write_bytes(picture(seed))
        lines.append(f"{seed}.png,{seed % 2},2024-0{4 + seed // 4}-01")
    exif = Image.Exif()
    exif[270] = "taken at home"  # ImageDescription
    Image.open(io.BytesIO(picture(TAGGED))).save(folder / f"{TAGGED}.png", exif=exif)
    (folder / "list.csv").write_text("\n".join(lines))
    model, place = write_model(folder / "model"), folder / "index"
    assert index.main([f"--workdir={model}", f"--list={folder}/list.csv", f"--index={place}", "--batch=1"]) == 0
    with served(Searcher.open(place)) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_it_says_what_the_index_knows(real):
    about = real.get("/api/about").json()
    assert about["pictures"] == 6 and about["fields"] == {"camera": "integer", "seen": "time"}
    assert real.get("/api/values").json()["values"] == {
        "camera": [{"value": 0, "pictures": 3}, {"value": 1, "pictures": 3}]
    }
    assert about["calibrated"] is False and len(about["model"]) == 64


def test_a_picture_that_is_sent_finds_itself(real):
    asked = {"image": base64.b64encode(picture(3)).decode(), "terms": [], "top": 2}
    first, second = real.post("/api/search", json=asked).json()["results"]
    assert first["path"] == "3.png" and first["score"] == pytest.approx(1, abs=1e-5) and second["score"] < 0.9999
    assert first["metadata"] == {"camera": 1, "seen": "2024-04-01T00:00:00Z"}


def test_a_filter_and_a_sentence(real):
    asked = {"terms": [{"text": "a red coat and white shoes"}], "where": "seen >= '2024-05-01' and camera = 1"}
    answer = real.post("/api/search", json=asked).json()
    (found,) = answer["results"]
    assert answer["searched"] == 1 and found["path"] == "5.png"
    assert [phrase["text"] for phrase in found["phrases"]] == ["red coat", "white shoes"]
    wrong = real.post("/api/search", json={**asked, "where": "colour = 'red'"})
    assert wrong.status_code == 422 and "colour" in wrong.json()["error"]


def test_more_like_a_picture_is_not_the_picture(real):
    answer = real.post("/api/search", json={"like": 2}).json()
    assert sorted(result["id"] for result in answer["results"]) == [0, 1, 3, 4, 5]
    assert real.post("/api/search", json={"like": 6}).status_code == 422


def test_thumbnails_tell_nothing_but_the_picture(real):
    thumbnails = [Image.open(io.BytesIO(real.get(f"/api/thumbnails/{id}").content)) for id in range(6)]
    assert [(image.format, dict(image.getexif()), image.info.get("comment")) for image in thumbnails] == [
        ("JPEG", {}, None)
    ] * 6
    shown = np.asarray(thumbnails[TAGGED].convert("RGB").resize((3, 4), Image.Resampling.BOX), float)
    own = np.asarray(Image.open(io.BytesIO(picture(TAGGED))).resize((3, 4), Image.Resampling.BOX), float)
    assert np.abs(shown - own).mean() < 20
    assert real.get("/api/thumbnails/6").status_code == 404


def test_heat_is_drawn_over_the_picture(real):
    images = real.post("/api/heat/1", json={"phrases": ["red coat", "white shoes"]}).json()["images"]
    drawn = [Image.open(io.BytesIO(base64.b64decode(image.split(",")[1]))) for image in images]
    assert [image.size for image in drawn] == [(20, 30)] * 2
    assert np.abs(np.asarray(drawn[0], float) - np.asarray(drawn[1], float)).max() > 30
