import dataclasses
import os

from ivt_jax.retrieval import basis as module
from ivt_jax.retrieval.basis import Basis, BasisReader
from tests.retrieval.conftest import NOON, SECONDS


def test_a_basis_in_sentences(about, tmp_path):
    (tmp_path / "params").mkdir()
    os.utime(tmp_path / "params", (SECONDS - 60, SECONDS - 60))
    basis = BasisReader(tmp_path).read(about, ["", "more than 6 times as high as wide"])
    left, written = ({"hidden": 2}, {"the folder is missing": 3}), "2024-05-01T11:59:00+00:00"
    assert basis == Basis("i" * 32, NOON, "", *left, 1, "m" * 64, written)
    assert basis.lines(1234) == [
        f"1,234 pictures searched; index iiiiiiiiiiii of {NOON}, model mmmmmmmmmmmm of 2024-05-01T11:59:00+00:00",
        "not in the index: hidden (2)",
        "in the index, but without a readable file: the folder is missing (3)",
        "1 result of an odd shape or size: their scores may be wrong",
    ]
    assert BasisReader(tmp_path).read(about, ["", None]).odd is None  # rows of an older version
    old = BasisReader(tmp_path / "gone").read(dataclasses.replace(about, updated="", passed={}, kept={}), [])
    assert old.lines(1) == ["1 picture searched; index iiiiiiiiiiii, model mmmmmmmmmmmm"]


def test_changes_are_looked_for_once_a_minute_and_after_each_build(about, tmp_path, monkeypatch):
    looked, time = [], 1000.0
    monkeypatch.setattr(module, "find_change", lambda about: looked.append(about.updated) or "changed")
    monkeypatch.setattr(module.time, "monotonic", lambda: time)
    reader = BasisReader(tmp_path)
    assert [reader.read(about, []).outdated for _ in range(3)] == ["changed"] * 3 and len(looked) == 1
    time += 61
    reader.read(about, [])
    assert len(looked) == 2
    reader.read(dataclasses.replace(about, updated="2024-05-02T12:00:00+00:00"), [])
    assert len(looked) == 3


def test_the_time_of_the_model_is_that_of_the_weights_that_were_loaded(about, tmp_path):
    (tmp_path / "params").mkdir()
    os.utime(tmp_path / "params", (SECONDS, SECONDS))
    reader = BasisReader(tmp_path)
    os.utime(tmp_path / "params", (SECONDS + 60, SECONDS + 60))
    assert reader.read(about, []).trained == NOON
