"""The benchmark converts what it says it does, here at a tiny size."""

import pytest

from ivt_jax import convert
from ivt_jax.benchmarks import conversion as benchmark
from ivt_jax.conversion.tensors import shapes

TINY = {"D": 12, "F": 48, "H": 12, "E": 1, "P": 16, "N": 5, "V": 30, "L": 512, "depth": 2}


def test_the_shapes_of_a_naming_by_hand():
    wanted = shapes(benchmark.NAMINGS["vit"]["timm"], TINY)
    assert len(wanted) == 6 + 2 * 12
    assert wanted["patch_embed.proj.weight"] == (12, 3, 16, 16)
    assert wanted["blocks.1.attn.qkv.weight"] == (36, 12) and wanted["pos_embed"] == (1, 5, 12)


def test_what_is_measured_are_sources_of_the_command():
    sources = next(action.choices for action in convert.make_parser()._actions if action.dest == "source")
    assert {case.source for case in benchmark.CASES} == {*benchmark.NAMINGS, "export"} <= set(sources)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A config of the tiny width, since the command takes the rest from the tensors."""
    monkeypatch.setattr(benchmark, "VIT_B", TINY)
    original = benchmark.subprocess.Popen
    flags = ["--config.model.width=12", "--config.model.num_heads=12"]
    monkeypatch.setattr(benchmark.subprocess, "Popen", lambda command, **how: original([*command, *flags], **how))
    return tmp_path


def test_a_conversion_is_measured_from_start_to_folder(tiny):
    size, seconds, peak = benchmark.measure(benchmark.Case("vit", "google", ".npz"), tiny)
    assert (tiny / "out/config.json").is_file()
    assert size == pytest.approx(sum((tiny / f).stat().st_size for f in ("weights.npz", "bert.safetensors")) / 1e6)
    assert seconds > 0.5 and 0.1 < peak < 16  # Python, JAX and Orbax are in it, and who starts it at its start


def test_a_conversion_that_fails_is_told(tiny, monkeypatch):
    monkeypatch.setattr(benchmark, "write", lambda path, tensors: path.write_bytes(b"{}"))
    with pytest.raises(RuntimeError, match=r"google, .npz: error: .*weights.npz"):
        benchmark.measure(benchmark.Case("vit", "google", ".npz"), tiny)
