"""The nearest vectors of a gallery, exactly: on the host in one pass over memory, or on devices that share the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_CHUNK = 65536  # rows whose products are in memory at once


def nearest(
    queries: np.ndarray, vectors: np.ndarray, k: int, chosen: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k rows of vectors (N, D) with the largest products with queries (Q, D) float32.

    Returns scores (Q, k) float32 and rows (Q, k) int64, best first, ties by row; fewer than k if there are no more.
    vectors: float32 or float16, in memory or mapped; each row is read once. chosen (N,) bool: the rows to consider,
    None for all.
    """
    best_scores, best_rows = (np.empty((len(queries), 0), dtype) for dtype in (np.float32, np.int64))
    for start in range(0, len(vectors), _CHUNK):
        chunk, rows = vectors[start : start + _CHUNK], np.arange(start, min(start + _CHUNK, len(vectors)))
        if chosen is not None:
            chunk, rows = chunk[chosen[rows]], rows[chosen[rows]]
        # The large matrix first: BLAS reads it once, whatever the number of queries.
        scores = (chunk.astype(np.float32, copy=False) @ queries.T).T
        found = np.hstack([best_scores, scores]), np.hstack([best_rows, np.broadcast_to(rows, scores.shape)])
        best_scores, best_rows = best_of(*found, k)
    return best_scores, best_rows


def best_of(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best columns of each line of scores and rows, best first, ties by row."""
    if scores.shape[1] > k:
        least = np.partition(scores, -k, axis=1)[:, [-k]]
        chosen = [np.flatnonzero(line >= limit) for line, limit in zip(scores, least, strict=True)]
    else:
        chosen = [np.arange(scores.shape[1])] * len(scores)
    order = np.stack([c[np.lexsort((rows[i, c], -scores[i, c]))[:k]] for i, c in enumerate(chosen)])
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def place_rows(vectors: np.ndarray, mesh: Mesh) -> jax.Array:
    """Vectors (N, D) split by rows over all devices of the mesh; N is a multiple of their number."""
    return jax.device_put(vectors, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


@functools.partial(jax.jit, static_argnames=("k", "mesh", "recall"))
def nearest_on_devices(
    queries: jax.Array, placed: jax.Array, *, k: int, mesh: Mesh, recall: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """`nearest` of what `place_rows` placed, products in float32: each device finds its own k, of which the best stay.

    recall: below 1, `approx_max_k` with this expected recall takes the place of the exact search; TPUs gain by it.
    """
    axes = mesh.axis_names

    def own(queries: jax.Array, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = jnp.matmul(queries, vectors.T, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
        count = min(k, len(vectors))
        exact = recall == 1.0
        best, rows = (
            jax.lax.top_k(scores, count) if exact else jax.lax.approx_max_k(scores, count, recall_target=recall)
        )
        rows = rows + jax.lax.axis_index(axes) * len(vectors)
        best, rows = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in (best, rows))
        best, order = jax.lax.top_k(best, k)  # devices come in the order of their rows, so ties are still by row
        return best, jnp.take_along_axis(rows, order, axis=1)

    split, whole = PartitionSpec(axes), PartitionSpec()
    return jax.shard_map(own, mesh=mesh, in_specs=(whole, split), out_specs=(whole, whole), check_vma=False)(
        queries, placed
    )
