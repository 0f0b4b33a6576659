"""A dataset with every fault there is, and the line that each must give."""

import io
import itertools
import json
import struct
import time

import numpy as np
import pytest
from PIL import Image

from input_pipeline import doctor, inspection, statistics
from input_pipeline.annotations import Record, read_annotations
from input_pipeline.inspection import Inspected, inspect_image, inspect_images, near_duplicates


def scene(seed, size=(40, 20)):
    """A smooth picture: a few random tones, enlarged."""
    tones = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), np.uint8)
    return Image.fromarray(tones).resize(size[::-1], Image.Resampling.BICUBIC)


def encoded(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def make(root, **files):
    """A dataset with an image and a caption for each name, each its own person, one in val and one in test.

    files: content of the images that are not as they should be; None leaves one away.
    """
    (root / "imgs/a").mkdir(parents=True)
    records = []
    for number in range(8):
        path = f"a/{number}.jpg"
        content = files.get(f"n{number}", encoded(scene(number)))
        if content is not None:
            (root / "imgs" / path).write_bytes(content)
        split = {6: "val", 7: "test"}.get(number, "train")
        records.append({"id": 3 * number + 1, "file_path": path, "captions": [f"Person {number}."], "split": split})
    write(root, records)
    return records


def write(root, records):
    (root / "reid_raw.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")


def call(root, *arguments, dataset="synth"):
    return doctor.main([f"--dataset={dataset}", f"--root={root}", "--workers=1", *arguments])


def test_a_clean_folder(tmp_path, capsys):
    make(tmp_path)
    assert call(tmp_path) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:5] == [
        f"{tmp_path}/reid_raw.json",
        "split      persons    images  captions",
        "train            6         6         6",
        "val              1         1         1",
        "test             1         1         1",
    ]
    assert out[5] == "ids: 1 to 22, 14 of them in no record"
    assert "height 40 to 40, median 40; width 20 to 20, median 20" in out[6]
    assert "needs 7 persons; the split has 6" in out[7]  # no batch of the released recipe can be made
    assert out[8:11] == [
        "unknown to the tokenizer (the shipped vocabulary): train 0 of 18 tokens (0.00%)",  # "person", a digit, "."
        "unknown to the tokenizer (the shipped vocabulary): val 0 of 3 tokens (0.00%)",
        "unknown to the tokenizer (the shipped vocabulary): test 0 of 3 tokens (0.00%)",
    ]
    assert out[11:] == ["clean"]


def test_the_published_figures_stand_beside_the_splits(tmp_path, capsys):
    make(tmp_path)
    assert call(tmp_path, dataset="cuhk") == 1
    out = capsys.readouterr().out
    assert "train            6         6         6  published: 11,003 34,054 68,126\n" in out
    assert "warning: not as published: train, val, test\n1 kind of fault\n" in out
    counts = {"train": (3102, 34674, 34674), "test": (1000, 19848, 19848)}
    assert doctor.check_splits(counts, statistics.PUBLISHED["icfg_pedes"]) == []
    assert statistics.split_table(counts, statistics.PUBLISHED["icfg_pedes"]).count("as published") == 2


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "1 image is missing: a/2.jpg"),
        (b"", "1 image is an empty file: a/2.jpg"),
        (b"<html>", "1 image is in no supported image format: a/2.jpg"),
        (encoded(scene(2, (200, 100)))[:-400], "1 image is cut short or damaged: a/2.jpg"),
        (encoded(Image.new("1", (8000, 7000)), "PNG"), "1 image is over 50 megapixels: a/2.jpg"),
        # So large that Pillow refuses it: 30,000 x 30,000, in the header only.
        (
            b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
            "1 image is over 50 megapixels: a/2.jpg",
        ),
    ],
)
def test_a_faulty_image_makes_the_folder_unusable(tmp_path, capsys, content, line):
    make(tmp_path, n2=content)
    assert call(tmp_path) == 2
    assert capsys.readouterr().out.endswith(f"error: {line}\n1 kind of fault\n")


def test_sizes_are_not_told_where_no_image_can_be_used(tmp_path, capsys):
    make(tmp_path, **{f"n{number}": None for number in range(8)})
    assert call(tmp_path) == 2
    assert "\nimages: none can be used\n" in capsys.readouterr().out


