"""Prepared data follow the pictures: changed, missing, back, touched, copied; each opening stands for a new start."""

import json
import os
import shutil

import pytest
from ml_collections import ConfigDict
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from input_pipeline import augment, builders, opening, pictures, pipeline, prepare, prepared
from input_pipeline.pictures import Picture, contents_digest
from ivt_jax.common.errors import DataError
from ivt_jax.common.messages import say_once

RED, GREEN, BLUE = (250, 10, 20), (20, 240, 10), (10, 30, 245)
COLOURS = {"a.png": RED, "b.png": GREEN, "c.png": BLUE}


@pytest.fixture
def root(tmp_path):
    """Three training pictures of one colour each, of two persons, and one test picture."""
    root = tmp_path / "data"
    (root / "imgs").mkdir(parents=True)
    for name, colour in {**COLOURS, "t.png": (9, 9, 9)}.items():
        paint(root, name, colour)
    rows = [(0, "a.png", "train"), (0, "b.png", "train"), (1, "c.png", "train"), (2, "t.png", "test")]
    records = [{"id": i, "file_path": name, "captions": [f"In {name}."], "split": split} for i, name, split in rows]
    (root / "reid_raw.json").write_text(json.dumps(records))
    return root


def paint(root, name, colour):
    Image.new("RGB", (8, 16), colour).save(root / "imgs" / name)


def open_split(root, split="train", max_damaged=0.5, elsewhere="", **began_with):
    data = {"name": "cuhk_pedes", "root": str(root), "val_persons": 0.0, "max_damaged": max_damaged, "identities": True}
    return opening.open_split(ConfigDict({"data": data, "runtime": {"prepared": str(elsewhere)}}), split, **began_with)


def pixels(source):
    """Returns the colour of every undamaged picture, from a batch; each picture has one colour."""
    (batch,) = pipeline.image_batches(source, (4, 2), 10)
    assert (batch == batch[:, :1, :1]).all()
    return [tuple(image[0, 0].tolist()) for image in batch]


