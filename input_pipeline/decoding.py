"""Opens image files and decodes them to upright RGB pixels.

The doctor, `prepare`, training, `index`, `embed`, `search` and the server's uploads all use it, so they accept the same
files and see the same pixels. docs/datasets.md has a table of them.
"""

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL.AvifImagePlugin
import PIL.Image
import PIL.PngImagePlugin

from ivt_jax.common.messages import install

try:
    import pillow_heif
except ImportError:
    pillow_heif = None

# Pillow's name of a format -> suffixes. The content of a file decides its format; suffixes only select files in folders
# and archives. Pillow has fifty more formats; some start programs.
SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
FORMATS = tuple(name for name in SUFFIXES_OF if name != "HEIF" or pillow_heif)
SUFFIXES = tuple(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)
MAX_PIXELS = 50_000_000  # far more than a crop of a person; fewer than a decompression bomb
KEPT_FORMATS = ("JPEG", "PNG")  # training reads these; other formats become PNG
ORIENTATION = "turned upright by EXIF, as Pillow's ImageOps.exif_transpose"

# Of Pillow's levels, 0 to 9. For 300 crops of 300 x 120 with a little noise, level 1 takes 3 ms instead of the 8 ms of
# the default, 6, and 70 kB instead of 64 kB.
_PNG_LEVEL = 1
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_LONG_TEXT = "its text or colour profile inflates beyond 8 MiB: save it without metadata"
_NO_HEIF = f"HEIC needs another library: {install('heif')}"
_UNUSUAL = {"F": "floating-point", "I": "signed or 32-bit", "LAB": "L*a*b*"}  # modes that `convert` would distort
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)  # MAX_PIXELS refuses these images
warnings.filterwarnings("ignore", module=r"PIL\.")  # damage that matters raises an exception
# Pillow refuses a PNG whose ICC profile or text has over 1 MiB, though no pixel depends on it. Real profiles have a few
# MB; chunks that inflate beyond 8 MiB are still refused, and all texts together beyond Pillow's 64 MiB.
PIL.PngImagePlugin.MAX_TEXT_CHUNK = 8 << 20
PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # files are decoded in parallel; each thread reserves address space
if pillow_heif:
    pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


class NotTakenError(Exception):
    """An image of a kind that is not supported. The message has the kind and the remedy."""


class TooLargeError(Exception):
    """An image of more than MAX_PIXELS."""


def open_picture(file: Path | str | BinaryIO) -> PIL.Image.Image:
    """Opens an image without decoding it.

    Raises NotTakenError if it is HEIC without pillow-heif or a PNG with a text bomb, PIL.UnidentifiedImageError if its
    format is not supported, and other exceptions of Pillow if it is damaged.
    """
    try:
        return PIL.Image.open(file, formats=FORMATS)
    except (PIL.UnidentifiedImageError, ValueError) as error:
        _refuse_long_text(error)
        head = _read(file, 12)
        if head[4:8] != b"ftyp" or head[8:] not in (*_HEIF_BRANDS, *_AVIF_BRANDS):
            raise
        if "HEIF" not in FORMATS and head[8:] in _HEIF_BRANDS:
            raise NotTakenError(_NO_HEIF) from None
        return PIL.Image.open(io.BytesIO(_without_exif(_read(file))), formats=FORMATS)


def as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Decodes an image to RGB, turned upright by its EXIF orientation (or XMP's, if EXIF has none).

    Takes the first frame or page, ignores transparency and colour profiles, and keeps the upper eight bits of 16.
    Raises TooLargeError before decoding, NotTakenError for unsupported pixels, and exceptions of Pillow for damage.
    """
    if image.width * image.height > MAX_PIXELS:
        raise TooLargeError(f"{image.width} x {image.height} pixels are too many for a picture of a person")
    try:
        image.load()
    except OSError as error:  # libtiff gives only a number
        raise OSError("cut short or damaged") if str(error).startswith("decoder error") else error from None
    except ValueError as error:  # a text may come after the pixels
        _refuse_long_text(error)
        raise
    turn = _TURNS.get(orientation(image))  # the conversions below lose it
    if image.mode in _UNUSUAL:
        raise NotTakenError(f"{_UNUSUAL[image.mode]} pixels have no agreed range: save them with 8 bits a channel")
    rgb = (_upper_bits(image) if image.mode.startswith("I;16") else image).convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def as_png(rgb: PIL.Image.Image) -> bytes:
    """Returns an image as PNG."""
    png = io.BytesIO()
    rgb.save(png, "PNG", compress_level=_PNG_LEVEL)
    return png.getvalue()


def orientation(image: PIL.Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 if there is none or the EXIF is damaged."""
    try:
        found = image.getexif().get(0x0112, 1)
        return int(found) if found in _TURNS else 1
    except Exception:  # Pillow raises many kinds; the pixels are intact
        return 1


def is_turned(file: Path | str | BinaryIO) -> bool:
    """Whether the EXIF orientation of an image is not upright. Raises as `open_picture`."""
    with open_picture(file) as image:
        return orientation(image) != 1


def _refuse_long_text(error: Exception) -> None:
    """Raises NotTakenError if Pillow refused a PNG for its text."""
    if str(error).startswith(("Decompressed data too large", "Too much memory used in text chunks")):
        raise NotTakenError(_LONG_TEXT) from None


def _upper_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Converts 12 or 16 bits of grey to 8. Pillow's `convert` would clip at 255, to a white image."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = tags.get(258, (16,))[0]
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return PIL.Image.fromarray(255 - grey if tags.get(262) == 0 else grey)  # 0: white is zero


def _without_exif(content: bytes) -> bytes:
    """Hides the EXIF of an AVIF, because Pillow refuses the whole image if its EXIF is damaged."""
    head, mdat, rest = content.partition(b"mdat")
    return head.replace(b"Exif", b"none") + mdat + rest


def _read(file: Path | str | BinaryIO, most: int = -1) -> bytes:
    if isinstance(file, Path | str):
        with open(file, "rb") as opened:
            return opened.read(most)
    file.seek(0)
    return file.read(most)
