"""The example docs/cut_crops.py: persons are cut out of frames, and its list makes an index."""

import csv
import datetime
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.synthetic.bulk import drawings
from ivt_jax import index
from ivt_jax.encoding.images import odd_shape
from ivt_jax.retrieval.indexing.sources import read_list
from ivt_jax.retrieval.stores.places import open_store
from ivt_jax.retrieval.stores.where import parse
from tests.gallery.conftest import write_model

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'opencv-python-headless<5'")
SCRIPT = Path(__file__).parent.parent / "docs/cut_crops.py"
AT = (150, 580, 1010, 1440)  # left edges of the persons, all 240 wide and 480 high, from line 300 down
EIGHT = datetime.datetime(2024, 5, 1, 8, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("cut_crops", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frame(shift=0):
    """A frame of 1920 x 1080 with four drawn persons, moved to the right."""
    image = Image.fromarray(np.tile(np.linspace(120, 180, 1920, dtype=np.uint8), (1080, 1))).convert("RGB")
    for left, person in zip(AT, drawings(0), strict=False):
        image.paste(person.resize((240, 480), Image.Resampling.BICUBIC), (left + shift, 300))
    return image


def test_the_persons_of_a_frame_are_found(example):
    boxes = sorted(example.detect(np.array(frame())[..., ::-1]))
    assert len(boxes) == 4
    for (x, y, width, height), left in zip(boxes, AT, strict=True):
        assert left < x + width / 2 < left + 240 and 300 < y + height / 2 < 780
        assert not odd_shape(width, height)


def test_the_list_of_the_crops_makes_an_index(example, tmp_path, capsys):
    for camera, time, shift in (("gate", "080000", 0), ("gate", "080001", 30), ("hall", "090000", 0)):
        path = tmp_path / "frames" / camera / f"2024-05-01T{time}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame(shift).save(path)
    (tmp_path / "frames/hall/2024-05-01T090001.png").write_bytes(b"damaged")
    assert example.main([f"--frames={tmp_path}/frames", f"--out={tmp_path}/crops"]) == 1
    output = capsys.readouterr()
    assert output.out == f"{tmp_path}/crops: 12 crops, listed in crops.csv\n"
    assert output.err == f"skipped {tmp_path}/frames/hall/2024-05-01T090001.png: not a readable image\n"
    source = read_list(tmp_path / "crops/crops.csv")
    assert source.fields == {"camera": "text", "time": "time", "track": "integer", "box": "text"}
    tracks = [picture.metadata["track"] for picture in source.pictures.values()]
    assert sorted(tracks[:4]) == sorted(tracks[4:8]) == [0, 1, 2, 3] and sorted(tracks[8:]) == [4, 5, 6, 7]
    run = write_model(tmp_path / "run")
    assert index.main([f"--workdir={run}", f"--list={tmp_path}/crops/crops.csv", f"--index={tmp_path}/index"]) == 0
    store = open_store(tmp_path / "index")
    assert {row.odd for row in store.scan()} == {""}
    where = "camera = 'gate' and time between '2024-05-01T08:00' and '2024-05-01T08:00:00.5'"
    assert store.count(parse(where, store.about.fields)) == 4


def test_another_detector_takes_its_place_and_its_boxes_are_cut_at_the_edges(example, tmp_path):
    (tmp_path / "frames/3").mkdir(parents=True)
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    Image.fromarray(pixels).save(tmp_path / "frames/3/2024-05-01T08.png")
    boxes = [(-5, 2, 15, 40), (25, 0, 10, 10), (30, 0, 5, 5)]  # the last one lies outside
    assert example.cut(tmp_path / "frames", tmp_path / "crops", lambda frame: boxes) == (2, [])
    with (tmp_path / "crops/crops.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "camera", "time", "track", "box"],
        ["3/2024-05-01T08_0.jpg", "3", "2024-05-01T08:00:00", "0", "0 2 10 18"],
        ["3/2024-05-01T08_1.jpg", "3", "2024-05-01T08:00:00", "1", "25 0 5 10"],
    ]
    assert Image.open(tmp_path / "crops" / rows[1][0]).size == (10, 18)
    source = read_list(tmp_path / "crops/crops.csv")
    assert source.pictures["3/2024-05-01T08_0.jpg"].metadata["time"] == EIGHT and source.fields["camera"] == "integer"


def test_the_overlap_of_boxes(example):
    assert example.overlap((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(50 / 150)
    assert example.overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0


def test_a_frame_without_a_time_and_a_folder_that_exists_are_one_line(example, tmp_path, capsys):
    (tmp_path / "frames/gate").mkdir(parents=True)
    (tmp_path / "frames/gate/0001.jpg").write_bytes(b"x")
    with pytest.raises(SystemExit, match=r"gate/0001\.jpg: its name is no time; name frames as gate/2024"):
        example.main([f"--frames={tmp_path}/frames", f"--out={tmp_path}/crops"])
    assert not (tmp_path / "crops").exists()
    with pytest.raises(SystemExit, match="2"):
        example.main([f"--frames={tmp_path}/frames", f"--out={tmp_path}"])
    assert f"--out: {tmp_path} exists: name a new folder" in capsys.readouterr().err


def test_frames_of_one_name_and_crops_that_cannot_be_written_end_the_program(example, tmp_path, monkeypatch):
    (tmp_path / "frames/gate").mkdir(parents=True)
    for name in ("2024-05-01T08.jpg", "2024-05-01T08.png", "._2024-05-01T08.jpg"):
        Image.new("RGB", (30, 20)).save(tmp_path / "frames/gate" / name)
    with pytest.raises(SystemExit, match="gate/2024-05-01T08 is the name of two frames"):
        example.cut(tmp_path / "frames", tmp_path / "crops")
    (tmp_path / "frames/gate/2024-05-01T08.png").unlink()
    monkeypatch.setattr(example.cv2, "imwrite", lambda *arguments: False)
    with pytest.raises(SystemExit, match=r"gate/2024-05-01T08_0\.jpg cannot be written"):
        example.cut(tmp_path / "frames", tmp_path / "crops", lambda frame: [(0, 0, 10, 20)])


def test_frames_are_sorted_by_time_whatever_their_offset(example, tmp_path):
    (tmp_path / "gate").mkdir()
    names = ["2024-05-01T10:00+02:00", "2024-05-01T09:00+00:00", "2024-05-01T08:30"]
    for name in names:
        (tmp_path / "gate" / f"{name}.jpg").touch()
    assert [path.stem for *_, path in example.list_frames(tmp_path)] == [names[0], names[2], names[1]]
