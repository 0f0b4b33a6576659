"""The crops of a gallery, shard by shard, and their pixels.

A shard is one of three, by its name:

    NAME.tar    an archive of crops, not compressed, as webdataset has them: one file to copy, read from front to back
    NAME.txt    the path of a crop on each line, so that a tree of any size becomes shards and no file moves; relative
                paths are those of the working directory
    a folder    with its subfolders

Names and order are those of the archive or the list; of a folder, paths in it, sorted. In an archive or a folder, files
that are no pictures by their names are passed over and counted (`ivt_jax.gallery.walk`); in a list every line counts.
"""

import collections
import concurrent.futures
import glob
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import decode_list, lines_of
from ivt_jax.encoding.images import load_image
from ivt_jax.gallery.walk import Passed, reason_to_pass, walk

T = TypeVar("T")
R = TypeVar("R")

MAX_BYTES = 200_000_000  # of a crop, which is read whole: what MAX_PIXELS take as a bitmap, and more
_BLOCK = 512  # of a tar
_THREADS = min(os.cpu_count() or 1, 16)  # that decode; Pillow lets go of Python's lock for it


class UnreachableError(UserError):
    """The system cannot read a file; the picture in it may be unchanged."""


class Crops(NamedTuple):
    """The crops of a shard.

    contents: the file of each name, or its slice of the archive, in the order of `names`. unreadable: (name, reason) of
    entries that are no files or too large. passed: counts of what is passed over.
    """

    names: list[str]
    contents: Iterable["Path | Slice"]
    unreadable: list[tuple[str, str]]
    passed: Passed


class Slice(NamedTuple):
    """Bytes of a file, which are read only to be decoded, so that few slices are in memory at once."""

    file: Path
    start: int
    size: int

    def read(self) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def find_shards(pattern: str) -> list[Path]:
    """What the pattern matches, sorted. Raises UserError where that is nothing, no shard, or two of one name."""
    paths = sorted(Path(path) for path in glob.glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"--shards={pattern} matches nothing; expected .tar files, .txt lists or folders of crops")
    names: dict[str, Path] = {}
    for path in paths:
        if not path.is_dir() and path.suffix not in (".tar", ".txt"):
            raise UserError(f"--shards: {path} is no .tar, no .txt list of paths and no folder; narrow the pattern")
        other = names.setdefault(name_of(path), path)
        if other is not path:
            raise UserError(
                f"--shards: {other} and {path} have one name, so would their vectors: use two folders --out"
            )
    return paths


def name_of(shard: Path) -> str:
    """What its vectors are called after: its name, that of a link its own."""
    return os.path.basename(os.path.abspath(shard))


def fingerprint(shard: Path) -> str:
    """SHA-256 of name, size and time of change of the archive, or of each file listed or in the folder, and no content.

    Raises DataError where the shard cannot be read.
    """
    digest = hashlib.sha256()
    if shard.suffix == ".tar" and not shard.is_dir():
        named: Iterable[tuple[str, Path]] = [(name_of(shard), shard)]
    else:
        crops = read_crops(shard)
        named = zip(crops.names, crops.contents, strict=True)  # type: ignore[arg-type]
    for name, path in named:
        try:
            status = path.stat()
            told = (status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):  # missing, or no name that a file can have
            told = (-1, -1)
        digest.update(f"{name!a} {told}\n".encode())
    return digest.hexdigest()


def read_crops(shard: Path) -> Crops:
    """The crops of a shard. Raises DataError where it cannot be read, or is an archive that is cut short."""
    try:
        if shard.is_dir():
            passed = collections.Counter[tuple[str, str]]()
            paths = sorted(place / name for place, _, names in walk(shard, passed, _fail) for name in names)
            return Crops([path.relative_to(shard).as_posix() for path in paths], paths, [], passed)
        if shard.suffix == ".txt":
            names = [line for line in lines_of(_read_list(shard)) if line.strip(" \t")]
            return Crops(names, map(Path, names), [], {})
        return _read_tar(shard)
    except (OSError, tarfile.TarError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{shard} cannot be read ({reason}); make it anew") from None


def _fail(error: OSError) -> None:
    raise error


def _read_list(shard: Path) -> str:
    """Returns the text of a list. In UTF-8 the names may hold other bytes, as names of files may."""
    try:
        return decode_list(shard.read_bytes(), "surrogateescape")
    except UnicodeDecodeError:
        raise DataError(f"{shard} is neither UTF-8 nor UTF-16 text: save the list as UTF-8") from None


def _read_tar(shard: Path) -> Crops:
    members, unreadable, passed = [], [], collections.Counter[tuple[str, str]]()
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            if member.isdir():
                continue
            if reason := reason_to_pass(member.name):
                passed[reason] += 1
            elif not member.isreg():
                unreadable.append((member.name, "a link or a device, not a file of the archive"))
            elif member.size > MAX_BYTES:
                unreadable.append((member.name, f"{member.size:,} bytes are too many for a picture of a person"))
            else:
                members.append(member)
        # tarfile takes whatever is no header for the end, and would lose all that follows.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(_BLOCK) != bytes(_BLOCK):
            raise DataError(f"{shard} is cut short or damaged after {len(members):,} crops; make it anew")
    slices = [Slice(shard, member.offset_data, member.size) for member in members]
    return Crops([member.name for member in members], slices, unreadable, passed)


def load_batches(
    crops: Iterable[tuple[Any, Path | Slice]],
    size: tuple[int, int],
    batch_size: int,
    readable: list[tuple[Any, bytes]],
    unreadable: list[tuple[Any, str]],
) -> Iterator[np.ndarray]:
    """(name, file or slice of one) -> uint8 batches (b, H, W, 3) of those that can be read, the last one maybe short.

    Appends every name to `readable`, in the order of the rows, with the SHA-256 of its content, or to `unreadable` with
    the reason.
    """
    rows = []
    for (name, _), loaded in done_ahead(lambda crop: _load(crop[0], size, crop[1]), crops, 2 * batch_size):
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


def done_ahead(
    work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[tuple[T, concurrent.futures.Future[R]]]:
    """Items and what becomes of them, in order; threads work on as many as `ahead` while the one before is in use."""
    waiting: collections.deque[tuple[T, concurrent.futures.Future[R]]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting
    finally:  # after Ctrl-C, nobody waits for what nobody wants
        pool.shutdown(cancel_futures=True)


def read_content(name: Any, crop: Path | Slice) -> bytes:
    """Returns the bytes of a crop.

    Raises UserError, naming the crop, if they cannot be a picture, and UnreachableError if the system cannot read them.
    """
    try:
        crop = crop if isinstance(crop, Slice) else Slice(crop, 0, crop.stat().st_size)
        content = crop.read() if crop.size <= MAX_BYTES else b""
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        raise UnreachableError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if crop.size > MAX_BYTES:
        raise UserError(f"{name}: {crop.size:,} bytes are too many for a picture of a person")
    if not content:
        raise UserError(f"{name}: an empty file")
    return content


def _load(name: Any, size: tuple[int, int], crop: Path | Slice) -> tuple[np.ndarray, bytes]:
    """Pixels and digest, of the same bytes."""
    content = read_content(name, crop)
    return load_image(name, size, content), hashlib.sha256(content).digest()
