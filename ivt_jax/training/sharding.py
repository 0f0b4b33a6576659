"""The mesh of devices, the place of each parameter on it, and global batches from the rows of each host."""

import collections
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ivt_jax.common.errors import UserError

# The first rule whose pattern matches a parameter's path decides. Large matrices are split over `fsdp`, small arrays
# are copied to every device. The first axis of stacked blocks is never split.
PARAMETER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks/.*/(qkv|fc1)/kernel$", PartitionSpec(None, None, "fsdp")),
    (r"blocks/.*/(proj|fc2)/kernel$", PartitionSpec(None, "fsdp", None)),
    (r"image_head/.*/(qkv|fc1)/kernel$", PartitionSpec(None, "fsdp")),
    (r"image_head/.*/(proj|fc2)/kernel$", PartitionSpec("fsdp", None)),
    (r"text_embedding/word$", PartitionSpec("fsdp", None)),
    (r"image_embedding/kernel$", PartitionSpec("fsdp", None)),
    (r"(word_head|patch_head|image_projection|text_projection)/kernel$", PartitionSpec("fsdp", None)),
    (r"id_head/kernel$", PartitionSpec("fsdp", None)),
    (r".*", PartitionSpec()),
)
path_name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")  # such as "blocks/attn/qkv/kernel"
BATCH = PartitionSpec(("data", "fsdp"))


def paths_of(tree: Any) -> list[str]:
    """Returns the path of every leaf."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def mesh_sizes(axes: Mapping[str, int], count: int) -> dict[str, int]:
    """Returns the number of devices along `data` and `fsdp`, of `count` in all. One axis may be -1: all that are left.

    Raises UserError if the product is not `count`.
    """
    sizes = [axes["data"], axes["fsdp"]]
    if -1 in sizes:
        free = sizes.index(-1)
        sizes[free] = count // max(sizes[1 - free], 1)
    if min(sizes) < 1 or math.prod(sizes) != count:
        raise UserError(f"runtime.mesh {dict(axes)} does not fit {count} devices: data x fsdp must be {count}")
    return {"data": sizes[0], "fsdp": sizes[1]}


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over the devices; None = all of this run."""
    sizes = mesh_sizes(axes, jax.device_count() if devices is None else len(devices))
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2, devices=devices)


class Place(NamedTuple):
    """How an array is split over the devices."""

    rule: int  # index in PARAMETER_RULES
    divides: bool  # whether the shape allows the rule's split; otherwise every device has a copy
    spec: PartitionSpec
    parts: int  # number of parts that the array is split into


def place(name: str, shape: Sequence[int], sizes: Mapping[str, int]) -> Place:
    """Returns the place of a parameter, or a slot of the optimiser, on a mesh of these sizes. name: its path."""
    rule, spec = next((i, spec) for i, (pattern, spec) in enumerate(PARAMETER_RULES) if re.search(pattern, name))
    cuts = [(size, sizes[axis]) for size, axis in zip(shape, spec, strict=False) if axis is not None]
    if any(size % count for size, count in cuts):
        return Place(rule, False, PartitionSpec(), 1)
    return Place(rule, True, spec, math.prod(count for _, count in cuts))


def state_sharding(mesh: Mesh, shapes: Any) -> Any:
    """Returns a NamedSharding for each leaf of a state; the optimiser's slots have the names of their parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, place(path_name(path), leaf.shape, mesh.shape).spec), shapes
    )


def sharding_table(sizes: Mapping[str, int], state: Any) -> str:
    """Returns a table of how the rules split a TrainState (arrays or shapes) on a mesh of these sizes.

    One line for each rule: the split, the number of parameters, then for parameters, optimiser and average the bytes of
    one whole copy and of each device's part. Arrays that a rule cannot split have a line of their own and are named.
    """
    trees = {"parameters": state.params, "optimiser": state.opt_state} | ({"average": state.ema} if state.ema else {})
    rows: dict[tuple[int, bool], collections.Counter] = collections.defaultdict(collections.Counter)
    uneven = []
    for tree, leaves in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
            rule, divides, _, parts = place(path_name(path), leaf.shape, sizes)
            size = math.prod(leaf.shape) * leaf.dtype.itemsize
            rows[rule, divides].update({"arrays": tree == "parameters", tree: size, f"{tree} each": size // parts})
            if tree == "parameters" and not divides:
                uneven.append(f"{path_name(path)} {leaf.shape}")
    columns = ["arrays", *(column for tree in trees for column in (tree, f"{tree} each"))]
    lines = [["rule", "split", *("per device" if column.endswith("each") else column for column in columns)]]
    for (rule, divides), row in sorted(rows.items()):
        pattern, spec = PARAMETER_RULES[rule]
        split = ", ".join(axis or "-" for axis in spec) if divides else ""
        lines.append([pattern, split or "copied", *(f"{row[column]:,}" for column in columns)])
    total = sum(rows.values(), collections.Counter())
    lines.append(["all", "", *(f"{total[column]:,}" for column in columns)])
    header = [f"mesh: data {sizes['data']} x fsdp {sizes['fsdp']}, the batch split over both; sizes in bytes"]
    if uneven:
        header.append(f"copied, since fsdp {sizes['fsdp']} does not divide them: {', '.join(uneven)}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"{'<' if i < 2 else '>'}{width}" for i, width in enumerate(widths)]  # the numbers to the right
    return "\n".join([*header, *("  ".join(map(format, line, formats)).rstrip() for line in lines)])


def global_batch(mesh: Mesh, batch: Any) -> Any:
    """Returns global arrays from this host's rows, split over all devices along their first axis."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def gather_params(mesh: Mesh, tree: Any) -> Any:
    """Copies each array, whole, to one device of this process, for work that each process does by itself."""
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)
