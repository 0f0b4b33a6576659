"""Finds and reads files on a disk or in a bucket (gs://, s3://): their sizes, whole files, and ranges of bytes.

Paths with a scheme are read by fsspec, which needs gcsfs for gs:// and s3fs for s3://. All others are files of a disk.
"""

import contextlib
import datetime
import functools
import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import is_remote, printable
from ivt_jax.common.messages import install

_OPEN = 256  # file descriptors that are kept open
_THREADS = 8  # reads at a time from a disk
_MARKS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created")  # of fsspec's file systems


class RefusedError(UserError):
    """A file that its file system does not give. Others of the same kind may be readable."""


class State(NamedTuple):
    """Size of a file in bytes, and a mark that changes when it is written: its time, or its ETag in a bucket."""

    size: int
    mark: str


class Range(NamedTuple):
    """Bytes of a file, from `start` to before `end`."""

    path: str
    start: int
    end: int


def find(pattern: str) -> list[str]:
    """Returns the files that match a pattern with *, ? and [...], sorted. Raises UserError if there is none."""
    if is_remote(pattern):
        with explained(pattern):
            system, path = file_system(pattern)
            found = [system.unstrip_protocol(name) for name in system.glob(path)]
    else:
        found = [os.path.abspath(path) for path in glob.glob(pattern, recursive=True)]
    if not found:
        raise UserError(f"--pairs={pattern} matches no file; expected .tar shards, or .csv or .jsonl lists")
    return sorted(found)


def state(path: str) -> State | None:
    """Returns the state of a file, None if it is missing. Raises RefusedError, or UserError if a library is missing."""
    if is_remote(path):
        try:
            with explained(path):
                system, name = file_system(path)
                return _remote_state(system.info(name))
        except FileNotFoundError:
            return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # missing, or no valid file name
        return None
    return State(status.st_size, str(status.st_mtime_ns))


def states(paths: Sequence[str]) -> list[State | None]:
    """Returns the states of shards, None for a missing one; lists each folder of a bucket, in one request for 1,000."""
    listed = {folder: _list_folder(folder) for folder in {_folder(path) for path in paths if is_remote(path)}}
    return [listed[_folder(path)].get(file_system(path)[1]) if is_remote(path) else state(path) for path in paths]


def _folder(url: str) -> str:
    return url.rpartition("/")[0]


def _list_folder(folder: str) -> dict[str, State]:
    with explained(folder):
        system, path = file_system(folder)
        system.invalidate_cache()
        try:
            return {info["name"]: _remote_state(info) for info in system.ls(path, detail=True)}
        except FileNotFoundError:
            return {}


def _remote_state(info: dict[str, Any]) -> State:
    mark = next((info[name] for name in _MARKS if info.get(name)), "")
    return State(info["size"] or 0, str(mark.timestamp() if isinstance(mark, datetime.datetime) else mark))


@contextlib.contextmanager
def readable(path: str) -> Iterator[BinaryIO]:
    """Opens a file to read it from front to back. Raises UserError if it cannot be opened, or read in the block."""
    try:
        with explained(path):
            opened = _open(path)
    except FileNotFoundError:
        raise UserError(f"{path} vanished while it was indexed: run the command again") from None
    with opened as file:
        try:
            yield file
        except OSError as error:
            raise UserError(f"{path} cannot be read ({_one_line(error)}): run the command again") from None


def _open(path: str) -> BinaryIO:
    if not is_remote(path):
        return open(path, "rb")
    system, name = file_system(path)
    return system.open(name, "rb", block_size=8 << 20, cache_type="readahead")


