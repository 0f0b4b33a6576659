"""Decodes, resizes and crops images in TensorFlow, and draws the parameters of random views in NumPy.

Images are uint8 RGB. The training step normalises them and fills the erased boxes with noise.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

tf.config.set_visible_devices([], "GPU")  # the accelerator is for JAX

# Random erasing, as released (Zhong et al., AAAI 2020).
ERASE_AREA = (0.02, 0.33)  # share of the image
ERASE_ASPECT = (0.3, 3.3)  # height / width, log-uniform
_ERASE_TRIES = 10


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG or PNG bytes, scalar string -> (h, w, 3) uint8, the same pixels as Pillow's."""
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def decodes_to(encoded: bytes, pixels: np.ndarray) -> bool:
    """Whether `decode` gives these pixels, (h, w, 3) uint8. It refuses some PNGs that Pillow reads."""
    try:
        return np.array_equal(decode(encoded).numpy(), pixels)
    except tf.errors.OpError:
        return False


def resize(image: tf.Tensor, size: tuple[int, int], method: str) -> tf.Tensor:
    """Resizes (h, w, 3) uint8 -> (*size, 3) uint8 with antialiasing, equal to Pillow within rounding.

    method: "bicubic" in training, "bilinear" in evaluation, as released. An image that has this size is unchanged.
    """

    def resized() -> tf.Tensor:
        pixels = tf.image.resize(image, size, method, antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)

    same = tf.reduce_all(tf.shape(image)[:2] == tf.constant(size))
    return tf.ensure_shape(tf.cond(same, lambda: image, resized), (*size, 3))


class Views(NamedTuple):
    """Parameters of random views, arrays with the same leading shape (...)."""

    offset: np.ndarray  # (..., 2) int32: row and column of the padded image at which the crop begins
    flipped: np.ndarray  # (...,) bool
    box: np.ndarray  # (..., 4) int32: top, left, height, width of the erased box; zeros for none


UNIFORMS = 6 + 2 * _ERASE_TRIES  # random numbers in [0, 1) for each view


def draw_views(uniform: np.ndarray, size: tuple[int, int], *, pad: int, flip: float, erase: float) -> Views:
    """Computes views from uniform (..., UNIFORMS) numbers in [0, 1), the only source of randomness.

    pad: zeros around the image before the random crop, pixels; flip, erase: probabilities.
    """
    offset = (uniform[..., :2] * (2 * pad + 1)).astype(np.int32)
    box = np.where(uniform[..., 3:4] < erase, erase_boxes(uniform[..., 4:], size), 0)
    return Views(offset, uniform[..., 2] < flip, box)


def erase_boxes(uniform: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns random-erasing boxes (..., 4) int32: top, left, height, width; zeros if none of ten tries fits.

    uniform (..., 22) in [0, 1): two for the place, ten for the areas, ten for the aspects.
    """
    height, width = size
    area = height * width * (ERASE_AREA[0] + uniform[..., 2 : 2 + _ERASE_TRIES] * (ERASE_AREA[1] - ERASE_AREA[0]))
    low, high = map(math.log, ERASE_ASPECT)
    aspect = np.exp(low + uniform[..., 2 + _ERASE_TRIES :] * (high - low))
    sizes = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], -1).round().astype(np.int32)
    fits = (sizes < np.array(size)).all(-1)
    first = fits.argmax(-1)[..., None, None]
    box = np.take_along_axis(sizes, first, -2)[..., 0, :]
    place = (uniform[..., :2] * (np.array(size) - box + 1)).astype(np.int32)
    return np.where(fits.any(-1, keepdims=True), np.concatenate([place, box], -1), 0).astype(np.int32)


def crop_and_flip(image: tf.Tensor, offset: tf.Tensor, flipped: tf.Tensor, pad: int) -> tf.Tensor:
    """Cuts views of one image (H, W, 3) uint8, with `Views`' offset (V, 2) and flipped (V,) -> (V, H, W, 3) uint8."""
    height, width, channels = image.shape
    # In two dimensions, so that rows are copied in one piece; tf.reverse is many times as fast as [:, ::-1].
    padded = tf.pad(tf.reshape(image, (height, width * channels)), [[pad, pad], [pad * channels, pad * channels]])
    views = []
    for view in range(offset.shape[0]):
        window = tf.slice(padded, offset[view] * (1, channels), (height, width * channels))
        window = tf.reshape(window, image.shape)
        views.append(tf.cond(flipped[view], lambda w=window: tf.reverse(w, [1]), lambda w=window: w))
    return tf.stack(views)
