"""Builds that are killed at any moment, fill the disk or run twice: the next one completes the index."""

import ctypes
import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest

from ivt_jax import index, search
from ivt_jax.retrieval.stores.places import open_store
from tests.conftest import QUICKLY
from tests.faults.conftest import Process, mounted
from tests.gallery.conftest import picture

# `python -m ivt_jax.index` with two rows per write. Prints a line before each call that writes, stops at call number
# {at}, and waits {pause} seconds at the others.
SLOWLY = """
import sys, time
from ivt_jax import index
from ivt_jax.retrieval.indexing import build
from ivt_jax.retrieval.stores import lance

calls = 0

def slowly(name):
    method = getattr(lance.LanceStore, name)
    def call(*arguments):
        global calls
        calls += 1
        print(f"(call {{calls}}: {{name}})", file=sys.stderr, flush=True)
        time.sleep(600 if calls == {at} else {pause})
        return method(*arguments)
    setattr(lance.LanceStore, name, call)

build.ROWS = 2
for name in ("add", "delete", "set_about", "optimize"):
    slowly(name)
sys.exit(index.main(sys.argv[1:]))
"""


@pytest.fixture
def start(tmp_path, workdir):
    """start(at, pause, *flags): the process of an indexer of tmp_path/gallery.

    before: a command that runs this one; code: a program to run instead; options: passed to Popen.
    """
    started = []

    def start(at=0, pause=0, *more, before=(), code=None, **options):
        code = code or SLOWLY.format(at=at, pause=pause)
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICKLY}
        log = tmp_path / f"{len(started)}.log"
        command = [*before, sys.executable, "-c", code, *flags(tmp_path, workdir, "index"), *more]
        started.append(Process(log, command, environment, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def flags(folder, workdir, name):
    return [f"--workdir={workdir}", f"--images={folder}/gallery", f"--index={folder}/{name}", "--batch=1"]


def put(folder, seeds):
    for name, seed in seeds.items():
        (folder / "gallery" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "gallery" / name).write_bytes(picture(seed))


def assert_as_uninterrupted(folder, workdir):
    """The index equals one that was built without interruption: no gaps, and nothing twice."""
    assert index.main(flags(folder, workdir, "whole")) == 0
    found, expected = (list(open_store(folder / name).scan(True, True)) for name in ("index", "whole"))
    assert len({row.id for row in found}) == len(found)
    found, expected = (sorted(rows, key=lambda row: row.path) for rows in (found, expected))
    assert [row[1:6] for row in found] == [row[1:6] for row in expected]
    assert [row.thumbnail for row in found] == [row.thumbnail for row in expected]
    np.testing.assert_allclose([row.vector for row in found], [row.vector for row in expected], atol=1e-6)


@pytest.mark.faults
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_first_build_that_is_killed_goes_on(start, tmp_path, workdir, at, capsys):
    put(tmp_path, {f"{seed}.png": seed for seed in range(7)})
    process = start(at)
    process.wait_for(f"(call {at}: ")
    process.send(signal.SIGKILL)
    assert process.finish() == -signal.SIGKILL
    assert index.main(flags(tmp_path, workdir, "index")) == 0
    assert_as_uninterrupted(tmp_path, workdir)


@pytest.fixture
def ask(tmp_path, workdir, capsys):
    """ask(): the answer to a sentence, as JSON; the model has a calibration."""
    shutil.copytree(workdir, tmp_path / "model")
    calibration = {"slope": 1.0, "offset": 0.0, "threshold": -1.0, "miss": 0.05, "caught": 0.4, "gallery": 1200}
    (tmp_path / "model/val").mkdir()
    (tmp_path / "model/val/summary.json").write_text(json.dumps({"calibration": calibration}))

    def ask():
        capsys.readouterr()
        assert search.main([f"--index={tmp_path}/index", f"--workdir={tmp_path}/model", "a red coat", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return ask


def assert_unfinished(answer, pictures, planned):
    message = f"({pictures} of {planned} pictures); wait for its build, or run python -m ivt_jax.index again"
    assert answer["unfinished"] == f"the index is unfinished {message}"
    assert answer["verdict"] == f"No confidence estimate: {answer['unfinished']}" and answer["good"] is None
    assert {result["probability"] for result in answer["results"]} == {None}


def assert_finished(answer):
    assert answer["unfinished"] == "" and answer["good"] and answer["results"][0]["probability"] > 0


@pytest.mark.faults
def test_an_index_whose_build_was_killed_is_unfinished_until_it_is_built(start, tmp_path, workdir, ask):
    """A first build of 7 pictures, 2 at a time, and an update that adds 5, each before its third addition."""
    put(tmp_path, {f"{seed}.png": seed for seed in range(7)})
    process = start(5)
    process.wait_for("(call 5: add")
    process.send(signal.SIGKILL)
    assert process.finish() == -signal.SIGKILL
    assert_unfinished(ask(), 4, 7)
    assert index.main(flags(tmp_path, workdir, "index")) == 0
    assert_finished(ask())
    put(tmp_path, {f"{seed}.png": seed for seed in range(7, 12)})
    process = start(6)
    process.wait_for("(call 6: add")
    assert_unfinished(ask(), 11, 12)  # while it is running
    process.send(signal.SIGKILL)
    assert process.finish() == -signal.SIGKILL
    assert_unfinished(ask(), 11, 12)
    assert index.main(flags(tmp_path, workdir, "index")) == 0
    assert_finished(ask())
    assert_as_uninterrupted(tmp_path, workdir)


@pytest.mark.faults
@pytest.mark.parametrize("at", range(1, 9))
def test_an_update_that_is_killed_goes_on(start, tmp_path, workdir, at, capsys):
    """Before each call that writes: of an update with new, changed, renamed and deleted pictures."""
    put(tmp_path, {f"{seed}.png": seed for seed in range(7)})
    assert index.main(flags(tmp_path, workdir, "index")) == 0
    put(tmp_path, {"1.png": 11, "2.png": 12, "3.png": 13, "8.png": 8, "9.png": 9})
    (tmp_path / "gallery/4.png").rename(tmp_path / "gallery/renamed.png")
    (tmp_path / "gallery/5.png").unlink()
    process = start(at)
    process.wait_for(f"(call {at}: ")
    process.send(signal.SIGKILL)
    assert process.finish() == -signal.SIGKILL
    paths = {row.path for row in open_store(tmp_path / "index").scan()}
    assert {"0.png", "1.png", "2.png", "3.png", "6.png"} < paths and paths & {"4.png", "renamed.png"}
    assert index.main(flags(tmp_path, workdir, "index")) == 0
    assert_as_uninterrupted(tmp_path, workdir)


@pytest.mark.faults
def test_an_indexer_that_is_killed_again_and_again_comes_to_an_end(start, tmp_path, workdir):
    put(tmp_path, {f"{seed}.png": seed for seed in range(12)})
    for _ in range(8):
        process = start(pause=0.2)
        process.wait_for("(call 3: ")
        process.send(signal.SIGKILL)
        process.finish()
        if open_store(tmp_path / "index").count() == 12:
            break
    assert open_store(tmp_path / "index").count() == 12
    assert index.main(flags(tmp_path, workdir, "index")) == 0
    assert_as_uninterrupted(tmp_path, workdir)


@pytest.mark.faults
def test_the_second_of_two_indexers_gives_way_and_the_first_goes_on(start, tmp_path, workdir):
    put(tmp_path, {f"{seed}.png": seed for seed in range(8)})
    first = start(pause=1)
    first.wait_for("(call 1: ")
    second = start()
    assert second.finish() == 2
    place = tmp_path / "index"
    message = f"error: another indexer is at work in {place}: wait for its end, or choose another --index"
    assert second.lines() == [message]
    assert first.finish() == 0, first.said()
    assert_as_uninterrupted(tmp_path, workdir)


def without_privilege():
    """Gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, so that permissions of files hold for root as well."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def paths_of(folder):
    return sorted(row.path for row in open_store(folder / "index").scan())


SHARED = {"a.png": 0, "b.png": 1, "share/c.png": 2, "share/d.png": 3, "share/deep/e.png": 4}


@pytest.mark.faults
@pytest.mark.parametrize("at", range(1, 7))
def test_no_path_loses_its_row_where_a_build_is_killed(start, tmp_path, workdir, at, capsys):
    """Three times ROWS files were changed: each write of the build adds rows or deletes the rows that they replace."""
    put(tmp_path, {f"{seed}.png": seed for seed in range(6)})
    assert index.main(flags(tmp_path, workdir, "index")) == 0
    put(tmp_path, {f"{seed}.png": seed + 10 for seed in range(6)})
    process = start(at)
    process.wait_for(f"(call {at}: ")
    process.send(signal.SIGKILL)
    process.finish()
    assert {*paths_of(tmp_path)} == {f"{seed}.png" for seed in range(6)}
    assert index.main(flags(tmp_path, workdir, "index")) == 0
    assert_as_uninterrupted(tmp_path, workdir)


@pytest.mark.faults
def test_an_empty_mount_point_keeps_its_rows(start, tmp_path, workdir, capsys):
    put(tmp_path, SHARED)
    assert index.main(flags(tmp_path, workdir, "index")) == 0
    process = start(before=mounted("ro", tmp_path / "gallery/share"))
    assert process.finish() == 1, process.said()
    message = f"kept 3 rows in {tmp_path}/gallery/share: the folder holds no pictures"
    assert message in process.lines() and "0 gone, 5 unchanged; 3 of them kept" in process.lines()[-1]
    assert paths_of(tmp_path) == sorted(SHARED)
    process = start(0, 0, "--prune", before=mounted("ro", tmp_path / "gallery/share"))
    assert process.finish() == 0, process.said()
    assert "3 gone, 2 unchanged" in process.lines()[-1] and paths_of(tmp_path) == ["a.png", "b.png"]


@pytest.mark.faults
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_without_permission_keeps_its_rows(start, tmp_path, workdir, capsys, listed, mode):
    put(tmp_path, SHARED)
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(SHARED))
    more = [f"--list={tmp_path}/list.csv"] if listed else []
    assert index.main([*flags(tmp_path, workdir, "index"), *more]) == 0
    (tmp_path / "gallery/share").chmod(mode)
    try:
        process = start(0, 0, *more, preexec_fn=without_privilege)
        code = process.finish()
    finally:
        (tmp_path / "gallery/share").chmod(0o755)
    assert "0 gone, 5 unchanged" in process.said(), process.said()
    assert paths_of(tmp_path) == sorted(SHARED)
    if not (listed and mode == 0o111):  # this mode suffices for known paths
        assert code == 1 and re.search(
            rf"kept \d rows? in {tmp_path}/gallery/share\S*: Permission denied", process.said()
        )
    assert index.main([*flags(tmp_path, workdir, "index"), *more]) == 0
    assert paths_of(tmp_path) == sorted(SHARED)


@pytest.mark.faults
@pytest.mark.parametrize("listed", [False, True])
def test_files_without_permission_keep_their_rows(start, tmp_path, workdir, capsys, listed):
    put(tmp_path, SHARED)
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(SHARED))
    more = [f"--list={tmp_path}/list.csv"] if listed else []
    assert index.main([*flags(tmp_path, workdir, "index"), *more]) == 0
    for name in ("share/c.png", "share/d.png"):
        os.utime(tmp_path / "gallery" / name, (7, 7))  # so that they are read again
        (tmp_path / "gallery" / name).chmod(0)
    process = start(0, 0, *more, preexec_fn=without_privilege)
    assert process.finish() == 1, process.said()
    assert f"kept 2 rows in {tmp_path}/gallery/share: Permission denied" in process.lines()
    assert "skipped share/c.png: Permission denied" in process.lines()
    assert paths_of(tmp_path) == sorted(SHARED)


FULL = """
import os, sys
from pathlib import Path
from ivt_jax import index
from ivt_jax.retrieval.indexing import build
from ivt_jax.retrieval.stores.places import open_store
from tests.gallery.conftest import picture

build.ROWS = 20
flags, folder = sys.argv[1:], Path({folder!r})

def fill(name, least):
    with open(folder / "index" / name, "wb", 0) as file:
        try:
            while True:
                file.write(bytes(least))
        except OSError:
            pass

assert index.main(flags) == 0
expected = sorted(row.path for row in open_store(folder / "index").scan())
for number, path in enumerate(sorted((folder / "gallery").iterdir())):
    path.write_bytes(picture(number + 100))
fill("filler", 4096)
with open(folder / "index/filler", "r+b") as file:
    file.truncate(os.path.getsize(folder / "index/filler") - {room})
code = index.main(flags)
os.remove(folder / "index/filler")
found = sorted({{row.path for row in open_store(folder / "index").scan()}})
print("stopped with", code, "and all paths" if found == expected else found, flush=True)
code = index.main(flags)
found = sorted(row.path for row in open_store(folder / "index").scan())
print("ended with", code, "and each path once" if found == expected else found, flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize("room", [0, 60_000, 120_000])
def test_no_path_loses_its_row_where_the_disk_is_full(start, tmp_path, workdir, room):
    put(tmp_path, {f"{seed:02}.png": seed for seed in range(80)})
    (tmp_path / "index").mkdir()
    code = FULL.format(folder=str(tmp_path), room=room)
    process = start(before=mounted("size=4m", tmp_path / "index"), code=code)
    assert process.finish() == 0, process.said()
    assert "stopped with 2 and all paths" in process.said(), process.said()
    assert "ended with 0 and each path once" in process.said() and "Traceback" not in process.said()


FIRST = (
    FULL.partition("assert ")[0]
    + """
def say(code):
    store = open_store(folder / "index")
    print("ended with", code, store.about.describe_unfinished(store.count()), flush=True)

fill("filler", 4096)
with open(folder / "index/filler", "r+b") as file:
    file.truncate(os.path.getsize(folder / "index/filler") - {room})
say(index.main(flags))
os.remove(folder / "index/filler")
say(index.main(flags))
"""
)


@pytest.mark.faults
def test_an_index_whose_first_build_has_filled_the_disk_is_unfinished(start, tmp_path, workdir):
    put(tmp_path, {f"{seed:02}.png": seed for seed in range(80)})
    (tmp_path / "index").mkdir()
    process = start(before=mounted("size=4m", tmp_path / "index"), code=FIRST.format(folder=str(tmp_path), room=80_000))
    assert process.finish() == 0, process.said()
    message = r"ended with 2 the index is unfinished \([246]0 of 80 pictures\); wait for its build, or run python"
    assert re.search(message, process.said()) and "Traceback" not in process.said(), process.said()
    assert process.lines()[-1].strip() == "ended with 0"
