"""Builds of an index: only changed pictures are embedded, and an interruption leaves no trace."""

import dataclasses
import datetime
import errno
import hashlib
import io
import itertools
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from qdrant_client import QdrantClient
from safetensors.numpy import load_file, save_file

from ivt_jax.common.errors import UserError
from ivt_jax.conversion.files import read_header
from ivt_jax.encoding.encoder import Encoder
from ivt_jax.gallery.crops import UnreachableError
from ivt_jax.gallery.shard import embed_shard
from ivt_jax.gallery.vectors import read_gallery
from ivt_jax.retrieval.indexing import build as builder
from ivt_jax.retrieval.indexing.build import Options, build
from ivt_jax.retrieval.indexing.missing import describe_kept
from ivt_jax.retrieval.indexing.sources import read_folder, read_list
from ivt_jax.retrieval.stores.lance import LanceStore
from ivt_jax.retrieval.stores.places import create_store
from ivt_jax.retrieval.stores.qdrant import QdrantStore
from tests.gallery.conftest import picture, write_tar
from tests.retrieval.conftest import GALLERY, fails, put

PLACE = "memory://index"


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """Batches and writes are so small that a gallery of six takes several."""
    monkeypatch.setattr(builder, "ROWS", 4)


@pytest.fixture
def index(workdir, encoder, gallery, stores):
    """index(...): builds the index of the gallery, and returns the counts as text."""

    def index(source=None, **options):
        options = {"workdir": workdir, "encoder": encoder, "batch": 1, **options}
        return str(build(PLACE, source or read_folder(gallery), Options(**options))).partition(";")[0]

    return index


@pytest.fixture
def indexed(index, embedded):
    """indexed(...): as `index`, for a gallery that has an index; `embedded` begins after its first build."""
    index()
    embedded.clear()
    return index


@pytest.fixture
def rows(stores):
    """rows(): path -> row, with vectors and thumbnails; no path is there twice."""

    def rows():
        found = list(stores[PLACE].scan(vectors=True, thumbnails=True))
        assert len({row.path for row in found}) == len(found)
        return {row.path: row for row in found}

    return rows


@pytest.fixture
def embedded(monkeypatch, encoder):
    """The number of pictures in each call of the encoder."""
    calls, embed = [], encoder.embed

    def spy(batches, batch_size):
        batches = list(batches)
        calls.extend(map(len, batches))
        return embed(iter(batches), batch_size)

    monkeypatch.setattr(encoder, "embed", spy)
    return calls


@pytest.fixture
def assert_holds(rows, vector_of):
    """check({path: seed}): the index holds these pictures and no others, each with its vector."""

    def check(seeds):
        found = rows()
        assert {*found} == {*seeds}
        for path, seed in seeds.items():
            np.testing.assert_allclose(found[path].vector, vector_of[seed], atol=1e-5)

    return check


SEEDS = {name: seed for seed, name in enumerate(GALLERY)}
TOO_MANY = "11 rows: their pictures are gone, but more than a tenth of the index would be deleted"


def add_pictures(gallery, count):
    """Writes x00.png, x01.png, ..., all of other content; returns their names."""
    names = [f"x{number:02}.png" for number in range(count)]
    for number, name in enumerate(names):
        (gallery / name).write_bytes(picture(number % 40) + bytes([number]))
    return names


def list_of(gallery, *names):
    """Returns the source of gallery/list.csv, which names these pictures."""
    (gallery / "list.csv").write_text("path\n" + "\n".join(names))
    return read_list(gallery / "list.csv")


