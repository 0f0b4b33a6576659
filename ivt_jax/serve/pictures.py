"""Pictures that come from a client and go to one: checked before they are decoded, and made anew."""

import io

import numpy as np
from PIL import Image

from input_pipeline.decoding import NotTakenError, open_picture
from ivt_jax.common.errors import UserError
from ivt_jax.pages.render import data_uri
from ivt_jax.serve.settings import MAX_SCANS, MAX_UPLOAD_PIXELS

_SHOWN = (512, 1024)  # width and height at most of a picture with heat drawn over it
_QUALITY = 85


def check_upload(content: bytes) -> None:
    """Decodes nothing. Raises UserError if the format is not taken, or decoding would take too long."""
    try:
        with open_picture(io.BytesIO(content)) as image:
            width, height = image.size
    except NotTakenError as error:
        raise UserError(f"the image cannot be read ({error}): send a JPEG, PNG or WEBP") from None
    except Image.DecompressionBombError:
        raise UserError(f"the image has too many pixels: at most {MAX_UPLOAD_PIXELS:,} are taken") from None
    except Image.UnidentifiedImageError:
        raise UserError("the image cannot be read: send a JPEG, PNG or WEBP") from None  # formats that all can write
    except Exception:  # of many kinds: Pillow passes on whatever a damaged file makes it stumble over
        raise UserError("the image is cut short or damaged: save it anew") from None
    # By content: Pillow has other names for kinds of JPEG, such as MPO. The marker stands before each scan.
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MAX_SCANS:
        raise UserError(f"the image has more than {MAX_SCANS} scans: save it anew")
    if width * height > MAX_UPLOAD_PIXELS:
        raise UserError(f"the image has {width} x {height} pixels: at most {MAX_UPLOAD_PIXELS:,} are taken")


def draw_heat(picture: Image.Image, maps: np.ndarray) -> list[str]:
    """The picture with each of the maps (P, rows, columns), from 0 to 1, over it: JPEGs as data URIs."""
    from ivt_jax.retrieval.explain import overlay

    picture = picture.copy()
    picture.thumbnail(_SHOWN)
    return [data_uri(overlay(picture, heat), _QUALITY) for heat in maps]