def made_anew(capsys):
    """Returns whether the dataset was prepared since the last call, and the other lines on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "preparing train: 3 images in" in line]) <= 1
    others = [line for line in lines if "preparing" not in line and "published" not in line]
    return any("preparing train: 3 images in" in line for line in lines), others


def test_a_picture_that_was_missing_is_used_when_it_is_back(root, capsys):
    (root / "imgs/b.png").unlink()
    source = open_split(root)
    assert source.damaged.tolist() == [False, True, False]
    assert made_anew(capsys)[0]
    paint(root, "b.png", GREEN)
    source = open_split(root)
    assert not source.damaged.any() and pixels(source) == [RED, GREEN, BLUE]
    assert made_anew(capsys)[0]
    open_split(root)
    assert made_anew(capsys) == (False, [])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_picture_that_was_replaced_under_its_name_has_its_new_pixels(root, tmp_path, elsewhere):
    place = tmp_path / "elsewhere" if elsewhere else ""
    assert pixels(open_split(root, elsewhere=place)) == [RED, GREEN, BLUE]
    paint(root, "b.png", BLUE)
    assert pixels(open_split(root, elsewhere=place)) == [RED, BLUE, BLUE]
    assert pixels(open_split(root, "test", elsewhere=place)) == [(9, 9, 9)]


def test_a_picture_that_vanished_counts_as_damaged(root):
    open_split(root)
    (root / "imgs/b.png").unlink()
    assert open_split(root).damaged.tolist() == [False, True, False]
    (root / "imgs/t.png").unlink()
    with pytest.raises(DataError, match=r"imgs/t.png not found \(record 3\)"):
        open_split(root)


def ages(root):
    """Returns the time of the last change of every prepared file."""
    return {path: path.stat().st_mtime_ns for path in (root / "prepared").rglob("*.array_record*")}


def test_what_was_only_touched_is_read_once_and_not_prepared_anew(root, capsys, monkeypatch):
    open_split(root)
    before = ages(root)
    for path in (root / "imgs").iterdir():
        os.utime(path, (1, 1))
    capsys.readouterr()
    for opened in (["a.png", "b.png", "c.png", "t.png"], []):
        read = watch(monkeypatch)
        assert pixels(open_split(root)) == [RED, GREEN, BLUE]
        assert sorted(read) == opened
    assert made_anew(capsys) == (False, []) and ages(root) == before and len(before) == 2


def watch(monkeypatch):
    """Returns a list that gets the name of every picture read from now on."""
    read, original = [], pictures.read_picture

    def read_picture(folder, path):
        read.append(path)
        return original(folder, path)

    monkeypatch.setattr(pictures, "read_picture", read_picture)
    return read


def test_a_copy_of_the_dataset_on_another_disk_is_not_prepared_anew(root, tmp_path, capsys):
    """The copy is made as by `cp -r`, which gives every file a new time."""
    open_split(root)
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    capsys.readouterr()
    assert pixels(open_split(tmp_path / "copy")) == [RED, GREEN, BLUE]
    assert made_anew(capsys) == (False, [])


def test_a_dataset_that_was_moved_finds_what_was_prepared_elsewhere(root, tmp_path, capsys):
    open_split(root, elsewhere=tmp_path / "elsewhere")
    root.rename(tmp_path / "moved")
    capsys.readouterr()
    assert pixels(open_split(tmp_path / "moved", elsewhere=tmp_path / "elsewhere")) == [RED, GREEN, BLUE]
    assert made_anew(capsys) == (False, [])


def test_datasets_that_share_a_folder_of_prepared_data_have_records_of_their_own(root, tmp_path, capsys, monkeypatch):
    other, shared = tmp_path / "other", tmp_path / "shared"
    shutil.copytree(root, other)
    paint(other, "b.png", BLUE)
    for place in (root, other):
        open_split(place, elsewhere=shared)
    said = capsys.readouterr().err
    assert said.count("preparing train: 3 images in") == 2 and "differ" not in said
    read = watch(monkeypatch)
    for place, colour in ((root, GREEN), (other, BLUE), (root, GREEN)):
        assert pixels(open_split(place, elsewhere=shared)) == [RED, colour, BLUE]
    assert read == []


def test_a_replacement_with_the_size_and_the_time_of_the_former_is_seen(root):
    open_split(root)
    path = root / "imgs/b.png"
    status = path.stat()
    paint(root, "b.png", BLUE)
    path.write_bytes(path.read_bytes().ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert pixels(open_split(root)) == [RED, BLUE, BLUE]


def test_former_pictures_find_what_was_prepared_of_them(root, capsys):
    for colour, anew in ((GREEN, True), (BLUE, True), (GREEN, False), (BLUE, False), (BLUE, False)):
        paint(root, "b.png", colour)
        assert pixels(open_split(root)) == [RED, colour, BLUE]
        assert made_anew(capsys)[0] == anew


def test_what_changed_is_said_in_one_line(root, capsys):
    (root / "imgs/a.png").unlink()
    open_split(root, max_damaged=1)
    paint(root, "a.png", RED)
    paint(root, "b.png", BLUE)
    (root / "imgs/c.png").unlink()
    capsys.readouterr()
    open_split(root, max_damaged=1)
    assert (
        f"{root}/imgs: images differ (1 changed, 1 back, 1 missing: b.png, a.png, c.png); preparing anew; earlier "
        f"data stay in {root}/prepared for the runs that began with them\n"
    ) in capsys.readouterr().err


def test_what_a_program_reads_is_not_replaced_under_it(root):
    """Shards are opened when they are first read."""
    running = open_split(root)
    paint(root, "b.png", BLUE)
    open_split(root)
    assert pixels(running) == [RED, GREEN, BLUE]


def test_a_run_goes_on_with_the_pictures_it_began_with_and_says_so(root, capsys):
    began = open_split(root).images_digest
    assert began and open_split(root, images_digest=began).images_digest == began
    paint(root, "b.png", BLUE)
    changed = open_split(root)
    assert changed.images_digest not in ("", began)
    capsys.readouterr()
    for _ in range(2):  # for two splits of a run
        assert pixels(open_split(root, images_digest=began)) == [RED, GREEN, BLUE]
    (place,) = [path for path in (root / "prepared").glob("*-*") if path.name.endswith(began[:16])]
    assert capsys.readouterr().err == (
        f"{root}/imgs: images differ (1 changed: b.png); this run continues with those it began with, in {place}\n"
    )
    assert pixels(open_split(root)) == [RED, BLUE, BLUE]


@pytest.mark.parametrize("others", [True, False], ids=["others are prepared", "nothing is prepared"])
def test_a_run_whose_pictures_are_gone_is_refused(root, others):
    began = open_split(root).images_digest
    shutil.rmtree(root / "prepared")
    paint(root, "b.png", BLUE)
    if others:
        open_split(root)
    remedy = r"restore those \(and the former quarantine.txt\), or choose another --workdir$"
    with pytest.raises(DataError, match=f"the images are not those that the run began with; {remedy}"):
        open_split(root, images_digest=began)
    paint(root, "b.png", GREEN)
    assert open_split(root, images_digest=began).images_digest == began


def test_a_run_does_not_go_on_with_a_quarantine_that_came_later(root):
    began = open_split(root).images_digest
    (root / "quarantine.txt").write_text("b.png\n")
    assert open_split(root).paths == ["a.png", "c.png"]
    with pytest.raises(DataError, match=r"the images are not those that the run began with"):
        open_split(root, images_digest=began)
    (root / "quarantine.txt").unlink()
    assert open_split(root, images_digest=began).paths == ["a.png", "b.png", "c.png"]


def test_a_run_goes_on_with_a_portable_folder_of_its_pictures_and_with_no_other(root, tmp_path):
    began = open_split(root).images_digest
    assert prepare.main(["--dataset=cuhk", f"--root={root}", f"--out={tmp_path}/same"]) == 0
    paint(root, "b.png", BLUE)
    assert prepare.main(["--dataset=cuhk", f"--root={root}", f"--out={tmp_path}/other"]) == 0
    assert pixels(open_split(tmp_path / "same", images_digest=began)) == [RED, GREEN, BLUE]
    assert pixels(open_split(tmp_path / "other")) == [RED, BLUE, BLUE]
    with pytest.raises(DataError, match=r"other/prepared/.*the images are not those that the run began with"):
        open_split(tmp_path / "other", images_digest=began)


def test_prepared_data_outlive_the_folder_of_pictures(root):
    open_split(root)
    shutil.rmtree(root / "imgs")
    assert pixels(open_split(root)) == [RED, GREEN, BLUE]


def test_data_of_an_older_version_are_used_and_the_remedy_is_said_once(root, capsys):
    """They lie under the digest of the annotations alone, as a portable folder's do."""
    builders.CuhkPedes(root=root, max_damaged=0.5).download_and_prepare()
    (place,) = (root / "prepared").iterdir()
    paint(root, "b.png", BLUE)
    capsys.readouterr()
    for split in ("train", "test", "train"):
        source = open_split(root, split)
    assert source.images_digest == "" and pixels(source) == [RED, GREEN, BLUE]
    assert capsys.readouterr().err == (
        f"{place} does not record its images, so changed images go unnoticed; remove it to prepare it again\n"
    )
    shutil.rmtree(place)
    assert pixels(open_split(root)) == [RED, BLUE, BLUE]


