"""What crosses the devices in one step, in the programs that XLA compiles: nothing but what the algorithm needs.

On eight CPU devices always; with libtpu, also by the TPU's own compiler, for a topology of four chips.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys

import jax
import pytest

from configs import default
from ivt_jax.common.startup import COMPILE_ONLY
from ivt_jax.cost.compiled import compile_config
from ivt_jax.cost.topologies import read_topology, topology_devices
from ivt_jax.models.build import parameter_shapes
from ivt_jax.models.config import IVTConfig
from ivt_jax.training.sharding import place

BATCH, WIDTH = 32, 128
MESHES = {
    "data": {},
    "fsdp": {"runtime.mesh.data": 1, "runtime.mesh.fsdp": -1},
    "both axes": {"runtime.mesh.fsdp": 2},
    "sharded matching": {"runtime.matching": "sharded"},
    "micro-batches": {"runtime.microbatches": 2, "runtime.matching": "sharded"},
}


def tiny(changes):
    """One block, all terms of the loss."""
    config = default.get_config()
    config.data.batch_size = BATCH
    config.text.length.update({"sentence": 12, "phrase": 8, "word": 8})
    config.model.update(
        {"image_size": (32, 16), "patch_size": 8, "stride": 8, "width": WIDTH, "depth": 1, "num_heads": 2,
         "vocab_size": 512, "max_text_length": 12}
    )  # fmt: skip
    config.update_from_flattened_dict(changes)
    return config


def collectives(changes, devices):
    """kind -> bytes of the full arrays, of the collectives of one step that move more than 4 kB."""
    moved = {}
    for x in compile_config(tiny(changes), devices).collectives:
        moved[x.kind] = moved.get(x.kind, 0) + x.size
    return {kind: size for kind, size in moved.items() if size > 4096}


def expected(changes, devices, gathered=4):
    """The same by hand, in float32: gradients summed once, split parameters gathered once, embeddings gathered once and
    their gradients scattered once. Small sums (losses, lengths, ids) are left out.

    gathered: bytes of a gathered number; 2 on a TPU, whose compiler first casts weights of products to bfloat16. Only
    word embeddings, which are looked up, stay float32 there.
    """
    config = tiny(changes)
    axes = config.runtime.mesh
    fsdp = devices if axes.fsdp == -1 else axes.fsdp
    sizes = {"data": devices // fsdp, "fsdp": fsdp}
    arrays = parameter_shapes(IVTConfig.from_config(config.model))
    names = [name for name, shape in arrays.items() if place(name, shape, sizes).parts > 1]
    split = sum(4 * math.prod(arrays[name]) for name in names)
    joined = sum((4 if name == "text_embedding/word" else gathered) * math.prod(arrays[name]) for name in names)
    whole = sum(4 * math.prod(shape) for shape in arrays.values()) - split
    embeddings = 6 * BATCH * WIDTH * 4  # three views and three levels
    return {
        "all-gather": joined + embeddings,
        "reduce-scatter": split + embeddings,
        "all-reduce": whole + (split // fsdp if fsdp < devices else 0),
    }


def check(actual, expected):
    """A compiler may sum instead of gathering or scattering, and sums equal gradients once. Nothing else is there."""
    assert set(actual) <= set(expected)
    total, wanted = sum(actual.values()), sum(expected.values())
    assert abs(total - wanted) <= 0.02 * wanted, (actual, expected)


@pytest.mark.parametrize("name", ["both axes", "micro-batches"])
def test_on_cpu_devices(name):
    check(collectives(MESHES[name], jax.devices()), expected(MESHES[name], 8))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e .[tpu-plan]")
def test_by_the_compiler_of_a_tpu():
    """In another process, which JAX must not have started in yet."""
    code = "import json; from tests.training.test_collectives import on_tpu; print(json.dumps(on_tpu()))"
    environment = {**os.environ, **COMPILE_ONLY["tpu"]}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for name, moved in json.loads(ran.stdout.splitlines()[-1]).items():
        check(moved, expected(MESHES[name], 4, gathered=2))


def on_tpu():
    """The collectives of each mesh on four chips, in a process with the variables of COMPILE_ONLY."""
    devices = topology_devices(read_topology("v5e:2x2"))
    names = [name for name in MESHES if name != "both axes"]
    return {name: collectives(MESHES[name], devices) for name in names}
