"""The pictures that an index is to hold, and what is known of each: those of a folder, or those of a list.

A list is NAME.csv, whose first line names the columns, or NAME.jsonl, an object on each line; both in UTF-8. `path` is
that of the picture, relative to the folder of pictures, or absolute in it. All else is metadata: every other column is
a field, of the first of these types that fits all its values, however the file writes them; "" and null are missing.

    integer    -7, 42                   of at most 18 digits; 007 is text, for it names something
    number     0.25, 1e-3               as JSON writes them; 12e4, without sign or point, is text
    boolean    true, false              in small letters or large ones
    time       2024-05-01T14:30+02:00   ISO 8601; without a zone in UTC, and a date is its midnight
    text       whatever else
"""

import collections
import csv
import functools
import io
import json
import math
import os
import re
import stat
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from input_pipeline.decoding import SUFFIXES
from input_pipeline.errors import DataError, UserError
from input_pipeline.inspection import MISSING, leads_out
from ivt_jax.gallery.walk import Passed, describe_passed, walk
from ivt_jax.retrieval.where import Value, read_time

_OUT = "a link that leads out of the folder of pictures"
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+([eE][+-]?[0-9]+)?|[eE][+-][0-9]+)?")


class Picture(NamedTuple):
    """A file, before it is read."""

    path: str  # relative to the root, with "/" between folders
    size: int  # in bytes
    changed: int  # the file's time of change, in ns; times beyond 64 bits (before 1677, after 2262) wrap around
    metadata: Mapping[str, Value | None]


class Source(NamedTuple):
    """What an index is to hold."""

    root: Path  # absolute
    fields: dict[str, str]  # name -> type, a key of `where.TYPES`
    pictures: dict[str, Picture]  # by path
    unreadable: list[tuple[str, str]]  # (path, reason) of what is no file that could be read
    closed: tuple[str, ...] = ()  # folders that cannot be listed, with "/" behind: what is in them is not known
    listed: bool = False  # by a list, which tells all that is known of them
    passed: Passed = types.MappingProxyType({})  # counts of files in the folder that are not taken


def read_folder(folder: Path) -> Source:
    """All picture files in `folder` and below, sorted, but those that `ivt_jax.gallery.walk` passes over and counts.

    Links are followed where they lead to a file in it. Raises UserError where there is no picture.
    """
    root, faults = _root(folder), list[OSError]()
    paths, unreadable, passed = [], [], collections.Counter[tuple[str, str]]()
    for place, folders, files in walk(root, passed, faults.append):
        here = place.relative_to(root)
        paths += [(here / name).as_posix() for name in files]
        for name in folders:  # what a link to a folder in it holds is found where it lies
            if leads_out(root, place / name):
                unreadable.append(((here / name).as_posix(), _OUT))
    closed = [(Path(fault.filename).relative_to(root).as_posix(), fault.strerror or str(fault)) for fault in faults]
    pictures, unseen = _look(root, {path: {} for path in sorted(paths)})
    if not pictures and not unseen and closed:
        raise UserError(f"{root / closed[0][0]} cannot be listed: {closed[0][1]}")
    if not pictures and not unseen:
        told = f"; passed over: {describe_passed(passed)}" if describe_passed(passed) else ""
        raise UserError(f"{folder} has no pictures ({' '.join(SUFFIXES)}){told}")
    closed_folders = tuple(f"{path}/" for path, _ in closed)
    return Source(root, {}, pictures, closed + unreadable + unseen, closed_folders, passed=passed)


def read_list(listed: Path, folder: Path | None = None) -> Source:
    """The pictures that a list names, in its order. folder: that of the pictures; without it, the list's own.

    Raises UserError where the list names none, and, with the line, where it is malformed, names one twice, or names one
    that lies outside the folder.
    """
    root = _root(folder or listed.parent)
    try:
        content = listed.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--list: {listed} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{listed}: line {line} is not UTF-8 text: save the file as UTF-8") from None
    lines: dict[str, int] = {}
    records = []
    for line, record in _reader(listed)(listed, text):
        named = record.pop("path", "")
        if not named:
            raise DataError(f"{listed}: line {line} has no path")
        path = _within(root, named)
        if not path:
            raise DataError(f"{listed}: line {line}: {named} is not in {root}; name the folder of all with --images")
        if path in lines:
            raise DataError(f"{listed}: line {line} names {path} again, after line {lines[path]}: remove one of them")
        lines[path] = line
        records.append(record)
    if not lines:
        raise DataError(f"{listed} names no pictures")
    fields, metadata = _typed(records)
    pictures, unreadable = _look(root, dict(zip(lines, metadata, strict=True)))
    return Source(root, fields, pictures, unreadable, listed=True)


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the folder of pictures with --images")
    root = os.path.abspath(folder)
    if not _is_text(root):
        raise UserError(f"the name of {root} is not UTF-8, which an index cannot state: rename it")
    return Path(root)