def test_too_many_damaged_pictures_are_refused_with_the_remedy_until_they_are_back(root, capsys):
    (root / "imgs/b.png").write_bytes(b"")
    open_split(root, max_damaged=0.5)
    with pytest.raises(DataError) as error:
        open_split(root, max_damaged=0.005)
    assert str(error.value).endswith(
        "1 of 3 training images are damaged, the first is b.png; more than 0.50% are not allowed (data.max_damaged): "
        "restore them and start again, or leave them out with `python -m input_pipeline.doctor --dataset=NAME "
        "--root=DIR --fix_list`, which lists all in quarantine.txt, or allow more; metadata.json lists the damaged "
        "images"
    )
    paint(root, "b.png", GREEN)
    assert pixels(open_split(root, max_damaged=0.005)) == [RED, GREEN, BLUE]


def test_a_portable_folder_with_too_many_damaged_pictures_names_its_remedy(root, tmp_path):
    (root / "imgs/b.png").write_bytes(b"")
    assert prepare.main(["--dataset=cuhk", f"--root={root}", f"--out={tmp_path}/out", "--max_damaged=0.5"]) == 0
    with pytest.raises(DataError, match=r"\(data.max_damaged\): prepare it again where its images are, or allow more"):
        open_split(tmp_path / "out", max_damaged=0.005)


