"""gpu.sh with a stand-in for Python: its steps, what it says about those that fail, hang or have no time."""

import json
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "ivt_jax/benchmarks/gpu.sh"
STEPS = [
    "canary",
    "numbers",
    "beside_torch",
    "recipe",
    "cudnn",
    "unrolled",
    "remat",
    "encoders",
    "small_batch",
    "choices",
]
# Writes its arguments to the file after --json=. The step named in FAILS fails, that in HANGS sleeps.
PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then exit "${NO_TORCH:-0}"; fi
file=${*: -1}; file=${file#--json=}; name=$(basename "$file" .json)
echo "this is $name"
if [[ $name == "${FAILS:-}" ]]; then exit 7; fi
if [[ $name == "${HANGS:-}" ]]; then sleep 100; fi
printf '["%s"]' "$*" >"$file"
"""


@pytest.fixture
def run(tmp_path):
    """run(*flags, **environment): the exit code, the output and the states of the steps by name."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def start(*flags, **environment):
        given = {**os.environ, "PYTHON": str(python), **environment}
        command = ["bash", str(SCRIPT), str(tmp_path / "out"), *flags]
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)
        summary = json.loads((tmp_path / "out/summary.json").read_text())
        return done.returncode, done.stdout, {step["name"]: step["state"] for step in summary["steps"]}

    return start


def test_all_steps_are_done_in_order(run, tmp_path):
    code, out, states = run("--config.model.depth=2")
    assert code == 0 and states == dict.fromkeys(STEPS, "done") and list(states) == STEPS
    (cudnn,) = json.loads((tmp_path / "out/cudnn.json").read_text())
    assert "-m ivt_jax.bench" in cudnn and "--config.model.attention=cudnn --config.model.depth=2" in cudnn
    (beside,) = json.loads((tmp_path / "out/beside_torch.json").read_text())
    assert "--compile" in beside and "--config" not in beside
    assert "this is recipe" in out and (tmp_path / "out/recipe.log").read_text() == "this is recipe\n"


def test_a_step_that_fails_does_not_stop_the_others(run):
    code, out, states = run(FAILS="canary", NO_TORCH="1")
    expected = {"canary": "failed with exit code 7", "beside_torch": "left out: PyTorch is not installed"}
    assert code == 1 and states == dict.fromkeys(STEPS, "done") | expected
    assert "The canary failed: read" in out.splitlines()[-1]


def test_a_step_that_hangs_is_cut_off_and_what_has_no_time_is_left_out(run, tmp_path):
    """The first step may take all of so short a time."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/recipe.json").write_text("of an earlier run")
    code, out, states = run(HANGS="canary", SECONDS_IN_ALL="2")
    assert code == 1 and states == {"canary": "cut off"} | dict.fromkeys(STEPS[1:], "left out: no time")
    assert "The canary failed" not in out and not (tmp_path / "out/recipe.json").exists()


def test_without_a_folder_it_explains_itself():
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout.startswith("usage: ")
