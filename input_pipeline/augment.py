"""Image operations of training and evaluation in TensorFlow: stateless, a function of (image, seed).

Images are uint8 RGB throughout: normalising, and filling the erased box with noise, is the training step's part.
"""

import math

import tensorflow as tf

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


def augment_view(
    image: tf.Tensor, seed: tf.Tensor, *, pad: int, flip: float, erase: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """One augmented view of an image of the model's size, and its random-erasing box.

    image (H, W, 3) uint8; seed (2,) int; pad: zeros around the image before the random crop, pixels; flip, erase:
    probabilities. -> view (H, W, 3) uint8, box (4,) int32 as `erase_box`. All randomness is one stateless draw.
    """
    height, width, _ = image.shape
    uniform = tf.random.stateless_uniform((6 + 2 * _ERASE_TRIES,), seed)
    padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
    offset = tf.cast(uniform[:2] * (2 * pad + 1), tf.int32)
    view = tf.slice(padded, tf.concat([offset, [0]], 0), (height, width, 3))
    view = tf.cond(uniform[2] < flip, lambda: view[:, ::-1], lambda: view)
    box = erase_box(uniform[4:], (height, width))
    return view, tf.where(uniform[3] < erase, box, tf.zeros_like(box))


def erase_box(uniform: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """The random-erasing box (top, left, height, width), (4,) int32, zeros where none of ten tries fits.

    uniform: (22,) float32 in [0, 1): two for the place, ten for the areas tried, ten for the aspects.
    """
    height, width = size
    area = height * width * (ERASE_AREA[0] + uniform[2 : 2 + _ERASE_TRIES] * (ERASE_AREA[1] - ERASE_AREA[0]))
    low, high = map(math.log, ERASE_ASPECT)
    aspect = tf.exp(low + uniform[2 + _ERASE_TRIES :] * (high - low))
    heights = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
    widths = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)
    fits = (heights < height) & (widths < width)
    first = tf.argmax(fits)
    h, w = heights[first], widths[first]
    room = tf.cast(tf.stack([height - h + 1, width - w + 1]), tf.float32)
    place = tf.cast(uniform[:2] * room, tf.int32)
    return tf.where(fits[first], tf.concat([place, [h, w]], 0), tf.zeros(4, tf.int32))