def test_a_record_that_is_damaged_or_gone_costs_no_more_than_reading(root, capsys):
    open_split(root)
    (record,) = root.glob("prepared/*/pictures.json")
    capsys.readouterr()
    for content in (b"", b"[1]", b'{"a.png": 3}', None):
        record.write_bytes(content) if content is not None else record.unlink()
        assert pixels(open_split(root)) == [RED, GREEN, BLUE]
        assert set(json.loads(record.read_bytes())) == {"a.png", "b.png", "c.png", "t.png"}
    assert made_anew(capsys) == (False, [])


def test_a_record_that_cannot_be_written_is_no_reason_to_stop(root, monkeypatch, capsys):
    open_split(root)
    os.utime(root / "imgs/a.png", (1, 1))

    def refuse(path, pictures):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepared, "write_record", refuse)
    capsys.readouterr()
    assert pixels(open_split(root)) == [RED, GREEN, BLUE]
    assert made_anew(capsys) == (False, [])


def test_a_link_that_leads_out_is_not_opened_to_be_compared(root, tmp_path, monkeypatch):
    open_split(root)
    (tmp_path / "outside.png").write_bytes((root / "imgs/b.png").read_bytes())
    (root / "imgs/b.png").unlink()
    (root / "imgs/b.png").symlink_to(tmp_path / "outside.png")
    opened = []
    original = pictures.Path.read_bytes
    monkeypatch.setattr(pictures.Path, "read_bytes", lambda path: opened.append(path.name) or original(path))
    with pytest.raises(DataError, match=r"imgs/b.png \(record 1\) is a link that leads out of"):
        open_split(root)
    assert "b.png" not in opened and "a.png" in opened


def test_pictures_that_are_restored_while_they_are_prepared_find_what_was_prepared_of_them(root, monkeypatch):
    """So do pictures that could not be reached for a moment."""
    former, prepare_anew = (root / "imgs/b.png").read_bytes(), prepared._prepare_anew
    open_split(root)
    paint(root, "b.png", BLUE)

    def restored_meanwhile(*arguments):
        (root / "imgs/b.png").write_bytes(former)
        return prepare_anew(*arguments)

    monkeypatch.setattr(prepared, "_prepare_anew", restored_meanwhile)
    assert pixels(open_split(root)) == [RED, GREEN, BLUE]
    assert not (root / "prepared/.partial").exists()


def test_what_a_killed_process_left_is_removed(root):
    (root / "prepared/.partial/cuhk_pedes/incomplete.X_1.4.0").mkdir(parents=True)
    open_split(root)
    assert sorted(path.name for path in (root / "prepared").glob(".*")) == []