def later(path):
    """Gives a file another time of change."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


# ---- a first build


def test_every_picture_has_the_vector_that_evaluation_gives_it(index, embedded, assert_holds, stores, rows, vector_of):
    assert np.abs(vector_of @ vector_of.T - np.eye(40)).max() < 0.9999  # no two pictures have the same vector
    assert index() == "6 pictures: 6 new, 0 changed, 0 renamed, 0 gone, 0 unchanged"
    assert sum(embedded) == 6
    assert_holds(SEEDS)
    assert stores[PLACE].written == [4, 2]
    assert sorted(row.id for row in rows().values()) == [0, 1, 2, 3, 4, 5]


def test_a_row_has_digest_size_and_time_of_its_file(indexed, gallery, rows):
    row, path = rows()["cam 1/c.png"], gallery / "cam 1/c.png"
    assert row.digest == hashlib.sha256(picture(2)).hexdigest()
    assert (row.size, row.changed, row.metadata) == (len(picture(2)), path.stat().st_mtime_ns, {})
    thumbnail = Image.open(io.BytesIO(row.thumbnail))
    assert (thumbnail.format, thumbnail.mode, thumbnail.size) == ("JPEG", "RGB", (20, 30))


def test_a_thumbnail_is_small_and_has_no_metadata(index, gallery, rows):
    exif = Image.Exif()
    exif[0x010E] = "secret"
    Image.new("RGB", (500, 400), "red").save(gallery / "a.jpg", exif=exif, comment=b"secret")
    assert b"secret" in (gallery / "a.jpg").read_bytes()
    index()
    content = rows()["a.jpg"].thumbnail
    thumbnail = Image.open(io.BytesIO(content))
    assert thumbnail.size == (160, 128) and not thumbnail.getexif() and b"secret" not in content
    np.testing.assert_allclose(thumbnail.getpixel((80, 64)), (255, 0, 0), atol=3)


def test_a_thumbnail_of_a_tall_picture_is_192_pixels_high(index, gallery, rows):
    Image.new("RGB", (100, 500)).save(gallery / "tall.png")
    index()
    assert Image.open(io.BytesIO(rows()["tall.png"].thumbnail)).size == (38, 192)  # 100 * 192 / 500 = 38.4


def test_float16_vectors_are_those_of_float32_rounded(index, rows, stores, vector_of):
    index(dtype="float16")
    assert stores[PLACE].about.dtype == "float16"
    for path, row in rows().items():
        assert row.vector.dtype == np.float16
        np.testing.assert_allclose(row.vector, vector_of[SEEDS[path]], atol=1e-3)
    assert index() == "6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged"  # the type stays


def test_the_index_states_its_model_and_folder(indexed, stores, workdir, encoder, gallery):
    about = stores[PLACE].about
    assert (about.model, about.dimension, about.dtype) == (encoder.about["model"], 12, "float32")
    assert about.images["height"] == 14 and len(about.tokenizer) == 64 and about.fields == {}
    assert (about.workdir, about.root) == (str(workdir), str(gallery))


def test_a_picture_of_odd_shape_is_indexed_and_marked_and_so_is_its_copy(
    index, gallery, workdir, encoder, rows, stores, embedded
):
    frame = "wider than high, as a full frame is"
    Image.new("RGB", (1920, 1080)).save(gallery / "frame.png")
    Image.new("RGB", (1, 3000)).save(gallery / "line.png")
    built = build(PLACE, read_folder(gallery), Options(workdir, encoder, batch=1))
    assert built.odd == [("frame.png", frame), ("line.png", "smaller than 8 x 25 pixels")] and built.new == 8
    assert {path: row.odd for path, row in rows().items()} == {**dict.fromkeys(GALLERY, ""), **dict(built.odd)}
    embedded.clear()
    shutil.copy(gallery / "frame.png", gallery / "copy.png")
    later(gallery / "a.png")
    assert build(PLACE, read_folder(gallery), Options(workdir, encoder)).odd == [("copy.png", frame)] and not embedded
    assert rows()["copy.png"].odd == frame and rows()["a.png"].odd == ""


def test_in_an_older_index_it_stays_unknown_whether_a_picture_is_odd_until_it_changes(indexed, gallery, rows, stores):
    store = stores[PLACE]
    store.rows = {id: row._replace(odd=None) for id, row in store.rows.items()}
    later(gallery / "a.png")
    put(gallery / "b.png", 20)
    later(gallery / "b.png")
    assert indexed().endswith("1 changed, 0 renamed, 0 gone, 5 unchanged")
    assert (rows()["a.png"].odd, rows()["b.png"].odd, rows()["f.png"].odd) == (None, "", None)


# ---- what changed since


def test_an_unchanged_gallery_leaves_the_index_as_it_is(indexed, embedded, stores, rows):
    before = rows()
    assert indexed() == "6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged"
    assert embedded == [] and stores[PLACE].written == [4, 2]
    assert [row.id for row in rows().values()] == [row.id for row in before.values()]


def test_only_a_build_that_may_move_rows_states_that_it_is_under_way(indexed, gallery, stores, monkeypatch):
    def state(about):
        assert (about.unfinished, about.planned) == (-1, 0)

    monkeypatch.setattr(stores[PLACE], "set_about", state)
    assert indexed().endswith("6 unchanged")
    (gallery / "a.png").unlink()  # a row without a picture, and no new picture
    assert indexed().endswith("1 gone, 5 unchanged")
    put(gallery / "new.png", 20)  # a new picture, and no row without one
    assert indexed().startswith("6 pictures: 1 new")


def test_new_pictures_alone_are_embedded(indexed, embedded, gallery, assert_holds):
    put(gallery / "aa/new.png", 20)
    put(gallery / "zz.png", 21)
    assert indexed() == "8 pictures: 2 new, 0 changed, 0 renamed, 0 gone, 6 unchanged"
    assert sum(embedded) == 2
    assert_holds({**SEEDS, "aa/new.png": 20, "zz.png": 21})


def test_a_changed_picture_is_embedded_again(indexed, embedded, gallery, assert_holds, rows):
    put(gallery / "b.png", 20)
    later(gallery / "b.png")
    assert indexed() == "6 pictures: 0 new, 1 changed, 0 renamed, 0 gone, 5 unchanged"
    assert sum(embedded) == 1
    assert_holds({**SEEDS, "b.png": 20})
    assert rows()["b.png"].id == 6


def test_a_deleted_picture_goes(indexed, embedded, gallery, assert_holds):
    (gallery / "a.png").unlink()
    (gallery / "cam 1/d.png").unlink()
    assert indexed() == "4 pictures: 0 new, 0 changed, 0 renamed, 2 gone, 4 unchanged"
    assert not embedded
    assert_holds({path: seed for path, seed in SEEDS.items() if path not in ("a.png", "cam 1/d.png")})


def test_a_deleted_folder_goes_when_it_is_confirmed(indexed, embedded, gallery, assert_holds):
    shutil.rmtree(gallery / "cam 1")
    assert indexed(prune=True) == "4 pictures: 0 new, 0 changed, 0 renamed, 2 gone, 4 unchanged"
    assert not embedded
    assert_holds({path: seed for path, seed in SEEDS.items() if not path.startswith("cam 1")})


def test_a_renamed_picture_keeps_its_vector(indexed, embedded, gallery, rows):
    before = rows()
    (gallery / "a.png").rename(gallery / "z.png")
    (gallery / "cam 1").rename(gallery / "cam 9")
    assert indexed() == "6 pictures: 0 new, 0 changed, 3 renamed, 0 gone, 3 unchanged"
    assert not embedded
    after = rows()
    for old, new in (("a.png", "z.png"), ("cam 1/c.png", "cam 9/c.png"), ("cam 1/d.png", "cam 9/d.png")):
        np.testing.assert_array_equal(after[new].vector, before[old].vector)
        assert after[new].thumbnail == before[old].thumbnail and after[new].digest == before[old].digest
        assert old not in after


def test_a_copy_of_a_picture_is_not_embedded(indexed, embedded, gallery, assert_holds):
    shutil.copy(gallery / "a.png", gallery / "copy.png")
    (gallery / "b.png").rename(gallery / "y.png")
    shutil.copy(gallery / "y.png", gallery / "z.png")
    assert indexed() == "8 pictures: 2 new, 0 changed, 1 renamed, 0 gone, 5 unchanged"
    assert not embedded
    (gallery / "a.png").unlink()
    assert indexed() == "7 pictures: 0 new, 0 changed, 0 renamed, 1 gone, 7 unchanged"
    seeds = {**SEEDS, "copy.png": 0, "y.png": 1, "z.png": 1}
    assert_holds({path: seed for path, seed in seeds.items() if path not in ("a.png", "b.png")})


def test_a_touched_picture_is_read_and_not_embedded(indexed, embedded, gallery, assert_holds, rows):
    later(gallery / "a.png")
    assert indexed() == "6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged"
    assert not embedded and rows()["a.png"].changed == (gallery / "a.png").stat().st_mtime_ns
    assert_holds(SEEDS)


def test_two_pictures_that_change_places_are_not_embedded(indexed, embedded, gallery, assert_holds):
    (gallery / "a.png").rename(gallery / "x")
    (gallery / "b.png").rename(gallery / "a.png")
    (gallery / "x").rename(gallery / "b.png")
    later(gallery / "a.png")
    later(gallery / "b.png")
    assert indexed() == "6 pictures: 0 new, 2 changed, 0 renamed, 0 gone, 4 unchanged"
    assert not embedded
    assert_holds({**SEEDS, "a.png": 1, "b.png": 0})


def test_a_picture_that_makes_room_for_another_keeps_its_vector(index, embedded, gallery, assert_holds, monkeypatch):
    """As logs are rotated: the old one has a new name, and its name the content of another."""
    monkeypatch.setattr(builder, "ROWS", 1)
    index()
    embedded.clear()
    (gallery / "a.png").rename(gallery / "z.png")
    put(gallery / "a.png", 1)
    later(gallery / "a.png")
    assert index() == "7 pictures: 1 new, 1 changed, 0 renamed, 0 gone, 5 unchanged"
    assert not embedded
    assert_holds({**SEEDS, "a.png": 1, "z.png": 0})


def test_copies_of_a_new_picture_take_its_vector(index, embedded, gallery, assert_holds, monkeypatch):
    """Only the copies that were read before the first one was written are embedded."""
    monkeypatch.setattr(builder, "ROWS", 1)
    for number in range(80):
        put(gallery / f"x{number:02}.png", 20)
    index()
    assert sum(embedded) < 60
    assert_holds({**SEEDS, **{f"x{number:02}.png": 20 for number in range(80)}})


def test_copies_of_a_picture_all_keep_its_vector(index, embedded, gallery, assert_holds, monkeypatch):
    """Also if one copy becomes another picture, and the others are touched."""
    monkeypatch.setattr(builder, "ROWS", 1)
    for name in ("a.png", "f.png", "cam 1/c.png"):
        put(gallery / name, 20)
    index()
    embedded.clear()
    put(gallery / "f.png", 1)
    for name in GALLERY:
        later(gallery / name)
    index()
    assert not embedded
    assert_holds({**SEEDS, "a.png": 20, "cam 1/c.png": 20, "f.png": 1})


def test_pictures_that_all_move_on_by_one_are_right(index, gallery, assert_holds, monkeypatch):
    """Each takes the name of the next. If the row of its content has been replaced already, it is embedded."""
    monkeypatch.setattr(builder, "ROWS", 1)
    index()
    for name, seed in SEEDS.items():
        put(gallery / name, (seed + 5) % 6)
        later(gallery / name)
    assert index() == "6 pictures: 0 new, 6 changed, 0 renamed, 0 gone, 0 unchanged"
    assert_holds({path: (seed + 5) % 6 for path, seed in SEEDS.items()})


def test_a_file_that_changes_after_it_is_found_is_looked_at_again(
    index, gallery, embedded, monkeypatch, rows, assert_holds
):
    read, source = builder.read_content, read_folder(gallery)
    put(gallery / "a.png", 20)
    later(gallery / "a.png")
    index(source)
    assert_holds({**SEEDS, "a.png": 20})
    assert rows()["a.png"].digest == hashlib.sha256(picture(20)).hexdigest()
    embedded.clear()
    looked = []
    monkeypatch.setattr(builder, "read_content", lambda name, file: looked.append(name) or read(name, file))
    assert index() == "6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged"
    assert looked == ["a.png"] and not embedded


def test_digest_and_vector_are_of_the_same_bytes(index, monkeypatch, rows, assert_holds):
    """The file is another one as soon as it has been read."""
    read = builder.read_content

    looked = []

    def overtaken(name, file):
        content = read(name, file)
        if looked:  # the first look only tells whether anything can be read
            put(file, 30)
        looked.append(name)
        return content

    monkeypatch.setattr(builder, "read_content", overtaken)
    index()
    assert_holds(SEEDS)
    assert {row.digest for row in rows().values()} == {hashlib.sha256(picture(seed)).hexdigest() for seed in range(6)}


def test_random_changes_lead_to_the_index_of_a_new_build(index, gallery, assert_holds):
    rng = np.random.default_rng(0)
    seeds = dict(SEEDS)
    for _ in range(12):
        for _ in range(rng.integers(1, 6)):
            paths = sorted(seeds)
            path, other = rng.choice(paths), f"{rng.integers(30)}.png"
            kind = rng.integers(4)
            if kind == 0:
                seeds[other] = int(rng.integers(40))
                put(gallery / other, seeds[other])
            elif kind == 1 and len(seeds) > 2:
                (gallery / path).unlink()
                del seeds[path]
            elif kind == 2:
                (gallery / path).replace(gallery / other)
                seeds[other] = seeds.pop(path)
            else:
                shutil.copy(gallery / path, gallery / other) if path != other else None
                seeds[other] = seeds[path]
            if (gallery / other).exists():
                later(gallery / other)
        index(prune=True)
        assert_holds(seeds)


# ---- metadata


@pytest.fixture
def listed(gallery):
    """listed(columns, values): the source of a list that gives each picture of the gallery, in order, these values."""

    def listed(columns, values):
        lines = [f"{name},{value}" for name, value in zip(GALLERY, values, strict=True)]
        path = gallery / "list.csv"
        path.write_text("\n".join([f"path,{columns}", *lines]))
        return read_list(path)

    return listed


def test_metadata_of_a_list_are_in_the_rows(index, listed, rows, stores):
    index(listed("camera,time", [f"{n},2024-05-0{n + 1}" for n in range(6)]))
    assert stores[PLACE].about.fields == {"camera": "integer", "time": "time"}
    assert rows()["cam 1/d.png"].metadata == {"camera": 3, "time": datetime.datetime(2024, 5, 4, tzinfo=datetime.UTC)}


def test_other_metadata_are_written_without_reading_the_picture(
    index, listed, rows, embedded, assert_holds, monkeypatch
):
    index(listed("camera", range(6)))
    embedded.clear()
    monkeypatch.setattr(builder, "read_content", None)
    source = listed("camera", [0, 1, 2, 3, 4, 50])
    assert index(source) == "6 pictures: 0 new, 1 changed, 0 renamed, 0 gone, 5 unchanged"
    assert not embedded and rows()["f.png"].metadata == {"camera": 50}
    assert_holds(SEEDS)


def test_a_column_may_come_change_its_type_and_go(index, listed, rows, embedded, gallery):
    index(listed("camera", range(6)))
    embedded.clear()
    source = listed("camera,track", [f"{n}{'b' if n else ''},{n}" for n in range(6)])
    assert index(source) == "6 pictures: 0 new, 6 changed, 0 renamed, 0 gone, 0 unchanged"
    assert rows()["b.png"].metadata == {"camera": "1b", "track": 1}
    with pytest.raises(UserError, match="index was made from a list, with the fields camera, track: name the list"):
        index(read_folder(gallery))
    assert index(list_of(gallery, *GALLERY)).startswith("6 pictures: 0 new, 6 changed")
    assert rows()["b.png"].metadata == {} and not embedded


# ---- what cannot be read


def test_unreadable_pictures_are_named_and_shift_no_row(index, gallery, rows, vector_of, workdir, encoder, monkeypatch):
    monkeypatch.setattr("ivt_jax.gallery.crops.MAX_BYTES", 5000)
    names = ['b"quoted".png', "it's.png", "two\nlines.png", "🧥.png", "-rf.png"]
    for seed, name in enumerate(names, start=6):
        put(gallery / name, seed)
    bad = {
        "aa_empty.png": b"", "ab_text.png": b"hello", "ac_cut.png": picture(9)[:60], "ad_large.png": b"x" * 5001,
        "ae_svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }  # fmt: skip
    for name, content in bad.items():
        (gallery / name).write_bytes(content)
    (gallery / "af_gone.png").symlink_to("nowhere.png")
    built = build(PLACE, read_folder(gallery), Options(workdir, encoder, batch=1))
    reasons = dict(built.unreadable)
    assert {*reasons} == {*bad, "af_gone.png"}
    assert reasons["aa_empty.png"] == "an empty file" and reasons["ab_text.png"] == "not a readable image"
    assert reasons["ad_large.png"] == "5,001 bytes are too many for a picture of a person"
    assert reasons["af_gone.png"] == "missing"
    for path, row in rows().items():
        seed = {**SEEDS, **{name: seed for seed, name in enumerate(names, start=6)}}[path]
        np.testing.assert_allclose(row.vector, vector_of[seed], atol=1e-5)
    assert len(rows()) == 11 and str(built).startswith("11 pictures: 11 new")


def test_a_picture_of_too_many_pixels_is_not_decoded(index, gallery, monkeypatch, rows):
    monkeypatch.setattr("input_pipeline.decoding.MAX_PIXELS", 20 * 30)
    Image.new("1", (20, 31)).save(gallery / "bomb.png")
    assert index() == "6 pictures: 6 new, 0 changed, 0 renamed, 0 gone, 0 unchanged"
    assert "bomb.png" not in rows()


def test_a_picture_that_is_damaged_since_loses_its_row(indexed, gallery, assert_holds):
    (gallery / "a.png").write_bytes(b"damaged")
    assert indexed() == "5 pictures: 0 new, 0 changed, 0 renamed, 1 gone, 5 unchanged"
    assert_holds({path: seed for path, seed in SEEDS.items() if path != "a.png"})


# ---- what cannot be reached


@pytest.fixture
def kept(workdir, encoder, gallery, stores):
    """kept(source): builds the index of the gallery; returns the counts gone and unchanged, and the kept rows."""

    def kept(source=None, **options):
        built = build(PLACE, source or read_folder(gallery), Options(workdir, encoder, batch=1, **options))
        return built.gone, built.unchanged, describe_kept(built.kept)

    return kept


@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_that_is_missing_or_empty_keeps_its_rows_until_that_is_confirmed(
    indexed, kept, gallery, assert_holds, empty, embedded
):
    shutil.rmtree(gallery / "cam 1")
    reason = "the folder is missing"
    if empty:  # as the mount point of a share that was dropped
        (gallery / "cam 1").mkdir()
        reason = "the folder holds no pictures"
    for _ in range(2):
        assert kept() == (0, 6, [f"2 rows in {gallery}/cam 1: {reason}"])
        assert_holds(SEEDS)
    assert kept(prune=True) == (2, 4, [])
    assert_holds({path: seed for path, seed in SEEDS.items() if not path.startswith("cam 1")})
    assert not embedded


def test_a_share_is_named_once_whatever_folders_it_held(index, kept, gallery):
    for number in range(5):
        put(gallery / f"share/{number}/deep/x.png", 10 + number)
    index()
    shutil.rmtree(gallery / "share")
    assert kept() == (0, 11, [f"5 rows in {gallery}/share: the folder is missing"])
    (gallery / "share/3").mkdir(parents=True)
    (gallery / "share/notes.txt").write_text("no picture")
    assert kept() == (0, 11, [f"5 rows in {gallery}/share: the folder holds no pictures"])


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_folder_that_cannot_be_listed_keeps_its_rows_and_is_named(
    indexed, kept, gallery, monkeypatch, error, assert_holds
):
    (gallery / "cam 1/c.png").unlink()
    with monkeypatch.context() as patch:
        fails(patch, "cam 1", error)
        assert kept() == (0, 6, [f"2 rows in {gallery}/cam 1: {os.strerror(error)}"])
    assert_holds(SEEDS)
    assert kept() == (1, 5, [])


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_files_that_cannot_be_looked_at_keep_their_rows(indexed, kept, gallery, stores, monkeypatch, error, listed):
    """The same happens in a folder of mode 444. The index states them among its rows, not as left out."""
    with monkeypatch.context() as patch:
        fails(patch, "c.png", error, "stat")
        fails(patch, "d.png", error, "stat")
        source = list_of(gallery, *GALLERY) if listed else read_folder(gallery)
        assert kept(source) == (0, 6, [f"2 rows in {gallery}/cam 1: {os.strerror(error)}"])
        assert (stores[PLACE].about.kept, stores[PLACE].about.passed) == ({os.strerror(error): 2}, {})
    assert kept() == (0, 6, [])
    assert stores[PLACE].about.kept == {}


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_any_more_keeps_its_row(
    indexed, kept, gallery, stores, monkeypatch, error, assert_holds, workdir, encoder
):
    later(gallery / "a.png")
    read = builder.read_content

    def failing(name, file):
        if name == "a.png":
            raise UnreachableError(f"{name}: {os.strerror(error)}")
        return read(name, file)

    monkeypatch.setattr(builder, "read_content", failing)
    built = build(PLACE, read_folder(gallery), Options(workdir, encoder, batch=1))
    assert built.unreadable == [("a.png", os.strerror(error))]
    assert describe_kept(built.kept) == [f"1 row in {gallery}: {os.strerror(error)}"]
    assert (stores[PLACE].about.kept, stores[PLACE].about.passed) == ({os.strerror(error): 1}, {})
    assert_holds(SEEDS)
    assert kept(prune=True) == (1, 5, [])


def test_read_errors_differ_from_damaged_contents(tmp_path):
    with pytest.raises(UnreachableError, match=r"^x: No such file or directory$"):
        builder.read_content("x", tmp_path / "x")
    with pytest.raises(UnreachableError, match=r"^x: Is a directory$"):
        builder.read_content("x", tmp_path)
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(UserError, match=r"^x: an empty file$") as raised:
        builder.read_content("x", tmp_path / "x")
    assert not isinstance(raised.value, UnreachableError)


def test_a_share_that_is_dropped_between_the_walk_and_the_reading_keeps_its_rows(indexed, kept, gallery, assert_holds):
    for name in GALLERY:
        later(gallery / name)
    put(gallery / "cam 1/new.png", 20)
    source = read_folder(gallery)
    (gallery / "cam 1").rename(gallery.parent / "away")
    assert kept(source) == (0, 6, [f"2 rows in {gallery}/cam 1: the folder is missing"])
    assert_holds(SEEDS)


@pytest.mark.parametrize("share", ["cam 1", "."])
def test_a_share_that_is_dropped_before_rows_are_deleted_keeps_them(
    indexed, kept, gallery, monkeypatch, assert_holds, share
):
    """The walk still found its folder, without one of its pictures."""
    (gallery / share / ("c.png" if share == "cam 1" else "a.png")).unlink()
    folder, run = (gallery / share).resolve(), builder._Work.run

    def drop(work):
        run(work)
        folder.rename(gallery.parent / "away")

    with monkeypatch.context() as patch:
        patch.setattr(builder._Work, "run", drop)
        assert kept() == (0, 6, [f"1 row in {folder}: the folder is missing"])
    assert_holds(SEEDS)
    (gallery.parent / "away").rename(folder)
    assert kept() == (1, 5, [])


def test_a_broken_link_keeps_its_row_and_a_replaced_file_does_not(index, kept, gallery):
    put(gallery / "store/x.png", 10)
    put(gallery / "store/y.png", 11)
    (gallery / "link.png").symlink_to("store/x.png")
    index()
    (gallery / "store/x.png").unlink()  # as on a share that holds what the links of a gallery name
    (gallery / "a.png").unlink()
    os.mkfifo(gallery / "a.png")
    (gallery / "b.png").unlink()
    (gallery / "b.png").mkdir()
    assert kept() == (3, 6, [f"1 row in {gallery}: missing"])  # x.png, a.png, b.png


def test_a_picture_below_counts_as_one_of_the_folder(index, kept, gallery):
    """A folder whose own pictures were deleted, and whose sub-folders hold some, was not dropped."""
    put(gallery / "cam 3/x.png", 10)
    put(gallery / "cam 3/deep/y.png", 11)
    index()
    (gallery / "cam 3/x.png").unlink()
    assert kept() == (1, 7, [])


def test_a_moved_folder_needs_no_prune(index, kept, gallery, assert_holds, embedded):
    """That includes a folder with copies of a picture, and one whose pictures overwrite others."""
    put(gallery / "cam 1/copy.png", 2)
    put(gallery / "cam 3/a.png", 20)
    index()
    embedded.clear()
    (gallery / "cam 1").rename(gallery / "cam 9")
    (gallery / "cam 3/a.png").replace(gallery / "a.png")  # leaves an empty folder
    assert kept() == (1, 3, [])
    assert not embedded
    seeds = {path.replace("cam 1", "cam 9"): seed for path, seed in SEEDS.items()}
    assert_holds({**seeds, "cam 9/copy.png": 2, "a.png": 20})


def test_pictures_of_a_moved_folder_that_are_not_found_keep_their_rows(indexed, kept, gallery, assert_holds):
    (gallery / "cam 1").rename(gallery / "cam 9")
    (gallery / "cam 9/d.png").unlink()
    assert kept() == (0, 5, [f"1 row in {gallery}/cam 1: the folder is missing"])
    seeds = {path.replace("cam 1/c", "cam 9/c"): seed for path, seed in SEEDS.items()}
    assert_holds(seeds)


def test_a_copy_of_a_picture_out_of_reach_is_no_rename(indexed, kept, gallery, monkeypatch, assert_holds):
    shutil.copy(gallery / "cam 1/c.png", gallery / "copy.png")
    with monkeypatch.context() as patch:
        fails(patch, "cam 1", errno.EIO)
        fails(patch, "c.png", errno.EIO, "lstat")
        assert kept() == (0, 6, [f"2 rows in {gallery}/cam 1: Input/output error"])
    assert_holds({**SEEDS, "copy.png": 2})


def test_copies_that_have_long_been_there_are_no_rename(index, kept, gallery, assert_holds):
    """Both paths had rows; that of the dropped share stays."""
    shutil.copytree(gallery / "cam 1", gallery / "backup")
    index()
    (gallery / "cam 1").rename(gallery.parent / "away")
    assert kept() == (0, 8, [f"2 rows in {gallery}/cam 1: the folder is missing"])
    assert_holds({**SEEDS, "backup/c.png": 2, "backup/d.png": 3})


def test_a_row_goes_with_its_line_of_the_list_and_stays_where_the_listed_file_is_out_of_reach(
    index, kept, gallery, assert_holds
):
    index(list_of(gallery, *GALLERY))
    (gallery / "cam 1").rename(gallery.parent / "away")
    (gallery / "a.png").unlink()
    source = list_of(gallery, "a.png", "b.png", "cam 1/c.png", "f.png")  # a is missing, d and e are not listed
    assert kept(source) == (3, 3, [f"1 row in {gallery}/cam 1: the folder is missing"])
    assert_holds({"b.png": 1, "cam 1/c.png": 2, "f.png": 5})


def test_a_listed_file_without_the_suffix_of_a_picture_goes_like_others(index, kept, gallery):
    for number in range(3):
        put(gallery / f"odd/{number}.jfif", 10 + number)
    index(list_of(gallery, *GALLERY, *(f"odd/{number}.jfif" for number in range(3))))
    (gallery / "odd/1.jfif").unlink()
    assert kept(read_list(gallery / "list.csv")) == (1, 8, [])


@pytest.mark.parametrize(("deleted", "goes"), [(10, True), (11, False)])
def test_more_than_a_tenth_is_deleted_only_when_that_is_confirmed(index, kept, gallery, rows, deleted, goes):
    """Of 100 rows: six in the gallery and 94 more. The rest of the build is done."""
    add_pictures(gallery, 94)
    index()
    for number in range(deleted):
        (gallery / f"x{number:02}.png").unlink()
    (gallery / "a.png").rename(gallery / "z.png")
    (gallery / "cam 1").rename(gallery / "cam 9")  # what is renamed does not count
    assert kept() == ((10, 87, []) if goes else (0, 97, [TOO_MANY]))
    assert {"z.png", "cam 9/c.png"} < rows().keys() and "a.png" not in rows() and len(rows()) == (90 if goes else 100)
    assert kept(prune=True) == (0 if goes else 11, 90 if goes else 89, [])
    assert len(rows()) == 100 - deleted


def test_of_fewer_than_100_rows_any_share_is_deleted(index, kept, gallery, rows):
    add_pictures(gallery, 93)
    index()
    assert len(rows()) == 99
    for number in range(50):
        (gallery / f"x{number:02}.png").unlink()
    assert kept() == (50, 49, [])


@pytest.mark.parametrize("kind", ["listed", "damaged"])
def test_unlisted_and_damaged_pictures_count_for_the_tenth(index, kept, gallery, kind, rows):
    names = add_pictures(gallery, 94)
    index(list_of(gallery, *GALLERY, *names))
    if kind == "listed":
        list_of(gallery, *names)
        for name in names[:5]:
            (gallery / name).unlink()
    else:
        for name in names[:11]:
            (gallery / name).write_bytes(b"damaged")
    assert kept(read_list(gallery / "list.csv")) == (0, 100, [TOO_MANY])
    assert len(rows()) == 100
    assert kept(read_list(gallery / "list.csv"), prune=True) == (11, 89, [])


def test_the_summary_counts_kept_rows(indexed, gallery, workdir, encoder):
    shutil.rmtree(gallery / "cam 1")
    built = build(PLACE, read_folder(gallery), Options(workdir, encoder, batch=1))
    counts = "6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged"
    assert str(built) == f"{counts}; 2 of them kept without their pictures (--prune deletes them)"


def test_an_index_is_never_emptied_because_nothing_can_be_read(indexed, gallery, assert_holds):
    for name in GALLERY:
        (gallery / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"^none of 6 pictures can be read; the first: a.png: not a readable image$"):
        indexed()
    assert_holds(SEEDS)


def test_a_build_that_is_refused_states_nothing(index, listed, stores, tmp_path):
    index(listed("camera", range(6)))
    before = stores[PLACE].about
    (tmp_path / "others").mkdir()
    (tmp_path / "others/a.png").write_bytes(b"damaged")
    (tmp_path / "others/paths.csv").write_text("path\na.png\n")
    with pytest.raises(UserError, match="none of 1 picture can be read"):
        index(read_list(tmp_path / "others/paths.csv"), moved=True)
    assert stores[PLACE].about == before


# ---- what is refused


def refusal(index, rows, **options):
    before = rows()
    with pytest.raises(UserError) as raised:
        index(**options)
    assert rows().keys() == before.keys() and "\n" not in str(raised.value)
    return str(raised.value)


def test_another_folder_is_refused_unless_the_pictures_have_moved(
    indexed, gallery, tmp_path, rows, embedded, assert_holds
):
    put(tmp_path / "other/x.png", 30)
    message = refusal(indexed, rows, source=read_folder(tmp_path / "other"))
    assert message == (
        f"{PLACE} is an index of the pictures in {gallery}, not of those in {tmp_path}/other: if they were moved "
        "there, add --moved; else name another --index"
    )
    shutil.copytree(gallery, tmp_path / "copied", copy_function=shutil.copyfile)
    (tmp_path / "copied/a.png").rename(tmp_path / "copied/aa.png")
    source = read_folder(tmp_path / "copied")
    assert indexed(source, moved=True) == "6 pictures: 0 new, 0 changed, 1 renamed, 0 gone, 5 unchanged"
    assert not embedded
    assert_holds({"aa.png": 0, **{path: seed for path, seed in SEEDS.items() if path != "a.png"}})
    assert indexed(source).endswith("6 unchanged")  # the index states the new folder


def test_another_model_is_refused(indexed, rows, other_workdir, workdir):
    message = refusal(indexed, rows, workdir=other_workdir, encoder=None)
    assert message.startswith(f"{PLACE} was made with model ") and f"({workdir}), {other_workdir} has " in message
    assert message.endswith("name the folder of the index's model with --workdir, or another --index")


@pytest.mark.parametrize("change", [{"tokenizer": "0" * 64}, {"images": {"height": 15}}, {"dimension": 13}])
def test_an_index_made_with_another_tokenizer_size_or_width_is_refused(indexed, rows, stores, change):
    (key,) = change
    stores[PLACE].about = dataclasses.replace(stores[PLACE].about, **change)
    assert refusal(indexed, rows).startswith(f"{PLACE} was made with {key} {str(change[key])[:12]}")


def test_another_type_of_number_is_refused(indexed, rows):
    message = f"{PLACE} holds vectors of float32, not float16: leave --dtype out, or name another --index"
    assert refusal(indexed, rows, dtype="float16") == message


def test_the_index_knows_its_model(index, workdir, tmp_path, stores):
    with pytest.raises(UserError, match="there is no index at"):
        index(workdir=None)
    index()
    assert index(workdir=None, encoder=None).endswith("6 unchanged")
    shutil.copytree(workdir, tmp_path / "moved")
    assert index(workdir=tmp_path / "moved", encoder=None).endswith("6 unchanged")
    assert stores[PLACE].about.workdir == str(tmp_path / "moved")


def test_a_workdir_without_a_model_leaves_nothing(gallery, tmp_path):
    with pytest.raises(UserError, match="is not the workdir of a run"):
        build(tmp_path / "index", read_folder(gallery), Options(tmp_path))
    assert not (tmp_path / "index").exists()


# ---- vectors that were made elsewhere


@pytest.fixture
def shards(encoder, gallery, tmp_path):
    """The vectors of four of the gallery's pictures and of another: an archive with its own names, and a folder."""
    write_tar(tmp_path / "one.tar", {f"x/{seed}.png": picture(seed) for seed in (4, 30, 0)})
    write_tar(tmp_path / "none.tar", {})
    for shard in (tmp_path / "one.tar", tmp_path / "none.tar", gallery / "cam 1"):
        embed_shard(encoder, shard, tmp_path / "vectors", batch=1)
    return tmp_path / "vectors"


