import dataclasses
import os

from ivt_jax.retrieval.basis import Basis, make_basis
from tests.retrieval.conftest import NOON, SECONDS


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
