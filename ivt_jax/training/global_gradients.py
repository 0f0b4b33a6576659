"""Gradients of a global batch: each device computes those of its own rows, and one sum over the devices adds them.

By itself, XLA puts sums into the loops: one for each pass, block and micro-batch. `jax.shard_map` leaves no choice: all
that crosses the devices is written here and in the objective. It is the parameters if they are split, the embeddings
and their gradients, the sums of the losses, and the gradients, each once.
"""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ivt_jax.training.freezing import split_params
from ivt_jax.training.gradient_cache import cached_gradients
from ivt_jax.training.objective import Objective
from ivt_jax.training.sharding import BATCH, state_sharding


def global_gradients(
    objective: Objective, mesh: Mesh, params: Any, batch: dict[str, Any], key: jax.Array
) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the gradients of the trained parameters, float32, shaped and split as they are, and the metrics.

    objective: with the mesh's axes. params and batch are split as sharding.py says. During the step every device holds
    the whole parameters and their gradients, and of the batch its own rows.
    """
    # If `data` is 1, parameters are split over the whole mesh: a sum over an axis of one device would be a copy.
    split = mesh.axis_names if mesh.shape["data"] == 1 else ("fsdp",)
    others = tuple(name for name in mesh.axis_names if name not in split)

    def spec_of(place: NamedSharding) -> PartitionSpec:
        """Returns how a parameter is split, or PartitionSpec() if every device has it whole."""
        return PartitionSpec(*(split if axis else None for axis in place.spec if mesh.shape["fsdp"] > 1))

    def own(params: Any, batch: dict[str, Any], key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        gradients, metrics = gradients_of_rows(objective, jax.tree.map(gather, params, specs), batch, key)
        return jax.tree.map(scatter, gradients, trained), metrics

    def gather(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        """Joins the parts of a parameter. Its gradient will differ between devices, so it counts as varying."""
        if not any(spec):
            return jax.lax.pcast(x, mesh.axis_names, to="varying")
        return jax.lax.pcast(jax.lax.all_gather(x, split, axis=_axis(spec), tiled=True), others, to="varying")

    def scatter(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        """Adds the devices' gradients; leaves each the part that it has of the parameter."""
        if not any(spec):
            return jax.lax.psum(x, mesh.axis_names)
        return jax.lax.psum(jax.lax.psum_scatter(x, split, scatter_dimension=_axis(spec), tiled=True), others)

    specs = jax.tree.map(spec_of, state_sharding(mesh, params))
    trained, _ = split_params(specs, objective.config.train.freeze)
    in_specs = (specs, BATCH, PartitionSpec())
    return jax.shard_map(own, mesh=mesh, in_specs=in_specs, out_specs=(trained, PartitionSpec()))(params, batch, key)


def _axis(spec: PartitionSpec) -> int:
    """Returns the axis that is split."""
    return next(axis for axis, name in enumerate(spec) if name)


def gradients_of_rows(
    objective: Objective, params: Any, batch: dict[str, Any], key: jax.Array
) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the share of one device's rows in the gradients, float32, and the objective's metrics.

    The gradients have the tree of the trained parameters, those that train.freeze does not match.
    """
    trained, frozen = split_params(params, objective.config.train.freeze)
    objective = dataclasses.replace(objective, frozen=frozen)
    if objective.config.runtime.microbatches > 1:
        return cached_gradients(objective, trained, batch, key)
    return jax.grad(objective, has_aux=True)(trained, batch, key)
