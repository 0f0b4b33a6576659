"""Kernels from a trace: of a GPU, of a TPU and of a CPU, as JAX's profiler writes them."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from ivt_jax.benchmarks import kernels


def named(thread, name):
    return {"ph": "M", "pid": 1, "tid": thread, "name": "thread_name", "args": {"name": name}}


def run(thread, name, start, duration, operation=""):
    arguments = {"args": {"hlo_op": operation}} if operation else {}
    return {"ph": "X", "pid": 1, "tid": thread, "name": name, "ts": start, "dur": duration, **arguments}


def test_a_gpu_s_kernels_are_those_of_its_streams(tmp_path):
    events = [
        named(1, "Stream #14(Compute)"), named(2, "Stream #15(MemcpyD2D)"), named(3, "XLA Ops"), named(4, "python"),
        run(1, "gemm_bf16", 0, 3000, "custom-call.1"), run(1, "softmax_fusion", 3000, 500, "fusion.7"),
        run(1, "gemm_bf16", 4000, 5000, "custom-call.2"), run(2, "MemcpyD2D", 100, 1500),
        run(3, "custom-call.1", 0, 3000, "custom-call.1"), run(4, "call", 0, 99999),
    ]  # fmt: skip
    file = tmp_path / "host.trace.json.gz"
    file.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    found = kernels.read_trace(file)
    # 8 ms of products, 1.5 ms of copies and 0.5 ms of softmax are 10 ms
    assert found == [
        ("gemm_bf16", "custom-call.1", 2, 8.0, 0.8),
        ("MemcpyD2D", "", 1, 1.5, 0.15),
        ("softmax_fusion", "fusion.7", 1, 0.5, 0.05),
    ]
    assert kernels.table(found, 1).splitlines() == [
        "3 kernels, 10.0 ms in all",
        "| kernel | operation | runs | ms | share |",
        "| --- | --- | --- | --- | --- |",
        "| gemm_bf16 | custom-call.1 | 2 | 8.00 | 80.0% |",
    ]


def test_a_loop_does_not_count_what_runs_inside_it():
    events = [
        named(1, "tf_XLAEigen/1"), run(1, "while.5", 0, 10_000, "while.5"), run(1, "dot.1", 1000, 4000, "dot.1"),
        run(1, "dot.1", 5000, 4000, "dot.1"), run(1, "sort.0", 10_000, 1000, "sort.0"),
        run(1, "end: sort.0", 11_000, 1),
    ]  # fmt: skip
    found = [(kernel.name, kernel.milliseconds) for kernel in kernels.sum_kernels(events)]
    assert found == [("dot.1", 8.0), ("while.5", 2.0), ("sort.0", 1.0)]


def test_a_tpu_s_kernels_are_its_operations():
    events = [named(1, "XLA Modules"), named(2, "XLA Ops"), run(1, "jit_step", 0, 9000), run(2, "fusion.1", 0, 2000)]
    assert [kernel.name for kernel in kernels.sum_kernels(events)] == ["fusion.1"]


def test_a_trace_without_kernels_says_so():
    assert kernels.sum_kernels([named(1, "python"), run(1, "call", 0, 5)]) == []
    assert kernels.table([], 10) == kernels.NOTHING


def test_the_profile_of_a_call_on_this_machine():
    compute = jax.jit(lambda x: jnp.sort(x @ x))
    x = jax.block_until_ready(jnp.ones((300, 300)))
    jax.block_until_ready(compute(x))
    found = kernels.profile(lambda: compute(x))
    assert any("sort" in kernel.name for kernel in found)
    assert sum(kernel.share for kernel in found) == pytest.approx(1)