def test_pictures_embedded_elsewhere_are_known_by_content(
    shards, workdir, embedded, assert_holds, rows, gallery, encoder
):
    embedded.clear()
    built = build(PLACE, read_folder(gallery), Options(workdir, encoder, batch=1, vectors=shards))
    assert str(built).partition(";")[2].startswith(" 4 had been embedded; 2 embedded at ")
    assert (built.new, built.taken, built.embedded, embedded) == (6, 4, 2, [2])
    assert_holds(SEEDS)
    assert {Image.open(io.BytesIO(row.thumbnail)).size for row in rows().values()} == {(20, 30)}


def test_an_index_of_another_type_of_number_takes_them_rounded(index, shards, rows):
    index(vectors=shards, dtype="float16")
    (folder,) = (shard for shard in read_gallery(shards) if shard.names == ["c.png", "d.png"])
    for vector, path in zip(folder.vectors, ("cam 1/c.png", "cam 1/d.png"), strict=True):
        np.testing.assert_array_equal(rows()[path].vector, vector.astype(np.float16))


def test_vectors_of_another_model_are_refused(indexed, gallery, rows, other_workdir, workdir, tmp_path):
    embed_shard(Encoder(other_workdir), gallery / "cam 1", tmp_path / "others")
    message = refusal(indexed, rows, vectors=tmp_path / "others")
    assert message.startswith(f"{tmp_path}/others holds vectors of model ")
    assert message.endswith(f"embed with the index's model, {workdir}, or leave --vectors out")


