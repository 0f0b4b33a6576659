"""Heat maps: where in a crop the model sees a phrase.

The heat of a patch is the similarity of the phrase to the crop seen through this patch alone: the model embeds a
sequence of the class token, if it has one, and the one patch, at its position. All patches together cost as much as two
or three crops.

The tokens of patches after the last block would not do. Only the class token is trained, and the patch most similar to
a phrase shows what it describes hardly more often than chance (docs/benchmarks/search.md).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ivt_jax.encoding.encoder import Encoder
from ivt_jax.encoding.pixels import normalise

# RGB of heat from 0 to 1 in equal steps, each lighter than the one before.
_COLOURS = ((20, 11, 54), (113, 31, 110), (203, 65, 73), (248, 142, 9), (245, 249, 161))
_OPACITY = 0.75  # at heat 1; 0 at heat 0


def heat_maps(encoder: Encoder, image: np.ndarray, phrases: np.ndarray) -> np.ndarray:
    """image (H, W, 3) uint8 of encoder.size, phrases (P, D) float32 of length 1 -> heat (P, rows, columns) float32.

    The heat of each phrase is scaled to 0 for the coldest patch and 1 for the hottest; 0 everywhere if all are equal.
    """
    scores = phrases @ np.asarray(_embed_patches(encoder.model, encoder.params, image)).T
    least, most = scores.min(1, keepdims=True), scores.max(1, keepdims=True)
    heat = (scores - least) / np.where(most > least, most - least, 1)
    return heat.reshape(-1, *encoder.model.config.grid)


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Draws heat (rows, columns), 0 to 1, over a picture; returns an RGB image of the same size."""
    smooth = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR))
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(smooth, stops, channel) for channel in zip(*_COLOURS, strict=True)], axis=-1)
    opacity = _OPACITY * smooth[..., None]
    pixels = np.asarray(image.convert("RGB")) * (1 - opacity) + colours * opacity
    return Image.fromarray(pixels.round().astype(np.uint8))


@functools.partial(jax.jit, static_argnums=0)
def _embed_patches(model: Any, params: Any, image: jax.Array) -> jax.Array:
    """Embeds a crop (H, W, 3) uint8 seen through each of its N patches alone -> (N, D) float32 of length 1."""
    pixels = normalise(image, model.config)[None]

    def embed(patch: jax.Array) -> jax.Array:
        keep = jnp.stack([0, 1 + patch] if model.config.has_class_token else [patch])[None], None
        embedding = model.apply({"params": params}, pixels, keep=keep, method="embed_image")[0]
        return embedding / jnp.linalg.norm(embedding)

    return jax.vmap(embed)(jnp.arange(model.config.num_patches))
