"""Lists the pictures in uncompressed tar archives, such as webdataset and img2dataset write, and finds their bytes.

A picture in an archive has the path ARCHIVE.tar/NAME. Nothing is unpacked, and no link in an archive is followed.
"""

import collections
import errno
import functools
import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ivt_jax.common.files import is_utf8
from ivt_jax.gallery.walk import Passed, reason_to_pass

SUFFIX = ".tar"
NO_FILE = "a link, a device or a sparse file, not a file of the archive"


class Slice(NamedTuple):
    """Bytes of a file, read only when they are decoded, so that few of them are in memory at once."""

    file: Path
    start: int
    size: int
    changed: int | None = None  # modification time of the file in ns when it was listed

    def read(self) -> bytes:
        """Raises OSError if the file cannot be read, or has another modification time."""
        with self.file.open("rb") as file:
            if self.changed not in (None, os.fstat(file.fileno()).st_mtime_ns):
                raise OSError("the archive has changed since it was listed: run the command again")
            file.seek(self.start)
            return file.read(self.size)


class Archive(NamedTuple):
    """The pictures of an archive."""

    pictures: dict[str, Slice]  # by name, in the order of the archive
    unreadable: list[tuple[str, str]]  # (name, reason) of entries that are left out
    passed: Passed  # counts of the files that are passed over
    fault: str  # why only its first part could be read, "" if all of it was


def members(archive: Path) -> Iterator[tarfile.TarInfo]:
    """Yields all entries of an archive but folders, from front to back.

    Raises OSError if it cannot be read; after the last whole entry tarfile.TarError if it is cut short or damaged.
    """
    count, tar = 0, None
    with archive.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - `file` is closed here
            while (member := tar.next()) and member.size >= 0 and member.offset_data + member.size <= size:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all
                count += 1
                if not member.isdir():
                    yield member
            # tarfile takes a damaged header for the end of the archive, and would lose all members after it.
            file.seek(tar.offset)
            whole = not member and file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except (tarfile.TarError, ValueError, OverflowError):  # the last two: numbers that tarfile does not check
            whole = False
    if not whole:
        entries = "1 entry" if count == 1 else f"{count:,} entries"
        raise tarfile.ReadError(f"cut short or damaged after {entries}" if tar else "no tar archive")


def read_archive(archive: Path) -> Archive:
    """Lists the pictures of an archive. Of several with one name the last counts, as it would after unpacking.

    Raises OSError if the archive cannot be opened.
    """
    found, passed, fault = Archive({}, [], {}, ""), collections.Counter[tuple[str, str]](), ""
    changed = archive.stat().st_mtime_ns
    try:
        for member in members(archive):
            name = posixpath.normpath(member.name)
            if why := reason_to_pass(name):
                passed[why] += 1
            elif reason := _reason_to_refuse(member):
                found.unreadable.append((member.name, reason))
            else:
                if found.pictures.pop(name, None):
                    found.unreadable.append((name, "a later entry of the archive has the same name, and counts"))
                found.pictures[name] = Slice(archive, member.offset_data, member.size, changed)
    except tarfile.TarError as error:
        fault = str(error)
    return found._replace(passed=passed, fault=fault)


def split_path(file: Path) -> tuple[Path, str] | None:
    """Returns the archive that holds a file, and its name in the archive; None for a file that is in no archive."""
    for place in file.parents if f"{SUFFIX}/" in str(file).lower() else ():
        if place.suffix.lower() == SUFFIX and place.is_file():
            return place, file.relative_to(place).as_posix()
    return None


def find_slice(file: Path) -> Slice | None:
    """Returns where a picture lies in its archive; None for a file that is in no archive.

    Raises OSError if the archive cannot be read or has no such picture. The lists of the last archives are kept.
    """
    if not (place := split_path(file)):
        return None
    archive, name = place
    status = archive.stat()
    if found := _pictures(archive, status.st_size, status.st_mtime_ns).get(name):
        return found
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))


@functools.lru_cache(8)
def _pictures(archive: Path, size: int, changed: int) -> dict[str, Slice]:
    return read_archive(archive).pictures


def _reason_to_refuse(member: tarfile.TarInfo) -> str:
    if not member.isreg() or member.issparse():
        return NO_FILE
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name has .. or begins with /"
    if not is_utf8(member.name) or "\0" in member.name:
        return "its name is not UTF-8, which an index cannot store"
    return ""
