"""Selects the tokens of each row that enter the blocks, and the one that is pooled; splits the rows' random keys."""

import jax
import jax.numpy as jnp

Selection = tuple[jax.Array, jax.Array | None]
"""Tokens that enter the blocks: indices (B or 1, K) int32, and valid (B or 1, K) bool or None, False at a row's end.

The pooled token is among them; the class token comes first. A causal tower needs the valid ones in ascending order.
"""


def select(tokens: jax.Array, mask: jax.Array | None, keep: Selection | None) -> tuple[jax.Array, jax.Array | None]:
    """Gathers the kept tokens and their mask. Tokens that are not valid count as padding."""
    if keep is None:
        return tokens, mask
    indices, valid = keep
    indices = jnp.broadcast_to(indices, (tokens.shape[0], indices.shape[1]))
    tokens = jnp.take_along_axis(tokens, indices[..., None], axis=1)
    if mask is not None:
        mask = jnp.take_along_axis(mask, indices, axis=1)
        return tokens, mask if valid is None else mask & valid
    return tokens, None if valid is None else jnp.broadcast_to(valid, indices.shape)


def pooled_places(mask: jax.Array, pooling: str) -> jax.Array:
    """Returns the place (B,) int32 of the token whose output is a text's embedding; mask (B, L) is False at padding.

    pooling: "first"; "end", the last token that is not padding (CLIP); "last", the last place (SigLIP, whose tokenizer
    marks no padding in the mask).
    """
    batch, length = mask.shape
    if pooling == "end":
        return jnp.where(mask, jnp.arange(length, dtype=jnp.int32), 0).max(axis=1)
    return jnp.full(batch, length - 1 if pooling == "last" else 0, jnp.int32)


def pool(tokens: jax.Array, places: jax.Array, keep: Selection | None) -> jax.Array:
    """Returns the tokens (B, D) that were at `places` (B,) before `keep` selected (B, K, D) of them."""
    if keep is not None:
        places = jnp.argmax(keep[0] == places[:, None], axis=1)
    return jnp.take_along_axis(tokens, places[:, None, None], axis=1)[:, 0]


def split_keys(keys: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Splits each row's key in two: keys (B,) -> (B,) and (B,); None -> None and None."""
    return (None, None) if keys is None else tuple(jax.vmap(jax.random.split, out_axes=1)(keys))