def test_a_link_out_of_the_images_is_not_opened(tmp_path, capsys):
    make(tmp_path / "data", n2=None)
    (tmp_path / "outside.jpg").write_bytes(encoded(scene(2)))
    (tmp_path / "data/imgs/a/2.jpg").symlink_to(tmp_path / "outside.jpg")
    assert call(tmp_path / "data") == 2
    assert "error: 1 image is a link that leads out of the folder of images: a/2.jpg\n" in capsys.readouterr().out


def test_a_missing_folder_is_one_fault(tmp_path, capsys):
    records = make(tmp_path)
    write(tmp_path, [r | {"file_path": r["file_path"].replace("a/", "b/")} if r["id"] < 10 else r for r in records])
    assert call(tmp_path) == 2
    assert "error: 3 images are missing with their folder b/: b/0.jpg, b/1.jpg, b/2.jpg\n" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", ["synth", "cuhk"])
def test_the_folder_of_images_is_missing(tmp_path, capsys, dataset):
    make(tmp_path)
    (tmp_path / "imgs").rename(tmp_path / "elsewhere")
    assert call(tmp_path, dataset=dataset) == 2
    message = f"{tmp_path}/imgs not found: the images of reid_raw.json are expected in it; see docs/datasets.md"
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_person_in_two_splits_makes_the_folder_unusable_unless_it_is_allowed(tmp_path, capsys):
    records = make(tmp_path)
    write(tmp_path, [record | {"id": {7: 4, 6: 1}.get(i, record["id"])} for i, record in enumerate(records)])
    assert call(tmp_path) == 2
    kind, persons = "2 person ids are in several splits", "1 (train, val), 4 (train, test)"
    remedy = "(if each split numbers its own persons, --allow=shared_persons)"
    assert capsys.readouterr().out.endswith(f"error: {kind} {remedy}: {persons}\n1 kind of fault\n")
    for given in (
        ["--allow=shared_persons"],
        ["--allow=shared_persons", "--allow=shared_images"],
        ["--allow=shared_images, shared_persons"],
    ):
        assert call(tmp_path, *given) == 1
    assert capsys.readouterr().out.endswith(f"warning: {kind}: {persons}\n1 kind of fault\n")
    assert call(tmp_path, "--allow=shared_images") == 2
    assert call(tmp_path, "--allow=shared_images,persons") == 2
    line = "error: --allow=shared_images,persons: persons is not one of shared_persons, shared_images\n"
    assert capsys.readouterr().err.endswith(line)


def test_progress_tells_how_far_it_is_and_how_long_it_takes(tmp_path, capsys, monkeypatch):
    """A clock that goes on by 6 s whenever one looks: a line every 10 s is one for every two images."""
    clock = itertools.count(0, 6)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    make(tmp_path)
    assert call(tmp_path) == 0
    assert capsys.readouterr().err.splitlines() == [
        "2 of 8 images, about 36 s left", "4 of 8 images, about 24 s left", "6 of 8 images, about 12 s left",
        "8 of 8 images, about 0 s left", "8 images in 54.0 s",
    ]  # fmt: skip


def test_a_tiny_image_is_a_warning(tmp_path, capsys):
    make(tmp_path, n2=encoded(scene(2, (30, 15))))
    assert call(tmp_path) == 1
    assert "warning: 1 image has a side below 16 pixels: a/2.jpg\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({7: ""}, "1 caption is empty: record 7"),
        ({0: "A \u7537 man."}, "1 caption has letters that are not Latin: record 0"),
        ({0: "Un homme \u00e2g\u00e9, \u00df \u2013 50%."}, None),
        ({0: "a " * 98}, None),
        ({0: "a, " * 50}, "1 caption has over 98 words and marks: the rest is cut off: record 0"),
        ({0: "The  same.", 1: "the same."}, '1 caption is the same for several persons: "the same." (2 persons)'),
        (
            {0: "Two.", 1: "two.", 2: "Three.", 3: "Three.", 4: "Three."},
            '2 captions are the same for several persons: "three." (3 persons), "two." (2 persons)',
        ),
        ({0: "The same.", 7: "The same."}, None),  # the splits are never mixed
        ({n: "" for n in (4, 5, 6, 7)}, "2 captions are empty: record 6, record 7"),  # those of train are dropped
    ],
)
def test_captions(tmp_path, capsys, changes, line):
    records = make(tmp_path)
    write(tmp_path, [record | {"captions": [changes.get(i, f"Man {i}.")]} for i, record in enumerate(records)])
    assert call(tmp_path) == (1 if line else 0)
    out = capsys.readouterr().out
    assert (f"warning: {line}\n" in out) if line else out.endswith("clean\n")


