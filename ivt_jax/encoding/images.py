"""Images as the model wants them: the one definition of pre-processing in evaluation and search, and random erasing.

Pillow decodes and resizes; normalising and erasing are JAX functions, so that they run on the device. Only these
two import JAX; the server's process that decodes uploads does not need it.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from input_pipeline.decoding import ORIENTATION, as_rgb, open_picture
from ivt_jax.common.errors import UserError

if TYPE_CHECKING:
    import jax

MEAN = DEVIATION = 0.5  # of the pixels, each channel's, as released


def open_image(path: Path | str, content: Path | bytes | None = None) -> Image.Image:
    """Returns the decoded RGB image, upright by its EXIF.

    content: the file or its bytes, if `path` is only a name, such as that of a crop in an archive.
    Raises UserError, naming the path, if the file is missing, no image or truncated, or has too many pixels.
    """
    try:
        file = io.BytesIO(content) if isinstance(content, bytes) else content or path
        with open_picture(file) as image:
            return as_rgb(image)
    except Exception as error:  # of many kinds: Pillow passes on whatever a damaged file makes it stumble over
        reason = "not a readable image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UserError(f"{path}: {reason.splitlines()[0] if reason else 'truncated'}") from error


def load_image(path: Path | str, size: tuple[int, int], content: Path | bytes | None = None) -> np.ndarray:
    """Reads an image and resizes it to `size` (height, width), as `fit` -> (H, W, 3) uint8.

    content, UserError: as `open_image`.
    """
    return fit(open_image(path, content), size)


def fit(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """An RGB image resized to `size` (height, width): bilinear, antialiased -> (H, W, 3) uint8."""
    height, width = size
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def preprocessing(size: tuple[int, int]) -> dict[str, Any]:
    """What is done to a picture, said for other programs, and for those who compare embeddings made elsewhere."""
    return {
        "orientation": ORIENTATION,
        "height": size[0],
        "width": size[1],
        "channels": "RGB",
        "resize": "bilinear with antialiasing, as Pillow's Image.resize(..., BILINEAR)",
        "mean": [MEAN] * 3,
        "deviation": [DEVIATION] * 3,
    }


def is_as_before(found: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether `found` is the `preprocessing` of `now` as stated before pictures were turned upright by EXIF."""
    return "orientation" not in found and {**found, "orientation": now.get("orientation")} == now


def normalise(images: "jax.Array | np.ndarray") -> "jax.Array":
    """uint8 (..., 3) -> float32 in [-1, 1]: mean 0.5, standard deviation 0.5."""
    import jax.numpy as jnp

    return (jnp.asarray(images, jnp.float32) / 255 - MEAN) / DEVIATION


def erase(key: "jax.Array", image: "jax.Array", box: "jax.Array") -> "jax.Array":
    """Fills a box of one image with standard normal noise, a draw for every pixel and channel, as released.

    image (H, W, 3) float, normalised; box (4,) int32: top, left, height, width, zeros for none.
    """
    import jax
    import jax.numpy as jnp

    top, left, height, width = box
    rows, columns = jnp.arange(image.shape[0]), jnp.arange(image.shape[1])
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    inside = in_rows[:, None, None] & in_columns[None, :, None]
    return jnp.where(inside, jax.random.normal(key, image.shape, image.dtype), image)
