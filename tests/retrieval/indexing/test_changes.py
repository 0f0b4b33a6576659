import dataclasses
import os
from collections import Counter
from pathlib import Path

import pytest

from ivt_jax.retrieval.indexing.changes import count_passed, find_change
from tests.retrieval.conftest import SECONDS


def test_nothing_has_changed(about):
    assert find_change(about) == ""
    assert find_change(dataclasses.replace(about, updated="")) == ""  # of an older version


@pytest.mark.parametrize("folder", ["pictures", "pictures/a"])
def test_a_folder_that_changed_later_is_named(about, tmp_path, folder):
    os.utime(tmp_path / folder, (SECONDS + 1, SECONDS + 1))
    assert find_change(about) == ""  # the same second, on some file systems
    os.utime(tmp_path / folder, (SECONDS + 2, SECONDS + 2))
    named = {"pictures": "the folder of the pictures"}.get(folder, Path(folder).name)
    assert find_change(about).startswith(f"{named} has changed since; update the index: ")


def test_an_archive_that_is_written_anew_is_named(about, tmp_path):
    (tmp_path / "pictures/night.TAR").touch()
    (tmp_path / "pictures/gone.tar").symlink_to("nowhere")
    (tmp_path / "pictures/circular").symlink_to("circular")
    (tmp_path / "pictures/circular.tar").symlink_to("circular.tar")
    (tmp_path / "pictures/.hidden.tar").touch()  # no build looks into it, nor into a link to a folder
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pictures/linked").symlink_to(tmp_path / "elsewhere")
    for place in ("pictures/night.TAR", "pictures"):
        os.utime(tmp_path / place, (SECONDS, SECONDS))
    assert find_change(about) == ""
    os.utime(tmp_path / "pictures/night.TAR", (SECONDS + 2, SECONDS + 2))
    assert find_change(about).startswith("night.TAR has changed since")


def test_folders_without_pictures_of_the_gallery_do_not_count(about, tmp_path):
    for folder in ("@eaDir", ".cache", "index/pictures.lance"):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
    os.utime(tmp_path / "pictures", (SECONDS - 3600, SECONDS - 3600))
    assert find_change(about) == ""


def test_a_newer_list_makes_the_index_outdated(about, tmp_path):
    (tmp_path / "list.csv").touch()
    listed = dataclasses.replace(about, source={"list": str(tmp_path / "list.csv")})
    assert find_change(listed).startswith("the list of the pictures has changed since")
    os.utime(tmp_path / "list.csv", (SECONDS, SECONDS))
    assert find_change(listed) == ""
    (tmp_path / "list.csv").unlink()
    assert find_change(listed) == "the list of the pictures cannot be read any more: No such file or directory"


def test_files_that_were_left_out_are_counted_by_reason():
    passed = Counter({("suffix", ".mp4"): 3, ("suffix", ""): 1, ("folder", "@eaDir"): 9, ("hidden", ""): 2})
    unreadable = [("a.jpg", "not a readable image"), ("b.jpg", "not a readable image")]
    assert list(count_passed(unreadable, passed).items()) == [
        ("in folders named @eaDir", 9), ("of no picture format: .mp4", 3), ("not a readable image", 2), ("hidden", 2),
        ("of no picture format: without suffix", 1),
    ]  # fmt: skip
