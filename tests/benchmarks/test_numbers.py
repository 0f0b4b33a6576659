"""The recorded numbers: our step gives them here, and a step that computes anything else does not."""

import dataclasses
import json

import numpy as np
import pytest

from ivt_jax.benchmarks import numbers

BATCHES, LOSSES, GRADIENTS = numbers.read()


def as_recorded(**changes):
    result = numbers.Result(list(LOSSES), "1f", {"device": "1 x cpu"}, GRADIENTS)
    return dataclasses.replace(result, **changes)


def differing(**results):
    return [c.name for c in numbers.comparisons(results, LOSSES, GRADIENTS) if not c.holds]


def test_the_file_is_small_and_training_learns_in_it():
    assert numbers.RECORDED.stat().st_size < 2e6
    assert len(LOSSES) == numbers.STEPS and LOSSES[-3:].mean() < 0.6 * LOSSES[:3].mean()


def test_the_batches_are_those_that_are_drawn():
    rng = np.random.default_rng(0)
    for recorded in BATCHES:
        drawn = numbers.with_mask(numbers.draw_batch(rng))
        np.testing.assert_equal(recorded, drawn)
        sentence = recorded["text"]["sentence"]
        assert (sentence[:, 0] == numbers.CLS_ID).all() and ((sentence == 0) == (recorded["words"] == 0))[:, 1:].all()


def test_the_first_step_is_as_recorded():
    result = numbers.compute(BATCHES, "float32", False, 1)
    assert result.gradients.keys() == GRADIENTS.keys()
    found = list(numbers.comparisons({"float32": result}, LOSSES, GRADIENTS))
    assert all(comparison.holds for comparison in found[:-1]), [c for c in found if not c.holds]
    assert not found[-1].holds  # step 1 is not step 50


@pytest.mark.parametrize(
    "runs, names",
    [
        ({"float32": as_recorded()}, []),
        ({"float32": as_recorded(losses=[LOSSES[0] * (1 + 3e-5), *LOSSES[1:]])}, ["float32, first loss"]),
        ({"float32": as_recorded(losses=[*LOSSES[:-1], LOSSES[-1] * 1.002])}, ["float32, loss of step 50"]),
        ({"bfloat16": as_recorded(losses=[LOSSES[0] * 1.005])}, []),
        ({"bfloat16": as_recorded(losses=[np.nan])}, ["bfloat16, first loss"]),
        ({"deterministic": as_recorded(), "again": as_recorded()}, []),
        ({"deterministic": as_recorded(), "again": as_recorded(digest="1e")},
         ["deterministic, 50 steps twice, to the bit"]),
    ],
)  # fmt: skip
def test_what_differs(runs, names):
    assert differing(**runs) == names


def test_a_gradient_that_differs_is_named():
    name = "blocks/attn/qkv/kernel"
    wrong = GRADIENTS[name] + 2e-4 * np.linalg.norm(GRADIENTS[name]) / GRADIENTS[name].size ** 0.5
    assert differing(float32=as_recorded(gradients={**GRADIENTS, name: wrong})) == [f"float32, gradient of {name}"]


def test_the_report(tmp_path, monkeypatch, capsys):
    found = {name: as_recorded() for name in ("float32", "deterministic", "again")}
    monkeypatch.setattr(numbers, "in_processes", lambda batches, names: iter(found.items()))
    file = tmp_path / "numbers.json"
    assert numbers.main([f"--json={file}"]) == numbers.OTHER_NUMBERS  # a run failed
    assert capsys.readouterr().out.splitlines()[-1].endswith("0 differ; 1 of 4 runs failed")
    written = json.loads(file.read_text())
    assert written["environment"] == {"device": "1 x cpu"} and set(written["runs"]) == set(found)
    assert len(written["comparisons"]) == len(GRADIENTS) + 4
    found["bfloat16"] = as_recorded()
    assert numbers.main([]) == 0
    assert "largest error, of those with the limit 0.001: 0.0e+00" in capsys.readouterr().out


def test_a_run_that_fails_is_named_and_the_others_count(capsys):
    """In processes of their own. A batch without images fails early."""
    without = [{name: x for name, x in BATCHES[0].items() if name != "images"}]
    assert list(numbers.in_processes(without, ["bfloat16"])) == []
    assert "bfloat16: failed: KeyError: 'images'" in capsys.readouterr().out


def test_a_platform_that_does_not_start_is_the_reason_why_a_run_failed(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "nonesuch")
    assert list(numbers.in_processes(BATCHES[:1], ["bfloat16"])) == []
    assert "bfloat16: failed: UserError: JAX_PLATFORMS=nonesuch: " in capsys.readouterr().out