def test_vectors_of_pictures_of_another_size_are_refused(indexed, shards, rows):
    about = json.loads((shards / "gallery.json").read_text())
    about["images"]["height"] += 1
    (shards / "gallery.json").write_text(json.dumps(about))
    assert refusal(indexed, rows, vectors=shards).startswith(f"{shards} holds vectors of images ")


def test_a_folder_without_vectors_is_refused(indexed, encoder, gallery, rows, tmp_path):
    assert "gallery.json is missing or damaged" in refusal(indexed, rows, vectors=gallery)
    write_tar(tmp_path / "none.tar", {})
    embed_shard(encoder, tmp_path / "none.tar", tmp_path / "none")
    assert refusal(indexed, rows, vectors=tmp_path / "none").startswith(f"{tmp_path}/none holds no vectors")


@pytest.mark.parametrize(
    "change",
    [
        lambda about, tensors: tensors.pop("digests"),
        lambda about, tensors: tensors.update(digests=tensors["digests"][:1]),
        lambda about, tensors: tensors.update(digests=tensors["digests"][:, :31]),
        lambda about, tensors: tensors.update(names=tensors["names"][:-1]),
        lambda about, tensors: tensors.update(vectors=tensors["vectors"].astype(np.float64)),
        lambda about, tensors: tensors.update(vectors=tensors["vectors"][:, :5]),
        lambda about, tensors: about.pop("model"),
        lambda about, tensors: about.update(format="two"),
    ],
)
def test_a_damaged_folder_of_vectors_is_one_line(indexed, shards, rows, change):
    path = shards / "one.tar.safetensors"
    about, tensors = json.loads((shards / "gallery.json").read_text()), load_file(path)
    change(about, tensors)
    metadata = read_header(path).metadata
    (shards / "gallery.json").write_text(json.dumps(about))
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path, metadata)
    assert refusal(indexed, rows, vectors=shards).startswith(f"{shards}/")


