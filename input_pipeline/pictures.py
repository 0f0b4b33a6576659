"""Records the images that a dataset was prepared from, and compares the record with the files.

The record has the size, the times and a digest of the content of each image. A file with the recorded size and times is
not opened. Any other file is read, and counts as changed only if its content differs. So a dataset that was touched, or
copied to another disk, is read once and not prepared again.
"""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from input_pipeline.inspection import leads_out
from ivt_jax.common.files import write_text
from ivt_jax.common.messages import first_few

_THREADS = 16  # network file systems answer many requests at once; local ones are no slower
_DIGITS = 32  # hex digits kept of an image's SHA-256


class Picture(NamedTuple):
    """An image file: size in bytes, times in nanoseconds, digest of its content ("" if missing or unreadable)."""

    size: int
    modified: int
    changed: int  # of the inode; unlike `modified`, cp --preserve and tar cannot set it
    digest: str


NO_FILE = Picture(0, 0, 0, "")


def read_picture(folder: Path, path: str) -> tuple[Picture, bytes | None]:
    """Returns a file's record and its content, None if unreadable. Opens no link that leads out of the folder."""
    file = folder / path
    try:
        status = file.stat()  # before the content: a change during the read is noticed the next time
        content = None if leads_out(folder, file) else file.read_bytes()
    except OSError:
        return NO_FILE, None
    digest = "" if content is None else hashlib.sha256(content).hexdigest()[:_DIGITS]
    return Picture(status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest), content


def look_at(folder: Path, paths: Sequence[str], known: Mapping[str, Picture]) -> dict[str, Picture]:
    """Returns path -> the current record of each file. Files with the size and times in `known` are not opened."""

    def look(path: str) -> Picture:
        picture = known.get(path, NO_FILE)
        try:
            status = os.stat(f"{folder}/{path}")
        except OSError:
            return NO_FILE
        same = picture[:3] == (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return picture if same and picture.digest else read_picture(folder, path)[0]

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:  # a task per file would cost more than its stat
        parts = pool.map(lambda start: [look(path) for path in paths[start::_THREADS]], range(_THREADS))
        return {path: picture for start, part in enumerate(parts)
                for path, picture in zip(paths[start::_THREADS], part, strict=True)}  # fmt: skip


def contents_digest(pictures: Mapping[str, Picture]) -> str:
    """Returns the SHA-256 of the paths and contents of all images; their order and times do not matter."""
    lines = sorted(f"{picture.digest} {path}\n" for path, picture in pictures.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def describe_changes(before: Mapping[str, Picture], now: Mapping[str, Picture]) -> str:
    """Counts the images whose content differs and names the first: " (1 changed, 2 back: a.jpg, b.jpg, c.jpg)"."""
    kinds: dict[str, list[str]] = {"changed": [], "back": [], "missing": []}
    for path, picture in now.items():
        former = before.get(path, NO_FILE).digest
        if picture.digest != former:
            kinds["missing" if not picture.digest else "changed" if former else "back"].append(path)
    differ = [path for paths in kinds.values() for path in paths]
    counts = ", ".join(f"{len(paths):,} {kind}" for kind, paths in kinds.items() if paths)
    return f" ({counts}: {first_few(differ)})"


def read_record(path: Path) -> dict[str, Picture]:
    """Returns a record file's images, none if the file is missing or damaged; then all images are read."""
    try:
        return {name: Picture(*entry) for name, entry in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_record(path: Path, pictures: Mapping[str, Picture]) -> None:
    """Writes the record, whole or not at all."""
    write_text(path, json.dumps(pictures) + "\n")
