"""Files and folders that are written whole or not at all."""

import codecs
import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from ivt_jax.common.errors import UserError

# Orbax, TensorStore and TensorFlow misread these parts of a path. A backslash counts as a separator; "gs:/" and "s3:/"
# count as the address of a bucket; when they write, the others count as a pattern. Files are then lost or mixed up.
UNREADABLE = ("\\", "gs:/")
UNWRITABLE = (*UNREADABLE, "s3:/", "*", "?", "[")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a hidden path to write to, beside `path`; at the end it becomes `path`, or is gone where that failed.

    Where several processes write the file at once, it is one of theirs.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def whole_name(name: str) -> str:
    """What a file is called that `whole_file` was writing under this name when it was killed; any other as it is."""
    return re.sub(r"^\.(.*)\.[0-9a-f]{32}\.partial$", r"\1", name)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, in UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all. Raises UserError where it cannot be written."""
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or, after a power cut, the name may be there without the content
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def lines_of(text: str) -> list[str]:
    """Splits a text into lines, each ended by a line feed, alone or after a carriage return.

    str.splitlines and Python's reading of text files also break at U+2028, U+0085, a lone carriage return and others,
    which vocabularies, names of files and JSON strings may hold.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def decode_list(content: bytes, errors: str = "strict") -> str:
    """Decodes UTF-8, with or without a byte order mark, or UTF-16 with one, as Excel's "Unicode Text" has.

    errors: as of `bytes.decode`, for UTF-8. Raises UnicodeDecodeError.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig", errors)


def is_remote(place: Path | str) -> bool:
    """Whether it is a place such as gs://bucket/folder or http://host/name, not one of this machine."""
    return "://" in str(place)


def printable(text: object) -> str:
    """A text, or a path, as any terminal and file bears it: what is no UTF-8, and what is not printed, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: Python has lone surrogates for bytes of a file's name that are not."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False


def refuse_path(path: Path | str, forbidden: Sequence[str] = ()) -> None:
    """Raises UserError if a C++ library would misread the absolute path.

    That is so if the path contains one of `forbidden`, such as UNWRITABLE, or is not UTF-8. Links are not followed.
    """
    whole = str(Path(path).absolute())
    remedy = "rename the folder, choose another, or use a symbolic link to it"
    if not is_utf8(whole):
        raise UserError(f"{printable(whole)}: the path is not UTF-8, which is not supported here; {remedy}")
    found = next((part for part in forbidden if part in f"{whole}/"), None)
    if found:
        reason = f'a path with "{found}" is not supported for checkpoints and exports'
        raise UserError(f"{printable(whole)}: {reason}; {remedy}")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a hidden folder to write in, beside `path`; at the end it becomes `path`, or is gone where that failed.

    Raises UserError where `path` exists, or cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists already; remove it, or move it away, to write it again")
    with hidden_folder(path) as partial:
        yield partial
        partial.rename(path.absolute())


@contextlib.contextmanager
def hidden_folder(path: Path) -> Iterator[Path]:
    """Gives a hidden folder beside `path`, for what is moved there when complete; removes it at the end.

    Raises UserError if it cannot be written.
    """
    partial = path.absolute().with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