def test_without_a_test_split_validation_is_reported(tmp_path, capsys):
    write(tmp_path, make(tmp_path)[:7])
    assert call(tmp_path) == 1
    assert "warning: there is no test split: a run reports validation instead\n" in capsys.readouterr().out


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, capsys):
    assert call(tmp_path, dataset="rstp") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {tmp_path}/data_captions.json not found: ")
    make(tmp_path)
    assert call("gs://bucket/synth") == 2
    assert capsys.readouterr().err.startswith("error: gs://bucket/synth: expected a local folder with ")
    assert call(tmp_path, "--against=market:there") == 2
    assert "error: --against=market:there: expected DATASET:DIR, such as rstp:data/RSTPReid" in capsys.readouterr().err


# ---- quarantine


def test_the_fix_list_is_what_the_reader_leaves_out(tmp_path, capsys):
    make(tmp_path, n2=b"", n7=None)
    (tmp_path / "imgs/a/6.jpg").write_bytes(b"GIF")
    assert call(tmp_path, "--fix_list") == 2
    assert f"images to leave out are listed in {tmp_path}/quarantine.txt\n" in capsys.readouterr().out
    assert (tmp_path / "quarantine.txt").read_text() == "a/2.jpg\na/6.jpg\na/7.jpg\n"
    left = [record.image_path for record in read_annotations(tmp_path, "pedes_synth").records]
    assert left == ["a/0.jpg", "a/1.jpg", "a/3.jpg", "a/4.jpg", "a/5.jpg"]
    assert "quarantine.txt leaves out images: 1 of train, 1 of val, 1 of test\n" in capsys.readouterr().err


def test_a_longer_fix_list_keeps_what_was_listed(tmp_path):
    make(tmp_path, n2=b"")
    (tmp_path / "quarantine.txt").write_text("a/0.jpg\n")
    assert call(tmp_path, "--fix_list") == 2
    assert (tmp_path / "quarantine.txt").read_text() == "a/0.jpg\na/2.jpg\n"
    assert call(tmp_path) == 0


def test_a_name_that_no_list_can_hold_is_one_line_and_nothing_is_written(tmp_path, capsys):
    records = make(tmp_path)
    write(tmp_path, [{**records[2], "file_path": "a/gone\n2.jpg"}, *records[:2], *records[3:]])
    assert call(tmp_path, "--fix_list") == 2
    err = capsys.readouterr().err.splitlines()[-1]
    where = f"{tmp_path}/quarantine.txt cannot list a/gone\\n2.jpg"
    assert err == f"error: {where}, whose name has a line break: rename the image"
    assert not (tmp_path / "quarantine.txt").exists()


def test_images_of_the_quarantine_that_are_whole_again_are_named(tmp_path, capsys):
    make(tmp_path, n2=b"", n3=None)
    assert call(tmp_path, "--fix_list") == 2
    (tmp_path / "imgs/a/3.jpg").write_bytes(encoded(scene(3)))
    capsys.readouterr()
    line = "\n1 intact image left out by quarantine.txt (to use an image, remove its line): a/3.jpg\n"
    assert call(tmp_path) == 0
    assert line in capsys.readouterr().out
    (tmp_path / "quarantine.txt").write_text("a/2.jpg\n")
    assert call(tmp_path) == 0
    assert "intact" not in capsys.readouterr().out


# ---- images that splits share

REMEDY = " (list images in quarantine.txt, or --allow=shared_images)"


def test_a_copy_of_a_training_image_makes_the_folder_unusable_unless_it_is_allowed(tmp_path, capsys):
    """Test has the bytes of a training image; validation has another, larger and compressed anew."""
    make(tmp_path, n7=encoded(scene(2)), n6=encoded(scene(1, (120, 60)), quality=60))
    assert call(tmp_path) == 2
    exact = "1 image equals an image of another split"
    near = "1 image looks the same as an image of another split"
    pairs = ("test a/7.jpg = train a/2.jpg", "val a/6.jpg = train a/1.jpg")
    lines = [f"error: {exact}{REMEDY}: {pairs[0]}", f"error: {near}{REMEDY}: {pairs[1]}"]
    assert capsys.readouterr().out.splitlines()[-3:] == [*lines, "2 kinds of fault"]
    assert call(tmp_path, "--allow=shared_images") == 1
    lines = [f"warning: {exact}: {pairs[0]}", f"warning: {near}: {pairs[1]}"]
    assert capsys.readouterr().out.splitlines()[-3:] == [*lines, "2 kinds of fault"]
    (tmp_path / "quarantine.txt").write_text("a/1.jpg\na/7.jpg\n")
    write(tmp_path, [r | {"split": "test"} if r["id"] == 1 else r for r in json.loads(read_text(tmp_path))])
    assert call(tmp_path) == 0


