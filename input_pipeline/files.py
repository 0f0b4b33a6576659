"""Files and folders that are written whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, in UTF-8."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives a hidden folder to write in, beside `path`; at the end it becomes `path`, or is gone where that failed.

    Raises UserError where `path` exists, or cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists already; remove it, or move it away, to write it again")
    partial = path.absolute().with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
        partial.rename(path.absolute())
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
        raise