# ---- interruptions


class StopError(Exception):
    pass


WRITES = ("add", "delete", "set_about", "optimize")


@pytest.fixture
def stops(index, stores, monkeypatch):
    """stops(make, calls): builds on the store of make() with a failure at each call that writes; yields each store.

    calls: numbers of the calls; at a whole number it fails before the call, at .5 after it.
    """

    def stops(make, calls):
        for after in calls:
            store = stores[PLACE] = make()
            number = itertools.count()

            def failing(method, after=after, number=number):
                def call(*arguments):
                    mine = next(number)
                    if mine == after:
                        raise StopError
                    method(*arguments)
                    if mine + 0.5 == after:
                        raise StopError

                return call

            try:
                with monkeypatch.context() as patch:
                    for name in WRITES:
                        patch.setattr(store, name, failing(getattr(store, name)))
                    index()
                return
            except StopError:
                yield store

    return stops


def vectors_by_path(store):
    """Returns, by path, the vectors of all its rows."""
    found = {}
    for row in store.scan(vectors=True):
        found.setdefault(row.path, []).append(row.vector)
    return found


def assert_kept(store, vector_of, allowed):
    """Checks that one of the paths, joined by |, has a row, and each row the vector of an allowed seed."""
    found = vectors_by_path(store)
    for paths, seeds in allowed.items():
        vectors = [vector for path in paths.split("|") for vector in found.get(path, ())]
        assert vectors, f"{paths} lost its row"
        for vector in vectors:
            assert min(np.abs(vector - vector_of[seed]).max() for seed in seeds) < 1e-5, paths


