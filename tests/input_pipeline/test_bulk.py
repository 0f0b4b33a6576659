import collections
import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline.annotations import read_annotations
from input_pipeline.synthetic import bulk
from input_pipeline.synthetic.bulk import Counts
from ivt_jax.common.errors import UserError

SPLITS = {"train": Counts(3, 8, 18), "val": Counts(2, 2, 2), "test": Counts(1, 3, 6)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("bulk") / "bmp"
    bulk.write(root, SPLITS, "bmp", seed=1, workers=2)
    return root


def test_the_splits_have_what_was_asked(made):
    records = read_annotations(made, "cuhk_pedes").records
    images = collections.Counter(record.split for record in records)
    captions = collections.Counter(record.split for record in records for _ in record.captions)
    persons = {split: {r.person_id for r in records if r.split == split} for split in SPLITS}
    assert {s: Counts(len(persons[s]), images[s], captions[s]) for s in SPLITS} == SPLITS
    assert set.union(*persons.values()) == set(range(1, 7))  # 3 + 2 + 1: no person is in two splits
    assert max(len(record.captions) for record in records) == 3  # 18 captions of 8 images: two have three


def test_images_have_the_format_and_the_sizes_of_crops(made):
    for record in read_annotations(made, "cuhk_pedes").records:
        with Image.open(made / "imgs" / record.image_path) as image:
            assert image.format == "BMP"
            assert 160 <= image.height < 460 and 2.1 < image.height / image.width < 3.3


def test_an_image_depends_on_seed_and_path_alone(made, tmp_path):
    record = read_annotations(made, "cuhk_pedes").records[5]
    (tmp_path / record.image_path).parent.mkdir()
    pixels = []
    for seed in (1, 2):
        bulk.write_image(tmp_path, seed, record.image_path)
        pixels.append(np.asarray(Image.open(tmp_path / record.image_path)))
    np.testing.assert_array_equal(pixels[0], np.asarray(Image.open(made / "imgs" / record.image_path)))
    assert pixels[0].shape != pixels[1].shape or (pixels[0] != pixels[1]).any()


def test_the_default_is_as_published():
    paths = [r["file_path"] for r in bulk.records({"train": Counts(11003, 34054, 68126)}, ".jpg", 0)]
    assert len(set(paths)) == len(paths) == 34054
    assert bulk.DEFAULT["train"] == (11003, 34054, 68126)


def test_mistakes_are_one_line(made, capsys):
    assert bulk.main([f"--out={made}"]) == 2
    assert capsys.readouterr().err == f"error: {made} exists already; remove it, or move it away, to write it again\n"
    with pytest.raises(UserError, match="exists"):
        bulk.write(made, SPLITS)
    with pytest.raises(SystemExit):
        bulk.main([f"--out={made}", "--train=10x5x20"])
    assert "every person needs an image" in capsys.readouterr().err


def test_the_command_writes_it(tmp_path, capsys):
    arguments = ["--train=2x2x4", "--val=1x1x2", "--test=1x1x2", "--format=png", "--workers=1"]
    assert bulk.main([f"--out={tmp_path / 'png'}", *arguments]) == 0
    assert capsys.readouterr().out == f"4 images: {tmp_path / 'png'}\n"
    assert all(r["file_path"].endswith(".png") for r in json.loads((tmp_path / "png/reid_raw.json").read_text()))
