"""Multi-level alignment (IVT section 3.2): image views and text levels stacked into one matching problem."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ivt_jax.losses.contrastive import cmpm_loss, projection_losses


def mla_loss(views: Sequence[jax.Array], levels: Sequence[jax.Array], ids: jax.Array, groups: int = 1) -> jax.Array:
    """One CMPM over all levels at once, so that levels are each other's positives.

    views: one (B, D) array per augmented view of the images; levels: one (B, D) per text level; ids (B,). A single view
    serves all levels, a single level all views; otherwise there is one view per level.
    groups: the loss is computed within this many equal slices of the batch and averaged (a per-GPU loss, on any number
    of devices); 1 matches the whole global batch.
    """
    return jax.vmap(cmpm_loss)(*_matched(views, levels, ids, groups)).mean()


def sharded_mla_loss(
    views: Sequence[jax.Array], levels: Sequence[jax.Array], ids: jax.Array, groups: int = 1, *, mesh: Mesh
) -> jax.Array:
    """`mla_loss` of rows that are split over all axes of a mesh, to rounding, in memory linear in a device's rows.

    Each device holds the similarities of its own rows as queries, against the gathered rows of their group as keys.
    The number of groups divides the number of devices, or is a multiple of it.
    """
    axes, devices = mesh.axis_names, mesh.size
    together, groups_here = max(devices // groups, 1), max(groups // devices, 1)

    def gather(x: jax.Array) -> jax.Array:
        """(groups here, n, ...) -> (groups here, together * n, ...): the rows of all devices that share the group."""
        if together == 1:
            return x
        rows = jax.lax.all_gather(x[0], axes)
        first = jax.lax.axis_index(axes) // together * together
        return jax.lax.dynamic_slice_in_dim(rows, first, together).reshape(1, -1, *x.shape[2:])

    def own(views: Sequence[jax.Array], levels: Sequence[jax.Array], ids: jax.Array) -> jax.Array:
        v, t, own_ids = _matched(views, levels, ids, groups_here)
        keys_v, keys_t, all_ids = map(gather, (v, t, own_ids))
        losses = jax.vmap(projection_losses)
        total = (losses(v, keys_t, own_ids, all_ids) + losses(t, keys_v, own_ids, all_ids)).sum()
        return jax.lax.psum(total, axes) / (own_ids.size * devices)

    split = PartitionSpec(axes)
    return jax.shard_map(own, mesh=mesh, in_specs=(split, split, split), out_specs=PartitionSpec())(
        list(views), list(levels), ids
    )


def _matched(
    views: Sequence[jax.Array], levels: Sequence[jax.Array], ids: jax.Array, groups: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Views and levels paired (groups, n, D) each and their ids (groups, n), with n = levels * B / groups."""
    count = max(len(views), len(levels))
    if len(views) not in (1, count) or len(levels) not in (1, count):
        raise ValueError(f"{len(views)} views cannot be matched with {len(levels)} text levels")
    return (
        _stack(views, count, groups),
        _stack(levels, count, groups),
        _stack([ids[:, None]], count, groups)[..., 0],
    )


def _stack(parts: Sequence[jax.Array], count: int, groups: int) -> jax.Array:
    """`count` arrays (B, D), one repeated where there is but one -> (groups, count * B / groups, D), level by level."""
    stacked = jnp.stack(list(parts) * (count // len(parts)))
    batch, width = stacked.shape[1:]
    grouped = stacked.reshape(count, groups, batch // groups, width)
    return grouped.transpose(1, 0, 2, 3).reshape(groups, -1, width)
