"""The identity loss (Jiang & Ye, CVPR 2023): one linear classifier over the training persons, for images and texts.

The classifier is one of the heads of losses/heads.py, which only training has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

HEAD_STD = 0.001


def init_classifier(key: jax.Array, width: int, persons: int) -> dict[str, jax.Array]:
    """Returns the initial parameters: kernel (width, persons) drawn from N(0, 0.001), bias (persons,) 0."""
    kernel = HEAD_STD * jax.random.normal(key, (width, persons))
    return {"kernel": kernel, "bias": jnp.zeros(persons)}


def identity_losses(
    classifier: Mapping[str, Any], views: Sequence[jax.Array], levels: Sequence[jax.Array], person_ids: jax.Array
) -> jax.Array:
    """Returns the loss of each pair (b,) float32: the mean of an image's and a text's cross-entropy.

    views, levels: the embeddings (b, D) of each augmented view and text level, not normalised; cross-entropies are
    averaged over the views of an image and over the levels of a text. person_ids (b,): the classes. All in float32 at
    the highest matmul precision.
    """

    def mean_of(parts: Sequence[jax.Array]) -> jax.Array:
        embeddings = jnp.stack(parts).astype(jnp.float32)
        product = jnp.matmul(embeddings, classifier["kernel"], precision=jax.lax.Precision.HIGHEST)
        log_p = jax.nn.log_softmax(product + classifier["bias"])
        return -log_p[:, jnp.arange(len(person_ids)), person_ids].mean(0)

    return (mean_of(views) + mean_of(levels)) / 2
