import dataclasses
import os
from collections import Counter

import pytest

from ivt_jax.retrieval.basis import Basis, count_passed, find_change, make_basis
from ivt_jax.retrieval.store import About

NOON = "2024-05-01T12:00:00+00:00"
SECONDS = 1714564800  # noon of that day


@pytest.fixture
def about(tmp_path):
    """An index of tmp_path/pictures with a folder a/b below, all of an hour before its last build."""
    (tmp_path / "pictures/a/b").mkdir(parents=True)
    for folder in ("pictures/a/b", "pictures/a", "pictures"):
        os.utime(tmp_path / folder, (SECONDS - 3600, SECONDS - 3600))
    root = str(tmp_path / "pictures")
    return About("m" * 64, "t", 4, "float32", {}, {}, "w", root, made="i" * 32, updated=NOON, passed={"hidden": 2})


def test_nothing_has_changed(about):
    assert find_change(about) == ""
    assert find_change(dataclasses.replace(about, updated="")) == ""  # of an older version


@pytest.mark.parametrize("folder", ["pictures", "pictures/a"])
def test_a_folder_that_changed_later_is_named(about, tmp_path, folder):
    os.utime(tmp_path / folder, (SECONDS + 1, SECONDS + 1))
    assert find_change(about) == ""  # the same second, on some file systems
    os.utime(tmp_path / folder, (SECONDS + 2, SECONDS + 2))
    assert find_change(about).startswith(f"{tmp_path}/{folder} has changed since; update the index: ")


def test_of_a_list_the_list_counts(about, tmp_path):
    (tmp_path / "list.csv").touch()
    listed = dataclasses.replace(about, source={"list": str(tmp_path / "list.csv")})
    assert find_change(listed).startswith(f"{tmp_path}/list.csv has changed since")
    os.utime(tmp_path / "list.csv", (SECONDS, SECONDS))
    assert find_change(listed) == ""
    (tmp_path / "list.csv").unlink()
    assert find_change(listed) == f"{tmp_path}/list.csv cannot be read any more: No such file or directory"


def test_files_that_were_left_out_are_counted_by_reason():
    passed = Counter({("suffix", ".mp4"): 3, ("suffix", ""): 1, ("folder", "@eaDir"): 9, ("hidden", ""): 2})
    unreadable = [("a.jpg", "not a readable image"), ("b.jpg", "not a readable image")]
    assert list(count_passed(unreadable, passed).items()) == [
        ("in folders named @eaDir", 9), ("of no picture format: .mp4", 3), ("not a readable image", 2), ("hidden", 2),
        ("of no picture format: without suffix", 1),
    ]  # fmt: skip


def test_a_basis_in_sentences(about, tmp_path):
    (tmp_path / "params").mkdir()
    os.utime(tmp_path / "params", (SECONDS - 60, SECONDS - 60))
    basis = make_basis(about, tmp_path, ["", "more than 6 times as high as wide"])
    assert basis == Basis("i" * 32, NOON, "", {"hidden": 2}, 1, "m" * 64, "2024-05-01T11:59:00+00:00")
    assert basis.lines(1234) == [
        f"1,234 pictures searched; index iiiiiiiiiiii of {NOON}, model mmmmmmmmmmmm of 2024-05-01T11:59:00+00:00",
        "not in the index: 2 hidden",
        "1 result unlike the crops that models learn from: scores may mislead",
    ]
    assert make_basis(about, tmp_path, ["", None]).odd is None  # rows of an older version
    old = make_basis(dataclasses.replace(about, updated="", passed={}), tmp_path / "gone", [])
    assert old.lines(1) == ["1 picture searched; index iiiiiiiiiiii, model mmmmmmmmmmmm"]
