"""Writes files and folders whole or not at all; checks and decodes the texts and paths that libraries misread.

Also the SHA-256 of a file, and the folder of a cache.
"""

import codecs
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ivt_jax.common.errors import UserError

# Orbax, TensorStore and TensorFlow misread these parts of a path: a backslash as a separator, "gs:/" and "s3:/" as the
# address of a bucket and, when they write, the others as a pattern. Files are then lost or mixed up.
UNREADABLE = ("\\", "gs:/")
UNWRITABLE = (*UNREADABLE, "s3:/", "*", "?", "[")
POINTER = b"version https://git-lfs.github.com/"  # the first bytes of a Git LFS pointer
IS_POINTER = "is a Git LFS pointer, not the file itself: run git lfs pull"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a hidden path to write to, beside `path`; renames it to `path` at the end, removes it after an error.

    If several processes write the file at once, it is that of one of them.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def whole_name(name: str) -> str:
    """Returns the final name of a hidden file that a killed `whole_file` left; any other name as it is."""
    return re.sub(r"^\.(.*)\.[0-9a-f]{32}\.partial$", r"\1", name)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, in UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, also through a power cut. Raises UserError if it cannot be written."""
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or, after a power cut, the name may be there without the content
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def lock_file(path: Path, *, shared: bool = False, wait: bool = False) -> TextIO:
    """Opens a file and locks it until it is closed or the process ends; creates it unless `shared`.

    wait: waits for another process that holds the lock. Raises BlockingIOError if one does and `wait` is False, OSError
    if the file cannot be opened or its file system has no locks.
    """
    file = path.open("r" if shared else "a")
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    return file


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a hidden folder to write in, beside `path`; renames it to `path` at the end, removes it after an error.

    Raises UserError if `path` exists or cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists already; remove it, or move it away, to write it again")
    with hidden_folder(path) as partial:
        yield partial
        partial.rename(path.absolute())


@contextlib.contextmanager
def parent_folders(path: Path) -> Iterator[None]:
    """Makes the missing folders above `path`; after an error, removes those that it made. Raises UserError."""
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        try:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # another process has written there
                folder.rmdir()
        raise


@contextlib.contextmanager
def hidden_folder(path: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `path`; removes it at the end. Raises UserError if it cannot be written."""
    partial = path.absolute().with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder(name: str) -> Path:
    """Returns ~/.cache/ivt_jax/NAME, or $XDG_CACHE_HOME/ivt_jax/NAME; raises RuntimeError without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ivt_jax" / name


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves of a large one in a clone without its files. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def refuse_path(path: Path | str, forbidden: Sequence[str] = ()) -> None:
    """Raises UserError if the absolute path contains one of `forbidden`, such as UNWRITABLE, or is not UTF-8.

    Links are not followed.
    """
    full = str(Path(path).absolute())
    bad = next((part for part in forbidden if part in f"{full}/"), None)
    if bad or not is_utf8(full):
        reason = f'a path with "{bad}" is not supported for checkpoints and exports' if bad else "the path is not UTF-8"
        raise UserError(f"{printable(full)}: {reason}; rename the folder, choose another, or use a symbolic link to it")


def is_remote(place: Path | str) -> bool:
    """Whether a place has a scheme, such as gs://bucket/folder or http://host/name."""
    return "://" in str(place)


def lines_of(text: str) -> list[str]:
    r"""Splits a text at \n and \r\n alone.

    str.splitlines and Python's reading of text files also split at U+2028, U+0085, a lone \r and others, which
    vocabularies, file names and JSON strings may contain.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def decode_list(content: bytes, errors: str = "strict") -> str:
    """Decodes UTF-8, with or without a byte order mark, or UTF-16 with one, as Excel's "Unicode Text" has.

    errors: as in `bytes.decode`, for UTF-8. Raises UnicodeDecodeError.
    """
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16") if utf16 else content.decode("utf-8-sig", errors)


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; Python represents other bytes of a file name as lone surrogates."""
    return text.encode(errors="ignore").decode() == text


def printable(text: object) -> str:
    """Returns a text or path with unprintable characters and invalid UTF-8 escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))
