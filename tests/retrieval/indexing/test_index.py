"""The command that makes an index and keeps it up to date, in the Lance format."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivt_jax import index
from ivt_jax.gallery import walk
from ivt_jax.gallery.shard import embed_shard
from ivt_jax.retrieval.stores.places import open_store
from ivt_jax.retrieval.stores.where import parse
from ivt_jax.run.workdir import lock_folder
from tests.retrieval.conftest import GALLERY, put

ROOT = Path(__file__).parents[3]


@pytest.fixture
def place(tmp_path):
    return tmp_path / "index"


@pytest.fixture
def call(workdir, gallery, place):
    """call(flags): the command on the gallery; a flag given again takes the place of the usual one."""

    def call(*flags):
        return index.main([f"--workdir={workdir}", f"--images={gallery}", f"--index={place}", "--batch=1", *flags])

    return call


def rows(place):
    found = list(open_store(place).scan(vectors=True, thumbnails=True))
    assert len({row.id for row in found}) == len({row.path for row in found}) == len(found)
    return {row.path: row for row in found}


def error_of(capsys):
    """Returns the error of a refused command, which prints no other line."""
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    return output.err.removeprefix("error: ").rstrip("\n")


def test_the_last_line_has_the_counts(call, place, gallery, capsys, vector_of):
    assert call() == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        rf"{place}: 6 pictures: 6 new, 0 changed, 0 renamed, 0 gone, 0 unchanged; 6 embedded at [\d,]+ a second", last
    )
    put(gallery / "g.png", 6)
    put(gallery / "f.png", 7)
    (gallery / "a.png").rename(gallery / "z.png")
    (gallery / "cam 2/e.png").unlink()
    assert call("--prune") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{place}: 6 pictures: 1 new, 1 changed, 1 renamed, 1 gone, 3 unchanged; 2 embedded at ")
    seeds = {"b.png": 1, "cam 1/c.png": 2, "cam 1/d.png": 3, "f.png": 7, "g.png": 6, "z.png": 0}
    found = rows(place)
    assert {*found} == {*seeds}
    for path, seed in seeds.items():
        np.testing.assert_allclose(found[path].vector, vector_of[seed], atol=1e-5)
    assert call() == 0
    assert capsys.readouterr().out == f"{place}: 6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged\n"


def test_the_columns_of_a_list_become_fields(gallery, place, workdir, capsys):
    listed = gallery / "list.jsonl"
    listed.write_text(
        '{"path": "a.png", "camera": 3}\n{"path": "cam 1/c.png", "camera": 4, "Ort, genau": "Tür \\"5\\""}\n'
    )
    assert index.main([f"--list={listed}", f"--index={place}", f"--workdir={workdir}"]) == 0
    assert open_store(place).about.fields == {"camera": "integer", "Ort, genau": "text"}
    assert {path: dict(row.metadata) for path, row in rows(place).items()} == {
        "a.png": {"camera": 3, "Ort, genau": None},
        "cam 1/c.png": {"camera": 4, "Ort, genau": 'Tür "5"'},
    }
    listed.write_text('{"path": "a.png", "time": "2024-05-01T14:30:00.123456+02:00", "camera": 3}\n')
    capsys.readouterr()
    assert index.main([f"--list={listed}", f"--index={place}"]) == 0  # the index knows its model
    fields, counts = capsys.readouterr().out.splitlines()
    assert fields == f"{place}: fields: time (time), camera (integer)"
    assert counts == f"{place}: 1 picture: 0 new, 1 changed, 0 renamed, 1 gone, 0 unchanged"
    assert str(rows(place)["a.png"].metadata["time"]) == "2024-05-01 12:30:00.123456+00:00"
    assert index.main([f"--list={listed}", f"--index={place}"]) == 0
    assert capsys.readouterr().out.endswith("0 gone, 1 unchanged\n")


def test_bad_lines_of_a_list_are_named_and_counted_by_reason(gallery, place, workdir, tmp_path, capsys):
    """As Excel writes it, with a line outside the folder, one without a path, a missing file and a bad time."""
    names = [*GALLERY, "../secret.png", "", "gone.png", f"{tmp_path}/other.png"]
    times = ["2024-05-01", "2024-13-45", *["2024-05-02"] * 8]
    lines = [f"{name};{time};{number}" for number, (name, time) in enumerate(zip(names, times, strict=True))]
    listed = gallery / "list.csv"
    listed.write_bytes("\r\n".join(["path; time; camera", *lines, ";;", ""]).encode("utf-8-sig"))
    put(tmp_path / "secret.png", 9)
    call = [f"--list={listed}", f"--index={place}", f"--workdir={workdir}"]
    assert index.main(call) == 1
    output = capsys.readouterr()
    skipped = [
        f"line 8 of list.csv: ../secret.png: not in {gallery}",
        "line 9 of list.csv: no path",
        f"line 11 of list.csv: {tmp_path}/other.png: not in {gallery}",
        "gone.png: missing",
    ]
    assert output.err.splitlines() == [
        f"{listed}: field time is text, because line 3 has '2024-13-45'; 6 of 7 values are of type time",
        *(f"skipped {line}" for line in skipped),
        f"{place}: 4 skipped: not in {gallery} (2), no path (1), missing (1)",
    ]
    assert (place / "unreadable.txt").read_text().splitlines() == skipped
    assert output.out.splitlines()[0] == f"{place}: fields: time (text), camera (integer)"
    assert {path: row.metadata["camera"] for path, row in rows(place).items()} == {
        path: number for number, path in enumerate(GALLERY)
    }
    listed.write_bytes(listed.read_bytes().replace(b"2024-13-45", b"2024-12-31"))
    assert index.main(call) == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == f"{place}: fields: time (time), camera (integer)"
    assert "because line" not in output.err


def test_a_list_without_a_path_in_the_folder_changes_nothing(gallery, place, workdir, capsys):
    listed = gallery / "list.csv"
    call = [f"--list={listed}", f"--index={place}", f"--workdir={workdir}"]
    listed.write_text("path\n" + "\n".join(GALLERY))
    assert index.main(call) == 0
    listed.write_text("path\n" + "\n".join(f"../{name}" for name in GALLERY))
    capsys.readouterr()
    assert index.main(call) == 2
    assert error_of(capsys) == f"{listed}: line 2: ../a.png is not in {gallery}; set --images to their common folder"
    assert {*rows(place)} == {*GALLERY}


def test_many_reasons_are_counted_together():
    pairs = [("a.jpg", "missing")] * 1_200 + [("a.jpg", f"reason {number}") for number in range(10)]
    lines = ", ".join(["missing (1,200)", *(f"reason {number} (1)" for number in range(7)), "other reasons (3)"])
    assert index._count_reasons(pairs, "skipped") == f"1,210 skipped: {lines}"


def test_each_unreadable_picture_is_one_line(call, gallery, place, capsys):
    for number in range(25):
        (gallery / f"bad\n{number:02}.jpg").write_bytes(b"no picture")
    put(gallery / 'good "quoted"\n🧥.png', 8)
    assert call() == 1
    output = capsys.readouterr()
    skipped = [line for line in output.err.splitlines() if line.startswith("skipped ")]
    assert len(skipped) == 21 and skipped[0] == r"skipped bad\n00.jpg: not a readable image"
    assert skipped[-1] == f"skipped 5 more, listed in {place}/unreadable.txt"
    listed = (place / "unreadable.txt").read_text().splitlines()
    assert len(listed) == 25 and listed[24] == r"bad\n24.jpg: not a readable image"
    assert output.out.startswith(f"{place}: 7 pictures: 7 new") and len(rows(place)) == 7
    for path in gallery.glob("bad*"):
        path.unlink()
    assert call() == 0
    assert (place / "unreadable.txt").read_text() == ""


def test_pictures_of_odd_shape_are_named_and_counted_once_and_are_no_fault(call, gallery, place, capsys):
    for number in range(21):
        Image.new("RGB", (200, 100 + number)).save(gallery / f"frame {number:02}.png")
    Image.new("RGB", (1, 1)).save(gallery / "dot.png")
    assert call() == 0
    error = capsys.readouterr().err.splitlines()
    assert error[0] == "odd dot.png: smaller than 8 x 25 pixels"
    assert error[1] == "odd frame 00.png: wider than high, as a full frame is"
    assert error[20:] == [
        f"odd 2 more, listed in {place}/unreadable.txt",
        f"{place}: 22 odd: wider than high, as a full frame is (21), smaller than 8 x 25 pixels (1); indexed all the "
        "same, but models learn from crops of one person: docs/search.md, Full frames",
    ]
    listed = (place / "unreadable.txt").read_text().splitlines()
    assert len(listed) == 22 and listed[-1] == "odd frame 20.png: wider than high, as a full frame is"
    assert sum(bool(row.odd) for row in rows(place).values()) == 22
    assert call() == 0 and capsys.readouterr().err == ""


def test_the_second_indexer_is_refused_in_one_line(call, place, capsys):
    assert call() == 0
    capsys.readouterr()
    with lock_folder(place, "indexer", "--index"):
        assert call() == 2
        assert error_of(capsys) == f"another indexer is at work in {place}: wait for its end, or choose another --index"
    assert call() == 0


def test_an_index_of_another_model_is_refused_in_one_line(call, place, workdir, other_workdir, capsys):
    call()
    before = rows(place)
    capsys.readouterr()
    assert call(f"--workdir={other_workdir}") == 2
    assert re.fullmatch(
        rf"{place} was made with model \w{{12}} \({workdir}\), {other_workdir} has \w{{12}}: name the folder of the "
        "index's model with --workdir, or another --index",
        error_of(capsys),
    )
    assert rows(place).keys() == before.keys()


def test_another_folder_needs_moved(call, place, gallery, tmp_path, capsys):
    call()
    shutil.copytree(gallery, tmp_path / "moved")
    capsys.readouterr()
    assert call(f"--images={tmp_path}/moved") == 2
    assert "if they were moved there, add --moved" in error_of(capsys)
    assert call(f"--images={tmp_path}/moved", "--moved") == 0
    assert capsys.readouterr().out.endswith("0 gone, 6 unchanged\n")


def test_a_folder_that_is_missing_or_empty_takes_nothing_away(call, place, gallery, capsys):
    call()
    shutil.rmtree(gallery)
    for message in (f"{gallery} is not a folder", f"{gallery} has no pictures"):
        capsys.readouterr()
        assert call() == 2
        assert message in error_of(capsys)
        gallery.mkdir(exist_ok=True)
    assert len(rows(place)) == 6


SECONDS = {
    "2300-01-01": 10_413_792_000, "1800-01-01": -5_364_662_400, "1969-12-31": -1, "epoch": 0,
    "2262-04-12": 9_223_372_800, "2400-01-01": 13_569_465_600,
}  # fmt: skip


@pytest.mark.parametrize("date", SECONDS)
def test_a_file_of_any_date_is_indexed_once(call, place, gallery, capsys, date):
    """A time of change in ns may need more than 64 bits."""
    assert call() == 0
    for name in ("a.png", "cam 1/c.png"):
        os.utime(gallery / name, (SECONDS[date], SECONDS[date]))
    if (gallery / "a.png").stat().st_mtime != SECONDS[date]:
        pytest.skip("this file system has no such dates")
    put(gallery / "new.png", 7)
    os.utime(gallery / "new.png", (SECONDS[date], SECONDS[date]))
    capsys.readouterr()
    assert call() == 0
    counts = capsys.readouterr().out.partition("; ")[0]
    assert counts.endswith("7 pictures: 1 new, 0 changed, 0 renamed, 0 gone, 6 unchanged")
    assert len(rows(place)) == 7
    assert call() == 0
    assert capsys.readouterr().out == f"{place}: 7 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 7 unchanged\n"
    put(gallery / "a.png", 8)
    os.utime(gallery / "a.png", (SECONDS[date] + 1, SECONDS[date] + 1))
    assert call() == 0
    assert "0 new, 1 changed, 0 renamed, 0 gone, 6 unchanged; 1 embedded" in capsys.readouterr().out


def test_folders_out_of_reach_are_named_and_need_prune(call, place, gallery, capsys):
    assert call() == 0
    shutil.rmtree(gallery / "cam 1")
    (gallery / "cam 2/e.png").unlink()
    capsys.readouterr()
    for _ in range(2):
        assert call() == 1
        output = capsys.readouterr()
        lines = [
            f"kept 2 rows in {gallery}/cam 1: the folder is missing",
            f"kept 1 row in {gallery}/cam 2: the folder holds no pictures",
        ]
        assert output.err.splitlines() == lines
        assert (place / "unreadable.txt").read_text().splitlines() == lines
        assert output.out == (
            f"{place}: 6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged; 3 of them kept without their "
            "pictures (--prune deletes them)\n"
        )
        assert len(rows(place)) == 6
    assert call("--prune") == 0
    output = capsys.readouterr()
    assert output.err == "" and (place / "unreadable.txt").read_text() == ""
    assert output.out == f"{place}: 3 pictures: 0 new, 0 changed, 0 renamed, 3 gone, 3 unchanged\n"
    assert {*rows(place)} == {"a.png", "b.png", "f.png"}


def test_of_many_folders_the_first_are_printed_and_all_are_listed(call, place, gallery, capsys):
    for number in range(23):
        put(gallery / f"track {number:02}/x.png", 10 + number)
    assert call() == 0
    for number in range(23):
        shutil.rmtree(gallery / f"track {number:02}")
    capsys.readouterr()
    assert call() == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21 and lines[0] == f"kept 1 row in {gallery}/track 00: the folder is missing"
    assert lines[-1] == f"kept 3 more, listed in {place}/unreadable.txt"
    assert len((place / "unreadable.txt").read_text().splitlines()) == 23


def test_rows_with_one_id_are_deleted_only_if_each_may_be(call, place, gallery, capsys):
    """Two indexers at once have given one id to two pictures; one of the pictures is out of reach."""
    call()
    store = open_store(place)
    first, second = store.get([0, 2], vectors=True, thumbnails=True)
    store.delete([0, 2])
    store.add([first._replace(id=8), second._replace(id=8)])
    (gallery / "cam 1").rename(gallery.parent / "away")
    capsys.readouterr()
    assert call() == 1
    assert "cam 1/c.png" in {row.path for row in open_store(place).scan()}
    (gallery.parent / "away").rename(gallery / "cam 1")
    assert call() == 0
    assert len(rows(place)) == 6


def test_the_rows_of_two_builds_at_once_are_mended(call, place, capsys):
    """In a place without locks both give the same ids to the same pictures."""
    call()
    store = open_store(place)
    store.add([*store.get([0, 1], vectors=True, thumbnails=True)])
    store.add([row._replace(id=9) for row in store.get([5], vectors=True, thumbnails=True)])
    assert store.count() == 9
    capsys.readouterr()
    assert call() == 0
    counts = capsys.readouterr().out.partition("6 pictures: ")[2]
    assert counts.startswith("2 new, 0 changed, 0 renamed, 0 gone, 4 unchanged")
    found = list(open_store(place).scan())
    assert len(found) == len({row.id for row in found}) == len({row.path for row in found}) == 6


def test_a_snapshot_is_an_equal_index(call, place, tmp_path, capsys):
    assert call(f"--snapshot={tmp_path}/copy") == 0
    first, second = rows(place), rows(tmp_path / "copy")
    assert first.keys() == second.keys() and len(second) == 6
    stated, copied = open_store(place).about, open_store(tmp_path / "copy").about
    assert stated.made != copied.made and dataclasses.replace(copied, made=stated.made) == stated
    for path, row in first.items():
        assert row[:6] == second[path][:6] and row.thumbnail == second[path].thumbnail
        np.testing.assert_array_equal(row.vector, second[path].vector)
    assert capsys.readouterr().out.splitlines()[1] == f"{tmp_path}/copy: a copy"
    assert call(f"--snapshot={tmp_path}/copy") == 2
    assert error_of(capsys).startswith(f"{tmp_path}/copy is an index already: remove it, or name another place")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images=nowhere"], "nowhere is not a folder; name the folder of pictures with --images"),
        (["--list=nowhere.csv"], "nowhere.csv cannot be read: No such file or directory"),
        (["--workdir=nowhere"], "nowhere is not the workdir of a run"),
        (["--index=GALLERY/a.png/index"], "a.png/index cannot be made: Not a directory"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(call, place, gallery, capsys, flags, message):
    assert call(*(flag.replace("GALLERY", str(gallery)) for flag in flags)) == 2
    assert message in error_of(capsys)
    assert not place.exists()


# ---- an index knows how it was made


def update(place, *flags):
    return index.main([f"--index={place}", *flags])


def test_the_index_alone_is_enough_to_update_it(gallery, place, workdir, capsys, monkeypatch, tmp_path):
    first = [f"--workdir={workdir}", "--images=gallery", "--path_fields=**/{name}.png", "--batch=2", "--dtype=float16"]
    monkeypatch.chdir(tmp_path)
    assert update(place, *first) == 0
    put(gallery / "g.png", 6)
    monkeypatch.chdir("/")  # as cron starts it
    capsys.readouterr()
    assert update(place) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[0] == f"{place}: fields: name (text)" and not output.err
    assert "7 pictures: 1 new, 0 changed, 0 renamed, 0 gone, 6 unchanged" in output.out
    assert rows(place)["g.png"].metadata == {"name": "g"}
    about = open_store(place).about
    assert about.source == {"images": str(gallery), "path_fields": "**/{name}.png", "batch": 2}
    assert (about.dtype, about.workdir) == ("float16", str(workdir))


def test_a_list_and_its_folder_are_remembered(gallery, place, workdir, capsys, tmp_path):
    listed = tmp_path / "lists/list.csv"
    listed.parent.mkdir()
    listed.write_text("path,camera\na.png,1\ncam 1/c.png,2\n")
    assert update(place, f"--list={listed}", f"--images={gallery}", f"--workdir={workdir}") == 0
    listed.write_text("path,camera\na.png,1\ncam 1/c.png,3\nb.png,3\n")
    capsys.readouterr()
    assert update(place) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith(f"{place}: 3 pictures: 1 new, 1 changed, 0 renamed, 0 go")
    )
    assert {path: row.metadata["camera"] for path, row in rows(place).items()} == {
        "a.png": 1, "b.png": 3, "cam 1/c.png": 3,
    }  # fmt: skip
    assert update(place, "--path_fields={a}.png") == 2
    assert error_of(capsys) == f"{place} was made from the list {listed}, which has its own fields: no --path_fields"
    listed.unlink()
    assert update(place) == 2
    remedy = "put it back, or name another list with --list"
    assert error_of(capsys) == f"{place} was made from the list {listed}, which is gone: {remedy}"


def test_a_folder_that_is_gone_is_one_line_and_changes_nothing(call, gallery, place, capsys):
    assert call() == 0
    gallery.rename(gallery.parent / "away")
    capsys.readouterr()
    assert update(place) == 2
    assert error_of(capsys) == (
        f"{place} is an index of the pictures in {gallery}, which is no folder now: mount it, or, if the pictures were "
        "moved, name their folder with --images and --moved"
    )
    assert update(place, f"--images={gallery.parent / 'away'}", "--moved") == 0
    assert update(place) == 0
    assert capsys.readouterr().out.endswith("6 pictures: 0 new, 0 changed, 0 renamed, 0 gone, 6 unchanged\n")


def test_an_index_that_does_not_know_its_pictures_asks_for_them(call, place, capsys):
    assert call() == 0
    store = open_store(place)
    store.set_about(dataclasses.replace(store.about, source={}))  # as older versions wrote it
    assert "source" not in store.about.to_json()
    capsys.readouterr()
    assert update(place) == 2
    assert error_of(capsys) == (
        f"{place} was made by an older version or another program, and does not know its pictures: name them once more "
        "with --images or --list"
    )
    assert call() == 0 and update(place) == 0


def test_without_an_index_the_pictures_are_needed(place, capsys):
    assert update(place) == 2
    make = "make it with python -m ivt_jax.index --workdir=RUN --images=FOLDER or --list=FILE"
    assert error_of(capsys) == f"{place} is not an index: {make}" and not place.exists()


def test_vectors_that_are_gone_are_no_fault_of_an_update(call, gallery, place, capsys, encoder, tmp_path):
    embed_shard(encoder, gallery / "cam 1", tmp_path / "vectors")
    assert call(f"--vectors={tmp_path}/vectors") == 0
    assert "; 2 had been embedded; 4 embedded at" in capsys.readouterr().out
    put(gallery / "copy.png", 7)
    embed_shard(encoder, gallery, tmp_path / "vectors")
    assert update(place) == 0
    assert capsys.readouterr().out.endswith("; 1 had been embedded\n")
    shutil.rmtree(tmp_path / "vectors")
    assert update(place) == 0
    assert capsys.readouterr().err == f"{place}: {tmp_path}/vectors of --vectors is gone: not used\n"


def test_paths_that_do_not_fit_are_named_and_counted(call, gallery, place, capsys):
    assert call("--path_fields=cam {camera}/{shot}.png") == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "unmatched a.png",
        "unmatched b.png",
        "unmatched f.png",
        f"{place}: 3 paths without fields, because --path_fields=cam {{camera}}/{{shot}}.png does not fit",
    ]
    assert output.out.splitlines()[0] == f"{place}: fields: camera (integer), shot (text)"
    assert (place / "unreadable.txt").read_text().splitlines() == [
        "unmatched a.png",
        "unmatched b.png",
        "unmatched f.png",
    ]
    assert {path: row.metadata["camera"] for path, row in rows(place).items()} == {
        "a.png": None, "b.png": None, "cam 1/c.png": 1, "cam 1/d.png": 1, "cam 2/e.png": 2, "f.png": None,
    }  # fmt: skip
    assert open_store(place).count(parse("camera = 1", open_store(place).about.fields)) == 2


def test_other_fields_of_paths_take_the_place_of_the_first_and_none_drop_them(call, place, capsys):
    assert call("--path_fields=**/{name}.png") == 0
    assert call("--path_fields=**/{n}.*") == 0
    assert rows(place)["cam 1/c.png"].metadata == {"n": "c"}
    assert call() == 0 and open_store(place).about.fields == {"n": "text"}  # also if the folder is named
    capsys.readouterr()
    assert call("--path_fields=") == 0
    assert "0 new, 6 changed, 0 renamed, 0 gone, 0 unchanged\n" in capsys.readouterr().out
    assert open_store(place).about.fields == {} and "path_fields" not in open_store(place).about.source


def test_another_folder_is_refused_before_its_paths_are_compared(call, place, workdir, tmp_path, capsys):
    assert call("--path_fields=cam {camera}/{shot}.png") == 0
    (tmp_path / "other").mkdir()
    Image.new("RGB", (10, 20)).save(tmp_path / "other/x.png")
    assert index.main([f"--index={place}", f"--workdir={workdir}", f"--images={tmp_path}/other"]) == 2
    assert "if they were moved there, add --moved" in capsys.readouterr().err


def test_a_malformed_pattern_is_refused_before_any_work(place, capsys):
    assert update(place, "--images=nowhere", "--path_fields={a") == 2
    assert error_of(capsys) == "--path_fields={a: the brace at character 1 has no other; {{ and }} stand for braces"


def test_a_first_index_needs_a_model(gallery, place, capsys):
    assert index.main([f"--images={gallery}", f"--index={place}"]) == 2
    assert "--workdir" in error_of(capsys) and not place.exists()


@pytest.mark.parametrize(
    "flags",
    [["--list=x.csv", "--path_fields={a}"], ["--images=x", "--dtype=int8"], ["--images=x", "--batch=0"], ["--image=x"]],
)
def test_flags_that_make_no_sense_are_refused(place, flags):
    with pytest.raises(SystemExit, match="2"):
        index.main([f"--index={place}", *flags])


@pytest.mark.parametrize("flags", ["'--help'", "'--index=x', '--images=nowhere'", "'--index=x', '--list=nowhere.csv'"])
def test_help_and_a_mistyped_folder_answer_without_jax(flags):
    code = (
        "import sys; from ivt_jax import index\n"
        f"try: index.main([{flags}])\n"
        "finally: print([m for m in ('jax', 'flax', 'orbax', 'lance', 'pyarrow') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert output.endswith("[]\n")


def test_files_that_are_passed_over_are_printed_and_kept_and_are_no_fault(call, gallery, place, capsys):
    for name in ("a.mp4", "b.mp4", "@eaDir/a.png/thumb.jpg", "._a.png"):
        (gallery / name).parent.mkdir(parents=True, exist_ok=True)
        (gallery / name).write_bytes(b"x")
    assert call() == 0
    lines = "passed over: 2 of no picture format (.mp4 2), 1 in @eaDir/, 1 hidden"
    assert capsys.readouterr().out.splitlines()[0] == f"{place}: {lines}"
    assert (place / "unreadable.txt").read_text() == f"{lines}\n" and len(rows(place)) == 6


def test_rows_in_folders_that_are_passed_over_now_stay_until_prune(call, gallery, place, capsys, monkeypatch):
    """An index made before such folders were passed over."""
    put(gallery / "@eaDir/t.png", 7)
    put(gallery / "._a.png", 8)
    with monkeypatch.context() as patch:
        patch.setattr(walk, "is_passed_folder", lambda name: False)
        patch.setattr(walk, "reason_to_pass", lambda *path_and_suffixes: None)
        assert call() == 0
    assert {"@eaDir/t.png", "._a.png"} < {*rows(place)}
    capsys.readouterr()
    assert call() == 1
    assert capsys.readouterr().err.splitlines() == [
        f"kept 1 row in {gallery}: hidden files and system folders are passed over now",
        f"kept 1 row in {gallery}/@eaDir: hidden files and system folders are passed over now",
    ]
    assert call("--prune") == 0
    assert {*rows(place)} == {"a.png", "b.png", "cam 1/c.png", "cam 1/d.png", "cam 2/e.png", "f.png"}


def test_an_older_index_is_brought_up_to_date_on_disk(call, gallery, place, capsys, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(gallery / "a.png") as image:
        image.rotate(90, expand=True).save(gallery / "s.png", exif=exif)
    with monkeypatch.context() as patch:
        patch.setattr("ivt_jax.encoding.images.as_rgb", lambda image: image.convert("RGB"))
        assert call() == 0
    store = open_store(place)
    images = {key: value for key, value in store.about.images.items() if key != "orientation"}
    store.set_about(dataclasses.replace(store.about, images=images))
    assert np.abs(rows(place)["a.png"].vector - rows(place)["s.png"].vector).max() > 0.01
    capsys.readouterr()
    assert call() == 0
    output = capsys.readouterr()
    assert "0 gone, 7 unchanged; 1 embedded at" in output.out and "checking 7 pictures" in output.err
    np.testing.assert_allclose(rows(place)["a.png"].vector, rows(place)["s.png"].vector, atol=1e-5)
    assert call() == 0 and capsys.readouterr().err == ""
