"""Multi-level alignment (IVT section 3.2): image views and text levels stacked into one matching problem."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ivt_jax.losses.contrastive import cmpm_loss


def mla_loss(views: Sequence[jax.Array], levels: Sequence[jax.Array], ids: jax.Array, groups: int = 1) -> jax.Array:
    """One CMPM over all levels at once, so that levels are each other's positives.

    views: one (B, D) array per augmented view of the images; levels: one (B, D) per text level; ids (B,). A single view
    serves all levels, a single level all views; otherwise there is one view per level.
    groups: the loss is computed within this many equal slices of the batch and averaged (a per-GPU loss, on any number
    of devices); 1 matches the whole global batch.
    """
    count = max(len(views), len(levels))
    if len(views) not in (1, count) or len(levels) not in (1, count):
        raise ValueError(f"{len(views)} views cannot be matched with {len(levels)} text levels")
    v = _stack(views, count, groups)
    t = _stack(levels, count, groups)
    ids = _stack([ids[:, None]], count, groups)[..., 0]
    return jax.vmap(cmpm_loss)(v, t, ids).mean()


def _stack(parts: Sequence[jax.Array], count: int, groups: int) -> jax.Array:
    """`count` arrays (B, D), one repeated where there is but one -> (groups, count * B / groups, D), level by level."""
    stacked = jnp.stack(list(parts) * (count // len(parts)))
    batch, width = stacked.shape[1:]
    grouped = stacked.reshape(count, groups, batch // groups, width)
    return grouped.transpose(1, 0, 2, 3).reshape(groups, -1, width)