def _within(root: Path, path: str) -> str:
    """The path relative to the root; "" where it is none, or leads out of it."""
    relative = os.path.relpath(os.path.join(root, path), root)
    return "" if relative == os.curdir or relative.split(os.sep)[0] == os.pardir else Path(relative).as_posix()


def _look(
    root: Path, listed: Mapping[str, Mapping[str, Value | None]]
) -> tuple[dict[str, Picture], list[tuple[str, str]]]:
    """Path -> metadata, to the files that are there, and to (path, reason) of the others."""
    pictures, unreadable = {}, []
    outside = functools.cache(functools.partial(leads_out, root))  # asked once of a folder, not for each of its files
    for path, metadata in listed.items():
        try:
            status = _status(root / path, outside)
            pictures[path] = Picture(path, status.st_size, _within_int64(status.st_mtime_ns), metadata)
        except DataError as error:
            unreadable.append((path, str(error)))
    return pictures, unreadable


def _within_int64(time: int) -> int:
    """Wraps a time into the 64 bits that stores have for it. Times are only compared for equality."""
    return (time + 2**63) % 2**64 - 2**63


def _status(file: Path, outside: Callable[[Path], bool]) -> os.stat_result:
    """That of a file. Raises DataError, with the reason alone, where it is none that may be read."""
    if not _is_text(str(file)):
        raise DataError("its name is not UTF-8, which an index cannot hold: rename it")
    try:
        status = os.stat(file)
    except FileNotFoundError:
        raise DataError(MISSING) from None
    except OSError as error:  # closed to us, or too long
        raise DataError(error.strerror or str(error)) from None
    except ValueError:  # its message depends on the version of Python
        raise DataError("embedded null byte") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError("not a file")
    if outside(file if file.is_symlink() else file.parent):
        raise DataError(_OUT)
    return status


def _is_text(name: str) -> bool:
    """Whether the bytes of a file's name are UTF-8; Python has lone surrogates for those that are not."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


# ---- lists: (number of the line, name -> text) of each record


def _read_csv(listed: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if "path" not in header:
            raise DataError(f"{listed}: the first line names no column path, but {', '.join(header)[:80] or 'nothing'}")
        if not all(header) or len({*header}) < len(header):
            raise DataError(f"{listed}: the first line gives a column no name, or two the same")
        line = reader.line_num + 1
        for values in reader:
            if len(values) not in (0, len(header)):
                raise DataError(f"{listed}: line {line} has {len(values)} values for {len(header)} columns")
            if values:
                yield line, dict(zip(header, values, strict=True))
            line = reader.line_num + 1  # a value may hold line breaks
    except csv.Error as error:
        raise DataError(f"{listed}: line {reader.line_num} is malformed: {error}") from None


def _read_jsonl(listed: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content, parse_constant=lambda name: None)  # NaN, which is no JSON, for what is missing
            if not isinstance(record, dict):
                raise ValueError("expected an object")
            yield line, {name: _as_text(name, value) for name, value in record.items()}
        except (ValueError, RecursionError) as error:
            raise DataError(f"{listed}: line {line} is malformed: {error}") from None


def _as_text(name: str, value: Any) -> str:
    """A value of JSON as CSV would have it."""
    if not name:
        raise ValueError("a value has no name")
    if isinstance(value, dict | list):
        raise ValueError(f"{name} is no single value")
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    if not _is_text(name + text):
        raise ValueError(f"{name} is not Unicode text")
    return text


def _reader(listed: Path) -> Callable[[Path, str], Iterator[tuple[int, dict[str, str]]]]:
    """What reads such a list."""
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if listed.suffix.lower() not in readers:
        raise UserError(f"--list: {listed} is neither .csv nor .jsonl")
    return readers[listed.suffix.lower()]


# ---- types


def _typed(records: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], list[dict[str, Value | None]]]:
    """Texts by name -> the type of each field, and the value that each record has for it."""
    fields: dict[str, str] = {}
    metadata: list[dict[str, Value | None]] = [{} for _ in records]
    for name in dict.fromkeys(name for record in records for name in record):
        fields[name], values = _infer([record.get(name, "") for record in records])
        for known, value in zip(metadata, values, strict=True):
            known[name] = value
    return fields, metadata


def _infer(texts: Sequence[str]) -> tuple[str, list[Value | None]]:
    """The type of a field, and its values; where all are missing it is text."""
    if any(texts):
        for kind, read in _KINDS.items():
            try:
                return kind, [read(text) if text else None for text in texts]
            except ValueError:
                continue
    return "text", [text or None for text in texts]


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(text)
    return float(text)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


_KINDS: dict[str, Callable[[str], Value]] = {
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "time": read_time,
}
