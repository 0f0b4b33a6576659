"""Images and texts to unit vectors, batch by batch: what evaluation and search compare."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ivt_jax.common.progress import progress
from ivt_jax.encoding.pixels import normalise

_MULTIPLE = 16  # of tokens, to which texts are padded


def embed(
    encode: Callable[..., jax.Array], batches: Iterable[tuple[np.ndarray, ...]], width: int, size: int = 0
) -> np.ndarray:
    """Embeds batches -> (N, width) float32. Pads them to `size` (0: that of the first): `encode` compiles once.

    A batch is a tuple of the arguments of `encode`, arrays with equally many rows.
    """
    rows = [np.empty((0, width), np.float32)]
    for batch in batches:
        count = len(batch[0])
        size = size or count
        padded = (np.pad(x, [(0, size - count)] + [(0, 0)] * (x.ndim - 1)) for x in batch)
        rows.append(np.asarray(encode(*padded))[:count])
    return np.concatenate(rows)


def embed_images(model: Any, params: Any, batches: Iterable[np.ndarray]) -> np.ndarray:
    """uint8 batches (b, H, W, 3) -> (N, D) float32, L2-normalised."""
    encode = functools.partial(encode_images, model, jax.device_put(params))
    return embed(encode, ((batch,) for batch in batches), model.config.embedding_width)


def embed_texts(model: Any, params: Any, ids: np.ndarray, mask: np.ndarray, batch_size: int) -> np.ndarray:
    """Embeds token ids (N, L) int32 with their mask (N, L) bool, as `encode_texts` does -> (N, D) float32; N may be 0.

    Texts of like length go together, and most of their padding is cut off: a caption is short, and few are long.
    """
    encode = functools.partial(encode_texts, model, jax.device_put(params))
    # Up to the last token, not the number of tokens: a text may have padding inside.
    lengths = np.where(mask, np.arange(1, ids.shape[1] + 1), 0).max(axis=1, initial=1)
    order = np.argsort(lengths, kind="stable")
    widths = np.minimum(-(-lengths[order] // _MULTIPLE) * _MULTIPLE, ids.shape[1])
    batches = []
    for width in np.unique(widths):  # each its own compiled program
        rows = order[widths == width]
        parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
        batches += [(ids[part, :width], mask[part, :width]) for part in parts]
    shown = progress(batches, len(batches), "embedding texts: ", "batches", brief=True)
    return embed(encode, shown, model.config.embedding_width, batch_size)[np.argsort(order)]


# Jitted here and not per call, so that a run's later validations find the compiled programs of the first.
@functools.partial(jax.jit, static_argnums=0)
def encode_images(model: Any, params: Any, images: jax.Array) -> jax.Array:
    """uint8 (b, H, W, 3) -> (b, D) float32, L2-normalised; b may be 0.

    Raises ValueError for another dtype, whose values would have another scale, and for another size.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"images are {images.dtype}; expected uint8, pixels from 0 to 255")
    if images.shape[0] == 0:
        return jnp.zeros((0, model.config.embedding_width))
    return _unit(model.apply({"params": params}, normalise(images, model.config), method="embed_image"))


@functools.partial(jax.jit, static_argnums=0)
def encode_texts(model: Any, params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Token ids (b, L) int32, mask (b, L) bool, False at padding -> (b, D) float32, L2-normalised; b may be 0.

    Returns NaN for a row with an id outside of the vocabulary, for which JAX would look up another id, and for a row
    that begins with padding. Raises ValueError if L is 0 or exceeds the model's text positions.
    """
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(f"token ids have shape {ids.shape}; expected (batch, length) with at least 1 token")
    if ids.shape[0] == 0:
        return jnp.zeros((0, model.config.embedding_width))
    embedded = _unit(model.apply({"params": params}, ids, mask, method="embed_text"))
    known = (ids >= 0) & (ids < model.config.vocab_size)
    is_valid = known.all(axis=1) & mask[:, 0]
    return jnp.where(is_valid[:, None], embedded, jnp.nan)


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
