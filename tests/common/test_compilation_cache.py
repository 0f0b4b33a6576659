"""JAX's cache of compiled programs after damage: real processes compile under `keep_compiled`, with a small limit."""

import fcntl
import os
import stat
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import pytest

from ivt_jax.common import compilation_cache
from ivt_jax.common.compilation_cache import keep_compiled, remove_on_warning, remove_unusable

ROOT = Path(__file__).parents[2]
NAMES = (
    "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)  # fmt: skip
# Compiles one program, whose key has a prefix of its own, and prints how many were found in the cache.
PROGRAM = """
import sys
from ivt_jax.common.compilation_cache import keep_compiled
keep_compiled()
import jax
import jax.numpy as jnp

found = []
jax.monitoring.register_event_listener(lambda event, **_: event.endswith("/cache_hits") and found.append(event))

def program(x):
    return jnp.sin(x) * 7

jax.jit(program).lower(jax.ShapeDtypeStruct((3,), "float32")).compile()
print(len(found))
"""


@pytest.fixture
def without(monkeypatch):
    """The variables as a user's shell has them: not at all."""
    for name in (*NAMES, "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # so that it is undone even where there was none
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    "variable, inner", [("XDG_CACHE_HOME", "ivt_jax/compiled"), ("HOME", ".cache/ivt_jax/compiled")]
)
def test_programs_are_kept_where_the_user_alone_may_write(without, tmp_path, variable, inner):
    without.setenv(variable, str(tmp_path))
    keep_compiled()
    assert os.environ[NAMES[0]] == str(tmp_path / inner)
    assert os.environ[NAMES[1]] == str(compilation_cache.COMPILED_BYTES)
    assert float(os.environ[NAMES[2]]) == compilation_cache.KEPT_SECONDS
    assert stat.S_IMODE((tmp_path / inner).stat().st_mode) == 0o700


def test_the_folder_that_the_user_names_stays(without, tmp_path):
    without.setenv("XDG_CACHE_HOME", str(tmp_path))
    without.setenv(NAMES[0], "elsewhere")
    keep_compiled()
    assert (os.environ[NAMES[0]], list(tmp_path.iterdir())) == ("elsewhere", [])
    assert NAMES[1] not in os.environ


def test_limits_that_the_user_sets_stay(without, tmp_path):
    limits = {"XDG_CACHE_HOME": str(tmp_path), NAMES[1]: "1000", NAMES[2]: "5"}
    for name, value in limits.items():
        without.setenv(name, value)
    keep_compiled()
    assert {name: os.environ[name] for name in limits} == limits


def test_without_a_place_to_write_nothing_is_kept(without, tmp_path):
    (tmp_path / "file").write_text("")
    without.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled()
    assert NAMES[0] not in os.environ


@pytest.mark.parametrize("name", ["[x]", "a*b"])
def test_where_jax_would_not_find_its_entries_nothing_is_kept(without, tmp_path, name):
    without.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    keep_compiled()
    assert NAMES[0] not in os.environ


def test_a_folder_of_another_user_keeps_nothing(without, tmp_path):
    without.setenv("XDG_CACHE_HOME", str(tmp_path))
    without.setattr(compilation_cache.os, "access", lambda path, mode: False)  # root may write everywhere
    keep_compiled()
    assert NAMES[0] not in os.environ


@pytest.mark.parametrize(("limit", "left"), [("-1", ["jit_a-1-cache"]), ("1000", [".lockfile"])])
def test_half_entries_are_removed_where_jax_has_a_limit(without, tmp_path, limit, left):
    folder = tmp_path / "ivt_jax/compiled"
    folder.mkdir(parents=True)
    (folder / "jit_a-1-cache").touch()
    without.setattr(warnings, "showwarning", show := warnings.showwarning)  # so that it is undone
    without.setenv("XDG_CACHE_HOME", str(tmp_path))
    without.setenv(NAMES[1], limit)
    keep_compiled()
    assert [path.name for path in folder.iterdir()] == left
    assert (warnings.showwarning is show) == (limit == "-1")


def test_who_has_no_home_keeps_nothing(without):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    without.setattr(compilation_cache.Path, "home", nobody)
    keep_compiled()
    assert NAMES[0] not in os.environ


@pytest.fixture
def compile_again(tmp_path):
    """compile_again(): compiles the program in a fresh process; returns how many it found, and its stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_MAX_SIZE": "100000"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def run():
        command = [sys.executable, "-c", PROGRAM]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, process.stderr
        return int(process.stdout), process.stderr

    return run


def test_damaged_entries_give_way_to_new_ones(tmp_path, compile_again):
    cache = tmp_path / "ivt_jax/compiled"
    cache.mkdir(parents=True)
    (cache / "jit_other-12ab-cache").write_bytes(b"half of a program")  # and no -atime
    assert compile_again() == (0, "")
    [entry] = cache.glob("*-cache")
    assert entry.name.startswith("jit_program-")
    assert compile_again() == (1, "")
    size = entry.stat().st_size
    os.truncate(entry, size // 2)
    found, said = compile_again()
    assert found == 0 and "Error reading persistent compilation cache entry for 'jit_program'" in said
    assert abs(entry.stat().st_size - size) < size // 4
    assert compile_again() == (1, "")


def test_an_entry_that_xla_refuses_gives_way_to_a_new_one(tmp_path, compile_again):
    from jax._src import compilation_cache as jax_cache

    assert compile_again() == (0, "")
    [entry] = (tmp_path / "ivt_jax/compiled").glob("*-cache")
    content = jax_cache.decompress_executable(entry.read_bytes())
    entry.write_bytes(jax_cache.compress_executable(content[:4] + bytes(len(content) - 4)))
    found, said = compile_again()
    assert found == 0 and "Error reading persistent compilation cache entry for 'jit_program'" in said
    assert compile_again() == (1, "")


def names(cache):
    return sorted(path.name for path in cache.iterdir() if path.name != ".lockfile")


def write_entry(cache, key, content):
    (cache / f"{key}-cache").write_bytes(content)
    (cache / f"{key}-atime").write_bytes(bytes(8))


GOOD = zlib.compress(bytes(1000))


def test_incomplete_entries_are_removed(tmp_path):
    write_entry(tmp_path, "jit_a-b-1", GOOD)
    (tmp_path / "jit_a-b-2-cache").write_bytes(GOOD)
    (tmp_path / "jit_a-b-3-atime").write_bytes(bytes(8))
    (tmp_path / "else").touch()
    remove_unusable(tmp_path)
    assert names(tmp_path) == ["else", "jit_a-b-1-atime", "jit_a-b-1-cache"]


def test_unreadable_entries_of_the_named_program_are_removed(tmp_path, monkeypatch):
    from jax._src import compilation_cache as jax_cache

    monkeypatch.setattr(jax_cache, "zstd", None)  # as if only zlib were installed
    monkeypatch.setattr(jax_cache, "zstandard", None, raising=False)
    for key, content in {"jit_a-1": GOOD, "jit_a-2": GOOD[:-3], "jit_a-3": b"", "jit_b-4": b"?"}.items():
        write_entry(tmp_path, key, content)
    remove_unusable(tmp_path, "jit_a")
    assert names(tmp_path) == [f"{key}-{kind}" for key in ("jit_a-1", "jit_b-4") for kind in ("atime", "cache")]


def test_what_another_process_is_just_writing_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "_LOCK_SECONDS", 0.1)
    (tmp_path / "jit_a-1-cache").write_bytes(GOOD)
    with (tmp_path / ".lockfile").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_unusable(tmp_path)
        assert names(tmp_path) == ["jit_a-1-cache"]
    remove_unusable(tmp_path)
    assert names(tmp_path) == []


HOLDER = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path, monkeypatch):
    """JAX's own lock, a FileLock, is the one that is tested here."""
    monkeypatch.setattr(compilation_cache, "_LOCK_SECONDS", 0.1)
    (tmp_path / "jit_a-1-cache").write_bytes(GOOD)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lockfile")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        remove_unusable(tmp_path)
        assert names(tmp_path) == ["jit_a-1-cache"]
        holder.kill()
    remove_unusable(tmp_path)
    assert names(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "jit_a-1-cache").write_bytes(GOOD)
    (tmp_path / ".lockfile").mkdir()  # cannot be opened, whoever the user is
    remove_unusable(tmp_path)
    remove_unusable(tmp_path / "nowhere")
    assert (tmp_path / "jit_a-1-cache").exists()


def test_a_warning_about_one_program_removes_its_entries_and_is_still_shown(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *rest, **more: shown.append(str(message)))
    remove_on_warning(tmp_path)
    write_entry(tmp_path, "jit_a-1", b"?")
    write_entry(tmp_path, "jit_b-2", b"?")
    texts = ["something else", "Error reading persistent compilation cache entry for 'jit_a': error: Error -5"]
    for text, left in zip(texts, (4, 2), strict=True):
        warnings.warn(text, stacklevel=1)
        assert len(names(tmp_path)) == left
    assert shown == texts


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_complaint_is_heard_whatever_the_user_wants_of_warnings(tmp_path, monkeypatch, action):
    monkeypatch.setattr(warnings, "showwarning", lambda *message, **more: None)
    warnings.simplefilter(action)
    remove_on_warning(tmp_path)
    for _ in range(2):
        write_entry(tmp_path, "jit_a-1", b"?")
        warnings.warn("Error reading persistent compilation cache entry for 'jit_a': error: Error -5", stacklevel=1)
        assert names(tmp_path) == []
