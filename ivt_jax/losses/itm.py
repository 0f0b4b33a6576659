"""Image-text matching (ITM; Li et al., "Align before Fuse", 2021): does a text describe an image?

A linear classifier reads the first token of the text after a joint pass with the image. Each pair gives one positive
and two negatives: its image with a text, and its text with an image, of other persons. The more similar they are, the
more often they are drawn, as in the pre-training of the IVT release.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

HEAD_STD = 0.02
FLOOR = 1e-4  # added to each probability before the normalisation, so that every negative can be drawn


def init_classifier(key: jax.Array, width: int) -> dict[str, jax.Array]:
    """Returns the initial parameters: kernel (width, 2) drawn from N(0, 0.02), bias (2,) 0; class 1 is "matches"."""
    return {"kernel": HEAD_STD * jax.random.normal(key, (width, 2)), "bias": jnp.zeros(2)}


def draw_negatives(keys: jax.Array, similarities: jax.Array, same: jax.Array) -> jax.Array:
    """Returns the number (m,) int32 of the key that is drawn for each query.

    Key j is drawn with a probability proportional to softmax_j(similarities) + FLOOR if its person is another one.
    keys: random keys (m,). similarities, same: (m, n), same is True where persons agree. If all agree, it returns 0.
    """
    weights = jax.nn.softmax(jax.lax.stop_gradient(similarities), axis=1) + FLOOR
    logits = jnp.where(same, -jnp.inf, jnp.log(weights))
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def matching_losses(classifier: Mapping[str, Any], tokens: jax.Array) -> jax.Array:
    """Returns the summed cross-entropies (b,) float32 of each pair: one positive and two negatives.

    tokens (b, 3, D): first tokens of the texts in the joint passes; the positive comes first. All in float32 at the
    highest matmul precision.
    """
    product = jnp.matmul(tokens.astype(jnp.float32), classifier["kernel"], precision=jax.lax.Precision.HIGHEST)
    log_p = jax.nn.log_softmax(product + classifier["bias"])
    return -(log_p[:, 0, 1] + log_p[:, 1:, 0].sum(1))
