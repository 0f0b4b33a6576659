"""Finds the pictures of an index and their metadata, in a folder or a list (`ivt_jax.retrieval.indexing.lists`).

A picture is a file of its own, or lies in a tar archive of the folder: ARCHIVE.tar/NAME (`ivt_jax.gallery.archives`).
"""

import collections
import functools
import hashlib
import os
import stat
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from input_pipeline.decoding import SUFFIXES
from input_pipeline.inspection import MISSING, leads_out
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import is_utf8
from ivt_jax.gallery import archives
from ivt_jax.gallery.archives import Slice
from ivt_jax.gallery.crops import read_content
from ivt_jax.gallery.walk import Passed, describe_passed, walk
from ivt_jax.retrieval.indexing.changes import now
from ivt_jax.retrieval.indexing.lists import infer_fields, read_records
from ivt_jax.retrieval.stores.store import Row
from ivt_jax.retrieval.stores.where import Metadata

OF_CAPTION = ("caption", "attributes")  # columns that a table of own data has for each caption, not for each picture
_OUT = "a link that leads out of the folder of pictures"


class Picture(NamedTuple):
    """A picture that has not been read yet. In an archive, its modification time is that of the archive."""

    path: str  # relative to the root, with "/" between folders
    size: int  # in bytes
    changed: int  # modification time in ns, wrapped into 64 bits (times before 1677 and after 2262 do not fit)
    metadata: Metadata
    slice: Slice | None = None  # its bytes in an archive

    def content(self, root: Path) -> Path | Slice:
        """Returns the file, or the slice of its archive, for `read_content`."""
        return self.slice or root / self.path


class Source(NamedTuple):
    """The pictures that an index should hold."""

    root: Path  # absolute
    fields: dict[str, str]  # name -> type, a key of `where.TYPES`
    pictures: dict[str, Picture]  # by path
    unreadable: list[tuple[str, str]]  # (path, reason) of entries that are no readable file
    closed: Sequence[str] = ()  # folders that cannot be listed, archives that cannot be read to the end
    listed: bool = False  # whether a list names the pictures
    passed: Passed = types.MappingProxyType({})  # counts of files in the folder that are passed over
    notes: tuple[str, ...] = ()  # a line for each field that is text because of few values
    unmatched: Sequence[str] = ()  # paths of pictures that do not fit `path_fields`
    origin: Mapping[str, str] = types.MappingProxyType({})  # how to find the pictures again: images, list, path_fields
    time: str = ""  # when the listing began, ISO 8601 in UTC


def read_unchanged(root: Path, row: Row) -> bytes | None:
    """Returns the content of a row's file; None if it is gone, has changed, or lies outside of the folder `root`."""
    file = root / row.path
    if leads_out(root, file):
        return None
    try:
        content = read_content(row.path, file)
    except UserError:
        return None
    return content if hashlib.sha256(content).hexdigest() == row.digest else None


def read_folder(folder: Path) -> Source:
    """Finds all pictures in `folder` and below, except those that `ivt_jax.gallery.walk` passes over.

    Files are sorted; pictures of an archive are in its order, so that it is read from front to back. Follows links to
    files inside `folder`. Raises UserError if there is no picture.
    """
    time, root, faults = now(), _root(folder), list[OSError]()
    paths, unreadable, passed = [], [], collections.Counter[tuple[str, str]]()
    for place, folders, files in walk(root, passed, faults.append, (*SUFFIXES, archives.SUFFIX)):
        here = place.relative_to(root)
        paths += [(here / name).as_posix() for name in files]
        # Links to folders are not followed. The files behind a link to an inner folder are found there.
        unreadable += [((here / name).as_posix(), _OUT) for name in folders if leads_out(root, place / name)]
    closed = [(Path(fault.filename).relative_to(root).as_posix(), fault.strerror or str(fault)) for fault in faults]
    found = _Files(root)
    for path in sorted(paths):
        if path.lower().endswith(archives.SUFFIX):
            unreadable += [(f"{path}/{name}", reason) for name, reason in found.archive(path).unreadable]
            passed.update(found.archive(path).passed)
    pictures, missing = found.pictures({name: {} for path in sorted(paths) for name in found.names(path)})
    closed += found.closed
    if not pictures and not missing and closed:
        raise UserError(f"{root / closed[0][0]} cannot be listed: {closed[0][1]}")
    if not pictures and not missing:
        others = f"; passed over: {describe_passed(passed)}" if describe_passed(passed) else ""
        raise UserError(f"{folder} has no pictures ({' '.join(SUFFIXES)}){others}: mount it, or name another folder")
    unreadable = closed + unreadable + missing
    origin = {"images": str(root)}
    unlisted = tuple(path for path, _ in closed)
    return Source(root, {}, pictures, unreadable, unlisted, passed=passed, origin=origin, time=time)