def touch_all(gallery):
    for name in GALLERY:
        later(gallery / name)
    return SEEDS, {name: {seed} for name, seed in SEEDS.items()}


def change_all(gallery):
    for name, seed in SEEDS.items():
        put(gallery / name, seed + 20)
        later(gallery / name)
    return {name: seed + 20 for name, seed in SEEDS.items()}, {name: {seed, seed + 20} for name, seed in SEEDS.items()}


def rename_all(gallery):
    put(gallery / "cam 1/stays.png", 30)
    put(gallery / "cam 2/stays.png", 31)
    renamed = {name: f"{name.removesuffix('.png')} renamed.png" for name in GALLERY}
    for old, new in renamed.items():
        (gallery / old).rename(gallery / new)
    allowed = {f"{old}|{new}": {SEEDS[old]} for old, new in renamed.items()}
    seeds = {renamed[name]: seed for name, seed in SEEDS.items()}
    return {**seeds, "cam 1/stays.png": 30, "cam 2/stays.png": 31}, allowed


def move_all(gallery):
    """Moves all pictures into a new folder, and copies one."""
    (gallery / "stays.png").write_bytes(picture(30))
    moved = {name: f"moved/{name}" for name in GALLERY}
    for old, new in moved.items():
        (gallery / new).parent.mkdir(parents=True, exist_ok=True)
        (gallery / old).rename(gallery / new)
    shutil.rmtree(gallery / "cam 1")  # cam 2 stays, empty
    shutil.copy(gallery / "moved/a.png", gallery / "moved/copy.png")
    allowed = {f"{old}|{new}": {SEEDS[old]} for old, new in moved.items()}
    return {**{moved[name]: seed for name, seed in SEEDS.items()}, "moved/copy.png": 0, "stays.png": 30}, allowed