class Files:
    """Reads ranges of files; keeps up to 256 files of a disk open."""

    def __init__(self) -> None:
        self._descriptor = functools.lru_cache(maxsize=_OPEN)(_Descriptor)

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Reads several ranges at a time; one that ends beyond its file is cut. Raises DataError."""
        places: dict[str, list[int]] = {}  # by scheme, since each has a file system of its own
        for number, piece in enumerate(ranges):
            places.setdefault(piece.path.partition("://")[0] if is_remote(piece.path) else "", []).append(number)
        contents = [b""] * len(ranges)
        for scheme, numbers in places.items():
            chosen = [ranges[number] for number in numbers]
            read = _read_remote(chosen) if scheme else threads().map(self._read_local, chosen)
            for number, content in zip(numbers, read, strict=True):
                contents[number] = content
        return contents

    def _read_local(self, piece: Range) -> bytes:
        try:
            descriptor = self._descriptor(piece.path)  # held until it is read, or another thread could close it
            return os.pread(descriptor.number, piece.end - piece.start, piece.start)
        except OSError as error:
            raise _vanished(piece.path, error.strerror or str(error)) from None


def _read_remote(ranges: Sequence[Range]) -> list[bytes]:
    system = file_system(ranges[0].path)[0]
    names, starts, ends = zip(*((file_system(r.path)[1], r.start, r.end) for r in ranges), strict=True)
    pieces = system.cat_ranges([*names], [*starts], [*ends], on_error="return")
    for piece, content in zip(ranges, pieces, strict=True):
        if isinstance(content, FileNotFoundError):
            raise _vanished(piece.path, "No such file or directory")
        if isinstance(content, Exception):
            remedy = "check the network and the permissions of your account; the same command resumes"
            raise DataError(f"{piece.path} cannot be read ({_one_line(content)}): {remedy}")
    return pieces


def _vanished(path: str, reason: str) -> DataError:
    remedy = "restore it, or make the index again: python -m input_pipeline.prepare --pairs=..."
    return DataError(f"{path} cannot be read any more ({reason}): {remedy}")


class _Descriptor:
    """An open file, closed when nothing refers to it any more."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.cache
def threads() -> ThreadPoolExecutor:
    """Returns the threads that read from a disk."""
    return ThreadPoolExecutor(_THREADS)


def read(url: str) -> bytes | None:
    """Returns the content of a file of a bucket, None if there is none. Raises UserError."""
    with contextlib.suppress(FileNotFoundError), explained(url):
        system, name = file_system(url)
        return system.cat_file(name)
    return None


def fetch(url: str, target: str) -> None:
    """Copies a file of a bucket to a local path. Raises UserError."""
    try:
        with explained(url):
            system, name = file_system(url)
            system.get_file(name, target)
    except FileNotFoundError:
        raise UserError(f"{url} not found; check the name") from None


def upload(source: str, url: str) -> None:
    """Copies a local file to a bucket. Raises UserError."""
    with explained(url, "written"):
        system, name = file_system(url)
        system.makedirs(name.rpartition("/")[0], exist_ok=True)
        system.put_file(source, name)


def remove(url: str) -> None:
    """Removes a file of a bucket, if there is one. Raises UserError."""
    with contextlib.suppress(FileNotFoundError), explained(url, "removed"):
        system, name = file_system(url)
        system.rm_file(name)


@functools.lru_cache(maxsize=1 << 16)
def file_system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a URL, and the name in it. Raises UserError if its library is missing."""
    import fsspec  # late: a run on local files needs none of it

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        scheme = url.partition("://")[0]
        extra = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}.get(scheme)
        remedy = install(extra) if extra else f"gs:// and s3:// are read, and what fsspec has for {scheme}://"
        kind = UserError if isinstance(error, ImportError) else RefusedError
        raise kind(f"{url} needs another library ({_one_line(error)}): {remedy}") from None


@contextlib.contextmanager
def explained(url: str, what: str = "read") -> Iterator[None]:
    """Turns the many errors of file systems into a UserError of one line."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # each library of fsspec raises its own
        remedy = "check the name, the network, and the permissions of your account"
        raise RefusedError(f"{url} cannot be {what} ({_one_line(error)}); {remedy}") from None


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:200] or type(error).__name__
