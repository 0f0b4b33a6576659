"""Files and folders are whole or not there."""

import os
import threading

import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import (
    UNREADABLE,
    UNWRITABLE,
    lines_of,
    lock_file,
    refuse_path,
    whole_file,
    whole_folder,
    write_text,
)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\u2028b\x85c\x1cd\x0be\rf\ng", ["a\u2028b\x85c\x1cd\x0be\rf", "g"]),
        ("a\r\n\r\nb\r\n", ["a", "", "b"]),
        ("a\n\n", ["a", ""]),
        ("\n", [""]),
        ("", []),
    ],
)
def test_a_line_ends_with_a_line_feed_alone(text, lines):
    assert lines_of(text) == lines


def test_a_locked_file_is_refused_or_waited_for(tmp_path):
    first = lock_file(tmp_path / "lock")
    for shared in (False, True):
        with pytest.raises(BlockingIOError):
            lock_file(tmp_path / "lock", shared=shared)
    threading.Timer(0.1, first.close).start()
    with lock_file(tmp_path / "lock", wait=True):
        assert first.closed


def test_a_file_takes_the_place_of_another(tmp_path):
    for text in ("first", "zw\u00f6lf"):
        write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_bytes() == text.encode() and len(list(tmp_path.iterdir())) == 1


def test_a_folder_appears_at_the_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "whole", tmp_path.relative_to(tmp_path) / "relative"):
        with whole_folder(path) as folder:
            (folder / "a.txt").write_text("a")
            assert not path.exists() and folder.parent == tmp_path and folder.name.startswith(".")
        assert [file.name for file in path.iterdir()] == ["a.txt"] and not folder.exists()


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
def test_a_folder_that_fails_is_gone(tmp_path, failure):
    with pytest.raises(type(failure)), whole_folder(tmp_path / "a") as folder:
        (folder / "half").touch()
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="a exists already; remove it"), whole_folder(tmp_path / "a"):
        pass
    with (
        pytest.raises(UserError, match="nowhere/a cannot be written: No such file"),
        whole_folder(tmp_path / "nowhere/a"),
    ):
        pass


def test_of_two_who_write_a_file_at_once_the_later_one_stays(tmp_path):
    with whole_file(tmp_path / "x") as later, whole_file(tmp_path / "x") as sooner:
        later.write_text("later")
        sooner.write_text("sooner, and longer")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "later"


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "x") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize("name", ["a[", "a*b", "a?b", "gs:", "s3:", "a\\b"])
def test_a_path_that_libraries_misread_is_one_line_with_the_remedy(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for path in (tmp_path / name / "run", "run"):  # a relative path counts with the folder it starts from
        with pytest.raises(UserError) as error:
            refuse_path(path, UNWRITABLE)
        assert str(error.value).startswith(f'{tmp_path}/{name}/run: a path with "')
        assert str(error.value).endswith("rename the folder, choose another, or use a symbolic link to it")
    (tmp_path / "link").symlink_to(tmp_path / name)
    refuse_path(tmp_path / "link/run", UNWRITABLE)
    refuse_path(tmp_path / name)
    if name in ("gs:", "a\\b"):
        with pytest.raises(UserError):
            refuse_path(tmp_path / name, UNREADABLE)
    else:
        refuse_path(tmp_path / name, UNREADABLE)


def test_a_path_that_is_not_utf_8_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a\\udcffb/run: the path is not UTF-8"):
        refuse_path(tmp_path / os.fsdecode(b"a\xffb") / "run")


@pytest.mark.parametrize("name", ["a b", "a'b", 'a"b', "a#b", "a%41b", "a\nb", "~", "{a,b}", "a:b", "]", "\u65e5"])
def test_other_paths_are_not_refused(tmp_path, name):
    refuse_path(tmp_path / name, UNWRITABLE)
