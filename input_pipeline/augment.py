"""Image operations of training and evaluation in TensorFlow, and what random views are made of.

Images are uint8 RGB throughout: normalising, and filling the erased box with noise, is the training step's part.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

tf.config.set_visible_devices([], "GPU")  # TensorFlow only reads images here; the accelerator is JAX's

# Random erasing, as released (after Zhong et al., AAAI 2020).
ERASE_AREA = (0.02, 0.33)  # share of the image
ERASE_ASPECT = (0.3, 3.3)  # height / width, log-uniform
_ERASE_TRIES = 10


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """JPEG or PNG bytes, scalar string -> (h, w, 3) uint8, the same pixels as Pillow's."""
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def resize(image: tf.Tensor, size: tuple[int, int], method: str) -> tf.Tensor:
    """(h, w, 3) uint8 -> (*size, 3) uint8 with antialiasing, equal to Pillow's within rounding.

    method: "bicubic" in training, "bilinear" in evaluation, as released. An image of this size is left as it is.
    """

    def resized() -> tf.Tensor:
        pixels = tf.image.resize(image, size, method, antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)

    same = tf.reduce_all(tf.shape(image)[:2] == tf.constant(size))
    return tf.ensure_shape(tf.cond(same, lambda: image, resized), (*size, 3))


class Views(NamedTuple):
    """What is done to the views of some images: arrays of the same leading shape (...)."""

    offset: np.ndarray  # (..., 2) int32: where in the padded image the crop begins, rows and columns
    flipped: np.ndarray  # (...,) bool
    box: np.ndarray  # (..., 4) int32: what is erased: top, left, height, width; zeros for nothing


UNIFORMS = 6 + 2 * _ERASE_TRIES  # numbers in [0, 1) that decide about a view


def draw_views(uniform: np.ndarray, size: tuple[int, int], *, pad: int, flip: float, erase: float) -> Views:
    """uniform (..., UNIFORMS); pad: zeros around the image before the random crop, pixels; flip, erase: probabilities.

    So all randomness is the caller's draw, and what TensorFlow does to pixels is fixed by it.
    """
    offset = (uniform[..., :2] * (2 * pad + 1)).astype(np.int32)
    box = np.where(uniform[..., 3:4] < erase, erase_boxes(uniform[..., 4:], size), 0)
    return Views(offset, uniform[..., 2] < flip, box)


def erase_boxes(uniform: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Random-erasing boxes (..., 4) int32: top, left, height, width; zeros where none of ten tries fits.

    uniform (..., 22) in [0, 1): two for the place, ten for the areas tried, ten for the aspects.
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
    """The views of one image (H, W, 3) uint8, by `Views`: offset (V, 2), flipped (V,) -> (V, H, W, 3) uint8."""
    height, width, channels = image.shape
    # In two dimensions, for then a row is copied in one piece; tf.reverse is many times as fast as [:, ::-1].
    padded = tf.pad(tf.reshape(image, (height, width * channels)), [[pad, pad], [pad * channels, pad * channels]])
    views = []
    for view in range(offset.shape[0]):
        window = tf.slice(padded, offset[view] * (1, channels), (height, width * channels))
        window = tf.reshape(window, image.shape)
        views.append(tf.cond(flipped[view], lambda w=window: tf.reverse(w, [1]), lambda w=window: w))
    return tf.stack(views)
