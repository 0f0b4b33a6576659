"""Reads the crops of a gallery, shard by shard, and their pixels.

A shard is one of:

    NAME.tar    an uncompressed archive of crops, as in webdataset: one file, read from front to back
    NAME.txt    the path of a crop on each line, relative to the working directory or absolute
    a folder    with its subfolders

Names and order are those of the archive or the list; in a folder they are the paths in it, sorted. In an archive or a
folder, files whose names are not those of pictures are passed over and counted (`ivt_jax.gallery.walk`).
"""

import collections
import glob
import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ivt_jax.common.ahead import done_ahead
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import decode_list, lines_of
from ivt_jax.encoding.images import load_image
from ivt_jax.gallery.archives import Slice, find_slice, read_archive
from ivt_jax.gallery.walk import Passed, walk

MAX_BYTES = 200_000_000  # of a crop, which is read whole: more than MAX_PIXELS take as a bitmap
Readable = list[tuple[str, bytes]]  # name, and SHA-256 of the content
Unreadable = list[tuple[str, str]]  # name, and reason


class UnreachableError(UserError):
    """The system cannot read a file; the picture in it may be unchanged."""


class Crops(NamedTuple):
    """The crops of a shard.

    contents: for each name its file, or its slice of the archive. unreadable: entries of an archive that are no files.
    passed: counts of the files that are passed over.
    """

    names: list[str]
    contents: Iterable["Path | Slice"]
    unreadable: Unreadable
    passed: Passed


Crop = tuple[str, Path | Slice]  # its name and its content


def find_shards(pattern: str) -> list[Path]:
    """Returns the shards that match the pattern, sorted.

    Raises UserError if nothing matches, a match is no shard, or two shards have the same name.
    """
    paths = sorted(Path(path) for path in glob.glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"--shards={pattern} matches nothing; expected .tar files, .txt lists or folders of crops")
    names: dict[str, Path] = {}
    for path in paths:
        if not path.is_dir() and path.suffix not in (".tar", ".txt"):
            raise UserError(f"--shards: {path} is no .tar, no .txt list of paths and no folder; narrow the pattern")
        other = names.setdefault(name_of(path), path)
        if other is not path:
            raise UserError(f"--shards: {other} and {path} would write the same file; use a folder --out for each")
    return paths


def name_of(shard: Path) -> str:
    """Returns the last part of a shard's path; of a link its own name."""
    return os.path.basename(os.path.abspath(shard))


def fingerprint(shard: Path) -> str:
    """Returns the SHA-256 of name, size and time of change of the archive, or of each crop of a list or folder.

    Reads no content. Raises DataError if the shard cannot be read.
    """
    digest = hashlib.sha256()
    archive = shard.suffix == ".tar" and not shard.is_dir()
    names, files = ([name_of(shard)], [shard]) if archive else read_crops(shard)[:2]
    for name, file in zip(names, files, strict=True):
        try:
            status = file.stat()  # type: ignore[union-attr]  # only archives have slices
            state = (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):  # missing, or no valid file name
            state = (-1, -1)
        digest.update(f"{name!a} {state}\n".encode())
    return digest.hexdigest()


def read_crops(shard: Path) -> Crops:
    """Lists the crops of a shard. Raises DataError if it cannot be read, or is an archive that is cut short."""
    try:
        if shard.is_dir():
            passed = collections.Counter[tuple[str, str]]()
            paths = sorted(place / name for place, _, names in walk(shard, passed, _fail) for name in names)
            return Crops([path.relative_to(shard).as_posix() for path in paths], paths, [], passed)
        if shard.suffix == ".txt":
            text = decode_list(shard.read_bytes(), "surrogateescape")  # file names may hold bytes other than UTF-8
            names = [line for line in lines_of(text) if line.strip(" \t")]
            return Crops(names, map(Path, names), [], {})
        return _read_tar(shard)
    except UnicodeDecodeError:
        raise DataError(f"{shard} is neither UTF-8 nor UTF-16 text: save the list as UTF-8") from None
    except (OSError, tarfile.TarError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{shard} cannot be read ({reason}); create it again") from None


def _fail(error: OSError) -> None:
    raise error


def _read_tar(shard: Path) -> Crops:
    archive = read_archive(shard)
    if archive.fault:
        raise tarfile.ReadError(archive.fault)
    return Crops([*archive.pictures], [*archive.pictures.values()], archive.unreadable, archive.passed)


def load_batches(
    crops: Iterable[Crop], size: tuple[int, int], batch_size: int, readable: Readable, unreadable: Unreadable
) -> Iterator[np.ndarray]:
    """Yields the crops that can be read as uint8 batches (b, H, W, 3); the last may be smaller.

    Appends each crop to `readable`, in the order of the rows, or to `unreadable`.
    """

    def load(crop: Crop) -> tuple[np.ndarray, bytes]:
        content = read_content(*crop)
        return load_image(crop[0], size, content), hashlib.sha256(content).digest()

    rows = []
    for (name, _), loaded in done_ahead(load, crops, 2 * batch_size):
        try:
            pixels, digest = loaded.result()
            rows.append(pixels)
            readable.append((name, digest))
        except UserError as error:
            unreadable.append((name, str(error).removeprefix(f"{name}: ")))
        if len(rows) == batch_size:
            yield np.stack(rows)
            rows = []
    if rows:
        yield np.stack(rows)


def read_content(name: Any, crop: Path | Slice) -> bytes:
    """Returns the bytes of a crop. A path may lead into an archive: ARCHIVE.tar/NAME (`ivt_jax.gallery.archives`).

    Raises UserError, naming the crop, if they cannot be a picture, and UnreachableError if the system cannot read them.
    """
    try:
        crop = crop if isinstance(crop, Slice) else find_slice(crop) or Slice(crop, 0, crop.stat().st_size)
        content = crop.read() if crop.size <= MAX_BYTES else b""
    except (OSError, ValueError) as error:  # ValueError: no valid file name
        raise UnreachableError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if not content:
        too_large = f"{crop.size:,} bytes are too many for a picture of a person"
        raise UserError(f"{name}: {too_large if crop.size > MAX_BYTES else 'an empty file'}")
    return content


def is_unreachable(crop: Path) -> bool:
    """Whether the system cannot read the file, whatever its content."""
    try:
        read_content(crop, crop)
    except UserError as error:
        return isinstance(error, UnreachableError)
    return False
