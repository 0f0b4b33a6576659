import fcntl
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from input_pipeline import augment, builders
from input_pipeline.builders import BUILDERS
from input_pipeline.prepared import prepare
from ivt_jax.common.errors import DataError
from ivt_jax.encoding.images import open_image
from tests.input_pipeline.test_decoding import FILES, REFUSED, write_dataset


def write(root, names, **extra):
    """One record per image name, in this order; its person id is its number."""
    records = [
        {"id": i, "file_path": n, "captions": [f"Caption {i}."], "split": "train"} | extra for i, n in enumerate(names)
    ]
    (root / "imgs").mkdir(exist_ok=True)
    (root / "reid_raw.json").write_text(json.dumps(records))


def save(root, name, colour=(10, 200, 30), **options):
    (root / "imgs").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 12), colour).save(root / "imgs" / name, **options)
    return (root / "imgs" / name).read_bytes()


def jpeg():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG")
    return file.getvalue()


CUT = jpeg()[:-500]  # its header is whole


def test_records_keep_their_order_and_their_bytes(tmp_path):
    """More records than a shuffle by hashed key would leave in place, of names in no order."""
    names = [f"{7 * i % 50:02d}.jpg" for i in range(50)]
    files = [save(tmp_path, name, (5 * i, 0, 0)) for i, name in enumerate(names)]
    write(tmp_path, names)
    data = prepare(tmp_path, "cuhk_pedes").as_data_source("train")
    assert [data[i]["image"] for i in range(50)] == files
    assert [data[i]["path"].decode() for i in range(50)] == names
    assert [int(data[i]["person_id"]) for i in range(50)] == list(range(50))
    assert data[49]["captions"] == [b"Caption 49."]


def test_splits_are_those_of_the_annotations(pedes_root, tmp_path):
    builder = prepare(pedes_root, "cuhk_pedes", tmp_path)
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert sizes == {"train": 18, "val": 6, "test": 6}


RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)).resize((21, 31))
ALPHA = RGB.copy()
ALPHA.putalpha(RGB.convert("L"))
SIXTEEN = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (31, 21), np.uint16))
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # the camera was turned: a quarter clockwise makes it upright


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("source", "kept"),
    {
        "jpeg": (encoded(RGB, "JPEG"), True),
        "progressive jpeg, no subsampling": (encoded(RGB, "JPEG", progressive=True, subsampling=0), True),
        "grey jpeg": (encoded(RGB.convert("L"), "JPEG"), True),
        "cmyk jpeg": (encoded(RGB.convert("CMYK"), "JPEG"), True),
        "turned jpeg": (encoded(RGB, "JPEG", exif=ROTATED), False),
        "turned png": (encoded(RGB, "PNG", exif=ROTATED), False),
        "png": (encoded(RGB, "PNG"), True),
        "grey png": (encoded(RGB.convert("L"), "PNG"), True),
        "black and white png": (encoded(RGB.convert("1"), "PNG"), True),
        "palette png": (encoded(RGB.quantize(16), "PNG"), True),
        "palette png with a transparent colour": (encoded(RGB.quantize(16), "PNG", transparency=3), True),
        "png with alpha": (encoded(ALPHA, "PNG"), True),
        "grey png with alpha": (encoded(ALPHA.convert("LA"), "PNG"), True),
        "16 bits of grey": (encoded(SIXTEEN, "PNG"), True),
        "png without its end": (encoded(RGB, "PNG")[:-12], False),  # which Pillow bears
        "bmp": (encoded(RGB, "BMP"), False),
        "palette bmp": (encoded(RGB.quantize(16), "BMP"), False),
        "grey bmp": (encoded(RGB.convert("L"), "BMP"), False),
        "gif": (encoded(RGB.quantize(16), "GIF"), False),
        "tiff": (encoded(RGB, "TIFF", compression="tiff_lzw"), False),
        "avif": (encoded(RGB, "AVIF"), False),
    }.values(),
)
def test_training_sees_the_pixels_that_pillow_sees(tmp_path, source, kept):
    (tmp_path / "imgs").mkdir()
    (tmp_path / "imgs/a.jpg").write_bytes(source)  # what it is, its content tells
    write(tmp_path, ["a.jpg"])
    stored = prepare(tmp_path, "cuhk_pedes").as_data_source("train")[0]["image"]
    with Image.open(io.BytesIO(source)) as image:
        expected = np.asarray(image.convert("RGB"))
    if source == encoded(SIXTEEN, "PNG"):  # which Pillow cuts off at 255
        expected = (np.asarray(SIXTEEN) // 256).astype(np.uint8)[..., None].repeat(3, -1)
    if source in (encoded(RGB, "JPEG", exif=ROTATED), encoded(RGB, "PNG", exif=ROTATED)):
        expected = np.rot90(expected, -1)
    np.testing.assert_array_equal(augment.decode(stored).numpy(), expected)
    assert (stored == source) == kept
    assert kept or Image.open(io.BytesIO(stored)).format == "PNG"


def test_prepared_data_are_reused_until_the_annotations_change(tmp_path, capsys):
    save(tmp_path, "a.jpg")
    write(tmp_path, ["a.jpg"])
    first = prepare(tmp_path, "pedes_synth")
    assert "preparing train: 1 images" in capsys.readouterr().err
    again = prepare(tmp_path, "pedes_synth")
    captured = capsys.readouterr()
    assert again.data_dir == first.data_dir and not captured.err and not captured.out
    write(tmp_path, ["a.jpg"], captions=["Another caption."])
    changed = prepare(tmp_path, "pedes_synth")
    assert changed.data_dir != first.data_dir
    assert changed.as_data_source("train")[0]["captions"] == [b"Another caption."]


def test_datasets_with_equal_annotations_may_share_a_folder_of_prepared_data(tmp_path):
    contents = []
    for name in ("one", "two"):
        root = tmp_path / name
        root.mkdir()
        contents.append(save(root, "a.jpg", (len(contents) * 200, 0, 0)))
        write(root, ["a.jpg"])
    shared = [prepare(tmp_path / name, "pedes_synth", tmp_path / "shared") for name in ("one", "two")]
    assert [builder.as_data_source("train")[0]["image"] for builder in shared] == contents


def test_prepared_data_may_lie_elsewhere(pedes_root, tmp_path):
    builder = prepare(pedes_root, "cuhk_pedes", tmp_path / "elsewhere")
    assert builder.data_path.is_relative_to(tmp_path / "elsewhere")


def test_what_another_process_prepared_meanwhile_is_used(tmp_path, monkeypatch, capsys):
    save(tmp_path, "a.jpg")
    write(tmp_path, ["a.jpg"])
    flock = fcntl.flock

    def wait(lock, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        builders.PedesSynth(root=tmp_path).download_and_prepare()

    monkeypatch.setattr(fcntl, "flock", wait)
    assert len(prepare(tmp_path, "pedes_synth").as_data_source("train")) == 1
    assert capsys.readouterr().err.count("preparing train") == 1


def test_what_is_not_as_published_is_told_once_when_it_is_prepared(pedes_root, tmp_path, capsys):
    for told in (1, 0):
        prepare(pedes_root, "cuhk_pedes", tmp_path)
        assert capsys.readouterr().err.count(
            f"warning: {pedes_root}/reid_raw.json is not as published: train 6 18 36 instead of 11,003 34,054 68,126, "
            "val 2 6 12 instead of 1,000 3,078 6,158, test 2 6 12 instead of 1,000 3,074 6,156 (persons images "
            "captions)\n"
        ) == told  # fmt: skip


def test_of_generated_data_nothing_is_published(pedes_root, tmp_path, capsys):
    prepare(pedes_root, "pedes_synth", tmp_path)
    assert "published" not in capsys.readouterr().err


def test_images_that_are_missing_altogether_are_refused_before_anything_is_written(tmp_path):
    write(tmp_path, ["a.jpg"])
    (tmp_path / "imgs").rmdir()
    with pytest.raises(DataError) as error:
        prepare(tmp_path, "cuhk_pedes", tmp_path / "elsewhere")
    assert str(error.value).startswith(
        f"{tmp_path}/imgs not found: the images of reid_raw.json are expected in it, or prepared data in {tmp_path}/pre"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["reid_raw.json"]


def test_a_folder_that_cannot_be_written_names_the_remedy(tmp_path):
    save(tmp_path, "a.jpg")
    write(tmp_path, ["a.jpg"])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/x \(Not a directory\).*--config.runtime.prepared"):
        prepare(tmp_path, "pedes_synth", tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"b.jpg not found \(record 1\)"),
        (CUT, r"b.jpg \(record 1\) is not a readable image: image file is truncated"),
        (b"", r"b.jpg \(record 1\) is not a readable image: cannot be identified"),
        (b"not an image", r"b.jpg \(record 1\) is not a readable image: cannot be identified"),
        (
            encoded(Image.new("1", (8000, 7000)), "PNG"),
            r"b.jpg \(record 1\) is not a readable image: 8000 x 7000 pixels are too many for a picture of a person",
        ),
    ],
)
def test_a_faulty_image_is_named_and_leaves_nothing_prepared(tmp_path, content, message):
    save(tmp_path, "a.jpg")
    write(tmp_path, ["a.jpg", "b.jpg"])
    if content is not None:
        (tmp_path / "imgs" / "b.jpg").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        prepare(tmp_path, "cuhk_pedes")
    assert "\n" not in str(error.value)
    save(tmp_path, "b.jpg")
    assert len(prepare(tmp_path, "cuhk_pedes").as_data_source("train")) == 2


def test_damaged_training_images_within_the_share_are_listed_and_empty(tmp_path):
    names = [f"{i}.jpg" for i in range(10)]
    for name in names:
        save(tmp_path, name)
    (tmp_path / "imgs/3.jpg").write_bytes(CUT)
    write(tmp_path, names)
    with pytest.raises(
        DataError, match=r"3.jpg \(record 3\) is not a readable image: .*More than 5.00% of the training"
    ):
        prepare(tmp_path, "cuhk_pedes", max_damaged=0.05)
    builder = prepare(tmp_path, "cuhk_pedes", max_damaged=0.1)
    again = prepare(tmp_path, "cuhk_pedes", max_damaged=0.1)  # read from what was written
    for made in (builder, again):
        assert list(made.info.metadata["damaged"]) == ["3.jpg"]
        assert [len(made.as_data_source("train")[i]["image"]) > 0 for i in range(10)] == [i != 3 for i in range(10)]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_damaged_image_of_evaluation_is_refused(tmp_path, split):
    for name in ("a.jpg", "b.jpg"):
        save(tmp_path, name)
    (tmp_path / "imgs/b.jpg").write_bytes(b"")
    write(tmp_path, ["a.jpg", "b.jpg"])
    records = json.loads((tmp_path / "reid_raw.json").read_text())
    (tmp_path / "reid_raw.json").write_text(json.dumps([records[0], records[1] | {"split": split}]))
    with pytest.raises(DataError, match=r"b.jpg \(record 1\) is not a readable image"):
        prepare(tmp_path, "cuhk_pedes", max_damaged=1.0)


def test_a_link_out_of_the_images_is_refused_and_never_opened(tmp_path):
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"nothing that could be read without a message of its own")
    root = tmp_path / "data"
    save(root, "a.jpg")
    (root / "imgs" / "b.jpg").symlink_to(outside)
    write(root, ["a.jpg", "b.jpg"])
    with pytest.raises(DataError, match=r"imgs/b.jpg \(record 1\) is a link that leads out of .*data/imgs; put"):
        prepare(root, "cuhk_pedes", max_damaged=1.0)


