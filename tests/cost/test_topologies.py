"""Names and messages; the compilers themselves are tried where they are installed (`pip install -e ".[tpu-plan]"`)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ivt_jax.common.errors import UserError
from ivt_jax.cost.topologies import CHIPS, Topology, read_topology, target_config

ROOT = Path(__file__).parents[2]
NAMES = {
    "v5e:4x4": ("tpu", (4, 4)), "v5p:2x4x4": ("tpu", (2, 4, 4)), "v6e:8x8": ("tpu", (8, 8)),
    "h100:8": ("cuda", (1, 8)), "h200:1": ("cuda", (1, 1)), "h200:2x8": ("cuda", (2, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_are_read(name):
    platform, shape = NAMES[name]
    topology = read_topology(name)
    assert topology == Topology(name, name[: name.index(":")], shape)
    assert topology.platform == platform and topology.chip is CHIPS[topology.kind]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v4:2x2", "--topology=v4:2x2 is not one of v5e, v5p, v6e, h100, h200 with a shape, such as v5e:4x4, "),
        ("v5e", "--topology=v5e is not one of "),
        ("", "--topology= is not one of "),
        ("v5e:0x4", "is not one of"),
        ("v5e:4x4x", "is not one of"),
        ("h200:8\n", "is not one of"),
        ("v5e:16", "--topology=v5e:16: a v5e has 2 axes, as in v5e:4x4"),
        ("v5p:4x4", "a v5p has 3 axes, as in v5p:4x4x4"),
        ("h200:2x2x2", "write h200:GPUS, or h200:HOSTSxGPUS with the GPUs of each host"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(UserError) as raised:
        read_topology(name)
    assert message in str(raised.value)


def test_a_gpu_is_described_for_xla():
    text = target_config(read_topology("h100:8"))
    assert text.startswith("gpu_device_info {\n") and text.count("{") == text.count("}")
    facts = ["core_count: 132", "shared_memory_per_block_optin: 232448", "l2_cache_size: 52428800"]
    facts += ["memory_bandwidth: 3350000000000", "device_memory_size: 84942979072", 'name: "NVIDIA H100"']
    assert not [fact for fact in facts if f"\n  {fact}\n" not in text]
    assert '\nplatform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\n' in text


TPU, CUDA = (importlib.util.find_spec(name) is not None for name in ("libtpu", "jax_cuda13_plugin"))
START = """
import sys
from configs import cuhk
from ivt_jax.common.errors import UserError
from ivt_jax.common.startup import set_environment
from ivt_jax.cost.topologies import read_topology, topology_devices
config, topologies = cuhk.get_config(), [read_topology(name) for name in sys.argv[1:]]
set_environment(config, topologies[0].platform)
"""
DEVICES = """
for topology in topologies:
    try:
        devices = topology_devices(topology)
        print(topology.name, len(devices), devices[0].device_kind)
    except UserError as error:
        print(error)
"""
REPORT = """
from ivt_jax.cost.bound import compiled_report
sizes = {"image_size": (48, 24), "patch_size": 12, "stride": 12, "width": 32, "depth": 2, "num_heads": 2}
config.model.update({**sizes, "vocab_size": 256, "unroll": False})
config.data.batch_size = 16
config.bmm.update({"word_weight": 0.0, "patch_weight": 0.0, "align": "off"})
config.mla.update({"levels": ("sentence",), "views": 1})
print(compiled_report(config, topologies[0], topology_devices(topologies[0])))
"""


def run(code, *names):
    """Runs code in a process of its own, which prints nothing on stderr; returns its lines."""
    environment = {key: value for key, value in os.environ.items() if key not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", START + code, *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert not done.returncode and not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(TPU, reason="libtpu is installed")
def test_the_compiler_of_tpus_is_missing():
    remedy = "pip install -e '.[tpu-plan]' in the clone of this project"
    assert run(DEVICES, "v5e:4x4") == [f"--topology=v5e:4x4: its compiler is not installed: {remedy}"]


@pytest.mark.skipif(CUDA, reason="JAX's plugin for CUDA is installed")
def test_the_compiler_of_gpus_is_missing():
    remedy = "pip install -e '.[gpu-plan]' in the clone of this project"
    assert run(DEVICES, "h200:8") == [f"--topology=h200:8: its compiler is not installed: {remedy}"]


@pytest.mark.skipif(not TPU, reason="libtpu is not installed")
def test_topologies_of_tpus():
    *found, refused = run(DEVICES, "v5e:1x1", "v5e:4x4", "v5p:2x4x4", "v6e:8x8", "v5e:3x3")
    assert found == ["v5e:1x1 1 TPU v5 lite", "v5e:4x4 16 TPU v5 lite", "v5p:2x4x4 32 TPU v5", "v6e:8x8 64 TPU v6 lite"]
    assert refused.startswith("--topology=v5e:3x3: the compiler refuses it (Topology layout")


@pytest.mark.skipif(not CUDA, reason="JAX's plugin for CUDA is not installed")
def test_topologies_of_gpus():
    assert run(DEVICES, "h200:1", "h200:2x8", "h100:8") == [
        "h200:1 1 NVIDIA H200", "h200:2x8 16 NVIDIA H200", "h100:8 8 NVIDIA H100",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("v5e:2x2", marks=pytest.mark.skipif(not TPU, reason="libtpu is not installed")),
        pytest.param("h200:2", marks=pytest.mark.skipif(not CUDA, reason="JAX's plugin for CUDA is not installed")),
    ],
)
def test_a_small_step_is_compiled(name):
    memory, traffic, *rest = run(REPORT, name)
    assert memory.startswith("memory per device, compiled: 0.0") and f" of a {name[:4].strip(':')}" in memory
    assert traffic.startswith("read from and written to that memory: 0.0")
    assert any(line.startswith("| all-reduce |") for line in rest) and rest[-1].startswith("MFU is at most ")
