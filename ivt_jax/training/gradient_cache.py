"""Loss and gradient of a batch larger than memory, computed in micro-batches.

Gradient caching (Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", 2021, section
3.2) has three stages. First all rows are encoded, and only their embeddings are kept. Then the loss of the whole batch
gives the gradient of each embedding, and of the parameters that the loss itself uses. Last, each micro-batch is encoded
again, and its part of that gradient is propagated back to the parameters. Random inputs depend on the row's number in
the batch, so both encodings are equal. The negatives of image-text matching are drawn after the first stage, and their
joint passes run in the last one.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ivt_jax.training.objective import DIRECT, Encoded, Objective


def cached_gradients(
    objective: Objective, params: Any, batch: dict[str, Any], key: jax.Array
) -> tuple[Any, dict[str, jax.Array]]:
    """Returns what `jax.grad` of the objective gives, to rounding: gradients like `params`, float32, and the metrics.

    Activations take the memory of one of the config.runtime.microbatches parts of the batch.
    """
    draws, count = objective.draw(batch, key), objective.config.runtime.microbatches
    parts = split(objective.select(batch), count)

    def embed(part: Any) -> Encoded:
        """Encodes a part, with 0 for its loss sums: the loss is linear in them; their gradient needs only weights."""
        views, levels, sums = objective.encode(params, draws, *part)
        zeros = {name: (jnp.zeros_like(total), weight) for name, (total, weight) in sums.items()}
        return Encoded(views, levels, zeros)

    def loss(encoded: Encoded, direct: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        return objective.combine({**params, **direct}, encoded, batch["person_ids"])

    encoded = join(jax.lax.map(embed, parts))
    drawn = objective.draw_negatives(params, draws, encoded, batch)
    if drawn:
        encoded = encoded._replace(sums={**encoded.sums, "itm": (jnp.zeros_like(drawn["weights"]), drawn["weights"])})
    direct = {part: params[part] for part in DIRECT if part in params}
    (of_encoded, of_direct), terms = jax.grad(loss, argnums=(0, 1), has_aux=True)(encoded, direct)

    def backward(gradients: Any, part: tuple[Any, Any, Encoded]) -> tuple[Any, Any]:
        rows, pairs, of_rows = part
        again, pull = jax.vjp(lambda p: objective.match(p, draws, objective.encode(p, draws, *rows), pairs), params)
        return jax.tree.map(jnp.add, gradients, pull(of_rows)[0]), again.sums

    first = jax.tree.map(jnp.zeros_like, params) | of_direct
    gradients, sums = jax.lax.scan(backward, first, (parts, split(drawn, count), split(of_encoded, count)))
    _, reconstructed = loss(Encoded([], [], join(sums)), direct)
    total = terms["loss"] + reconstructed["loss"]  # the first has the sums as zeros, the second no matching
    return gradients, {**terms, **reconstructed, "loss": total}


def split(tree: Any, count: int) -> Any:
    """Arrays (n, ...) -> (count, n / count, ...), every count-th row together, so that rows stay on their device."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), tree)


def join(tree: Any) -> Any:
    """Undoes `split`: (count, n / count, ...) -> (n, ...)."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)
