"""Cross-modal projection matching (Zhang & Lu, ECCV 2018, section 3.2), as the IVT release computes it."""

import jax
import jax.numpy as jnp


def cmpm_loss(v: jax.Array, t: jax.Array, ids: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """CMPM of image embeddings v (n, D), text embeddings t (n, D) and person ids (n,) -> float32 scalar.

    L_i2t + L_t2i: the mean of `projection_losses` of the images against the texts, and of the texts against the images.
    """
    return (projection_losses(v, t, ids, ids, epsilon) + projection_losses(t, v, ids, ids, epsilon)).mean()


def projection_losses(
    query: jax.Array, key: jax.Array, query_ids: jax.Array, key_ids: jax.Array, epsilon: float = 1e-8
) -> jax.Array:
    """The losses of queries (m, D), persons (m,), against all keys (n, D), persons (n,) -> (m,) float32.

    p_ij = softmax_j(x_i . z_j / |z_j|), q_ij = y_ij / |y_i|_2 with y_ij = 1 where the persons agree;
    L_i = sum_j p_ij (log p_ij - log(q_ij + epsilon)). The query is not normalised, and q has the L2 norm, not the L1
    sum: so released. A loss can be negative. Everything is float32 at the highest matmul precision, for the logits
    reach tens.
    """
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    same = (query_ids[:, None] == key_ids[None, :]).astype(jnp.float32)
    log_target = jnp.log(same / jnp.linalg.norm(same, axis=1, keepdims=True) + epsilon)
    key = key / jnp.linalg.norm(key, axis=1, keepdims=True)
    logits = jnp.matmul(query, key.T, precision=jax.lax.Precision.HIGHEST)
    log_p = jax.nn.log_softmax(logits, axis=1)
    return (jnp.exp(log_p) * (log_p - log_target)).sum(1)
