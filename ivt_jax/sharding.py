"""The mesh, where each parameter lives on it, and how a host's rows become part of a global batch."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from input_pipeline.errors import UserError

# The first rule whose pattern matches a parameter's path decides; a leading axis of blocks is never split.
# Large matrices are split over `fsdp`; what is small is copied to every device.
PARAMETER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks/.*/(qkv|fc1)/kernel$", PartitionSpec(None, None, "fsdp")),
    (r"blocks/.*/(proj|fc2)/kernel$", PartitionSpec(None, "fsdp", None)),
    (r"text_embedding/word$", PartitionSpec("fsdp", None)),
    (r"image_embedding/kernel$", PartitionSpec("fsdp", None)),
    (r"(word_head|patch_head)/kernel$", PartitionSpec("fsdp", None)),
    (r".*", PartitionSpec()),
)
BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """A mesh over all devices; one axis may be -1, and takes what the other leaves."""
    sizes = [axes["data"], axes["fsdp"]]
    count = jax.device_count()
    if -1 in sizes:
        free = sizes.index(-1)
        sizes[free] = count // max(sizes[1 - free], 1)
    if min(sizes) < 1 or np.prod(sizes) != count:
        raise UserError(f"runtime.mesh {dict(axes)} does not fit {count} devices: data x fsdp must be {count}")
    return jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def state_sharding(mesh: Mesh, shapes: Any) -> Any:
    """A NamedSharding for each leaf of a state; optimiser slots follow their parameters, for they bear their names."""

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next(spec for pattern, spec in PARAMETER_RULES if re.search(pattern, name))
        divisible = all(
            axis is None or size % mesh.shape[axis] == 0 for size, axis in zip(leaf.shape, spec, strict=False)
        )
        return NamedSharding(mesh, spec if divisible else PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, shapes)


def global_batch(mesh: Mesh, batch: Any) -> Any:
    """This host's rows of every array -> global arrays, split over all devices along their first axis."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def local_copy(mesh: Mesh, tree: Any) -> Any:
    """The whole of every array on one device of this process, for work that each process does by itself."""
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)
