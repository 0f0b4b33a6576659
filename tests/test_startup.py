"""What a process settles before JAX starts: the folder of compiled programs, and whose word counts."""

import os
import stat
import warnings

import pytest

from ivt_jax import startup
from ivt_jax.startup import keep_compiled

NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE")


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
    assert os.environ[NAMES[1]] == str(startup.COMPILED_BYTES)
    assert stat.S_IMODE((tmp_path / inner).stat().st_mode) == 0o700


def test_the_folder_that_the_user_names_stays(without, tmp_path):
    without.setenv("XDG_CACHE_HOME", str(tmp_path))
    without.setenv(NAMES[0], "elsewhere")
    keep_compiled()
    assert (os.environ[NAMES[0]], list(tmp_path.iterdir())) == ("elsewhere", [])
    assert NAMES[1] not in os.environ


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
    without.setattr(startup.os, "access", lambda path, mode: False)  # root may write everywhere
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

    without.setattr(startup.Path, "home", nobody)
    keep_compiled()
    assert NAMES[0] not in os.environ
