"""Losses that match images and texts of the same person: CMPM, SDM, ITC and TAL, each from one matrix of similarities.

Each gives one loss per query, against all keys. The loss of a batch is the mean over its images as queries plus the
mean over its texts as queries. So all work in groups, in micro-batches and split over devices.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ivt_jax.losses.contrastive import cmpm_of_logits, divergence, similarities

QueryLosses = Callable[..., jax.Array]
"""(query (m, D), key (n, D), query_ids (m,), key_ids (n,), scale () or None) -> losses (m,) float32."""

NORMALISE = ("published", "both", "neither")
TAL_MARGIN = 0.1
# As published: of SDM by IRRA, of TAL by RDE; of ITC, where CLIP begins to learn it.
TEMPERATURES = {"sdm": 0.02, "itc": 0.07, "tal": 0.015}


def query_losses(name: str, normalise: str = "published") -> QueryLosses:
    """Returns the per-query form of a loss of LOSSES.

    name: "cmpm" (Zhang & Lu, ECCV 2018), "sdm" (Jiang & Ye, CVPR 2023, "IRRA"), "itc" (InfoNCE; Radford et al., ICML
    2021) or "tal" (Qin et al., CVPR 2024, "RDE"). normalise: the embeddings that are scaled to length 1 first: "both",
    queries and keys, so that similarities are cosines; "neither"; "published", only keys for cmpm, both for the others.
    The returned function multiplies similarities by its `scale`, 1 / temperature; None = 1.
    """
    return functools.partial(_query_losses, LOSSES[name], query_similarities(name, normalise))


def query_similarities(name: str, normalise: str = "published") -> Callable[..., jax.Array]:
    """Returns the similarities that a loss compares: (query (m, D), key (n, D), scale () or None) -> (m, n) float32."""
    unit_query = normalise == "both" or (normalise == "published" and name != "cmpm")
    return functools.partial(_scaled_similarities, unit_query, normalise != "neither")


def _scaled_similarities(
    unit_query: bool, unit_key: bool, query: jax.Array, key: jax.Array, scale: jax.Array | float | None = None
) -> jax.Array:
    products = similarities(query, key, unit_query=unit_query, unit_key=unit_key)
    return products if scale is None else products * scale


def _query_losses(
    loss: Callable[..., jax.Array],
    compare: Callable[..., jax.Array],
    query: jax.Array,
    key: jax.Array,
    query_ids: jax.Array,
    key_ids: jax.Array,
    scale: jax.Array | float | None = None,
) -> jax.Array:
    """Returns the losses (m,) of queries (m, D) against keys (n, D); all in float32, as `projection_losses`."""
    same = (query_ids[:, None] == key_ids[None, :]).astype(jnp.float32)
    return loss(compare(query, key, scale), same, 1.0 if scale is None else scale)


def _cmpm(logits: jax.Array, same: jax.Array, scale: jax.Array | float) -> jax.Array:
    del scale
    return cmpm_of_logits(logits, same)


def _sdm(logits: jax.Array, same: jax.Array, scale: jax.Array | float) -> jax.Array:
    """As CMPM, with targets divided by their sum, so that they are a distribution."""
    del scale
    return divergence(logits, same / same.sum(1, keepdims=True))


def _itc(logits: jax.Array, same: jax.Array, scale: jax.Array | float) -> jax.Array:
    """The cross-entropy of softmax_j(logits); the target is spread evenly over all keys of the query's person."""
    del scale
    return -(same / same.sum(1, keepdims=True) * jax.nn.log_softmax(logits, axis=1)).sum(1)


def _tal(logits: jax.Array, same: jax.Array, scale: jax.Array | float) -> jax.Array:
    """The triplet alignment loss [m - sum_j a_ij s_ij + tau log sum_j in negatives exp(s_ij / tau)]+, tau = 1 / scale.

    m = TAL_MARGIN; a_i is the softmax of s_i / tau over the positives and is not differentiated. The published loss is
    the sum over the batch, so each query's loss is multiplied by the number of keys: the mean is then that sum. A query
    without negatives has loss 0.
    """
    weights = jax.lax.stop_gradient(jax.nn.softmax(jnp.where(same > 0, logits, -jnp.inf), axis=1))
    some = (same == 0).any(1)
    # Without negatives the logsumexp would be -inf, and its gradient NaN.
    masked = jnp.where((same == 0) | ~some[:, None], logits, -jnp.inf)
    distance = (jax.nn.logsumexp(masked, axis=1) - (weights * logits).sum(1)) / scale
    return jnp.where(some, jax.nn.relu(TAL_MARGIN + distance), 0) * same.shape[1]


LOSSES = {"cmpm": _cmpm, "sdm": _sdm, "itc": _itc, "tal": _tal}
