"""An indexer that is killed, at any moment, and run again, or twice: the index is as if nothing had been."""

import signal
import sys

import numpy as np
import pytest

from ivt_jax import index
from ivt_jax.retrieval.places import open_store
from tests.faults.conftest import Process
from tests.gallery.conftest import picture

# `python -m ivt_jax.index`, writing two rows at a time, that says so before each call that writes; it stands still at
# the one of number {at}, and waits {pause} seconds at each.
SLOWLY = """
import sys, time
from ivt_jax import index
from ivt_jax.retrieval import build, lance

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
    """start(at, pause): the process of an indexer of tmp_path/gallery."""
    started = []

    def start(at=0, pause=0):
        code = SLOWLY.format(at=at, pause=pause)
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
        log = tmp_path / f"{len(started)}.log"
        started.append(Process(log, [sys.executable, "-c", code, *flags(tmp_path, workdir, "index")], environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def flags(folder, workdir, name):
    return [f"--workdir={workdir}", f"--images={folder}/gallery", f"--index={folder}/{name}", "--batch=1"]


def put(folder, seeds):
    (folder / "gallery").mkdir(exist_ok=True)
    for name, seed in seeds.items():
        (folder / "gallery" / name).write_bytes(picture(seed))


def assert_as_uninterrupted(folder, workdir):
    """The index holds what one holds that is built at once of the same gallery: no gaps, and nothing twice."""
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
    paths = [row.path for row in open_store(tmp_path / "index").scan()]
    assert len({*paths}) == len(paths) and {"0.png", "6.png"} < {*paths}
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
    told = f"error: another indexer is at work in {place}: wait for its end, or choose another --index"
    assert second.lines() == [told]
    assert first.finish() == 0, first.said()
    assert_as_uninterrupted(tmp_path, workdir)
