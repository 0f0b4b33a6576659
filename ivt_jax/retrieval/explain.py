"""Why a picture was found: where in a crop a phrase is seen.

The heat of a patch is how far the similarity of crop and phrase falls when that patch is left out of the crop. A model
trained with masked alignment has seen crops with patches left out, so the question is one that it was taught to answer.
Of a fine grid, small squares of patches are left out, so that a crop passes through the model WINDOWS times at most.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ivt_jax.gallery.encoder import ImageEncoder
from ivt_jax.images import normalise

WINDOWS = 64
_AT_ONCE = 32  # of them: bounds the memory that a large model takes
# The colours of heat, from 0 to 1 in equal steps, each lighter than the one before.
_COLOURS = ((20, 11, 54), (113, 31, 110), (203, 65, 73), (248, 142, 9), (245, 249, 161))
_OPACITY = 0.75  # of the hottest; where it is coldest the picture is as it was


def heat_maps(encoder: ImageEncoder, image: np.ndarray, phrases: np.ndarray) -> np.ndarray:
    """Where each phrase is seen in a crop.

    image (H, W, 3) uint8 at encoder.size, phrases (P, D) float32 of length 1 -> (P, rows, columns) float32, a value for
    each patch, from 0 for the coldest of the crop to 1 for the hottest; 0 everywhere where all are equal.
    """
    windows = divide(encoder.model.config.grid)
    left_out = windows.ravel() == np.arange(windows.max() + 1)[:, None]
    # The tokens that stay come first, as the model wants them; token 0, the crop's own, always stays.
    order = np.argsort(np.pad(left_out, [(0, 0), (1, 0)]), axis=1, kind="stable").astype(np.int32)
    vectors = _embed(encoder.model, encoder.params, image, order, 1 + (~left_out).sum(1))
    fall = -phrases @ np.asarray(vectors).T
    least, most = fall.min(1, keepdims=True), fall.max(1, keepdims=True)
    return ((fall - least) / np.where(most > least, most - least, 1))[:, windows]


def divide(grid: tuple[int, int]) -> np.ndarray:
    """Which window each patch is in, (rows, columns): the smallest squares that are WINDOWS at most, by rows from 0."""
    side = 1
    while math.ceil(grid[0] / side) * math.ceil(grid[1] / side) > WINDOWS:
        side += 1
    rows, columns = np.indices(grid) // side
    return rows * (columns.max() + 1) + columns


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The picture with heat (rows, columns), from 0 to 1, drawn over it: RGB, as large as it was."""
    smooth = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR))
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(smooth, stops, channel) for channel in zip(*_COLOURS, strict=True)], axis=-1)
    opacity = _OPACITY * smooth[..., None]
    pixels = np.asarray(image.convert("RGB")) * (1 - opacity) + colours * opacity
    return Image.fromarray(pixels.round().astype(np.uint8))


@functools.partial(jax.jit, static_argnums=0)
def _embed(model: Any, params: Any, image: jax.Array, order: jax.Array, lengths: jax.Array) -> jax.Array:
    """A crop (H, W, 3) uint8 by some of its tokens, the first `lengths` (W,) of `order` (W, N): (W, D) of length 1."""
    pixels = normalise(image)[None]

    def embed(kept: tuple[jax.Array, jax.Array]) -> jax.Array:
        order, length = kept
        keep = order[None], (jnp.arange(len(order)) < length)[None]
        token = model.apply({"params": params}, pixels, keep=keep, method="encode_image")[0, 0]
        return token / jnp.linalg.norm(token)

    return jax.lax.map(embed, (order, lengths), batch_size=_AT_ONCE)
