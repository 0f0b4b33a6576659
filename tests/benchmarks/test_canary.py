"""The check of plain arithmetic: it passes here, and notices the faults that it is for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivt_jax.benchmarks import canary


@pytest.fixture(autouse=True)
def as_before():
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def test_the_arithmetic_of_this_machine_is_right(tmp_path, capsys):
    assert canary.main([f"--json={tmp_path / 'canary.json'}"]) == 0
    assert "checks, all right" in capsys.readouterr().out
    written = json.loads((tmp_path / "canary.json").read_text())
    assert written["wrong"] == 0 and written["environment"]["device"].startswith("8 x cpu")
    assert {check["mode"] for check in written["checks"]} >= {"by operation", "jit", "donated", "scan", "vmap"}
    formulas = {(check["formula"], check["dtype"]) for check in written["checks"]}
    assert {(name, dtype) for name in canary.FORMULAS for dtype in canary.LIMITS} <= formulas


def test_threefry_by_the_published_vector():
    """Random123's known answer for Threefry-2x32, 20 rounds, with key and counter 0: 6b200159 99ba4efe."""
    assert canary.threefry((0, 0), 1)[0] == 0x6B200159 ^ 0x99BA4EFE


def test_an_operand_of_the_operation_before_is_noticed(monkeypatch, tmp_path, capsys):
    """As in jax-ml/jax#40633: sqrt(512) first, then ones(4) + 1 is 513."""
    ones = jnp.ones
    monkeypatch.setattr(jnp, "ones", lambda shape: ones(shape) * 512)
    monkeypatch.setattr(canary, "all_checks", lambda: canary.scalars(2))
    assert canary.main([f"--json={tmp_path / 'canary.json'}"]) == canary.WRONG
    out = capsys.readouterr().out
    # n = 1: 513 where 2 is right, (513 - 2) / 2 = 255.5; n = 2: (514 - 3) / 3 = 170.3
    assert "wrong: ones + n, by operation, n = 1, float32: error 2.6e+02" in out
    assert "2 of 6 checks are wrong" in out and "#40633" in out
    assert json.loads((tmp_path / "canary.json").read_text())["wrong"] == 2


def test_a_device_that_fails_is_wrong_and_the_checks_before_it_are_written(monkeypatch, tmp_path, capsys):
    def checks():
        yield canary.Check("jit", "add", "float32", 0.5, 2e-5)
        raise jax.errors.JaxRuntimeError("INTERNAL: illegal memory access\nand more")

    monkeypatch.setattr(canary, "all_checks", checks)
    assert canary.main([f"--json={tmp_path / 'canary.json'}"]) == canary.WRONG
    out = capsys.readouterr().out
    assert "failed after 1 check: INTERNAL: illegal memory access\n" in out
    assert "wrong: add, jit, float32" in out and "no figure of this device counts" in out
    written = json.loads((tmp_path / "canary.json").read_text())
    assert (written["wrong"], written["failure"], len(written["checks"])) == (1, "INTERNAL: illegal memory access", 1)


@pytest.mark.parametrize(
    "name, dtype, found, right, error",
    [
        ("add", "float32", [1, np.nan], [1, 2], canary.INFINITE),
        ("add", "float32", [1.0001, 2], [1, 2], 5e-5),  # TF32 would be as far off
        ("add", "bfloat16", [1.04, 2], [1, 2], None),
        ("sort", "bfloat16", [1.01, 2], [1, 2], 5e-3),  # only moved, so nothing is rounded
    ],
)
def test_what_counts_as_wrong(name, dtype, found, right, error):
    (check,) = canary.compare("jit", dtype, {name: jnp.array(found)}, {name: np.array(right)})
    assert check.right == (error is None)
    assert error is None or check.error == pytest.approx(error, rel=0.01)
