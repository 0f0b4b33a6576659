"""Relative position biases: learned numbers that each head of each layer adds to its attention scores (Bao et al.,
VLMo, 2022, as in BEiT).

For two patches, the number depends on their offset in rows and columns; for two words, on their offset in the text.
Pairs with [CLS], and pairs of a patch and a word, have numbers of their own. Tables are ordered by offset, so that they
can be resized to another grid (conversion/positions.py).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ivt_jax.models.config import IVTConfig
from ivt_jax.models.ops import Params
from ivt_jax.models.selection import Selection


class Bias(NamedTuple):
    """The numbers added to attention scores: (depth, heads, N, N) float32, tokens in the order of the pass.

    tokens (B, K): indices of the tokens that each row keeps, if rows differ; None = all N.
    """

    scores: jax.Array
    tokens: jax.Array | None = None


def table_shapes(c: IVTConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each table.

    image: offsets of rows and of columns, query minus key, from the most negative to the largest. text: offsets of
    words, in the same way. *_cls: from [CLS] to the others, from the others to [CLS], from [CLS] to itself. cross: from
    text to image, from image to text.
    """
    (rows, columns), longest = c.grid, c.max_text_length
    sizes = {"image": (2 * rows - 1, 2 * columns - 1), "image_cls": (3,), "text": (2 * longest - 3,), "text_cls": (3,)}
    return {name: (c.depth, c.num_heads, *size) for name, size in {**sizes, "cross": (2,)}.items()}


def image_bias(tables: Params) -> jax.Array:
    """Returns the bias of an image (depth, heads, 1 + P, 1 + P): [CLS], then patches row by row."""
    of_columns = by_offset(tables["image"])  # (depth, heads, row offsets, query's column, key's column)
    of_both = by_offset(jnp.moveaxis(of_columns, 2, -1))  # (depth, heads, columns of both, query's row, key's row)
    ordered = of_both.transpose(0, 1, 4, 2, 5, 3)
    patches = ordered.shape[2] * ordered.shape[3]
    return with_cls(ordered.reshape(*ordered.shape[:2], patches, patches), tables["image_cls"])


def text_bias(tables: Params, length: int) -> jax.Array:
    """Returns the bias of the first `length` tokens of a text (depth, heads, length, length), [CLS] included.

    length may be symbolic, as in an export.
    """
    offsets = tables["text"]
    longest = (offsets.shape[-1] + 3) // 2
    if isinstance(length, int) and 2 <= length <= longest:  # otherwise the bias of all tokens is computed and cut
        offsets = offsets[..., longest - length : longest + length - 3]
    return with_cls(by_offset(offsets), tables["text_cls"])[:, :, :length, :length]


def joint_bias(tables: Params, length: int) -> jax.Array:
    """Returns the bias of an image's tokens followed by `length` tokens of a text (depth, heads, N, N)."""
    image, text = image_bias(tables), text_bias(tables, length)
    text_to_image, image_to_text = (tables["cross"][..., i, None, None] for i in range(2))
    sizes = image.shape[2], text.shape[2]
    of_image = jnp.broadcast_to(image_to_text, (*image.shape[:2], *sizes))
    of_text = jnp.broadcast_to(text_to_image, (*image.shape[:2], *sizes[::-1]))
    return jnp.block([[image, of_image], [of_text, text]])


def by_offset(table: jax.Array) -> jax.Array:
    """(..., 2n - 1) by offset -> (..., n, n): the number for query q and key k is that of the offset q - k.

    Reshapes one repeated row of numbers instead of gathering: the gradient of a gather is a scatter-add, which is slow
    and, on a GPU, sums in no fixed order.
    """
    n = (table.shape[-1] + 1) // 2
    lead = table.shape[:-1]
    padded = jnp.pad(jnp.flip(table, -1), [(0, 0)] * len(lead) + [(0, 1)])
    repeated = jnp.broadcast_to(padded[..., None, :], (*lead, n, 2 * n)).reshape(*lead, 2 * n * n)
    shifted = repeated[..., n - 1 : n - 1 + n * (2 * n - 1)].reshape(*lead, n, 2 * n - 1)  # row i starts i later
    return shifted[..., :n]


def with_cls(bias: jax.Array, of_cls: jax.Array) -> jax.Array:
    """Adds the row and the column of [CLS], in the order of `*_cls`: (..., n, n), (..., 3) -> (..., 1 + n, 1 + n)."""
    row, column, both = (of_cls[..., i, None, None] for i in range(3))
    lead, n = bias.shape[:-2], bias.shape[-1]
    return jnp.block([[both, jnp.broadcast_to(row, (*lead, 1, n))], [jnp.broadcast_to(column, (*lead, n, 1)), bias]])


def select_bias(scores: jax.Array, keep: Selection | None) -> Bias:
    """Returns the bias of the tokens that `keep` selects. If all rows keep the same tokens, it is gathered once."""
    if keep is None:
        return Bias(scores)
    tokens, _ = keep
    if tokens.shape[0] > 1:
        return Bias(scores, tokens)
    return Bias(scores[:, :, tokens[0, :, None], tokens[0, None, :]])


def of_rows(scores: jax.Array, tokens: jax.Array | None) -> jax.Array:
    """Returns one layer's bias, (heads, N, N), of the tokens of each row: (B, heads, K, K), or (1, heads, N, N)."""
    if tokens is None:
        return scores[None]
    return jax.vmap(lambda row: scores[:, row[:, None], row[None, :]])(tokens)