def test_the_digest_depends_on_names_and_contents_alone():
    """SHA-256 of "1 a\\n2 b\\n", by sha256sum."""
    one = {"b": Picture(5, 6, 7, "2"), "a": Picture(1, 2, 3, "1")}
    other = {"a": Picture(9, 9, 9, "1"), "b": Picture(8, 8, 8, "2")}
    expected = "6bdf6e37dc327165fa4db779b911b98b6eba38852a9cd4a97cdd6be810a88357"
    assert contents_digest(one) == contents_digest(other) == expected
    assert contents_digest({"a": one["b"], "b": one["a"]}) != expected


# ---- data that version 1.4.0 prepared, before pictures were turned upright


def lay_sideways(root, name):
    """Replaces a picture by one, 16 wide and 8 high, whose EXIF asks for a quarter turn to the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 8), GREEN).save(root / "imgs" / name, exif=exif)


def shapes(source):
    return [augment.decode(content).numpy().shape[:2] for content in source.read(range(3))]


def open_as_before(root, **options):
    """What version 1.4.0 prepared and read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders.CuhkPedes, "VERSION", builders.BEFORE)
        patch.setattr(builders, "as_rgb", lambda image: image.convert("RGB"))
        patch.setattr(builders, "orientation", lambda image: 1)
        return open_split(root, **options)


UPRIGHT, SIDEWAYS = [(16, 8)] * 3, [(16, 8), (8, 16), (16, 8)]


def test_data_of_the_version_before_keep_their_pixels_and_the_remedy_is_said_once(root, capsys):
    lay_sideways(root, "b.png")
    began = open_as_before(root).images_digest
    (data,) = root.glob("prepared/*/cuhk_pedes/1.4.0")
    for given in ({}, {"images_digest": began}):
        capsys.readouterr()
        say_once.cache_clear()
        for split in ("train", "test", "train"):
            source = open_split(root, split, **given)
        assert shapes(source) == SIDEWAYS and source.images_digest == began
        assert capsys.readouterr().err == (
            f"{data} was prepared before images were turned upright by EXIF: their pixels are used as stored in "
            "the files; `python -m input_pipeline.prepare` makes it anew\n"
        )


def test_prepare_makes_them_anew_and_a_run_goes_on_with_the_pixels_it_began_with(root, capsys):
    lay_sideways(root, "b.png")
    began = open_as_before(root).images_digest
    capsys.readouterr()
    for anew in (True, False):
        assert prepare.main(["--dataset=cuhk", f"--root={root}"]) == 0
        assert made_anew(capsys) == (anew, [])
    now = open_split(root)
    assert shapes(now) == UPRIGHT and now.images_digest == f"{began}-upright"
    assert shapes(open_split(root, images_digest=now.images_digest)) == UPRIGHT
    assert shapes(open_split(root, images_digest=began)) == SIDEWAYS
    for path in root.glob("prepared/*/cuhk_pedes/1.4.0"):
        shutil.rmtree(path)
    with pytest.raises(DataError) as error:
        open_split(root, images_digest=began)
    assert str(error.value).endswith(
        "the run began with other pixels of these images (some are turned upright by EXIF only in one of them, or "
        "could not be read then); restore the prepared data that it began with, or choose another --workdir"
    )


def test_a_run_that_began_upright_does_not_go_on_with_the_data_of_before(root):
    lay_sideways(root, "b.png")
    began = open_split(root).images_digest
    shutil.rmtree(root / "prepared")
    open_as_before(root)
    assert shapes(open_split(root, images_digest=began)) == UPRIGHT


def test_without_orientation_both_versions_are_the_same_data(root):
    began = open_as_before(root).images_digest
    shutil.rmtree(root / "prepared")
    source = open_split(root, images_digest=began)
    assert source.images_digest == began and pixels(source) == [RED, GREEN, BLUE]


