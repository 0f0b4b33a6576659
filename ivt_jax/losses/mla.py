"""Multi-level alignment (IVT, section 3.2): one matching of all image views and text levels."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ivt_jax.losses.matching import QueryLosses, query_losses

CMPM = query_losses("cmpm")


def mla_loss(
    views: Sequence[jax.Array],
    levels: Sequence[jax.Array],
    ids: jax.Array,
    groups: int = 1,
    *,
    losses: QueryLosses = CMPM,
    scale: jax.Array | float | None = None,
) -> jax.Array:
    """Returns one matching over all levels at once, so that levels are each other's positives.

    views, levels: one (B, D) per augmented view and per text level; ids (B,) person ids. View i is matched with level
    i, a single view with every level, a single level with every view.
    groups: equal slices of the batch, each matched by itself (a per-GPU loss, on any number of devices).
    losses, scale: the loss of each query, images and texts in turn; see losses/matching.py.
    """

    def both(v: jax.Array, t: jax.Array, ids: jax.Array) -> jax.Array:
        return (losses(v, t, ids, ids, scale) + losses(t, v, ids, ids, scale)).mean()

    return jax.vmap(both)(*pair_levels(views, levels, ids, groups)).mean()


def gathered_loss(
    loss: Callable[..., jax.Array],
    views: Sequence[jax.Array],
    levels: Sequence[jax.Array],
    ids: jax.Array,
    groups: int = 1,
    *,
    axes: tuple[str, ...],
    **options: Any,
) -> jax.Array:
    """Returns `loss` of the rows of all devices, inside `jax.shard_map`. Every device computes the whole of it.

    loss: a function as `mla_loss`. axes: the mesh's axes, over which the rows are split in this order; () = one device.
    options: for the loss.
    """
    if not axes:
        return loss(views, levels, ids, groups, **options)
    whole = jax.lax.all_gather(jnp.stack([*views, *levels]), axes, axis=1, tiled=True)
    all_ids = jax.lax.all_gather(ids, axes, tiled=True)
    sides = list(whole[: len(views)]), list(whole[len(views) :])
    return jax.lax.pmean(loss(*sides, all_ids, groups, **options), axes)


def sharded_mla_loss(
    views: Sequence[jax.Array],
    levels: Sequence[jax.Array],
    ids: jax.Array,
    groups: int = 1,
    *,
    axes: tuple[str, ...],
    losses: QueryLosses = CMPM,
    scale: jax.Array | float | None = None,
) -> jax.Array:
    """Returns `mla_loss` of the rows of all devices, inside `jax.shard_map`, in memory linear in a device's rows.

    Each device compares its own rows as queries with the gathered rows of their group as keys.
    The number of groups divides the number of devices, or is a multiple of it.
    """
    devices = jax.lax.axis_size(axes)
    together, groups_here = max(devices // groups, 1), max(groups // devices, 1)

    def gather(x: jax.Array) -> jax.Array:
        """(groups here, n, ...) -> (groups here, together * n, ...), the rows of all devices that share the group."""
        if together == 1:
            return x
        rows = jax.lax.all_gather(x[0], axes)
        first = jax.lax.axis_index(axes) // together * together
        return jax.lax.dynamic_slice_in_dim(rows, first, together).reshape(1, -1, *x.shape[2:])

    v, t, own_ids = pair_levels(views, levels, ids, groups_here)
    keys_v, keys_t = jnp.split(gather(jnp.concatenate([v, t], axis=-1)), 2, axis=-1)  # gathered once
    all_ids = gather(own_ids)
    by_group = jax.vmap(functools.partial(losses, scale=scale))
    total = (by_group(v, keys_t, own_ids, all_ids) + by_group(t, keys_v, own_ids, all_ids)).sum()
    return jax.lax.psum(total, axes) / (own_ids.size * devices)


def pair_levels(
    views: Sequence[jax.Array], levels: Sequence[jax.Array], ids: jax.Array, groups: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pairs views and levels, (groups, n, D) each, with their ids (groups, n); n = levels * B / groups."""
    count = max(len(views), len(levels))
    if len(views) not in (1, count) or len(levels) not in (1, count):
        raise ValueError(f"{len(views)} views cannot be matched with {len(levels)} text levels")
    return (
        _stack(views, count, groups),
        _stack(levels, count, groups),
        _stack([ids[:, None]], count, groups)[..., 0],
    )


def _stack(parts: Sequence[jax.Array], count: int, groups: int) -> jax.Array:
    """Stacks `count` arrays (B, D), or one array `count` times -> (groups, count * B / groups, D), level by level."""
    stacked = jnp.stack(list(parts) * (count // len(parts)))
    batch, width = stacked.shape[1:]
    grouped = stacked.reshape(count, groups, batch // groups, width)
    return grouped.transpose(1, 0, 2, 3).reshape(groups, -1, width)
