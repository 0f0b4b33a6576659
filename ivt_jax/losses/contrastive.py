"""Cross-modal projection matching (Zhang & Lu, ECCV 2018, section 3.2), as the IVT release computes it."""

import jax
import jax.numpy as jnp


def cmpm_loss(v: jax.Array, t: jax.Array, ids: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """CMPM of image embeddings v (n, D), text embeddings t (n, D) and person ids (n,) -> float32 scalar.

    p_ij = softmax_j(v_i . t_j / |t_j|), q_ij = y_ij / |y_i|_2 with y_ij = 1 where the persons agree;
    L_i2t = mean_i sum_j p_ij (log p_ij - log(q_ij + epsilon)), L_t2i the same with the roles exchanged; their sum.
    The query side is not normalised, and q has the L2 norm, not the L1 sum: so released. The loss can be negative.
    Everything is float32 at the highest matmul precision, for the logits reach tens.
    """
    v, t = v.astype(jnp.float32), t.astype(jnp.float32)
    same = (ids[:, None] == ids[None, :]).astype(jnp.float32)
    log_target = jnp.log(same / jnp.linalg.norm(same, axis=1, keepdims=True) + epsilon)
    return _projection_matching(v, t, log_target) + _projection_matching(t, v, log_target)


def _projection_matching(query: jax.Array, key: jax.Array, log_target: jax.Array) -> jax.Array:
    key = key / jnp.linalg.norm(key, axis=1, keepdims=True)
    logits = jnp.matmul(query, key.T, precision=jax.lax.Precision.HIGHEST)
    log_p = jax.nn.log_softmax(logits, axis=1)
    return (jnp.exp(log_p) * (log_p - log_target)).sum(1).mean()