@pytest.mark.parametrize("kind", ["profile", "text"])
def test_a_picture_that_the_version_before_refused_counts_as_other_pixels(root, monkeypatch, kind):
    """A PNG with a profile or a text of over 1 MiB."""
    info = PngInfo()
    info.add_text("note", "x" * 2_000_000 if kind == "text" else "", zip=True)
    profile = bytes(2_000_000) if kind == "profile" else None
    Image.new("RGB", (8, 16), GREEN).save(root / "imgs/b.png", icc_profile=profile, pnginfo=info)
    with monkeypatch.context() as patch:
        patch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1 << 20)
        before = open_as_before(root)
    assert before.damaged.tolist() == [False, True, False]
    assert prepare.main(["--dataset=cuhk", f"--root={root}"]) == 0
    began = open_split(root)
    assert began.images_digest == f"{before.images_digest}-upright"
    assert pixels(open_split(root, images_digest=began.images_digest)) == [RED, GREEN, BLUE]
    assert open_split(root, images_digest=before.images_digest).damaged.any()


def test_a_portable_folder_of_the_version_before_is_read(root, tmp_path, capsys):
    lay_sideways(root, "b.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders.CuhkPedes, "VERSION", builders.BEFORE)
        patch.setattr(builders, "as_rgb", lambda image: image.convert("RGB"))
        patch.setattr(builders, "orientation", lambda image: 1)
        assert prepare.main(["--dataset=cuhk", f"--root={root}", f"--out={tmp_path}/carried"]) == 0
    capsys.readouterr()
    assert shapes(open_split(tmp_path / "carried")) == SIDEWAYS
    assert "preparing it where its images are makes it anew\n" in capsys.readouterr().err
    assert prepare.main(["--dataset=cuhk", f"--root={tmp_path}/carried"]) == 0
    assert "1.4.0: already prepared" in capsys.readouterr().out


def test_a_test_picture_that_is_a_copy_of_a_training_picture_is_said_once(root, tmp_path, capsys):
    """Also by a folder without its pictures, and by whoever opens data that were prepared before."""
    paint(root, "t.png", GREEN)
    advice = "figures of val and test may be too good; input_pipeline.doctor lists them"
    line = f"warning: {root}/imgs: 1 image with a copy in another split (t.png = b.png): {advice}"
    open_split(root)
    open_split(root, "test")
    assert made_anew(capsys) == (True, [line])
    say_once.cache_clear()  # another process
    open_split(root)
    assert made_anew(capsys) == (False, [line])
    say_once.cache_clear()
    assert prepare.main(["--dataset=cuhk", f"--root={root}", f"--out={tmp_path}/out"]) == 0
    assert line in capsys.readouterr().err.splitlines()
    open_split(tmp_path / "out")
    assert made_anew(capsys) == (False, [line.replace(str(root), f"{tmp_path}/out")])
    paint(root, "t.png", (9, 9, 9))
    say_once.cache_clear()
    open_split(root)
    assert "in another split" not in capsys.readouterr().err


def test_a_person_in_two_splits_is_said(root, capsys):
    records = json.loads((root / "reid_raw.json").read_text())
    (root / "reid_raw.json").write_text(json.dumps([*records[:3], records[3] | {"id": "01"}]))
    open_split(root)
    line = "1 person id in several splits: unless each split numbers its own persons, figures of val and test may be"
    assert f"warning: {root}/reid_raw.json: {line} too good; " in capsys.readouterr().err


def test_data_prepared_before_have_no_list_of_copies(root, capsys):
    paint(root, "t.png", GREEN)
    open_split(root)
    (file,) = root.glob("prepared/*/cuhk_pedes/*/metadata.json")
    metadata = json.loads(file.read_text())
    assert metadata.pop("shared") == [["t.png", "b.png"]]
    file.write_text(json.dumps(metadata))
    say_once.cache_clear()
    capsys.readouterr()
    open_split(root)
    assert made_anew(capsys) == (False, [])
