"""Multi-level alignment (IVT, section 3.2): one matching of all image views and text levels."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ivt_jax.losses.contrastive import cmpm_loss, projection_losses


def mla_loss(views: Sequence[jax.Array], levels: Sequence[jax.Array], ids: jax.Array, groups: int = 1) -> jax.Array:
    """Returns one CMPM over all levels at once, so that levels are each other's positives.

    views, levels: one (B, D) per augmented view and per text level; ids (B,) person ids. View i is matched with level
    i, a single view with every level, a single level with every view.
    groups: equal slices of the batch, each matched by itself (a per-GPU loss, on any number of devices).
    """
    return jax.vmap(cmpm_loss)(*pair_levels(views, levels, ids, groups)).mean()


def gathered_loss(
    loss: Callable[..., jax.Array],
    views: Sequence[jax.Array],
    levels: Sequence[jax.Array],
    ids: jax.Array,
    groups: int = 1,
    *,
    axes: tuple[str, ...],
) -> jax.Array:
    """Returns `loss` of the rows of all devices, inside `jax.shard_map`. Every device computes the whole of it.

    loss: a function as `mla_loss`. axes: the mesh's axes, over which the rows are split in this order; () = one device.
    """
    if not axes:
        return loss(views, levels, ids, groups)
    whole = jax.lax.all_gather(jnp.stack([*views, *levels]), axes, axis=1, tiled=True)
    all_ids = jax.lax.all_gather(ids, axes, tiled=True)
    return jax.lax.pmean(loss(list(whole[: len(views)]), list(whole[len(views) :]), all_ids, groups), axes)


def sharded_mla_loss(
    views: Sequence[jax.Array],
    levels: Sequence[jax.Array],
    ids: jax.Array,
    groups: int = 1,
    *,
    axes: tuple[str, ...],
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
    losses = jax.vmap(projection_losses)
    total = (losses(v, keys_t, own_ids, all_ids) + losses(t, keys_v, own_ids, all_ids)).sum()
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
