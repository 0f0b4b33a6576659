"""Files and folders are whole or not there."""

import pytest

from input_pipeline.errors import UserError
from input_pipeline.files import whole_folder, write_text


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
