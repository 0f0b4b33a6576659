"""PEDES-Synth: deterministic, in the raw layout of CUHK-PEDES, with captions that say what the pictures show."""

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.synthetic import __main__ as command
from input_pipeline.synthetic.captioner import LONGEST, MISTAKES, SHORTEST, describe
from input_pipeline.synthetic.figure import Build
from input_pipeline.synthetic.oracle import oracle_r1
from input_pipeline.synthetic.persons import FIELDS, VALUES, Attributes, distance, draw_crowd
from input_pipeline.synthetic.renderer import render
from input_pipeline.synthetic.scenery import VIEWS, Scene, draw_scene
from input_pipeline.synthetic.writer import Arguments, draw_splits, generate
from ivt_jax.common.errors import UserError

SMALL = Arguments(persons=12, seed=3, images_per_person=2, size=(48, 24), val_persons=3, test_persons=4)
PERSON = Attributes(
    gender="man", hair_style="short", hair_colour="black", hat="none", hat_colour="none", glasses="no",
    upper_type="sweater", upper_colour="red", upper_pattern="plain", sleeves="long", lower_type="trousers",
    lower_colour="black", shoes_type="shoes", shoes_colour="white", bag="none", bag_colour="none", holding="none",
)  # fmt: skip
STILL = Scene(camera=0, view="front", stride=0.0, phase=0.0, occlusion="none", scale=0.9, shift=(0.0, 0.0), lean=0.0)
BUILD = Build(skin=(226, 182, 150), girth=1.0, lining=(150, 152, 156))


def _quiet(done: int, total: int) -> None:
    pass


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synth") / "data"
    assert generate(root, SMALL, workers=1, report=_quiet)
    return root


# --- the dataset on disk


def test_the_same_bytes_from_one_and_from_two_workers(dataset: Path, tmp_path: Path) -> None:
    generate(tmp_path / "two", SMALL, workers=2, report=_quiet)
    assert _digests(tmp_path / "two") == _digests(dataset)


def test_another_seed_gives_other_persons_images_and_captions(dataset: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", replace(SMALL, seed=4), workers=1, report=_quiet)
    assert not set(_digests(tmp_path / "other").values()) & set(_digests(dataset).values())


def test_records_have_the_raw_layout_of_cuhk_pedes(dataset: Path) -> None:
    records = json.loads((dataset / "reid_raw.json").read_text())
    assert len(records) == 12 * 2
    for record in records:
        assert list(record) == ["split", "captions", "file_path", "processed_tokens", "id"]
        assert len(record["captions"]) == len(record["processed_tokens"]) == 2
        assert record["processed_tokens"][0] == re.findall(r"[a-z0-9]+", record["captions"][0].lower())
        with Image.open(dataset / "imgs" / record["file_path"]) as image:
            assert (image.format, image.size) == ("JPEG", (24, 48))
    assert len({record["file_path"] for record in records}) == len(records)
    assert sorted({record["id"] for record in records}) == list(range(1, 13))
    split_of = {(record["id"], record["split"]) for record in records}
    assert Counter(split for _, split in split_of) == {"train": 5, "val": 3, "test": 4}


def test_attributes_cover_every_person_and_caption(dataset: Path) -> None:
    records = json.loads((dataset / "reid_raw.json").read_text())
    attributes = json.loads((dataset / "attributes.json").read_text())
    assert set(attributes["persons"]) == {str(record["id"]) for record in records}
    assert set(attributes["captions"]) == {record["file_path"] for record in records}
    for person in attributes["persons"].values():
        assert tuple(person) == FIELDS
    for stated in attributes["captions"].values():
        assert all(value in VALUES[name] for facts in stated for name, value in facts.items())
    assert all(0 < attributes["oracle"][split]["R1"] <= 100 for split in ("val", "test"))


def test_a_finished_dataset_is_left_alone(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    assert not generate(dataset, SMALL, workers=1, report=_quiet)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_a_folder_that_holds_something_else_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="other arguments"):
        generate(dataset, replace(SMALL, seed=9), workers=1, report=_quiet)
    (tmp_path / "holiday.txt").write_text("photos")
    with pytest.raises(UserError, match="is not a PEDES-Synth dataset"):
        generate(tmp_path, SMALL, workers=1, report=_quiet)


def test_an_interrupted_run_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "data", SMALL, workers=1, report=interrupt)
    assert not (tmp_path / "data").exists()
    assert generate(tmp_path / "data", SMALL, workers=1, report=_quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_partial_folder_that_is_not_ours_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="remove it first"):
        generate(tmp_path / "data", SMALL, workers=1, report=_quiet)
    assert (tmp_path / "data.partial" / "thesis.tex").exists()


# --- the command


