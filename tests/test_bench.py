"""The benchmark on a tower that compiles in seconds: its rows and its errors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from ivt_jax import bench
from ivt_jax.benchmarks import measure
from ivt_jax.common import startup
from ivt_jax.cost.flops import step_cost

ROOT = Path(__file__).parent.parent
SMALL = [
    "--config.model.width=32", "--config.model.depth=2", "--config.model.num_heads=2", "--config.model.remat=False",
    "--config.model.image_size=(48,24)",
]  # fmt: skip


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """The benchmark settles its process's environment and keeps no compiled programs: other tests must not see it."""
    monkeypatch.setattr(startup.os, "environ", dict(os.environ))
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def test_rows_of_programs(tmp_path, capsys):
    file = tmp_path / "bench.json"
    flags = ["--models=demo", "--variants=release", "--batches=16", "--dtype=float32", "--seconds=0.05"]
    assert bench.main([*flags, "--kernels=3", f"--json={file}", *SMALL]) == 0
    out, err = capsys.readouterr()
    written = json.loads(file.read_text())
    rows = {row["piece"]: row for row in written["rows"]}
    assert list(rows) == ["train", "images", "texts"] and rows["train"]["name"] == "demo, release"
    assert written["environment"]["device"].startswith("8 x cpu")
    config = bench.make_config("demo", "release", 16, "float32", SMALL)
    # Two blocks of width 32: qkv (32, 96), proj (32, 32), four kernels of (32, 128). Five steps of Muon on each device.
    muon = 5 * 2 * (4 * 32**2 * (96 + 32 + 4 * 128) + 6 * 2 * 32**3)
    assert rows["train"]["tflops"] == pytest.approx((step_cost(config).training / 8 + muon) / 1e12, rel=0.02)
    for row in rows.values():
        assert row["compiled_tflops"] == pytest.approx(row["tflops"], rel=0.05)
        assert 0 < row["low"] <= row["seconds"] <= row["high"] and row["calls"] >= measure.LEAST
        assert row["items"] == 16 and row["memory"] > 0 and row["compile_seconds"] > 0
        assert len(row["kernels"]) == 3 and 0 < sum(kernel["share"] for kernel in row["kernels"]) <= 1
        assert row["kernels"][0]["milliseconds"] >= row["kernels"][2]["milliseconds"] > 0
    rows_table, *profiles = out.split("\n\n")
    header, dashes, *lines = rows_table.splitlines()
    assert header == bench.HEADER and len(lines) == 3
    assert [text.splitlines()[0] for text in profiles] == [
        "train, demo, release, float32, 16:", "images, demo, float32, 16:", "texts, demo, float32, 16:",
    ]  # fmt: skip
    assert all(len(text.splitlines()) == 7 for text in profiles)  # the name, a sum, the head, three kernels
    assert {line.count("|") for line in (header, dashes, *lines)} == {13}
    assert "float32: " in err and "TFLOP/s a device" in err
    rate = float(err.split("float32: ")[1].split()[0])
    row = rows["images"]
    assert row["mfu"] == pytest.approx(row["tflops"] / row["seconds"] / rate, rel=0.02)


def test_rows_of_the_host(monkeypatch, capsys):
    monkeypatch.setattr(measure, "SPLITS", {"CUHK-PEDES": (60, 30)})
    monkeypatch.setattr(measure, "GALLERIES", (1000,))
    assert bench.main(["--pieces=evaluation,search", "--seconds=0.01"]) == 0
    _, _, evaluation, search = capsys.readouterr().out.splitlines()
    assert evaluation.startswith("| evaluation | CUHK-PEDES: 60 captions, 30 images | float32 | 60 |")
    assert search.startswith("| search | 1,000 vectors of 768 | float32 | 1,000 |")


def test_a_config_of_each_model_and_variant():
    for model, width in (("base", 768), ("small", 384), ("demo", 128)):
        for variant in bench.VARIANTS:
            config = bench.make_config(model, variant, 64, "bfloat16")
            assert (config.model.width, config.data.batch_size, config.model.dtype) == (width, 64, "bfloat16")
            matched = config.mla.levels == ("sentence",)
            assert matched == (variant in ("baseline", "bmm_align", "bmm_reconstruct", "sentence_level"))
            without = ("release", "baseline", "mla", "bmm_align", "no_reconstruction")
            assert bool(config.bmm.word_weight) == (variant not in without)
    assert bench.make_config("demo", "full", 64, "float32").bmm.rows == 32  # half of the pairs, as in its config
    assert bench.make_config("demo", "full", 0, "float32").data.batch_size == 32


def test_the_median_is_of_the_calls_after_the_warm_up(monkeypatch):
    clock, left = SimpleNamespace(now=0.0), [1.0, 1.0, 50.0, 5.0, 1.0, 4.0, 2.0, 3.0]  # three warm up
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now)

    def call():
        clock.now += left.pop(0)

    assert measure.time_calls(call, 15) == (3.0, 2.0, 4.0, 5)
    clock.now, left[:] = 0.0, [8.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0]  # a call of half the time is warm-up enough
    assert measure.time_calls(call, 15) == (6.0, 6.0, 6.0, 5) and left == [6.0]


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--models=large"], "argument --models: 'large' is not one of base, small, demo"),
        (["--batches=0"], "argument --batches: '0' is not a whole number above 0"),
        (["--kernels=-1"], "argument --kernels: '-1' is not a whole number from 0 on"),
        (["--seconds=nan"], "argument --seconds: 'nan' is not a number of seconds from 0 on"),
    ],
)
def test_a_mistaken_flag_is_one_line(flags, line, capsys):
    with pytest.raises(SystemExit) as error:
        bench.main(flags)
    assert error.value.code == 2 and line in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, part",
    [
        (["--batches=8", "--config.model.widht=3"], "no key 'model.widht'"),
        (["--batches=8", "--sise=3"], "sise"),
        (["--batches=8", "--config.optimizer.learning_rate=nan"], "optimizer.learning_rate is nan; expected a finite"),
        (["--config.data.batch_size=0"], "data.batch_size is 0; expected 1 or more"),
    ],
)
def test_a_mistaken_key_is_one_line(flags, part, capsys):
    assert bench.main(["--seconds=0.01", "--dtype=float32", *flags]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and part in last


def test_help_answers_before_jax_is_there():
    code = "import sys; sys.modules['jax'] = None; from ivt_jax import bench; bench.main(['--help'])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "--pieces" in run.stdout, run.stderr


def test_it_needs_neither_tensorflow_nor_pillow():
    absent = "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'clu', 'PIL', 'lance'])); "
    code = absent + "from ivt_jax import bench; from ivt_jax.benchmarks import measure; bench.main(['--help'])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and "--pieces" in run.stdout, run.stderr