def swap_all(gallery):
    """Each file takes the name of another."""
    seeds = {name: (seed + 1) % 6 for name, seed in SEEDS.items()}
    for name, seed in seeds.items():
        put(gallery / name, seed)
        later(gallery / name)
    return seeds, {name: {SEEDS[name], seed} for name, seed in seeds.items()}


def change_some(gallery):
    """One change of each kind."""
    (gallery / "b.png").rename(gallery / "z.png")
    (gallery / "f.png").unlink()
    written = {"a.png": 20, "cam 1/c.png": 21, "cam 1/d.png": 22, "new.png": 23, "newer.png": 24}
    for name, seed in written.items():
        put(gallery / name, seed)
        later(gallery / name)
    changed = {"a.png": {0, 20}, "cam 1/c.png": {2, 21}, "cam 1/d.png": {3, 22}}
    return {"z.png": 1, "cam 2/e.png": 4, **written}, {"b.png|z.png": {1}, "cam 2/e.png": {4}, **changed}


@pytest.fixture(params=["lance", "qdrant"])
def make_store(request, tmp_path):
    """make_store(about): a new store of this kind."""
    numbers = itertools.count()

    def make_store(about):
        if request.param == "lance":
            return create_store(tmp_path / f"{next(numbers)}", about)
        return QdrantStore.create_in(QdrantClient(":memory:"), "index", about)

    return make_store


def test_both_kinds_of_store_keep_a_row_for_each_path_whatever_write_fails(
    index, gallery, stores, assert_holds, vector_of, monkeypatch, make_store, stops
):
    monkeypatch.setattr(builder, "ROWS", 3)
    index()
    first, about = [*stores[PLACE].scan(vectors=True, thumbnails=True)], stores[PLACE].about
    expected, allowed = change_all(gallery)
    (gallery / "cam 1").rename(gallery / "cam 9")  # its pictures changed as well: they are new, the old ones missing
    moved = {path.replace("cam 1", "cam 9"): seed for path, seed in expected.items()}
    out_of_reach = {path: seed for path, seed in SEEDS.items() if path.startswith("cam 1")}

    def make():
        store = make_store(about)
        store.add(first)
        return store

    reached = 0
    for store in stops(make, itertools.count()):
        reached += 1
        assert_kept(store, vector_of, allowed)
        index()
        assert_holds({**moved, **out_of_reach})
    assert reached == 8  # set_about, add, delete, add, delete; delete, set_about, optimize
    index(prune=True)
    assert_holds(moved)


@pytest.mark.parametrize(
    ("change", "most"),
    [(touch_all, 0), (change_all, 6), (rename_all, 2), (move_all, 1), (swap_all, 6), (change_some, 5)],
)
def test_no_path_loses_its_row_whatever_write_fails(
    index, gallery, stores, assert_holds, vector_of, monkeypatch, embedded, stops, change, most
):
    """As when the process is killed or the disk is full. The next build ends as if nothing had failed.

    most: how many pictures that build embeds at most: new and changed ones, and never what was renamed.
    """
    monkeypatch.setattr(builder, "ROWS", 2)
    index()
    first = stores[PLACE]
    expected, allowed = change(gallery)
    reached = 0
    for store in stops(first.copy, np.arange(0, 40, 0.5)):
        reached += 1
        assert_kept(store, vector_of, allowed)
        embedded.clear()
        index()
        assert_holds(expected)
        assert sum(embedded) <= most
        assert index().endswith(f"{len(expected)} unchanged")
    assert reached >= 10


def unfinished(store):
    """What a searcher says of the index."""
    return store.about.describe_unfinished(store.count())


def test_an_index_is_unfinished_from_its_first_rows_to_its_last(index, gallery, stores, monkeypatch, make_store):
    """In both kinds of store: a first build, its continuation, and an update that adds pictures."""
    monkeypatch.setattr(builder, "ROWS", 2)
    monkeypatch.setattr(builder, "create_store", lambda place, about: stores.setdefault(place, make_store(about)))
    real = {kind: kind.add for kind in (LanceStore, QdrantStore)}

    def fail_at(number):
        """Makes the call of this number fail; 0 for none."""
        calls = itertools.count(1)

        def add(store, rows):
            if next(calls) == number:
                raise StopError
            real[type(store)](store, rows)

        for kind in real:
            monkeypatch.setattr(kind, "add", add)

    for pictures in (2, 4):
        fail_at(2)
        with pytest.raises(StopError):
            index()
        assert stores[PLACE].count() == pictures
        assert f"unfinished ({pictures} of 6 pictures)" in unfinished(stores[PLACE])
    fail_at(1)  # a single write is left, of an index that is unfinished
    with pytest.raises(StopError):
        index()
    assert "unfinished (4 of 6 pictures)" in unfinished(stores[PLACE])
    fail_at(0)
    assert index() == "6 pictures: 2 new, 0 changed, 0 renamed, 0 gone, 4 unchanged"
    assert unfinished(stores[PLACE]) == "" and stores[PLACE].about.planned == 0
    for number in range(3):
        put(gallery / f"new {number}.png", 20 + number)
    fail_at(2)
    with pytest.raises(StopError):
        index()
    assert "unfinished (8 of 9 pictures)" in unfinished(stores[PLACE])
    (gallery / "new 2.png").unlink()  # nothing is left to do
    fail_at(0)
    index()
    assert unfinished(stores[PLACE]) == "" and stores[PLACE].about.planned == 0


