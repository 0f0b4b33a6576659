"""Pixels on the device: normalising and random erasing. Needs no Pillow.

JAX is imported where it is used: the server's decoding process, which reads the constants, does without.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    import numpy as np


def normalise(images: "jax.Array | np.ndarray", model: Any) -> "jax.Array":
    """Returns images (..., 3) uint8 as float32, with the mean and the deviation of the model that takes them.

    model: an IVTConfig, or a config's `model`.
    """
    import jax.numpy as jnp

    pixels = jnp.asarray(images, jnp.float32) / 255
    return (pixels - jnp.asarray(model.pixel_mean, jnp.float32)) / jnp.asarray(model.pixel_deviation, jnp.float32)


def erase(key: "jax.Array", image: "jax.Array", box: "jax.Array") -> "jax.Array":
    """Fills a box of one image with standard normal noise, drawn for every pixel and channel, as released.

    image (H, W, 3) float, normalised; box (4,) int32: top, left, height, width; zeros erase nothing.
    """
    import jax
    import jax.numpy as jnp

    top, left, height, width = box
    rows, columns = jnp.arange(image.shape[0])[:, None, None], jnp.arange(image.shape[1])[None, :, None]
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    return jnp.where(inside, jax.random.normal(key, image.shape, image.dtype), image)
