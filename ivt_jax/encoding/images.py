"""Images as the model takes them: read and resized by Pillow on the host. `pixels.py` is the part on the device."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.decoding import ORIENTATION, as_rgb, open_picture
from ivt_jax.common.errors import UserError

_MIN_SIZE = (8, 25)  # width, height in pixels
_MAX_RATIO = 6  # height / width
_SMALL = f"smaller than {_MIN_SIZE[0]} x {_MIN_SIZE[1]} pixels"
_PHOTO_HEIGHT = 1080  # pixels; taller pictures are whole photos,
_PHOTO_RATIO = 16 / 9  # unless their height / width exceeds this


def odd_shape(width: int, height: int) -> str:
    """Returns what is odd about a picture's shape or size, "" for a usual crop. Sizes are in pixels.

    A crop of another shape is squeezed: models take one size, such as 128 x 384, whatever they are given. Widths and
    heights of the crops in training:

        CUHK-PEDES, from Market-1501     64 x 128
                    from VIPeR           48 x 128
                    from CUHK01          60 x 160
                    from CUHK03          boxes of a detector and by hand, about 2 to 3 times as high as wide
                    from CUHK-SYSU       boxes by hand, at least 50 high
        ICFG-PEDES, RSTPReid             MSMT17's boxes of a detector, from frames up to 1080 high
        PEDES-Synth                      48 x 96

    So a crop is 2 to 3 times as high as wide, and at least 50 high. The bounds are wider by a factor of two, so that a
    person who sits or cycles passes: as high as wide to 6 times as high, and at least 8 x 25 pixels. A picture of more
    than 1080 lines is larger than any crop from such a frame. It passes if it is slimmer than 16:9: photos held upright
    are 4:3 to 16:9, and show more than one person. The sizes are those in the datasets' papers; only PEDES-Synth was
    measured.
    """
    if width < _MIN_SIZE[0] or height < _MIN_SIZE[1]:
        return _SMALL
    if width > height:
        return "wider than high, as a full frame is"
    if height > _MAX_RATIO * width:
        return f"more than {_MAX_RATIO} times as high as wide"
    if height > _PHOTO_HEIGHT and height <= _PHOTO_RATIO * width:
        return "of the size and shape of a whole photo"
    return ""


def describe_odd(reason: str) -> str:
    """Returns a warning for a query whose picture has this `odd_shape`; "" for ""."""
    remedy = "its similarities may be wrong" if reason == _SMALL else "cut the person out first"
    return f"the query's picture is {reason}: {remedy}" if reason else ""


def open_image(path: Path | str, content: Path | bytes | None = None) -> Image.Image:
    """Returns the decoded RGB image, upright by its EXIF.

    content: the file or its bytes, if `path` is only a name, such as that of a crop in an archive.
    Raises UserError, naming the path, if the file is missing, no image or truncated, or has too many pixels.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content or path
    with _readable(path), open_picture(file) as image:
        return as_rgb(image)


def load_image(
    image: Path | str | Image.Image | np.ndarray, size: tuple[int, int], content: Path | bytes | None = None
) -> np.ndarray:
    """Returns an image at `size` (height, width) -> (H, W, 3) uint8.

    image: a file, a PIL image, or a uint8 RGB array (h, w, 3); content: as of `open_image`.
    Raises UserError as `open_image` does, and for anything else.
    """
    if content is not None or isinstance(image, Path | str):
        return fit(open_image(image if isinstance(image, Path) else str(image), content), size)
    if isinstance(image, Image.Image):
        with _readable("the PIL image"):
            return fit(as_rgb(image), size)
    is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if is_array and image.size:
        return fit(Image.fromarray(image), size)
    kind = f"array of {image.dtype}, {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UserError(f"not an image: {kind}; expected a file, a PIL image or a uint8 array (H, W, 3)")


@contextmanager
def _readable(name: Path | str) -> Iterator[None]:
    """Raises UserError, naming the image, for any error within."""
    try:
        yield
    except Exception as error:  # of many kinds: Pillow passes on whatever a damaged file causes
        reason = "not a readable image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UserError(f"{name}: {reason.splitlines()[0] if reason else 'truncated'}") from error


def fit(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Resizes an RGB image to `size` (height, width), bilinear, antialiased -> (H, W, 3) uint8."""
    height, width = size
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def preprocessing(model: Any) -> dict[str, Any]:
    """Returns a description of the pre-processing, for other programs and to compare embeddings made elsewhere.

    model: an IVTConfig, or a config's `model`.
    """
    height, width = model.image_size
    resize = "bilinear with antialiasing, as Pillow's Image.resize(..., BILINEAR)"
    about = {"orientation": ORIENTATION, "height": height, "width": width, "channels": "RGB", "resize": resize}
    return {**about, "mean": list(model.pixel_mean), "deviation": list(model.pixel_deviation)}


def is_as_before(found: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether `found` is `now` without "orientation", as older versions wrote it, which ignored EXIF."""
    return "orientation" not in found and {**found, "orientation": now.get("orientation")} == now
