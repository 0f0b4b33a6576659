"""Reads which pictures an index is to hold, and their metadata, from a folder or a list.

A list is NAME.csv, whose first line names the columns, or NAME.jsonl, an object on each line. Both are UTF-8, with or
without a byte order mark, or UTF-16 with one. The separator of a CSV is the first of comma, semicolon and tab that
gives the first line a column `path`. If there are blanks around the names of columns, they are dropped, there and
around all values. Empty columns and lines at the end are ignored. `path` (or `Path`, `PATH`) is relative to the folder
of pictures, or absolute and inside it. Every other column is a field, of the first of these types that fits all its
values; "" and null are missing values.

    integer    -7, 42                   of at most 18 digits; 007 is text, for it names something
    number     0.25, 1e-3               as JSON writes them; 12e4, without sign or point, is text
    boolean    true, false              in small letters or large ones
    time       2024-05-01T14:30+02:00   ISO 8601; without a zone in UTC, and a date is its midnight
    text       anything else

A line without a path, or with one outside the folder of pictures, is skipped, with its number and the reason; the
file is not looked at. A list whose structure is damaged, or that names a picture twice, is refused.
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
from input_pipeline.inspection import MISSING, leads_out
from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import decode_list, is_utf8
from ivt_jax.gallery.walk import Passed, describe_passed, walk
from ivt_jax.retrieval.where import Value, read_time

_OUT = "a link that leads out of the folder of pictures"
_SEPARATORS = (",", ";", "\t")
_FEW = 10  # 1 value in _FEW, or a single one, that does not fit the type of the others is most likely a mistake
_BRIEF = 60  # characters of a value in a message
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
    unreadable: list[tuple[str, str]]  # (path, reason) of entries that are no readable file
    closed: tuple[str, ...] = ()  # folders that cannot be listed, with "/" at the end: their content is unknown
    listed: bool = False  # whether the pictures are those of a list
    passed: Passed = types.MappingProxyType({})  # counts of files in the folder that are passed over
    notes: tuple[str, ...] = ()  # a line for each field that is text because of few values


def read_folder(folder: Path) -> Source:
    """Finds all picture files in `folder` and below, sorted, except those that `ivt_jax.gallery.walk` passes over.

    Follows links to files inside `folder`. Raises UserError if there is no picture.
    """
    root, faults = _root(folder), list[OSError]()
    paths, unreadable, passed = [], [], collections.Counter[tuple[str, str]]()
    for place, folders, files in walk(root, passed, faults.append):
        here = place.relative_to(root)
        paths += [(here / name).as_posix() for name in files]
        for name in folders:  # os.walk does not follow links; files behind a link to an inner folder are found there
            if leads_out(root, place / name):
                unreadable.append(((here / name).as_posix(), _OUT))
    closed = [(Path(fault.filename).relative_to(root).as_posix(), fault.strerror or str(fault)) for fault in faults]
    pictures, unseen = _look(root, {path: {} for path in sorted(paths)})
    if not pictures and not unseen and closed:
        raise UserError(f"{root / closed[0][0]} cannot be listed: {closed[0][1]}")
    if not pictures and not unseen:
        found = f"; passed over: {describe_passed(passed)}" if describe_passed(passed) else ""
        raise UserError(f"{folder} has no pictures ({' '.join(SUFFIXES)}){found}: mount it, or name another folder")
    closed_folders = tuple(f"{path}/" for path, _ in closed)
    return Source(root, {}, pictures, closed + unreadable + unseen, closed_folders, passed=passed)


def read_list(listed: Path, folder: Path | None = None) -> Source:
    """Reads the pictures that a list names, in its order. folder: of the pictures; by default the list's own.

    Lines without a path in the folder are skipped, and are among `unreadable`. Raises UserError if the list names no
    picture in the folder, and, with the line, if it is malformed or names a picture twice.
    """
    root = _root(folder or listed.parent)
    bases = (root, root.resolve())
    lines: dict[str, int] = {}
    records, outside, twice = [], list[tuple[int, str]](), list[str]()
    for line, record in _reader(listed)(listed, _read_text(listed)):
        named = record.pop("path", "")
        path = _within(bases, named) if named else ""
        if not path:
            outside.append((line, named))
        elif path in lines:
            twice.append(f"line {line} names {path} again, after line {lines[path]}: remove one of them")
        else:
            lines[path] = line
            records.append(record)
    if twice:
        more = f" ({len(twice):,} lines name a picture again)" if len(twice) > 1 else ""
        raise DataError(f"{listed}: {twice[0]}{more}")
    if not lines:
        raise DataError(_describe_nothing(listed, root, outside))
    fields, metadata, notes = _typed(records, [*lines.values()])
    pictures, unreadable = _look(root, dict(zip(lines, metadata, strict=True)))
    skipped = [
        (f"line {line} of {listed.name}" + (f": {named}" if named else ""), f"not in {root}" if named else "no path")
        for line, named in outside
    ]
    return Source(root, fields, pictures, skipped + unreadable, listed=True, notes=tuple(notes))


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the folder of pictures with --images")
    root = os.path.abspath(folder)
    if not is_utf8(root):
        raise UserError(f"the name of {root} is not UTF-8, which an index cannot state: rename it")
    return Path(root)


def _within(bases: Sequence[Path], path: str) -> str:
    """Returns the path relative to the root; "" if it is the root itself or leads out of it.

    bases: the root, and the root with links resolved: an absolute path may begin with either.
    """
    for base in bases if os.path.isabs(path) else bases[:1]:
        relative = os.path.relpath(os.path.join(base, path), base)
        if relative != os.curdir and relative.split(os.sep)[0] != os.pardir:
            return Path(relative).as_posix()
    return ""


def _describe_nothing(listed: Path, root: Path, outside: Sequence[tuple[int, str]]) -> str:
    """Says why a list names no picture; outside: line and path of those without a path in the root."""
    if not outside:
        return f"{listed} names no pictures"
    line, named = outside[0]
    if not named:
        return f"{listed}: line {line} has no path"
    return f"{listed}: line {line}: {named} is not in {root}; name the folder of all with --images"


def _look(
    root: Path, listed: Mapping[str, Mapping[str, Value | None]]
) -> tuple[dict[str, Picture], list[tuple[str, str]]]:
    """Returns the files that exist, by path, and (path, reason) of the others. listed: path -> metadata."""
    pictures, unreadable = {}, []
    outside = functools.cache(functools.partial(leads_out, root))  # once for each folder, not for each file
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
    """Returns the status of a file. Raises DataError, with the reason alone, if it is not a file that may be read."""
    if not is_utf8(str(file)):
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


# ---- lists: (number of the line, name -> text) of each record


def _read_text(listed: Path) -> str:
    try:
        content = listed.read_bytes()
        return decode_list(content)
    except OSError as error:
        raise UserError(f"--list: {listed} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{listed}: line {line} is not UTF-8 text: save the file as UTF-8") from None


def _read_csv(listed: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # Python's own limit is 131,072 characters of a value
    separator, header, padded = _read_header(listed, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=padded, strict=True)
    line = 1
    try:
        next(reader)
        line = reader.line_num + 1
        for values in reader:
            values = [value.strip() for value in values] if padded else values
            if any(value.strip() for value in values):
                if len(values) < len(header) or any(values[len(header) :]):
                    raise DataError(f"{listed}: line {line} has {len(values)} values for {len(header)} columns")
                yield line, dict(zip(header, values, strict=False))
            line = reader.line_num + 1  # a value may hold line breaks
    except csv.Error as error:
        raise DataError(f"{listed}: line {line} is malformed: {error}") from None


def _read_header(listed: Path, text: str) -> tuple[str, list[str], bool]:
    """Returns the separator of a CSV, the names of its columns, and whether there are blanks around these."""
    for separator in _SEPARATORS:
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
            names = _name_path([name.strip() for name in next(reader, [])])
        except csv.Error:  # quotes that end in front of another separator
            continue
        while names and not names[-1]:
            names.pop()
        if "path" not in names:
            continue
        if not all(names) or len({*names}) < len(names):
            raise DataError(f"{listed}: the first line gives a column no name, or two the same")
        plain = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
        return separator, names, any(name != name.strip() for name in plain)
    first = text.partition("\n")[0].strip()[:80]
    if "\0" in first:  # UTF-16 without a byte order mark
        raise DataError(f"{listed}: line 1 is not UTF-8 text: save the file as UTF-8")
    raise DataError(f"{listed}: the first line names no column path, but {first or 'nothing'}")


def _name_path(names: Sequence[str]) -> list[str]:
    """Returns the names with "path" in place of Path or PATH, if only one name is such."""
    if "path" in names or [name.lower() for name in names].count("path") != 1:
        return [*names]
    return ["path" if name.lower() == "path" else name for name in names]


def _read_jsonl(listed: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            # NaN, which is no JSON, for what is missing
            record = json.loads(content, parse_constant=lambda name: None, object_pairs_hook=_object)
            if not isinstance(record, dict):
                raise ValueError("expected an object")
            values = [_as_text(name, value) for name, value in record.items()]
            yield line, dict(zip(_name_path([*record]), values, strict=True))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{listed}: line {line} is malformed: {error}") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(name for name, count in collections.Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice} is named twice")
    return record


def _as_text(name: str, value: Any) -> str:
    """Returns a value of JSON as the text that a CSV would have."""
    if not name:
        raise ValueError("a value has no name")
    if isinstance(value, dict | list):
        raise ValueError(f"{name} is no single value")
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    if not is_utf8(name + text):
        raise ValueError(f"{name} is not Unicode text")
    return text


def _reader(listed: Path) -> Callable[[Path, str], Iterator[tuple[int, dict[str, str]]]]:
    """Returns the function that reads such a list."""
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if listed.suffix.lower() not in readers:
        raise UserError(f"--list: {listed} is neither .csv nor .jsonl: rename it if it is one of them")
    return readers[listed.suffix.lower()]


# ---- types


def _typed(
    records: Sequence[Mapping[str, str]], lines: Sequence[int]
) -> tuple[dict[str, str], list[dict[str, Value | None]], list[str]]:
    """Returns the type of each field, the values of each record, and `Source.notes`. records: name -> text."""
    fields: dict[str, str] = {}
    metadata: list[dict[str, Value | None]] = [{} for _ in records]
    notes = []
    for name in dict.fromkeys(name for record in records for name in record):
        texts = [record.get(name, "") for record in records]
        fields[name], values, nearly = _infer(texts)
        for known, value in zip(metadata, values, strict=True):
            known[name] = value
        if nearly:
            kind, misfits = nearly
            count, text = sum(map(bool, texts)), texts[misfits[0]]
            brief = text if len(text) <= _BRIEF else f"{text[:_BRIEF]} ..."
            notes.append(
                f"field {name} is text, because line {lines[misfits[0]]} has {brief!r}; "
                f"{count - len(misfits):,} of {count:,} values are of type {kind}"
            )
    return fields, metadata, notes


def _infer(texts: Sequence[str]) -> tuple[str, list[Value | None], tuple[str, list[int]] | None]:
    """Returns the type of a field and its values; a field without values is text.

    For text, also returns the type that fits nearly all values and the indices of the others, None if there is none.
    """
    count = sum(map(bool, texts))
    nearly: tuple[str, list[int]] | None = None
    for kind, read in _KINDS.items() if count else ():
        values, misfits = _read_all(texts, read, max(1, count // _FEW))
        if not misfits:
            return kind, values, None
        fits_nearly = len(values) == len(texts) and len(misfits) < count
        if fits_nearly and (nearly is None or len(misfits) < len(nearly[1])):
            nearly = kind, misfits
    return "text", [text or None for text in texts], nearly


def _read_all(texts: Sequence[str], read: Callable[[str], Value], most: int) -> tuple[list[Value | None], list[int]]:
    """Returns the values, None where the text is "" or does not fit, and the indices of texts that do not fit.

    Stops after more than `most` of these.
    """
    values: list[Value | None] = []
    misfits: list[int] = []
    for index, text in enumerate(texts):
        try:
            values.append(read(text) if text else None)
        except ValueError:
            if len(misfits) == most:
                return values, [*misfits, index]
            misfits.append(index)
            values.append(None)
    return values, misfits


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
