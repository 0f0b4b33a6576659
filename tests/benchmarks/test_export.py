"""The benchmark writes and uses every form, here at a tiny size. That its programs are right is the forms' own test."""

import json
import re

import numpy as np
import pytest

from configs import cuhk
from ivt_jax.benchmarks import export as benchmark
from ivt_jax.export.run import COMPILED


def test_every_compiled_form_is_measured():
    assert benchmark.LOAD.keys() == COMPILED.keys()


@pytest.fixture
def tiny(monkeypatch):
    config = cuhk.get_config("release")
    config.model.update({"image_size": (24, 12), "patch_size": 6, "stride": 6, "width": 16, "depth": 2})
    config.model.update({"num_heads": 2, "vocab_size": 2726, "max_text_length": 40})
    monkeypatch.setattr(cuhk, "get_config", lambda variant: config)


def test_a_form_is_written_then_used_by_a_program_that_knows_it_alone(tiny, tmp_path, monkeypatch):
    commands, run = [], benchmark.run

    def write_here(command, folder=None):  # at the tiny size, which another process would not know
        commands.append(command)
        return run(command, folder) if folder else benchmark.write("stablehlo", tmp_path)

    monkeypatch.setattr(benchmark, "run", write_here)
    row = benchmark.measure("stablehlo", tmp_path)
    assert re.fullmatch(r"\| stablehlo \| \d+ \| \d\.\d \| \d+ \| \d+ \| \d\.\d \| -?\d\.\de[-+]\d\d \|", row)
    assert abs(float(row.split("|")[-2])) < 1e-5
    assert (
        commands[0][1:4] == ["-m", "ivt_jax.benchmarks.export", "--write=stablehlo"] and "ivt_jax" not in commands[1][2]
    )
    with np.load(tmp_path / "given.npz") as given:
        np.testing.assert_allclose(np.linalg.norm(given["expected"], axis=1), 1, rtol=1e-5)


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="no such thing"):
        benchmark.run([benchmark.sys.executable, "-c", "raise SystemExit('no such thing')"])
    assert benchmark.run([benchmark.sys.executable, "-c", f"print('told'); print({json.dumps({'a': 1})!r})"]) == {
        "a": 1
    }