def test_the_command_reports_the_oracle_and_draws_a_sheet(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--persons=12 --seed=3 --images_per_person=2 --size=48x24 --val_persons=3 --test_persons=4 --workers=1"
    command.main([f"--out={dataset}", f"--contact_sheet={tmp_path / 'sheet.png'}", *options.split()])
    said = capsys.readouterr().out
    oracle = json.loads((dataset / "attributes.json").read_text())["oracle"]
    assert "exists already" in said
    assert f"test {oracle['test']['R1']:.1f}%" in said
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    text, picture = sheet[:300, 170:430], sheet[10:280, 10:140]
    assert (text < 100).any() and (text == 255).mean() > 0.5
    assert (picture == 255).mean() < 0.5


def test_a_mistake_of_the_user_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([f"--out={tmp_path / 'data'}", "--persons=300"]) == 2
    assert capsys.readouterr().err == (
        "error: --persons=300 must be more than --val_persons=100 and --test_persons=200 together: the rest is for "
        "training\n"
    )
    assert not list(tmp_path.iterdir())


def test_the_generator_needs_neither_tensorflow_nor_jax() -> None:
    code = "import sys, input_pipeline.synthetic.__main__; print({'jax', 'tensorflow', 'flax'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# --- persons


def test_about_half_of_the_persons_have_a_double_that_differs_in_one_attribute() -> None:
    crowd = draw_crowd(300, random.Random(0), set())
    with_sibling = sum(any(distance(a, b) == 1 for b in crowd) for a in crowd)
    assert 0.4 < with_sibling / len(crowd) < 0.65


def test_no_two_persons_are_alike_and_test_does_not_depend_on_train() -> None:
    few = draw_splits(Arguments(persons=400))
    many = draw_splits(Arguments(persons=900))
    everyone = [person for crowd in many.values() for person in crowd]
    assert len(set(everyone)) == 900
    assert few["test"] == many["test"] and few["val"] == many["val"]


def test_distance_ignores_the_colour_of_a_thing_that_one_of_them_lacks() -> None:
    assert distance(PERSON, replace(PERSON, bag="backpack", bag_colour="red")) == 1
    with_bag = replace(PERSON, bag="handbag", bag_colour="red")
    assert distance(with_bag, replace(with_bag, bag="backpack", bag_colour="blue", gender="woman")) == 3


# --- captions


def _captions(count: int) -> list[tuple[Attributes, Scene, str, dict[str, str]]]:
    rng = random.Random(1)
    written = []
    for who in draw_crowd(count, rng, set()):
        scene = draw_scene(rng)
        written.append((who, scene, *describe(who, scene, rng)))
    return written


def test_three_in_a_hundred_stated_attributes_are_wrong() -> None:
    checks = [getattr(who, name) == value for who, _, _, stated in _captions(1500) for name, value in stated.items()]
    assert abs(checks.count(False) / len(checks) - MISTAKES) < 0.006


def test_captions_have_two_or_three_sentences_of_the_usual_length() -> None:
    texts = [text for _, _, text, _ in _captions(400)]
    lengths = [len(text.split()) for text in texts]
    assert all(SHORTEST <= length <= LONGEST for length in lengths) and 25 <= np.mean(lengths) <= 32
    assert {text.count(".") for text in texts} == {2, 3}
    assert all(re.fullmatch(r"([A-Z][^.]*[^. ,]\. ?)+", text) for text in texts)
    assert sum("," in text for text in texts) > 0.6 * len(texts)


def test_captions_do_not_mention_what_nobody_can_see() -> None:
    behind = replace(STILL, view="back", occlusion="box")
    spectacled = replace(PERSON, glasses="yes")
    rng = random.Random(0)
    stated = [describe(spectacled, behind, rng)[1] for _ in range(100)]
    assert not any({"glasses", "shoes_type", "shoes_colour"} & set(facts) for facts in stated)
    assert any("glasses" in describe(spectacled, STILL, rng)[1] for _ in range(20))


# A reader of its own, deliberately simple: which words betray that an attribute was stated.
_TRACES = {
    "glasses": "glasses", "bag": r"backpack|rucksack|\w*bag|purse|suitcase|trolley", "holding": "phone|umbrella",
    "hat": "cap|hat|beanie", "sleeves": "sleeve", "lower_type": "pants|trousers|slacks|jeans|shorts|skirt",
    "shoes_type": "shoes|sneakers|trainers|boots", "gender": "man|woman|male|female|lady|guy|gentleman|he|she|his|her",
}  # fmt: skip


@pytest.mark.parametrize("name", _TRACES)
def test_a_caption_mentions_an_attribute_exactly_if_it_is_stated(name: str) -> None:
    for _, _, text, stated in _captions(250):
        found = re.search(rf"\b({_TRACES[name]})(s|d)?\b", text.lower())
        assert bool(found) == (name in stated), (text, stated)


def test_a_stated_colour_is_named_by_its_own_words() -> None:
    words = {
        "red": "red",
        "blue": "blue",
        "green": "green",
        "purple": "purple|violet",
        "dark red": "dark red|burgundy|maroon",
    }
    for _, _, text, stated in _captions(400):
        for name, value in stated.items():
            if name.endswith("colour") and value in words:
                assert re.search(rf"\b({words[value]})\b", text), (text, stated)


# --- the oracle


def test_oracle_on_a_case_worked_out_by_hand() -> None:
    persons = {
        1: {"upper_colour": "red", "bag": "none"},
        2: {"upper_colour": "red", "bag": "backpack"},
        3: {"upper_colour": "blue", "bag": "backpack"},
    }
    gallery = [1, 1, 2, 3]
    queries = [
        {"upper_colour": "red", "bag": "backpack"},  # of 2: only 2 has both -> 1
        {"upper_colour": "red"},  # of 1: two of the three images of 1 and 2 -> 2/3
        {"upper_colour": "blue", "bag": "backpack"},  # of 2, mistaken: 3 wins -> 0
        {},  # of 3: nothing stated, one image of four -> 1/4
    ]
    assert oracle_r1(persons, queries, [2, 1, 2, 3], gallery) == pytest.approx(100 * (1 + 2 / 3 + 0 + 1 / 4) / 4)


# --- pictures


def _patch(who: Attributes, scene: Scene, rows: tuple[float, float], columns: tuple[float, float]) -> np.ndarray:
    """Mean colour of a rectangle of the picture at 96 x 48, given in shares of its height and width."""
    pixels = np.asarray(render(who, BUILD, scene, (96, 48), random.Random(0)), np.float32)
    (top, bottom), (left, right) = (np.round(np.array(rows) * 96), np.round(np.array(columns) * 48))
    return pixels[int(top) : int(bottom), int(left) : int(right)].mean((0, 1))


_CHEST, _THIGHS, _FEET = ((0.28, 0.45), (0.4, 0.6)), ((0.6, 0.7), (0.4, 0.6)), ((0.94, 0.98), (0.3, 0.7))


@pytest.mark.parametrize("view", VIEWS)
def test_garments_have_their_colours_from_every_side(view: str) -> None:
    who, scene = replace(PERSON, lower_colour="green"), replace(STILL, view=view)
    red, green, blue = _patch(who, scene, *_CHEST)
    assert red > 1.8 * max(green, blue)
    red, green, blue = _patch(who, scene, *_THIGHS)
    assert green > 1.3 * max(red, blue)


@pytest.mark.parametrize(("field", "value", "where", "view"), [
    ("upper_pattern", "striped", _CHEST, "front"),
    ("sleeves", "short", ((0.42, 0.5), (0.12, 0.26)), "front"),
    ("upper_type", "coat", ((0.6, 0.7), (0.35, 0.65)), "front"),
    ("upper_type", "jacket", ((0.3, 0.5), (0.46, 0.54)), "front"),
    ("lower_type", "shorts", ((0.78, 0.88), (0.3, 0.7)), "front"),
    ("shoes_colour", "red", _FEET, "front"),
    ("hair_style", "long", ((0.2, 0.28), (0.4, 0.6)), "back"),
    ("hat", "cap", ((0.08, 0.14), (0.44, 0.56)), "front"),
    ("glasses", "yes", ((0.15, 0.18), (0.4, 0.6)), "front"),
    ("bag", "backpack", ((0.3, 0.45), (0.4, 0.6)), "back"),
    ("bag", "handbag", ((0.6, 0.68), (0.1, 0.22)), "front"),
    ("bag", "suitcase", ((0.76, 0.92), (0.15, 0.3)), "front"),
    ("holding", "phone", ((0.15, 0.2), (0.6, 0.72)), "front"),
])  # fmt: skip
def test_an_attribute_shows_where_it_belongs(field: str, value: str, where: tuple, view: str) -> None:
    """Changing one attribute changes the picture there, and (but for the whole outline) hardly elsewhere."""
    other = replace(PERSON, **{field: value})
    if field in ("bag", "hat"):
        other = replace(other, **{f"{field}_colour": "yellow"})
    scene = replace(STILL, view=view)
    assert np.abs(_patch(PERSON, scene, *where) - _patch(other, scene, *where)).max() > 12
    corner = ((0.0, 0.08), (0.0, 0.2))
    assert np.abs(_patch(PERSON, scene, *corner) - _patch(other, scene, *corner)).max() < 0.5


def test_left_and_right_views_face_opposite_ways() -> None:
    """The backpack of a person who walks to the right hangs on the image's left."""
    who = replace(PERSON, bag="backpack", bag_colour="yellow")
    left_side, right_side = ((0.3, 0.4), (0.26, 0.36)), ((0.3, 0.4), (0.64, 0.74))
    for view, bag_side, free_side in (("right", left_side, right_side), ("left", right_side, left_side)):
        bag, free = (_patch(who, replace(STILL, view=view), *side) for side in (bag_side, free_side))
        assert bag[0] - bag[2] > 80 > free[0] - free[2]
