"""Indexes of galleries in tar archives: built, updated and searched without unpacking."""

import hashlib
import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from ivt_jax import index as command
from ivt_jax.gallery.crops import read_content
from ivt_jax.retrieval.indexing import build as builder
from ivt_jax.retrieval.indexing.build import Options, build
from ivt_jax.retrieval.indexing.missing import describe_kept
from ivt_jax.retrieval.indexing.sources import read_folder, read_list
from ivt_jax.retrieval.searcher import Searcher
from ivt_jax.retrieval.stores.places import open_store
from tests.gallery.conftest import picture, write_tar
from tests.retrieval.conftest import put

PLACE = "memory://index"
SEEDS = {"a.png": 0, "1.tar/x.png": 10, "1.tar/deep/y.png": 11, "sub/2.tar/x.png": 12, "sub/2.tar/z.png": 13}


def write(path, seeds, changed=[1]):  # noqa: B006 - the clock of this module
    """Writes an archive of pictures (name -> seed), each with a caption, later than all archives before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, seed in seeds.items():
        files |= {name: picture(seed), f"{name}.txt": b"A man."}
    write_tar(path, files)
    changed[0] += 1
    os.utime(path, ns=(0, changed[0] * 10**9))


@pytest.fixture
def gallery(tmp_path):
    folder = tmp_path / "gallery"
    put(folder / "a.png", 0)
    write(folder / "1.tar", {"x.png": 10, "deep/y.png": 11})
    write(folder / "sub/2.tar", {"x.png": 12, "z.png": 13})
    return folder


@pytest.fixture
def index(workdir, encoder, gallery, stores, monkeypatch):
    """index(...): builds the index in memory; returns the counts, the kept rows and the number of embedded pictures."""
    monkeypatch.setattr(builder, "ROWS", 2)

    def index(source=None, **options):
        built = build(PLACE, source or read_folder(gallery), Options(workdir, encoder, batch=1, **options))
        return str(built).partition(";")[0].partition(": ")[2], describe_kept(built.kept), built.embedded

    return index


@pytest.fixture
def assert_holds(stores, vector_of):
    def check(seeds):
        found = {row.path: row for row in stores[PLACE].scan(vectors=True, thumbnails=True)}
        assert {*found} == {*seeds} and len(found) == stores[PLACE].count()
        for path, seed in seeds.items():
            assert found[path].digest == hashlib.sha256(picture(seed)).hexdigest()
            np.testing.assert_allclose(found[path].vector, vector_of[seed], atol=1e-5)
            assert Image.open(io.BytesIO(found[path].thumbnail)).size == (20, 30)

    return check


def without(*paths):
    return {path: seed for path, seed in SEEDS.items() if path not in paths}


def test_pictures_in_archives_and_plain_ones_are_indexed_and_captions_counted(index, gallery, assert_holds):
    source = read_folder(gallery)
    assert [*source.pictures] == ["1.tar/x.png", "1.tar/deep/y.png", "a.png", "sub/2.tar/x.png", "sub/2.tar/z.png"]
    assert source.passed == {("suffix", ".txt"): 4} and source.unreadable == []
    assert index() == ("5 new, 0 changed, 0 renamed, 0 gone, 0 unchanged", [], 5)
    assert_holds(SEEDS)


def test_an_update_reads_no_picture_of_an_unchanged_archive(index, gallery, monkeypatch):
    index()
    monkeypatch.setattr(builder, "read_content", None)
    assert index() == ("0 new, 0 changed, 0 renamed, 0 gone, 5 unchanged", [], 0)


def test_of_an_archive_that_is_written_again_only_changed_pictures_are_embedded(index, gallery, assert_holds):
    index()
    write(gallery / "1.tar", {"new.png": 20, "x.png": 21})  # deep/y.png is gone
    assert index() == ("1 new, 1 changed, 0 renamed, 1 gone, 3 unchanged", [], 2)
    assert_holds({**without("1.tar/deep/y.png"), "1.tar/new.png": 20, "1.tar/x.png": 21})
    write(gallery / "1.tar", {"x.png": 21, "new.png": 20})  # in another order, so the places in the file are others
    assert index() == ("0 new, 0 changed, 0 renamed, 0 gone, 5 unchanged", [], 0)


def test_pictures_that_are_packed_and_unpacked_keep_their_vectors(index, gallery, assert_holds):
    index()
    (gallery / "a.png").unlink()
    write(gallery / "3.tar", {"a.png": 0})
    (gallery / "1.tar").unlink()
    put(gallery / "1/x.png", 10)
    put(gallery / "1/y.png", 11)
    assert index() == ("0 new, 0 changed, 3 renamed, 0 gone, 2 unchanged", [], 0)
    assert_holds({"3.tar/a.png": 0, "1/x.png": 10, "1/y.png": 11, "sub/2.tar/x.png": 12, "sub/2.tar/z.png": 13})


def test_a_deleted_archive_goes_and_one_in_a_folder_out_of_reach_stays(index, gallery, assert_holds):
    index()
    (gallery / "1.tar").unlink()
    (gallery / "sub").rename(gallery.parent / "away")
    kept = [f"2 rows in {gallery}/sub: the folder is missing"]
    assert index() == ("0 new, 0 changed, 0 renamed, 2 gone, 3 unchanged", kept, 0)
    assert_holds(without("1.tar/x.png", "1.tar/deep/y.png"))


def test_a_folder_of_archives_alone_holds_pictures(index, gallery, assert_holds):
    put(gallery / "sub/b.png", 1)
    write(gallery / "sub/4.tar", {"x.png": 14})
    index()
    (gallery / "sub/b.png").unlink()
    (gallery / "sub/4.tar").unlink()
    assert index()[:2] == ("0 new, 0 changed, 0 renamed, 2 gone, 5 unchanged", [])
    assert_holds(SEEDS)


def test_the_rows_after_the_end_of_a_cut_archive_stay(index, gallery, assert_holds, workdir, encoder):
    index()
    content = (gallery / "1.tar").read_bytes()
    header = content.index(b"deep/y.png")
    (gallery / "1.tar").write_bytes(content[: header + 520])
    source = read_folder(gallery)
    reason = "cut short or damaged after 2 entries"
    assert source.unreadable == [("1.tar", reason)] and source.closed == ("1.tar",)
    kept = [f"1 row in {gallery}/1.tar: {reason}"]
    assert index(source) == ("0 new, 0 changed, 0 renamed, 0 gone, 5 unchanged", kept, 0)
    assert_holds(SEEDS)
    (gallery / "1.tar").write_bytes(content)
    assert index() == ("0 new, 0 changed, 0 renamed, 0 gone, 5 unchanged", [], 0)
    (gallery / "1.tar").write_bytes(b"no archive")
    kept = [f"2 rows in {gallery}/1.tar: no tar archive"]
    assert index() == ("0 new, 0 changed, 0 renamed, 0 gone, 5 unchanged", kept, 0)
    assert index(prune=True)[0] == "0 new, 0 changed, 0 renamed, 2 gone, 3 unchanged"


def test_an_archive_that_is_written_during_a_build_keeps_its_rows(index, gallery, assert_holds):
    index()
    write(gallery / "1.tar", {"x.png": 10, "deep/y.png": 22})
    source = read_folder(gallery)
    write(gallery / "1.tar", {"deep/y.png": 23, "x.png": 10})
    reason = "the archive has changed since it was listed: run the command again"
    assert index(source)[1] == [f"2 rows in {gallery}/1.tar: {reason}"]
    assert_holds(SEEDS)
    assert index()[2] == 1
    assert_holds({**SEEDS, "1.tar/deep/y.png": 23})


def test_links_to_archives_out_of_the_folder_and_pipes_are_named_and_not_opened(index, gallery, tmp_path):
    write(tmp_path / "secret.tar", {"s.png": 30})
    (gallery / "link.tar").symlink_to(tmp_path / "secret.tar")
    (gallery / "inner.tar").symlink_to("1.tar")
    os.mkfifo(gallery / "pipe.tar")
    (gallery / "gone.tar").symlink_to("nowhere.tar")
    source = read_folder(gallery)
    assert dict(source.unreadable) == {
        "link.tar": "a link that leads out of the folder of pictures", "pipe.tar": "not a file", "gone.tar": "missing",
    }  # fmt: skip
    assert {*source.pictures} == {*SEEDS, "inner.tar/x.png", "inner.tar/deep/y.png"}
    assert index(source)[2] == 7


def test_a_list_names_pictures_in_archives(index, gallery, assert_holds, stores):
    (gallery / "list.csv").write_text("path,camera\nsub/2.tar/z.png,2\n1.tar/x.png,1\n1.tar/none.png,1\n1.tar,1\n")
    source = read_list(gallery / "list.csv")
    assert source.unreadable == [("1.tar/none.png", "missing")] and [*source.pictures][:2] == [
        "sub/2.tar/z.png",
        "1.tar/x.png",
    ]
    assert index(source)[0] == "2 new, 0 changed, 0 renamed, 0 gone, 0 unchanged"  # 1.tar itself is no picture
    assert_holds({"sub/2.tar/z.png": 13, "1.tar/x.png": 10})
    (gallery / "list.csv").write_text("path,camera\nsub/2.tar/z.png,2\n1.tar/x.png,7\n")
    write(gallery / "sub/2.tar", {"x.png": 12})
    assert index(read_list(gallery / "list.csv"))[:2] == ("0 new, 1 changed, 0 renamed, 1 gone, 0 unchanged", [])
    assert [row.metadata for row in stores[PLACE].scan()] == [{"camera": 7}]


def test_faults_in_archives_are_named_by_the_command(gallery, workdir, tmp_path, capsys):
    with tarfile.open(gallery / "3.tar", "w") as archive:
        for name in ("/etc/x.png", "../x.png", "b.png", "b.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture(5))
            archive.addfile(member, io.BytesIO(picture(5)))
        member = tarfile.TarInfo("l.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    (gallery / "4.tar").write_bytes(b"")
    place = tmp_path / "index"
    assert command.main([f"--workdir={workdir}", f"--images={gallery}", f"--index={place}"]) == 1
    out = "its name has .. or begins with /"
    assert capsys.readouterr().err.splitlines() == [
        "skipped 4.tar: no tar archive",
        f"skipped 3.tar//etc/x.png: {out}",
        f"skipped 3.tar/../x.png: {out}",
        "skipped 3.tar/b.png: a later entry of the archive has the same name, and counts",
        "skipped 3.tar/l.png: a link, a device or a sparse file, not a file of the archive",
        f"{place}: 5 skipped: {out} (2), no tar archive (1), a later entry of the archive has the same name, and "
        "counts (1), a link, a device or a sparse file, not a file of the archive (1)",
    ]
    assert {row.path for row in open_store(place).scan()} == {*SEEDS, "3.tar/b.png"}


def test_a_search_explains_the_original_in_its_archive(gallery, workdir, encoder, tmp_path):
    """A thumbnail has 160 x 192 pixels at most, the original 300 x 600."""
    file = io.BytesIO()
    Image.new("RGB", (300, 600), "red").save(file, "PNG")
    write_tar(gallery / "1.tar", {"large.png": file.getvalue()})
    build(tmp_path / "index", read_folder(gallery), Options(workdir, encoder))
    searcher = Searcher.open(tmp_path / "index")
    (row,) = (row for row in searcher.store.scan() if row.path == "1.tar/large.png")
    image, heats = searcher.heat_maps(row.id, ["red coat"])
    assert image.size == (300, 600) and len(heats) == 1
    assert read_content("large", searcher.file(row.path)) == file.getvalue()
    write_tar(gallery / "1.tar", {"large.png": picture(3)})
    assert searcher.heat_maps(row.id, ["red coat"])[0].size == (96, 192)
