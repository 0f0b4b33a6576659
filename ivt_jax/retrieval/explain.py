"""Why a picture was found: where in a crop a phrase is seen.

The heat of a patch is the similarity of the phrase with the crop seen through this patch alone: the model gets the
class token and the patch, at its place, and makes an embedding as it does of a whole crop. Since a sequence of two
tokens costs little, all patches together cost two or three crops.

The patches' own tokens at the end of the tower do not serve: training matches the class token alone, and where theirs
is most similar to a phrase, what it speaks of is found hardly more often than by chance (BENCHMARKS.md).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ivt_jax.encoding.encoder import ImageEncoder
from ivt_jax.encoding.images import normalise

# The colours of heat, from 0 to 1 in equal steps, each lighter than the one before.
_COLOURS = ((20, 11, 54), (113, 31, 110), (203, 65, 73), (248, 142, 9), (245, 249, 161))
_OPACITY = 0.75  # of the hottest; where it is coldest the picture is as it was


def heat_maps(encoder: ImageEncoder, image: np.ndarray, phrases: np.ndarray) -> np.ndarray:
    """Where each phrase is seen in a crop.

    image (H, W, 3) uint8 at encoder.size, phrases (P, D) float32 of length 1 -> (P, rows, columns) float32, a value for
    each patch, from 0 for the coldest of the crop to 1 for the hottest; 0 everywhere where all are equal.
    """
    scores = phrases @ np.asarray(_embed_patches(encoder.model, encoder.params, image)).T
    least, most = scores.min(1, keepdims=True), scores.max(1, keepdims=True)
    heat = (scores - least) / np.where(most > least, most - least, 1)
    return heat.reshape(-1, *encoder.model.config.grid)


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The picture with heat (rows, columns), from 0 to 1, drawn over it: RGB, as large as it was."""
    smooth = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR))
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(smooth, stops, channel) for channel in zip(*_COLOURS, strict=True)], axis=-1)
    opacity = _OPACITY * smooth[..., None]
    pixels = np.asarray(image.convert("RGB")) * (1 - opacity) + colours * opacity
    return Image.fromarray(pixels.round().astype(np.uint8))


@functools.partial(jax.jit, static_argnums=0)
def _embed_patches(model: Any, params: Any, image: jax.Array) -> jax.Array:
    """A crop (H, W, 3) uint8 seen through each of its N patches alone: (N, D) float32 of length 1."""
    pixels = normalise(image)[None]

    def embed(patch: jax.Array) -> jax.Array:
        keep = jnp.stack([0, 1 + patch])[None], None
        token = model.apply({"params": params}, pixels, keep=keep, method="encode_image")[0, 0]
        return token / jnp.linalg.norm(token)

    return jax.vmap(embed)(jnp.arange(model.config.num_patches))
