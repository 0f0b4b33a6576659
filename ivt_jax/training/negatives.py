"""Pairs for image-text matching: each pair of the batch, and the image and the text of others that are drawn for it.

Negatives come from the global batch. What is drawn for a row follows from the step's key, the row's number and the
similarities, so it is the same on any number of devices and in micro-batches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ivt_jax.losses import itm
from ivt_jax.training.draws import row_keys


def draw_pairs(
    key: jax.Array,
    embeddings: tuple[jax.Array, jax.Array],
    person_ids: jax.Array,
    own: dict[str, jax.Array],
    similarities: Callable[[jax.Array, jax.Array], jax.Array],
    axes: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Returns "own"; "other", the same arrays of the drawn image and text of each row; and "weights" (b,) float32.

    A weight is 3, the number of pairs that a row gives, or 0 if the whole batch has the person of the row: then there
    is no negative, and the row does not count.

    embeddings: of images and texts, (b, D) each. own: rows (b,) int32, the numbers in the global batch, images, erase,
    ids and mask. similarities: of queries (b, D) and keys (B, D) -> (b, B). axes: those of the mesh that split the
    rows, inside `jax.shard_map`; the whole batch's images and texts are then gathered on every device.
    """
    everything = embeddings, person_ids, own
    if axes:
        everything = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), everything)
    (images, texts), all_ids, rows = everything
    same = person_ids[:, None] == all_ids[None, :]

    def draw(number: int, query: jax.Array, keys: jax.Array) -> jax.Array:
        return itm.draw_negatives(
            row_keys(jax.random.fold_in(key, number), own["rows"]), similarities(query, keys), same
        )

    text, image = draw(0, embeddings[0], texts), draw(1, embeddings[1], images)
    other = {name: jnp.take(rows[name], image, axis=0) for name in ("rows", "images", "erase")}
    other |= {name: jnp.take(rows[name], text, axis=0) for name in ("ids", "mask")}
    return {"own": own, "other": other, "weights": 3 * (~same.all(1)).astype(jnp.float32)}
