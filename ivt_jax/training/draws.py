"""Random inputs of a training step: noise of erased pixels, kept tokens, hidden words and patches, dropout.

A row's random inputs depend only on the step's key and the row's number in the global batch, so a micro-batch gets the
same ones as the whole batch. Only `exact` alignment draws once for the whole batch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ivt_jax.encoding.pixels import erase, normalise
from ivt_jax.losses import bmm
from ivt_jax.models.config import IVTConfig
from ivt_jax.models.selection import Selection, pooled_places


class Draws(NamedTuple):
    """The keys of a step by purpose, and the tokens that `exact` alignment keeps, of all images and of all texts."""

    erase: jax.Array
    align: jax.Array
    hide: jax.Array
    image: jax.Array  # dropout of the image pass, the text passes and the joint pass
    text: jax.Array
    joint: jax.Array
    image_tokens: Selection | None = None
    text_tokens: Selection | None = None
    match: Any = None  # negatives of image-text matching, and dropout of its joint passes


class Masked(NamedTuple):
    """Inputs and targets of the reconstruction of r pairs.

    erased, clean: images (r, H, W, 3) with noise and without. ids, hidden_ids: sentences (r, L) before and after hiding
    words; mask (r, L), False at padding. positions, weights: of the hidden tokens, (r, M). patches: (r, P) bool, True
    at hidden ones.
    """

    rows: jax.Array
    erased: jax.Array
    clean: jax.Array
    ids: jax.Array
    hidden_ids: jax.Array
    mask: jax.Array
    positions: Any  # None without the loss of words
    weights: Any
    patches: Any  # None without the loss of patches


def row_keys(key: jax.Array, rows: jax.Array, count: int = 1) -> jax.Array:
    """Returns a key for each of the `count` views of each row, row by row: rows (b,) int32 -> (b * count,)."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold, (0, None))(fold(key, rows), jnp.arange(count)).reshape(-1)


def exact_tokens(
    key: jax.Array, num_image: int, masks: list[jax.Array], ratio: float, axes: tuple[str, ...] = ()
) -> tuple[Selection, Selection]:
    """Returns the tokens that `exact` alignment keeps: one selection for all images and one for all texts.

    num_image: tokens of an image; masks: (b, L) bool of each text level; axes: those of the mesh that split the rows.
    """
    longest = max(mask.shape[1] for mask in masks)
    length = jax.lax.pmax(jnp.stack([mask.sum(1).max() for mask in masks]).max(), axes)
    return (
        bmm.exact_selection(jax.random.fold_in(key, 0), num_image, num_image, ratio),
        bmm.exact_selection(jax.random.fold_in(key, 1), length, longest, ratio),
    )


def fast_image_tokens(keys: jax.Array, model_config: IVTConfig, ratio: float) -> Selection:
    """Returns the tokens that `fast` alignment keeps of each image, by keys (N,); the class token is among them."""
    whole = jnp.ones((len(keys), model_config.image_tokens), bool)
    always = (0,) if model_config.has_class_token else ()
    kept, _ = jax.vmap(functools.partial(bmm.fast_selection, ratio=ratio, always=always))(keys, whole)
    return kept, None  # all images have the same number of tokens: nothing is padding


def fast_text_tokens(keys: jax.Array, mask: jax.Array, model_config: IVTConfig, ratio: float) -> Selection:
    """Returns the tokens that `fast` alignment keeps of each text, by keys (N,); mask (N, L) is False at padding.

    The first token and the pooled one are among them.
    """
    if model_config.towers == 1:
        return jax.vmap(functools.partial(bmm.fast_selection, ratio=ratio))(keys, mask)
    text = model_config.text

    def keep(key: jax.Array, mask: jax.Array, pooled: jax.Array) -> Selection:
        return bmm.fast_selection(key, mask, ratio, always=(0, pooled), ordered=text.causal)

    return jax.vmap(keep)(keys, mask, pooled_places(mask, text.pooling))


def erase_boxes(images: jax.Array, boxes: jax.Array, keys: jax.Array, config: Any) -> tuple[jax.Array, jax.Array]:
    """Normalises images (N, H, W, 3) uint8 and returns them with noise in their boxes (N, 4), and without."""
    clean = normalise(images, config.model)
    return jax.vmap(erase)(keys, clean, boxes) if config.augment.erase else clean, clean  # the noise costs a little
