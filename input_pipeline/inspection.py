"""Opens every image of a dataset once, on all cores: its faults, its size and its perceptual hash."""

import errno
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from input_pipeline.decoding import MAX_PIXELS, NotTakenError, TooLargeError, as_rgb, open_picture
from ivt_jax.common.processes import map_in_processes

MISSING = "missing"
_SIDE = 12  # the hash has 12 x 12 bits, in three words of 64
# Near-duplicates differ in at most this many bits. Of 1,200 crops of PEDES-Synth, enlarged by a quarter and compressed
# again, 95% differ in at most 12 bits from the original and 99% in at most 17; different crops differ in 23 or more.
_DISTANCE = 16
_CHUNK = 16  # hashes compared at once with all others; the result fits in the processor's cache


class Inspected(NamedTuple):
    """An image file.

    path: relative to the folder; fault: "" if there is none; size: upright (height, width); file_bytes: size on disk;
    hash: difference hash of 144 bits in 24 bytes, a bit for each cell of a 12 x 12 grid, 1 if it is darker than its
    right neighbour. Similar images have similar hashes. A faulty image may have no size and no hash.
    """

    path: str
    fault: str
    size: tuple[int, int] = (0, 0)
    file_bytes: int = 0
    hash: bytes = b""


def inspect_images(folder: Path, paths: Sequence[str], workers: int) -> Iterator[Inspected]:
    """Yields the result of `inspect_image` for each path in order; `workers` processes open the images."""
    return map_in_processes(functools.partial(inspect_image, folder), paths, workers=workers, chunk=64)


def inspect_image(folder: Path, path: str) -> Inspected:
    """Opens and decodes one image; returns a fault instead of raising it."""
    file = folder / path
    if leads_out(folder, file):
        return Inspected(path, "a link that leads out of the folder of images")
    try:
        if not file.is_file():
            return Inspected(path, MISSING)
    except OSError:  # a name too long for the file system
        return Inspected(path, MISSING)
    file_bytes = file.stat().st_size
    if not file_bytes:
        return Inspected(path, "an empty file")
    try:
        with open_picture(file) as image:
            rgb = as_rgb(image)
            return Inspected(path, "", (rgb.height, rgb.width), file_bytes, difference_hash(rgb))
    except Exception as error:  # Pillow raises many kinds for damaged files
        return Inspected(path, fault_of(error), file_bytes=file_bytes)


def fault_of(error: Exception) -> str:
    """Returns what is wrong with an image that `open_picture` or `as_rgb` refused with this error."""
    if isinstance(error, NotTakenError):
        return f"not taken ({error})"
    if isinstance(error, PIL.UnidentifiedImageError):
        return "in no supported image format"
    if isinstance(error, TooLargeError | PIL.Image.DecompressionBombError):
        return f"over {MAX_PIXELS / 1e6:.0f} megapixels"
    return "cut short or damaged"


def leads_out(folder: Path, file: Path) -> bool:
    """Whether `file` is, or is reached by, a link that leads out of the folder or is circular."""
    try:
        file.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:  # since Python 3.13, `resolve` does not raise it
            return True
    try:
        return not file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return True


def near_duplicates(
    ours: Sequence[Inspected], theirs: Sequence[Inspected], same: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """Returns pairs of paths: each of our images and the most similar of theirs, if at most 16 of 144 bits differ.

    same: our path -> their path of the same file, which is not compared with itself.
    """
    ours, theirs = ([image for image in images if not image.fault] for images in (ours, theirs))
    if not theirs:
        return []
    number_of = {image.path: number for number, image in enumerate(theirs)}
    itself = [number_of.get((same or {}).get(image.path, ""), -1) for image in ours]
    rows, columns = _words(ours), np.ascontiguousarray(_words(theirs).T)
    pairs = []
    for start in range(0, len(ours), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        wrong = np.zeros((len(chunk), len(theirs)), np.uint8)
        for word in range(3):
            wrong += np.bitwise_count(chunk[:, word, None] ^ columns[word])
        for row, column in enumerate(itself[start : start + _CHUNK]):
            if column >= 0:
                wrong[row, column] = 255
        nearest, least = wrong.argmin(-1).tolist(), wrong.min(-1)
        pairs += [
            (image.path, theirs[place].path)
            for image, place, bits in zip(ours[start : start + _CHUNK], nearest, least, strict=True)
            if bits <= _DISTANCE
        ]
    return pairs


def _words(images: Sequence[Inspected]) -> np.ndarray:
    return np.frombuffer(b"".join(image.hash for image in images), np.uint64).reshape(len(images), 3)


def difference_hash(rgb: PIL.Image.Image) -> bytes:
    """Returns the hash of `Inspected`."""
    grey = np.asarray(rgb.convert("L").resize((_SIDE + 1, _SIDE), PIL.Image.Resampling.BILINEAR), np.int16)
    return np.packbits(grey[:, :-1] < grey[:, 1:]).tobytes().ljust(24, b"\0")
