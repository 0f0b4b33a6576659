"""PEDES-Synth's part masks: a part is where another colour of it changes the picture."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from input_pipeline.synthetic import renderer
from input_pipeline.synthetic.canvas import PARTS
from input_pipeline.synthetic.figure import Build
from input_pipeline.synthetic.parts import label_parts, list_shots
from input_pipeline.synthetic.persons import Attributes
from input_pipeline.synthetic.renderer import render, render_parts
from input_pipeline.synthetic.scenery import VIEWS, Scene
from input_pipeline.synthetic.writer import Arguments, generate
from ivt_jax.common.errors import DataError

PERSON = Attributes(
    gender="woman", hair_style="long", hair_colour="black", hat="cap", hat_colour="red", glasses="yes",
    upper_type="sweater", upper_colour="red", upper_pattern="plain", sleeves="long", lower_type="skirt",
    lower_colour="black", shoes_type="boots", shoes_colour="white", bag="backpack", bag_colour="blue", holding="phone",
)  # fmt: skip
STILL = Scene(camera=0, view="front", stride=0.0, phase=0.0, occlusion="none", scale=0.9, shift=(0.0, 0.0), lean=0.0)
WALKING = replace(STILL, stride=0.9, phase=1.2, lean=0.02, shift=(0.03, 0.01))
BUILD = Build(skin=(226, 182, 150), girth=1.0, lining=(150, 152, 156))
SIZE = (96, 48)


def draw(who, scene, build=BUILD):
    image, labels = render_parts(who, build, scene, SIZE, random.Random(0))
    return np.asarray(image), np.asarray(labels)


@pytest.mark.parametrize("size", [SIZE, (384, 128)])
@pytest.mark.parametrize("occlusion", ["none", "pole", "box", "shoulder"])
@pytest.mark.parametrize("view", VIEWS)
def test_the_picture_is_the_same_with_labels_and_without(view, occlusion, size):
    who = replace(PERSON, upper_pattern="checked", holding="umbrella")
    scene = replace(WALKING, view=view, occlusion=occlusion)
    alone = render(who, BUILD, scene, size, random.Random(7))
    together, labels = render_parts(who, BUILD, scene, size, random.Random(7))
    assert together.tobytes() == alone.tobytes()
    assert (labels.mode, labels.size) == ("L", alone.size)


CHANGES = {
    "hair": {"hair_colour": "blond"}, "hat": {"hat_colour": "white"}, "upper": {"upper_colour": "yellow"},
    "lower": {"lower_colour": "orange"}, "shoes": {"shoes_colour": "black"}, "bag": {"bag_colour": "yellow"},
}  # fmt: skip


@pytest.mark.parametrize("occlusion", ["none", "pole", "shoulder"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("part", [*CHANGES, "skin"])
def test_a_part_is_where_another_colour_of_it_changes_what_is_drawn(part, view, occlusion, monkeypatch):
    monkeypatch.setattr(renderer, "photograph", lambda image, *_: image)  # as it is drawn, before it is made smaller
    scene = replace(WALKING, view=view, occlusion=occlusion)
    before, labels = draw(PERSON, scene)
    other, build = replace(PERSON, **CHANGES.get(part, {})), BUILD
    if part == "skin":
        build = replace(BUILD, skin=(104, 70, 50))
    after, same_labels = draw(other, scene, build)
    seen = labels == PARTS.index(part)
    if part == "skin":  # but for the eyes
        seen &= (before != (40, 30, 30)).any(-1)
    np.testing.assert_array_equal((before != after).any(-1), seen)
    np.testing.assert_array_equal(labels, same_labels)
    assert seen.any()


@pytest.mark.parametrize(
    ("x", "y", "view", "changes", "part"),
    [
        (0.0, 0.03, "front", {}, "hat"),
        (0.0, 0.03, "front", {"hat": "none"}, "hair"),
        (0.022, 0.078, "front", {}, "glasses"),
        (0.022, 0.078, "front", {"glasses": "no"}, "skin"),
        (0.0, 0.3, "back", {}, "bag"),
        (0.0, 0.3, "back", {"bag": "none"}, "upper"),
        (0.0, 0.3, "front", {}, "upper"),
        (0.045, 0.65, "front", {}, "lower"),
        (0.045, 0.65, "front", {"upper_type": "coat"}, "upper"),
        (0.045, 0.78, "front", {}, "skin"),
        (0.045, 0.78, "front", {"lower_type": "trousers"}, "lower"),
        (0.045, 0.96, "front", {}, "shoes"),
        (0.15, 0.9, "front", {}, "background"),
    ],
)
def test_what_is_drawn_last_is_seen(x, y, view, changes, part):
    """(x, y) in units of the body: at 0.9 of 96 rows it is 86.4 tall, and its soles stand 1.44 above the lower edge."""
    _, labels = draw(replace(PERSON, **changes), replace(STILL, view=view))
    assert PARTS[labels[int(8.16 + 86.4 * y), int(24 + 101.8 * x)]] == part


def test_a_box_takes_the_shoes_away_and_nothing_above_it():
    _, clear = draw(PERSON, STILL)
    _, hidden = draw(PERSON, replace(STILL, occlusion="box"))
    top = int(np.flatnonzero((clear != hidden).any(1))[0])
    assert 78 <= top <= 85  # 0.82 to 0.88 of the height
    assert not hidden[top:].any() and clear[top:].any()
    np.testing.assert_array_equal(hidden[:top], clear[:top])


def test_a_pattern_does_not_change_the_mask():
    _, plain = draw(PERSON, WALKING)
    for pattern in ("striped", "checked", "dotted"):
        np.testing.assert_array_equal(draw(replace(PERSON, upper_pattern=pattern), WALKING)[1], plain)


# --- a dataset on disk

SMALL = Arguments(persons=6, seed=3, images_per_person=2, size=(48, 24), val_persons=1, test_persons=2)


@pytest.fixture
def root(tmp_path):
    generate(tmp_path / "data", SMALL, workers=1, report=lambda done, total: None)
    return tmp_path / "data"


def test_the_images_of_a_split_are_drawn_again_from_their_seeds(root):
    shots = list_shots(root, "test")
    records = [record for record in json.loads((root / "reid_raw.json").read_text()) if record["split"] == "test"]
    assert [(job.person_id, shot.path) for job, shot in shots] == [(r["id"], r["file_path"]) for r in records]
    for job, shot in shots:
        image = Image.open(root / "imgs" / shot.path)
        labels = label_parts(job, shot, image)
        assert labels.shape == (48, 24)
        np.testing.assert_array_equal(label_parts(job, shot, image), labels)  # and once more
        clothes = np.isin(labels, [PARTS.index("upper"), PARTS.index("lower")])
        assert 0.1 < clothes.mean() < 0.6


def test_an_image_that_its_seed_does_not_draw_is_refused(root):
    (job, shot), (_, other), *_ = list_shots(root, "test")
    for wrong in (Image.open(root / "imgs" / other.path), Image.open(root / "imgs" / shot.path).resize((48, 96))):
        with pytest.raises(DataError, match=rf"{shot.path} is not the image that its seed draws"):
            label_parts(job, shot, wrong)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "missing or damaged"), ("{", "missing or damaged"), ('{"persons": {}}', "missing or damaged"),
     ('{"version": "0", "arguments": {"size": [48, 24]}}', "has version 0, but this program draws version 1")],
)  # fmt: skip
def test_a_folder_that_is_no_such_dataset_is_refused(tmp_path, content, told):
    if content is not None:
        (tmp_path / "attributes.json").write_text(content)
    with pytest.raises(DataError, match=f"attributes.json .*{told}"):
        list_shots(tmp_path, "test")