def read_text(root):
    return (root / "reid_raw.json").read_text(encoding="utf-8")


def test_validation_and_test_may_share_nothing_either(tmp_path, capsys):
    make(tmp_path, n7=encoded(scene(6)))
    assert call(tmp_path) == 2
    line = f"error: 1 image equals an image of another split{REMEDY}: test a/7.jpg = val a/6.jpg\n"
    assert line in capsys.readouterr().out


def test_copies_within_a_split_are_a_warning_only_between_persons(tmp_path, capsys):
    """3 is 0 again, of another person; 2 is 1 again, of the same one; 5 looks like 4, of another, which is normal."""
    records = make(tmp_path, n3=encoded(scene(0)), n2=encoded(scene(1)), n5=encoded(scene(4), quality=60))
    write(tmp_path, [record | {"id": 4} if i == 2 else record for i, record in enumerate(records)])
    assert call(tmp_path) == 1
    line = "1 image equals an image of another person: person 10 a/3.jpg = person 1 a/0.jpg"
    assert capsys.readouterr().out.endswith(f"\nwarning: {line}\n1 kind of fault\n")


def chroma(seed):
    """A picture whose brightness does not depend on the seed, in colours that do."""
    bright = np.random.default_rng(0).integers(100, 156, (6, 4), np.uint8)
    red, blue = np.random.default_rng([1, seed]).integers(60, 196, (2, 6, 4), np.uint8)
    tones = Image.merge("YCbCr", [Image.fromarray(channel) for channel in (bright, blue, red)])
    return tones.resize((20, 40), Image.Resampling.NEAREST).convert("RGB")


def test_hashes_that_agree_are_not_enough(tmp_path, capsys):
    """The hash looks at brightness alone; nor are two pictures of one tone, which have the same hash, the same."""
    red, blue = (Image.new("RGB", (20, 40), colour) for colour in ("red", "blue"))
    contents = {"n0": chroma(0), "n7": chroma(1), "n1": red, "n6": blue}
    make(tmp_path, **{name: encoded(image, "PNG") for name, image in contents.items()})
    images = [inspect_image(tmp_path / "imgs", f"a/{number}.jpg") for number in (0, 1, 6, 7)]
    assert near_duplicates(images[2:], images[:2]) == [("a/6.jpg", "a/1.jpg"), ("a/7.jpg", "a/0.jpg")]
    assert call(tmp_path) == 0


# ---- images that two datasets share


def test_files_that_both_datasets_name_are_not_compared_with_themselves(tmp_path, capsys):
    """The other dataset has four of these images, in the same folder, and a smaller one of 3."""
    records = make(tmp_path / "one")
    (tmp_path / "one/imgs/a/small.jpg").write_bytes(encoded(scene(3, (30, 15))))
    (tmp_path / "two").mkdir()
    (tmp_path / "two/imgs").symlink_to(tmp_path / "one/imgs")
    write(tmp_path / "two", [*records[:4], records[3] | {"file_path": "a/small.jpg"}])
    assert call(tmp_path / "one", f"--against=synth:{tmp_path}/one") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["8 files belong to both datasets and are not compared with themselves", "clean"]
    assert call(tmp_path / "one", f"--against=synth:{tmp_path}/two") == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "4 files belong to both datasets and are not compared with themselves",
        f"warning: 1 pair of images looks the same here and in {tmp_path}/two: a/3.jpg = a/small.jpg",
        "1 kind of fault",
    ]


