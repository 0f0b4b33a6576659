"""Cross-modal projection matching (Zhang & Lu, ECCV 2018, section 3.2), as the IVT release computes it."""

import jax
import jax.numpy as jnp


def cmpm_loss(v: jax.Array, t: jax.Array, ids: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """Returns CMPM of image embeddings v (n, D), text embeddings t (n, D) and person ids (n,), () float32.

    L_i2t + L_t2i: the means of `projection_losses` of images against texts and of texts against images.
    """
    return (projection_losses(v, t, ids, ids, epsilon) + projection_losses(t, v, ids, ids, epsilon)).mean()


def projection_losses(
    query: jax.Array, key: jax.Array, query_ids: jax.Array, key_ids: jax.Array, epsilon: float = 1e-8
) -> jax.Array:
    """Returns the losses (m,) float32 of queries (m, D) with person ids (m,) against keys (n, D) with person ids (n,).

    p_ij = softmax_j(x_i . z_j / |z_j|), q_ij = y_ij / |y_i|_2 with y_ij = 1 if the persons agree;
    L_i = sum_j p_ij (log p_ij - log(q_ij + epsilon)). As released, the query is not normalised, and q has the L2 norm,
    not the L1 sum: a loss can be negative. Logits reach tens, so everything is float32 at the highest matmul precision.
    """
    same = (query_ids[:, None] == key_ids[None, :]).astype(jnp.float32)
    return cmpm_of_logits(similarities(query, key, unit_query=False, unit_key=True), same, epsilon)


def similarities(query: jax.Array, key: jax.Array, *, unit_query: bool, unit_key: bool) -> jax.Array:
    """Returns the dot products (m, n) float32 of queries (m, D) and keys (n, D); unit_*: scales these to length 1."""
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    if unit_query:
        query = query / jnp.linalg.norm(query, axis=1, keepdims=True)
    if unit_key:
        key = key / jnp.linalg.norm(key, axis=1, keepdims=True)
    return jnp.matmul(query, key.T, precision=jax.lax.Precision.HIGHEST)


def cmpm_of_logits(logits: jax.Array, same: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """Returns the losses (m,) of `projection_losses` from logits (m, n); same (m, n) is 1 for equal persons, else 0."""
    return divergence(logits, same / jnp.linalg.norm(same, axis=1, keepdims=True), epsilon)


def divergence(logits: jax.Array, target: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """Returns sum_j p_ij (log p_ij - log(target_ij + epsilon)) with p_i = softmax(logits_i): (m, n) each -> (m,)."""
    log_target = jnp.log(target + epsilon)
    log_p = jax.nn.log_softmax(logits, axis=1)
    return (jnp.exp(log_p) * (log_p - log_target)).sum(1)