def test_an_update_is_unfinished_only_while_pictures_are_to_be_added(indexed, gallery, stores, monkeypatch):
    said, add = [], stores[PLACE].add
    monkeypatch.setattr(stores[PLACE], "add", lambda rows: said.append(unfinished(stores[PLACE])) or add(rows))
    change_all(gallery)
    indexed()
    assert said == ["", ""]  # every picture has a row
    put(gallery / "new.png", 30)
    indexed()
    assert said[2:] == [""]  # one write, which is done whole or not at all
    shutil.rmtree(gallery / "cam 1")
    for number in range(5):
        put(gallery / f"cam 9/{number}.png", 31 + number)
    indexed(prune=True)
    message = "the index is unfinished; wait for its build, or run python -m ivt_jax.index again"
    assert said[3:] == [message, message] and unfinished(stores[PLACE]) == ""


def test_a_path_with_two_rows_is_mended(indexed, stores, rows, assert_holds, embedded):
    """As two leave it that indexed at once in a place without locks."""
    row = stores[PLACE].get([1], vectors=True, thumbnails=True)[0]
    stores[PLACE].rows[50] = row._replace(id=50)
    embedded.clear()
    assert indexed() == "6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged"
    assert_holds(SEEDS)
    assert not embedded and 50 not in stores[PLACE].rows


def test_decoding_is_a_few_batches_ahead_at_most(index, gallery, encoder, stores, monkeypatch):
    """An index of any size needs the memory of a few batches."""
    add_pictures(gallery, 90)
    read, waiting, most = builder.read_content, set(), []

    def count(name, file):
        waiting.add(name)
        most.append(len(waiting))
        return read(name, file)

    add = builder._Work._write

    def write(work, entries):
        waiting.difference_update(entry.picture.path for entry in entries)
        add(work, entries)

    monkeypatch.setattr(builder, "read_content", count)
    monkeypatch.setattr(builder._Work, "_write", write)
    index()
    assert len(stores[PLACE].rows) == 96
    assert max(most) <= 4 + 3 * encoder.devices + 1  # a write, a batch in hand, and two ahead


# ---- rows from before pictures were turned upright by EXIF


def lay_sideways(path, seed):
    """Stores the picture of a seed as a camera on its side does: orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(picture(seed))).rotate(90, expand=True).save(path, exif=exif)


@pytest.fixture
def made_before(index, gallery, stores, monkeypatch):
    """make(): an index of the gallery by a version that ignored orientation, and states nothing of it."""

    def make():
        with monkeypatch.context() as patch:
            patch.setattr("ivt_jax.encoding.images.as_rgb", lambda image: image.convert("RGB"))
            index()
        store = stores[PLACE]
        images = {key: value for key, value in store.about.images.items() if key != "orientation"}
        store.set_about(dataclasses.replace(store.about, images=images))

    return make


def test_an_older_index_gets_upright_vectors_where_it_needs_them(
    index, gallery, stores, rows, made_before, embedded, assert_holds, capsys
):
    lay_sideways(gallery / "b.png", 1)
    made_before()
    assert "sideways" not in stores[PLACE].about.to_json() and "orientation" not in stores[PLACE].about.images
    before, _ = rows(), embedded.clear()
    assert index() == "6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged"
    assert capsys.readouterr().err.startswith(
        f"{PLACE} has rows from before pictures were turned upright by EXIF: checking 6 pictures; those with an "
        "orientation are embedded again\n"
    )
    assert sum(embedded) == 1
    assert_holds(dict(zip(GALLERY, range(6), strict=True)))
    assert Image.open(io.BytesIO(rows()["b.png"].thumbnail)).size == (20, 30)
    assert all(rows()[path].id == before[path].id for path in GALLERY if path != "b.png")
    about = stores[PLACE].about
    assert about.sideways == 0 and "orientation" in about.images
    assert index().endswith("6 unchanged") and sum(embedded) == 1 and capsys.readouterr().err == ""


def test_no_vector_of_a_sideways_picture_is_taken_for_another_path(
    index, gallery, made_before, embedded, assert_holds, capsys
):
    """Renamed, copied, touched: all of them are embedded upright."""
    for seed, name in enumerate(("a.png", "b.png", "f.png")):
        lay_sideways(gallery / name, seed)
    made_before()
    (gallery / "a.png").rename(gallery / "cam 1/z.png")
    shutil.copy(gallery / "b.png", gallery / "copy.png")
    os.utime(gallery / "f.png", (1, 1))
    embedded.clear()
    assert index() == "7 pictures: 1 new, 0 changed, 1 renamed, 0 gone, 5 unchanged"
    assert_holds({"cam 1/z.png": 0, "b.png": 1, "copy.png": 1, "f.png": 2, "cam 1/c.png": 2, "cam 1/d.png": 3,
                  "cam 2/e.png": 4})  # fmt: skip


def test_rows_out_of_reach_are_checked_for_orientation_later(index, gallery, stores, made_before, assert_holds):
    lay_sideways(gallery / "cam 1/c.png", 2)
    made_before()
    (gallery / "cam 1").rename(gallery.parent / "away")
    assert index() == "6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged"
    assert stores[PLACE].about.sideways == 6
    (gallery.parent / "away").rename(gallery / "cam 1")
    assert index().endswith("6 unchanged")
    assert stores[PLACE].about.sideways == 0
    assert_holds(dict(zip(GALLERY, range(6), strict=True)))


def test_older_vectors_are_used_for_pictures_without_orientation(
    index, gallery, tmp_path, encoder, embedded, assert_holds, monkeypatch, capsys
):
    lay_sideways(gallery / "b.png", 1)
    out = tmp_path / "vectors"
    before = {key: value for key, value in encoder.about["images"].items() if key != "orientation"}
    with monkeypatch.context() as patch:
        patch.setattr("ivt_jax.encoding.images.as_rgb", lambda image: image.convert("RGB"))
        embed_shard(encoder, gallery, out)
    about = json.loads((out / "gallery.json").read_text())
    (out / "gallery.json").write_text(json.dumps({**about, "images": before}))
    path = out / "gallery.safetensors"
    metadata = json.loads(read_header(path).metadata["ivt_jax"])
    del metadata["orientation"]
    save_file(load_file(path), path, {"ivt_jax": json.dumps(metadata)})
    embedded.clear()
    index(vectors=out)
    assert sum(embedded) == 1
    assert_holds(dict(zip(GALLERY, range(6), strict=True)))
    capsys.readouterr()
    assert embed_shard(encoder, gallery, out).before  # neither refused nor done again
    path.unlink()
    assert not embed_shard(encoder, gallery, out).before
    assert capsys.readouterr().err.splitlines()[0] == (
        f"{out} has shards from before pictures were turned upright by EXIF, which stay as they are; to embed a shard "
        "again, remove its .safetensors"
    )
    (shard,) = read_gallery(out)
    assert "orientation" in shard.metadata
