"""The mesh, where each parameter lives on it, and how a host's rows become part of a global batch."""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ivt_jax.common.errors import UserError

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


def mesh_sizes(axes: Mapping[str, int], count: int) -> dict[str, int]:
    """Devices along `data` and `fsdp`, of `count` in all; one axis may be -1, and takes what the other leaves."""
    sizes = [axes["data"], axes["fsdp"]]
    if -1 in sizes:
        free = sizes.index(-1)
        sizes[free] = count // max(sizes[1 - free], 1)
    if min(sizes) < 1 or math.prod(sizes) != count:
        raise UserError(f"runtime.mesh {dict(axes)} does not fit {count} devices: data x fsdp must be {count}")
    return {"data": sizes[0], "fsdp": sizes[1]}


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """A mesh over all devices."""
    sizes = mesh_sizes(axes, jax.device_count())
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2)


@dataclass(frozen=True)
class Place:
    """Where an array lives: the pattern of its rule, the rule's spec, and whether its shape allows that spec."""

    pattern: str
    rule: PartitionSpec
    divides: bool
    parts: int  # how many pieces the array is cut into

    @property
    def spec(self) -> PartitionSpec:
        """The spec that holds: the rule's, or a copy on every device."""
        return self.rule if self.divides else PartitionSpec()


def place(name: str, shape: Sequence[int], sizes: Mapping[str, int]) -> Place:
    """The place of the parameter (or optimiser slot) with this path and shape on a mesh of these sizes."""
    pattern, rule = next((p, rule) for p, rule in PARAMETER_RULES if re.search(p, name))
    cuts = [(size, sizes[axis]) for size, axis in zip(shape, rule, strict=False) if axis is not None]
    divides = all(size % count == 0 for size, count in cuts)
    return Place(pattern, rule, divides, math.prod(count for _, count in cuts) if divides else 1)


def state_sharding(mesh: Mesh, shapes: Any) -> Any:
    """A NamedSharding for each leaf of a state; optimiser slots follow their parameters, for they bear their names."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, place(_name(path), leaf.shape, mesh.shape).spec), shapes
    )


def sharding_table(sizes: Mapping[str, int], state: Any) -> str:
    """What the rules do to a TrainState (of arrays or of their shapes) on a mesh of these sizes, in bytes.

    One line for each rule: the split, how many parameters, and for parameters, optimiser and average the bytes of one
    whole copy and of what each device holds. What a rule would split but does not divide has its own line and is named.
    """
    trees = {"parameters": state.params, "optimiser": state.opt_state} | ({"average": state.ema} if state.ema else {})
    patterns = [pattern for pattern, _ in PARAMETER_RULES]
    rows: dict[tuple[int, bool], collections.Counter] = collections.defaultdict(collections.Counter)
    uneven = []
    for tree, leaves in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
            where = place(_name(path), leaf.shape, sizes)
            size = math.prod(leaf.shape) * leaf.dtype.itemsize
            row = rows[patterns.index(where.pattern), where.divides]
            row.update({"arrays": tree == "parameters", tree: size, f"{tree} each": size // where.parts})
            if tree == "parameters" and not where.divides:
                uneven.append(f"{_name(path)} {leaf.shape}")

    def cells(row):
        return [
            f"{row[column]:,}" for column in ("arrays", *(word for tree in trees for word in (tree, f"{tree} each")))
        ]

    lines = [["rule", "split", "arrays", *(word for tree in trees for word in (tree, "per device"))]]
    for (index, divides), row in sorted(rows.items()):
        split = ", ".join(axis or "-" for axis in PARAMETER_RULES[index][1]) if divides else ""
        lines.append([patterns[index], split or "copied", *cells(row)])
    lines.append(["all", "", *cells(sum(rows.values(), collections.Counter()))])
    told = [f"mesh: data {sizes['data']} x fsdp {sizes['fsdp']}, the batch split over both; sizes in bytes"]
    if uneven:
        told.append(f"copied, for fsdp {sizes['fsdp']} does not divide them: {', '.join(uneven)}")
    return "\n".join([*told, *_aligned(lines)])


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _aligned(lines: list[list[str]]) -> list[str]:
    """Cells padded to columns: the first two to the left, the others, numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in lines
    ]


def global_batch(mesh: Mesh, batch: Any) -> Any:
    """This host's rows of every array -> global arrays, split over all devices along their first axis."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def local_copy(mesh: Mesh, tree: Any) -> Any:
    """The whole of every array on one device of this process, for work that each process does by itself."""
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)