def read_list(listed: Path, folder: Path | None = None) -> Source:
    """Reads the pictures that a list names, in its order. folder: of the pictures, by default the list's own.

    Lines whose path is missing or outside the folder are skipped and added to `unreadable`. Raises UserError if no
    line remains, and, with the line, if the list is malformed or names a picture again with other values. Those of
    OF_CAPTION may differ, as in a table of own data: the first line counts.
    """
    time, root = now(), _root(folder or listed.parent)
    bases = root, root.resolve()
    named_first = dict[str, tuple[int, dict[str, str]]]()
    outside, repeated = list[tuple[int, str]](), list[str]()
    for line, record in read_records(listed):
        named = record.pop("path", "")
        path = _relative(named, bases)
        if not path:
            outside.append((line, named))
        elif path not in named_first:
            named_first[path] = line, record
        elif other := _differing(named_first[path][1], record):
            again = f"line {line} names {path} again, after line {named_first[path][0]}"
            repeated.append(f"{again}, with another {other}: remove one of them")
    if repeated:
        more = f" ({len(repeated):,} lines name a picture again)" if len(repeated) > 1 else ""
        raise DataError(f"{listed}: {repeated[0]}{more}")
    if not named_first:
        line, named = outside[0] if outside else (0, "")
        if named:
            raise DataError(f"{listed}: line {line}: {named} is not in {root}; set --images to their common folder")
        raise DataError(f"{listed}: line {line} has no path" if outside else f"{listed} names no pictures")
    lines, records = zip(*named_first.values(), strict=True)
    fields, metadata, notes = infer_fields(records, [f"line {line}" for line in lines])
    found = _Files(root)
    pictures, unreadable = found.pictures(dict(zip(named_first, metadata, strict=True)))
    unreadable += found.closed
    skipped = [
        (f"line {line} of {listed.name}" + (f": {named}" if named else ""), f"not in {root}" if named else "no path")
        for line, named in outside
    ]
    origin = {"images": str(root), "list": os.path.abspath(listed)}
    closed = tuple(path for path, _ in found.closed)
    unreadable = skipped + unreadable
    return Source(root, fields, pictures, unreadable, closed, True, notes=tuple(notes), origin=origin, time=time)


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Returns the first field in which two lines of a picture differ, "" if there is none."""
    fields = dict.fromkeys(name for name in (*one, *other) if name not in OF_CAPTION)
    return next((name for name in fields if one.get(name, "") != other.get(name, "")), "")


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the folder of pictures with --images")
    root = os.path.abspath(folder)
    if not is_utf8(root):
        raise UserError(f"the name of {root} is not UTF-8, which an index cannot store: rename it")
    return Path(root)


def _relative(path: str, bases: Sequence[Path]) -> str:
    """Returns the path relative to the root, "" if it is not below. bases: the root, and with its links resolved."""
    for base in bases if os.path.isabs(path) else bases[:1]:
        relative = os.path.relpath(os.path.join(base, path), base)
        if relative != os.curdir and relative.split(os.sep)[0] != os.pardir:
            return Path(relative).as_posix()
    return ""


class _Files:
    """Finds files below a root, and pictures in archives. closed: (path, reason) of archives that have a fault."""

    def __init__(self, root: Path):
        self._root, self.closed = root, list[tuple[str, str]]()
        self._slices = dict[str, Slice]()  # by path, of the archives that were listed
        self._outside = functools.cache(functools.partial(leads_out, root))  # once for each folder, not for each file
        self.archive = functools.cache(self._read_archive)

    def names(self, path: str) -> list[str]:
        """Returns the paths of the pictures in an archive; for another file its own path."""
        is_archive = path.lower().endswith(archives.SUFFIX)
        return [f"{path}/{name}" for name in self.archive(path).pictures] if is_archive else [path]

    def pictures(self, metadata: Mapping[str, Metadata]) -> tuple[dict[str, Picture], list[tuple[str, str]]]:
        """Returns the pictures that exist, by path, and (path, reason) of the others. metadata: by path."""
        pictures, unreadable = {}, []
        for path, known in metadata.items():
            try:
                pictures[path] = self._picture(path, known)
            except DataError as error:
                unreadable.append((path, str(error)))
        return pictures, unreadable

    def _picture(self, path: str, known: Metadata) -> Picture:
        """Raises DataError, with the reason alone, if there is no such picture or if it may not be read."""
        if path not in self._slices and (place := archives.split_path(self._root / path)):
            archive = self.archive(place[0].relative_to(self._root).as_posix())
            if path not in self._slices:
                raise DataError(archive.fault or MISSING)
        if found := self._slices.get(path):
            return Picture(path, found.size, _wrapped(found.changed or 0), known, found)
        status = _status(self._root / path, self._outside)
        return Picture(path, status.st_size, _wrapped(status.st_mtime_ns), known)

    def _read_archive(self, path: str) -> archives.Archive:
        """Lists an archive; one that cannot be read has a fault and no pictures."""
        try:
            _status(self._root / path, self._outside)
            archive = archives.read_archive(self._root / path)
        except (DataError, OSError) as error:
            archive = archives.Archive({}, [], {}, getattr(error, "strerror", None) or str(error))
        if archive.fault:
            self.closed.append((path, archive.fault))
        self._slices |= {f"{path}/{name}": piece for name, piece in archive.pictures.items()}
        return archive


def _wrapped(time: int) -> int:
    return (time + 2**63) % 2**64 - 2**63  # times are only compared for equality


def _status(file: Path, outside: Callable[[Path], bool]) -> os.stat_result:
    """Returns the status of a file. Raises DataError, with the reason alone, if it may not be read."""
    if not is_utf8(str(file)):
        raise DataError("its name is not UTF-8, which an index cannot store: rename it")
    try:
        status = os.stat(file)
    except OSError as error:  # such as a missing permission or a name that is too long
        raise DataError(MISSING if isinstance(error, FileNotFoundError) else error.strerror or str(error)) from None
    except ValueError:  # its message depends on the version of Python
        raise DataError("embedded null byte") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError("not a file")
    if outside(file if file.is_symlink() else file.parent):
        raise DataError(_OUT)
    return status
