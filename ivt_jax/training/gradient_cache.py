"""The loss and the gradient of a batch larger than memory: its rows pass through the tower in micro-batches.

Gradient caching (Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", 2021, section
3.2): embeddings of all rows are computed and kept, without what their gradient needs; the loss of the whole batch
gives the gradient of each embedding; then each micro-batch is encoded once more, and takes its part of that gradient
back to the parameters. Draws follow from a row's number in the batch, so a row is encoded the same both times.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ivt_jax.models.ivt import IVT
from ivt_jax.training.objective import Encoded, Matching, combine, make_encode, numbered


def cached_gradients(
    model: IVT, params: Any, batch: dict[str, Any], key: jax.Array, config: Any, mask_id: int, matching: Matching
) -> tuple[Any, dict[str, jax.Array]]:
    """What `jax.grad` of the objective gives, to rounding: gradients like `params`, float32, and the metrics.

    The memory of activations is that of a micro-batch, config.runtime.microbatches of them in a batch.
    """
    encode = make_encode(model, batch, key, config, mask_id)
    parts = split(numbered(batch, config), config.runtime.microbatches)

    def embed(part: Any) -> Encoded:
        """Without the sums: the total is linear in them, so their gradient follows from their weights alone."""
        views, texts, sums = encode(params, *part)
        return Encoded(views, texts, {name: (jnp.zeros_like(w), w) for name, (_, w) in sums.items()})

    def total(encoded: Encoded) -> tuple[jax.Array, dict[str, jax.Array]]:
        return combine(encoded, batch["person_ids"], config, matching)

    encoded = join(jax.lax.map(embed, parts))
    of_encoded, terms = jax.grad(total, has_aux=True)(encoded)

    def backward(gradients: Any, part: tuple[Any, Encoded]) -> tuple[Any, Any]:
        rows, of_part = part
        again, pull = jax.vjp(lambda params: encode(params, *rows), params)
        return jax.tree.map(jnp.add, gradients, pull(of_part)[0]), again.sums

    nothing = jax.tree.map(jnp.zeros_like, params)
    gradients, sums = jax.lax.scan(backward, nothing, (parts, split(of_encoded, config.runtime.microbatches)))
    _, reconstructed = combine(Encoded([], [], join(sums)), batch["person_ids"], config, matching)
    loss = terms["loss"] + reconstructed["loss"]  # the first has the sums as zeros, the second no matching
    return gradients, {**terms, **reconstructed, "loss": loss}


def split(tree: Any, count: int) -> Any:
    """Arrays (n, ...) -> (count, n / count, ...), every count-th row together, so that rows stay on their device."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), tree)


def join(tree: Any) -> Any:
    """What `split` has split, in the old order."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)