def test_each_image_has_the_nearest_of_the_others():
    """Compared with a count of bits, one by one; every third image has a file of theirs that is the same."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (40, 144), np.uint8)
    other = bits[rng.integers(0, 40, 90)] ^ (rng.random((90, 144)) < 0.08)
    ours, theirs = (
        [Inspected(f"{name}{i}", "", hash=np.packbits(row).tobytes().ljust(24, b"\0")) for i, row in enumerate(rows)]
        for name, rows in (("a", bits), ("b", other.astype(np.uint8)))
    )
    same = {f"a{i}": f"b{2 * i}" for i in range(0, 40, 3)}
    expected = []
    for i, row in enumerate(bits):
        wrong = [144 if same.get(f"a{i}") == f"b{j}" else int((row != its).sum()) for j, its in enumerate(other)]
        if min(wrong) <= 16:
            expected.append((f"a{i}", f"b{wrong.index(min(wrong))}"))
    assert 20 < len(expected) < 40
    assert near_duplicates(ours, theirs, same) == expected
    assert near_duplicates(ours, []) == near_duplicates([], theirs) == []


def test_images_that_look_the_same_in_two_datasets(tmp_path, capsys):
    """Another size and compression of one picture is found; eight other pictures are not."""
    make(tmp_path / "one")
    same = encoded(scene(3, (120, 60)).resize((30, 60)), quality=60)
    records = make(tmp_path / "two", **{f"n{i}": encoded(scene(100 + i)) for i in range(8)} | {"n5": same})
    assert len(records) == 8
    assert call(tmp_path / "one", f"--against=synth:{tmp_path}/two") == 1
    line = f"warning: 1 pair of images looks the same here and in {tmp_path}/two: a/3.jpg = a/5.jpg\n"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(("wrong", "near"), [(0, True), (16, True), (17, False), (100, False)])
def test_hashes_are_near_within_sixteen_bits_wherever_they_are(wrong, near):
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, (300, 144), np.uint8)  # more than are compared at once
    second = first.copy()
    for row in second:
        row[rng.choice(144, wrong, replace=False)] ^= 1
    ours, theirs = (
        [Inspected(str(i), "", hash=np.packbits(row).tobytes().ljust(24, b"\0")) for i, row in enumerate(rows)]
        for rows in (first, second)
    )
    damaged = Inspected("damaged", "in no supported image format")
    assert near_duplicates([damaged, *ours], [*theirs, damaged]) == (
        [(str(i), str(i)) for i in range(300)] if near else []
    )


def test_the_hash_tells_where_it_gets_brighter(tmp_path):
    ramp = np.tile(np.arange(13, dtype=np.uint8) * 20, (12, 1))
    for name, pixels, expected in (("up", ramp, b"\xff" * 18 + b"\0" * 6), ("down", ramp[:, ::-1], b"\0" * 24)):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{name}.png")
        assert inspect_image(tmp_path, f"{name}.png").hash == expected


def test_processes_find_what_one_finds(tmp_path):
    make(tmp_path, n2=b"", n4=None)
    paths = [f"a/{number}.jpg" for number in range(8)]
    alone = list(inspect_images(tmp_path / "imgs", paths, workers=1))
    assert list(inspect_images(tmp_path / "imgs", paths, workers=2)) == alone
    assert [image.path for image in alone if image.fault] == ["a/2.jpg", "a/4.jpg"]
    assert alone[4].fault == inspection.MISSING


def test_code_in_captions_is_told():
    captions = ["A man <br> in black.", "A {'a': 1} man.", "A man\\n in black.", "A man &amp; a bag.", "A man < 30."]
    records = [Record(f"{i}.jpg", i, (c,), "train", ((),), where=f"record {i}") for i, c in enumerate(captions)]
    lines = [finding.line for finding in doctor.check_captions(records)]
    assert lines == ["4 captions have pieces of code: tags, braces, escapes: record 0, record 1, record 2, ..."]


def test_a_circle_of_links_and_a_name_too_long_are_faults(tmp_path):
    (tmp_path / "a.jpg").symlink_to("a.jpg")
    assert inspect_image(tmp_path, "a.jpg").fault == "a link that leads out of the folder of images"
    assert inspect_image(tmp_path, f"{'a' * 300}.jpg").fault == "missing"


def test_every_example_is_listed_on_demand(tmp_path, capsys):
    records = make(tmp_path)
    write(tmp_path, [record | {"captions": ["nan"]} if i < 5 else record for i, record in enumerate(records)])
    assert call(tmp_path, "--all") == 1
    lines = capsys.readouterr().out.splitlines()
    kind = "captions have only a placeholder, such as nan, null, none or n/a"
    assert lines[-9:] == [
        f"warning: 5 {kind}: record 0, record 1, record 2, ...",
        *(f"    record {number}" for number in range(5)),
        'warning: 1 caption is the same for several persons: "nan" (5 persons)',
        '    "nan" (5 persons)',
        "2 kinds of fault",
    ]