def test_the_folder_of_images_may_itself_be_a_link_and_so_may_images_within_it(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "imgs").symlink_to(tmp_path / "elsewhere")
    first = save(root, "a.jpg")
    (root / "imgs" / "b.jpg").symlink_to("a.jpg")
    write(root, ["a.jpg", "b.jpg"])
    assert prepare(root, "cuhk_pedes").as_data_source("train")[1]["image"] == first


def test_every_dataset_has_its_builder():
    assert set(BUILDERS) == {"cuhk_pedes", "icfg_pedes", "rstp_reid", "pedes_synth", "own"}


def test_data_prepared_with_more_damage_than_is_allowed_now_are_refused(pedes_root, tmp_path):
    shutil.copytree(pedes_root / "imgs", tmp_path / "imgs")
    shutil.copy(pedes_root / "reid_raw.json", tmp_path)
    (tmp_path / "imgs/00_0.jpg").write_bytes(b"")
    prepare(tmp_path, "cuhk_pedes", max_damaged=0.5)
    with pytest.raises(DataError, match=r"1 of 18 training images are damaged, the first is 00_0.jpg; more than 0.50%"):
        prepare(tmp_path, "cuhk_pedes", max_damaged=0.005)


def test_training_sees_the_pixels_of_the_other_doors(tmp_path):
    builder = prepare(write_dataset(tmp_path), "pedes_synth", max_damaged=0.9)
    assert set(builder.info.metadata["damaged"]) == {*REFUSED}
    for row in builder.as_data_source("train"):
        name = row["path"].decode()
        if name in FILES:
            pixels = np.asarray(open_image(name, FILES[name]))
            np.testing.assert_array_equal(augment.decode(row["image"]).numpy(), pixels)
