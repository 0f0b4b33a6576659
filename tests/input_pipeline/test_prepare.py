"""Datasets prepared ahead, and carried: TensorFlow's file system in memory, ram://, stands in for a bucket."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import tensorflow as tf
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline import opening, prepare, statistics
from input_pipeline.annotations import read_annotations
from input_pipeline.portable import SUMS, local_copy
from ivt_jax.common.errors import DataError, UserError

gfile = tf.io.gfile


@pytest.fixture
def raw(tmp_path):
    """A dataset of two images in each split, one person each."""
    root = tmp_path / "raw"
    make(root)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local_copy.cache_clear()
    return tmp_path / "cache/ivt_jax/datasets"


@pytest.fixture
def bucket(tmp_path):
    url = f"ram://{tmp_path.parent.name}-{tmp_path.name}/cuhk"
    yield url
    if gfile.exists(url):
        gfile.rmtree(url)


def make(root, caption="A person in red."):
    (root / "imgs").mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(6):
        Image.new("RGB", (24, 48), (40 * number, 0, 0)).save(root / f"imgs/{number}.jpg")
        split = ("train", "val", "test")[number // 2]
        records.append({"id": number, "file_path": f"{number}.jpg", "captions": [caption], "split": split})
    (root / "reid_raw.json").write_text(json.dumps(records))


def call(root, *arguments):
    return prepare.main(["--dataset=cuhk", f"--root={root}", *arguments])


def open_split(root, split="train", prepared="", max_damaged=0.0):
    data = {"name": "cuhk_pedes", "root": str(root), "val_persons": 0.0, "max_damaged": max_damaged, "identities": True}
    return opening.open_split(ConfigDict({"data": data, "runtime": {"prepared": str(prepared)}}), split)


def images(raw, source):
    return [(raw / "imgs" / path).read_bytes() for path in source.paths]


def overwrite(url, content):
    if gfile.exists(url):
        gfile.remove(url)  # ram:// would append
    with gfile.GFile(url, "wb") as file:
        file.write(content)


def one_shard(bucket):
    """Its URL: that of train, the only one here."""
    return gfile.glob(f"{bucket}/prepared/*/cuhk_pedes/*/*-train.*")[0]


def refused(root):
    local_copy.cache_clear()
    with pytest.raises(UserError) as error:
        local_copy(root)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the command


def test_the_command_prints_the_splits_the_deviation_and_the_place(raw, capsys):
    assert call(raw) == 0
    first = capsys.readouterr()
    assert "train            2         2         2  published: 11,003 34,054 68,126\n" in first.out
    place = next((raw / "prepared").glob("*/cuhk_pedes/*"))
    assert f"\n{place}: prepared in " in first.out and first.out.endswith(" s, 3 shards, 0.4 MB\n")
    assert call(raw) == 0
    again = capsys.readouterr()
    assert again.out.endswith(f"{place}: already prepared, 3 shards, 0.4 MB\n")
    line = f"warning: {raw}/reid_raw.json is not as published: train 2 2 2 instead of 11,003 34,054 68,126, val 2 2 2 "
    assert first.err.count("as published") == first.err.count(line) == 1
    assert again.err.count("as published") == again.err.count(line) == 1


def test_a_dataset_as_published_has_no_warning(raw, capsys, monkeypatch):
    monkeypatch.setitem(statistics.PUBLISHED, "cuhk_pedes", dict.fromkeys(("train", "val", "test"), (2, 2, 2)))
    assert call(raw) == 0
    captured = capsys.readouterr()
    assert captured.out.count("as published\n") == 3 and "warning" not in captured.err


def test_a_split_that_nobody_published_is_a_deviation(raw, capsys, monkeypatch):
    monkeypatch.setitem(statistics.PUBLISHED, "cuhk_pedes", dict.fromkeys(("train", "test"), (2, 2, 2)))
    assert call(raw) == 0
    assert "is not as published: val 2 2 2 instead of 0 0 0 (" in capsys.readouterr().err


def test_damaged_images_are_counted_and_too_many_refused(raw, capsys):
    (raw / "imgs/1.jpg").write_bytes(b"")
    assert call(raw) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {raw}/imgs/1.jpg (record 1) is not a readable image: ") and "0.50%" in error
    assert call(raw, "--max_damaged=0.5") == 0
    assert "warning: 1 damaged training image, the first is 1.jpg\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "error: {raw}/reid_raw.json not found: --config.data.root expects the CUHK-PEDES folder"),
        (("--root=gs://bucket/cuhk",), "error: gs://bucket/cuhk: expected a local folder"),
    ],
)
def test_a_mistake_is_one_line(raw, arguments, line, capsys):
    (raw / "reid_raw.json").unlink()
    assert call(raw, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(line.format(raw=raw)) and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("flag", ["--out", "--prepared"])
def test_a_folder_whose_name_is_not_utf_8_is_refused_before_anything_is_written(raw, tmp_path, flag, capsys):
    name = os.fsdecode(b"a\xffb")
    assert call(raw, f"{flag}={tmp_path}/{name}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/a\\udcffb") and ": the path is not UTF-8" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
    assert sorted(path.name for path in raw.iterdir()) == ["imgs", "reid_raw.json"]


def test_a_dataset_whose_folder_is_not_utf_8_is_prepared_elsewhere(raw, tmp_path):
    folder = raw.rename(tmp_path / os.fsdecode(b"a\xffb"))
    with pytest.raises(UserError, match="the path is not UTF-8"):
        open_split(folder)
    assert len(open_split(folder, prepared=tmp_path / "prepared").person_ids) == 2


def test_help_answers_without_tensorflow():
    code = "import sys; from input_pipeline import prepare\ntry: prepare.main(['--help'])\nfinally: print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "--max_damaged" in output and "input_pipeline.prepare" in output.split()
    assert "tensorflow" not in output.split()


# ---- carried


def test_what_is_trained_from_a_bucket_is_what_was_prepared(raw, bucket, cache, capsys):
    assert call(raw, f"--out={bucket}") == 0
    assert capsys.readouterr().out.endswith(f"train on it anywhere with --config.data.root={bucket}\n")
    for split in ("train", "val", "test"):
        here, there = open_split(raw, split), open_split(f"{bucket}/", split)
        assert there.paths == here.paths and there.captions == here.captions
        assert there.read(range(2)) == images(raw, here)
    assert there.annotations.is_relative_to(cache) and there.annotations.name == "reid_raw.json"
    assert there.annotations.read_bytes() == here.annotations.read_bytes()
    error = capsys.readouterr().err
    assert error.count(f"fetching {bucket}/reid_raw.json (") == 1 and "preparing" not in error
    assert sorted(path.name for path in cache.iterdir()) == [there.root.name, f"{there.root.name}.lock"]
    assert there.root.name.startswith("cuhk-")


def test_a_local_portable_folder_needs_no_copy_and_its_data_are_found_wherever_others_are(raw, tmp_path):
    assert call(raw, f"--out={tmp_path}/carried") == 0
    shutil.move(tmp_path / "carried", tmp_path / "moved")
    source = open_split(tmp_path / "moved", prepared=tmp_path / "elsewhere")
    assert source.read(range(2)) == images(raw, source)
    assert not (tmp_path / "elsewhere").exists()
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=tmp_path / "moved", check=True)


def test_absolute_paths_and_paths_that_begin_with_imgs_are_prepared_and_carried(raw, tmp_path):
    records = json.loads((raw / "reid_raw.json").read_text())
    for number, record in enumerate(records):
        record["file_path"] = (f"{raw}/imgs/{number}.jpg", f"imgs/{number}.jpg")[number % 2]
    (raw / "reid_raw.json").write_text(json.dumps(records))
    assert call(raw, f"--out={tmp_path}/carried") == 0
    shutil.move(tmp_path / "carried", tmp_path / "moved")
    source = open_split(tmp_path / "moved")
    assert source.paths == ["0.jpg", "1.jpg"] and source.read(range(2)) == images(raw, source)


def test_data_prepared_elsewhere_are_carried_as_well(raw, tmp_path, bucket, cache):
    assert call(raw, f"--prepared={tmp_path}/elsewhere", f"--out={bucket}") == 0
    assert not (raw / "prepared").exists()
    source = open_split(bucket)
    assert source.read(range(2)) == images(raw, source)


def test_the_quarantine_is_carried(raw, bucket, cache, capsys):
    (raw / "imgs/0.jpg").write_bytes(b"")
    (raw / "quarantine.txt").write_text("0.jpg\n")
    assert call(raw, f"--out={bucket}") == 0
    assert open_split(bucket).paths == ["1.jpg"]
    assert "datasets/cuhk-" in (error := capsys.readouterr().err) and "quarantine.txt leaves out images: 1 of" in error


@pytest.mark.parametrize("left_out", [True, False])
def test_captions_are_never_read_beside_the_images_of_others(raw, tmp_path, left_out):
    """In imgs/imgs/, "imgs/0.jpg" is the name of an image; without the images nobody knows that."""
    records = json.loads((raw / "reid_raw.json").read_text())
    for record in records:
        record["file_path"] = f"imgs/{record['file_path']}"
    (raw / "reid_raw.json").write_text(json.dumps(records))
    (raw / "imgs").rename(raw / "inner")
    (raw / "imgs").mkdir()
    (raw / "inner").rename(raw / "imgs/imgs")
    (raw / "imgs/imgs/0.jpg").write_bytes(b"")
    if left_out:
        (raw / "quarantine.txt").write_text("imgs/0.jpg\n")
    assert call(raw, "--max_damaged=0.5", f"--out={tmp_path}/carried") == 0
    refused = r"its quarantine.txt \(the annotations do not name its image imgs/0.jpg\): prepare it again where its im"
    if left_out:  # read as 0.jpg, the quarantine is another one
        refused = r"carried/imgs not found: the images of reid_raw.json are expected in it, or prepared data in "
    with pytest.raises(DataError, match=refused):
        open_split(tmp_path / "carried", max_damaged=0.5)


def test_a_changed_dataset_is_fetched_anew_and_the_old_copy_stays(raw, bucket, cache):
    assert call(raw, f"--out={bucket}") == 0
    old = open_split(bucket)
    make(raw, "A person in blue.")
    gfile.rmtree(bucket)
    assert call(raw, f"--out={bucket}") == 0
    assert open_split(bucket).root == old.root  # one run reads one copy
    local_copy.cache_clear()
    new = open_split(bucket)
    assert new.captions[0] == ("A person in blue.",) and old.captions[0] == ("A person in red.",)
    assert old.read(range(2)) == new.read(range(2)) and old.root.exists()


def test_an_upload_that_broke_off_is_no_dataset_and_goes_through_when_repeated(
    raw, tmp_path, bucket, cache, monkeypatch, capsys
):
    copy = gfile.copy

    def broken(source, target, overwrite):
        if target.endswith("reid_raw.json"):
            raise tf.errors.UnavailableError(None, None, "the network is gone\n\ttry later")
        copy(source, target, overwrite)

    monkeypatch.setattr(gfile, "copy", broken)
    for out in (bucket, str(tmp_path / "carried")):
        assert call(raw, f"--out={out}") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: {out} cannot be written (the network is gone try later); check the name")
        assert len(gfile.glob(f"{out}/prepared/*/cuhk_pedes/*/*-train.*")) == 1
    message = refused(bucket)
    assert message.startswith(f"{bucket}/{SUMS} not found: the bucket or folder does not exist, or the upload did not")
    with pytest.raises(DataError, match=r"carried/reid_raw.json not found"):
        open_split(tmp_path / "carried")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for out in (bucket, str(tmp_path / "carried")):
        assert call(raw, f"--out={out}") == 0
        assert len(open_split(out).read(range(2))) == 2


def test_a_damaged_file_of_the_bucket_is_named_and_a_fetch_goes_on_where_it_ended(raw, bucket, cache, capsys):
    assert call(raw, f"--out={bucket}") == 0
    shard = one_shard(bucket)
    with gfile.GFile(shard, "rb") as file:
        whole = file.read()
    overwrite(shard, whole[:-1] + b"\xff")
    damaged = f"{shard} does not match its digest in {SUMS}, so it is damaged"
    assert refused(bucket) == f"{damaged}: remove {bucket} and prepare it again"
    assert not [path for path in cache.iterdir() if path.suffix not in (".partial", ".lock")]
    gfile.remove(shard)
    assert refused(bucket).startswith(f"{shard} cannot be read (NotFoundError); check the name, the network")
    overwrite(shard, whole)
    capsys.readouterr()
    assert open_split(bucket).read([0]) == [(raw / "imgs/0.jpg").read_bytes()]
    assert capsys.readouterr().err.count(f"fetching {shard} (") == 1
    assert not list(cache.glob("*.partial"))


def test_what_a_fetch_has_already_is_not_fetched_again(raw, bucket, cache, capsys):
    assert call(raw, f"--out={bucket}") == 0
    with gfile.GFile(f"{bucket}/reid_raw.json", "rb") as file:
        whole = file.read()
    overwrite(f"{bucket}/reid_raw.json", whole + b" ")  # the last of all
    assert "reid_raw.json does not match its digest" in refused(bucket)
    overwrite(f"{bucket}/reid_raw.json", whole)
    capsys.readouterr()
    local_copy(bucket)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == [f"{bucket}/reid_raw.json"]


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", ""])
def test_a_bucket_writes_nowhere_else(bucket, cache, name):
    gfile.makedirs(bucket)
    overwrite(f"{bucket}/{SUMS}", f"{'0' * 64}  {name}\n".encode())
    assert f"{bucket}/{SUMS} names {name!r}; expected the path of a file in its folder" in refused(bucket)


def test_names_that_hold_other_line_breaks_are_fetched(bucket, cache):
    name = "all\u2028of\x85them\r.json"
    gfile.makedirs(bucket)
    overwrite(f"{bucket}/{name}", b"[]")
    overwrite(f"{bucket}/{SUMS}", f"{hashlib.sha256(b'[]').hexdigest()}  {name}\n".encode())
    local_copy.cache_clear()
    assert (local_copy(bucket) / name).read_bytes() == b"[]"


def test_what_another_process_fetched_meanwhile_is_used(raw, bucket, cache, monkeypatch, capsys):
    assert call(raw, f"--out={bucket}") == 0
    flock = fcntl.flock

    def wait(lock, operation):
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
        local_copy.__wrapped__(bucket)
        monkeypatch.setattr(fcntl, "flock", flock)

    monkeypatch.setattr(fcntl, "flock", wait)
    capsys.readouterr()
    assert local_copy(bucket).is_dir()
    files = [path for path in local_copy(bucket).rglob("*") if path.is_file()]
    assert capsys.readouterr().err.count("fetching") == len(files)


# ---- what is refused


def test_nothing_of_another_dataset_is_replaced(raw, tmp_path, bucket, capsys):
    carried, other = tmp_path / "carried", tmp_path / "other"
    make(other, "A person in blue.")
    for out in (bucket, str(carried)):
        assert call(raw, f"--out={out}") == 0
        capsys.readouterr()
        assert call(raw, f"--out={out}") == 0
        assert f"{out} is already complete\n" in capsys.readouterr().out
        assert call(other, f"--out={out}") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == f"error: --out={out} holds another dataset: choose another folder, or remove this one first"
    before = (other / "reid_raw.json").read_bytes()
    assert call(raw, f"--out={other}") == 2
    assert "holds another dataset" in capsys.readouterr().err
    assert (other / "reid_raw.json").read_bytes() == before
    assert sorted(path.name for path in other.iterdir()) == ["imgs", "prepared", "reid_raw.json"]


def test_the_folder_itself_is_no_place_to_carry_it_to(raw, capsys, monkeypatch):
    monkeypatch.chdir(raw)
    before = (raw / "reid_raw.json").read_bytes()
    for out in (f"{raw}/", "."):
        assert call(raw, f"--out={out}") == 2
        assert capsys.readouterr().err == f"error: --out={out} is the dataset's own folder: choose another\n"
    assert (raw / "reid_raw.json").read_bytes() == before


def test_a_bucket_that_cannot_be_reached_is_one_line(raw, cache, capsys):
    """A scheme of which TensorFlow knows nothing: an error as those of the network and of permissions are."""
    url = "nowhere://bucket/cuhk"
    access = (
        "check the name, the network, and the permissions of your account (`gcloud auth application-default login`)"
    )
    message = refused(url)
    assert message.startswith(f"{url}/{SUMS} cannot be read (File system scheme 'nowhere' not implemented")
    assert message.endswith(access)
    with pytest.raises(UserError, match="cannot be read"):
        open_split(url)
    assert call(raw, f"--out={url}") == 2
    assert capsys.readouterr().err.endswith(f"); {access}\n")


def test_a_cache_that_cannot_be_written_names_the_remedy(raw, bucket, cache, tmp_path, monkeypatch):
    assert call(raw, f"--out={bucket}") == 0
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert refused(bucket) == (
        f"cannot write {tmp_path}/file/ivt_jax/datasets (Not a directory); set XDG_CACHE_HOME to another folder"
    )


def test_data_of_another_version_are_not_read(raw, tmp_path, monkeypatch):
    from input_pipeline.builders import CuhkPedes

    assert call(raw, f"--out={tmp_path}/carried") == 0
    version = str(CuhkPedes.VERSION)
    monkeypatch.setattr(CuhkPedes, "VERSION", type(CuhkPedes.VERSION)("9.9.9"))
    monkeypatch.setattr(CuhkPedes, "RELEASE_NOTES", {"9.9.9": ""})
    with pytest.raises(
        DataError, match=r"carried/imgs not found: .* or prepared data in .*/cuhk_pedes/9.9.9; see docs/datasets.md"
    ):
        open_split(tmp_path / "carried")
    assert list((tmp_path / "carried").glob(f"prepared/*/cuhk_pedes/{version}"))
    assert len(read_annotations(tmp_path / "carried", "cuhk_pedes").records) == 6
