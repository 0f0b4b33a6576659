"""Reads lists of pictures, CSV or JSONL, and infers the types of their fields.

A list is NAME.csv, whose first line names the columns, or NAME.jsonl, an object on each line. Both are UTF-8, with or
without a byte order mark, or UTF-16 with one. The separator of a CSV is the first of comma, semicolon and tab that
gives the first line a column `path`. If blanks surround the names of columns, they are dropped, there and around all
values. Empty columns and lines at the end are ignored. `path` (or `Path`, `PATH`) is relative to the folder of
pictures, or absolute and inside it. Every other column is a field; its type is the first of these that fits all its
values. "" and null are missing values.

    integer    -7, 42                   at most 18 digits; 007 is text, because the zeros matter in a name
    number     0.25, 1e-3               as JSON writes them; 12e4, without sign or point, is text
    boolean    true, false              in any case
    time       2024-05-01T14:30+02:00   ISO 8601; UTC without a zone; a date is its midnight
    text       anything else
"""

import collections
import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import decode_list, is_utf8
from ivt_jax.retrieval.where import Value, read_time

_FEW = 10  # 1 value in _FEW, or a single one, that does not fit the type of the others is most likely a mistake
_BRIEF = 60  # characters of a value in a message


def read_records(listed: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields line and name -> text, with "path", of each record. Raises UserError for a missing or malformed list."""
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if listed.suffix.lower() not in readers:
        raise UserError(f"--list: {listed} is neither .csv nor .jsonl: rename it if it is one of them")
    try:
        content = listed.read_bytes()
        text = decode_list(content)
    except OSError as error:
        raise UserError(f"--list: {listed} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{listed}: line {line} is not UTF-8 text: save the file as UTF-8") from None
    yield from readers[listed.suffix.lower()](listed, text)


def _read_csv(listed: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # Python's own limit is 131,072 characters of a value
    separator, header, padded = _read_header(listed, text)
    last = 0
    try:
        reader = _csv_reader(text, separator, padded)
        for values in reader:
            line, last = last + 1, reader.line_num  # a value may hold line breaks
            values = [value.strip() for value in values] if padded else values
            if line == 1 or not any(value.strip() for value in values):
                continue
            if len(values) < len(header) or any(values[len(header) :]):
                raise DataError(f"{listed}: line {line} has {len(values)} values for {len(header)} columns")
            yield line, dict(zip(header, values, strict=False))
    except csv.Error as error:
        raise DataError(f"{listed}: line {last + 1} is malformed: {error}") from None


def _csv_reader(text: str, separator: str, padded: bool, strict: bool = True) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=padded, strict=strict)


def _read_header(listed: Path, text: str) -> tuple[str, list[str], bool]:
    """Returns the separator of a CSV, the names of its columns, and whether blanks surround a name."""
    for separator in (",", ";", "\t"):
        try:
            names = _name_path([name.strip() for name in next(_csv_reader(text, separator, True), [])])
        except csv.Error:  # a quote ends before another separator
            continue
        while names and not names[-1]:
            names.pop()
        if "path" not in names:
            continue
        if not all(names) or len({*names}) < len(names):
            raise DataError(f"{listed}: the first line has a column without a name, or two of the same name")
        plain = next(_csv_reader(text, separator, False, strict=False))  # a quote after a blank is no mistake
        return separator, names, any(name != name.strip() for name in plain)
    first = text.partition("\n")[0].strip()[:80]
    if "\0" in first:  # UTF-16 without a byte order mark
        raise DataError(f"{listed}: line 1 is not UTF-8 text: save the file as UTF-8")
    raise DataError(f"{listed}: the first line has no column path; it is {first or 'empty'}")


def _name_path(names: Sequence[str]) -> list[str]:
    """Returns the names with "path" in place of Path or PATH, if exactly one name is such."""
    if "path" in names or [name.lower() for name in names].count("path") != 1:
        return [*names]
    return ["path" if name.lower() == "path" else name for name in names]


def _read_jsonl(listed: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            # NaN is not JSON, but Python writes it for missing values.
            record = json.loads(content, parse_constant=lambda name: None, object_pairs_hook=_object)
            if not isinstance(record, dict):
                raise ValueError("expected an object")
            values = [_as_text(name, value) for name, value in record.items()]
            yield line, dict(zip(_name_path([*record]), values, strict=True))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{listed}: line {line} is malformed: {error}") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    for name, count in collections.Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name} is named twice")
    return dict(pairs)


def _as_text(name: str, value: Any) -> str:
    """Returns a JSON value as the text that a CSV would have."""
    if not name:
        raise ValueError("a value has no name")
    if isinstance(value, dict | list):
        raise ValueError(f"{name} is a list or an object")
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    if not is_utf8(name + text):
        raise ValueError(f"{name} is not Unicode text")
    return text


# ---- types


def infer_fields(
    records: Sequence[Mapping[str, str]], lines: Sequence[int]
) -> tuple[dict[str, str], list[dict[str, Value | None]], list[str]]:
    """Returns the type of each field, the values of each record, and a note on each field that is nearly of a type.

    records: name -> text; lines: their numbers in the list.
    """
    fields, notes = dict[str, str](), []
    metadata: list[dict[str, Value | None]] = [{} for _ in records]
    for name in dict.fromkeys(name for record in records for name in record):
        texts = [record.get(name, "") for record in records]
        fields[name], values, nearly = _infer(texts)
        for known, value in zip(metadata, values, strict=True):
            known[name] = value
        if nearly:
            kind, misfits = nearly
            count, text = sum(map(bool, texts)), texts[misfits[0]]
            brief = text if len(text) <= _BRIEF else f"{text[:_BRIEF]} ..."
            note = f"field {name} is text, because line {lines[misfits[0]]} has {brief!r}"
            notes.append(f"{note}; {count - len(misfits):,} of {count:,} values are of type {kind}")
    return fields, metadata, notes


def _infer(texts: Sequence[str]) -> tuple[str, list[Value | None], tuple[str, list[int]] | None]:
    """Returns a field's type and values; for text also the type that nearly fits, with the indices of the misfits."""
    count = sum(map(bool, texts))
    most = max(1, count // _FEW)
    nearly: tuple[str, list[int]] | None = None
    for kind in _TYPES if count else ():
        values, misfits = list[Value | None](), list[int]()
        for index, text in enumerate(texts):
            values.append(_parse(text, kind) if text else None)
            if text and values[-1] is None:
                misfits.append(index)
            if len(misfits) > most:
                break
        if not misfits:
            return kind, values, None
        if len(misfits) <= most and len(misfits) < count and (not nearly or len(misfits) < len(nearly[1])):
            nearly = kind, misfits
    return "text", [text or None for text in texts], nearly


def _parse(text: str, kind: str) -> Value | None:
    """Returns the value, None if the text is not of this type."""
    pattern, read = _TYPES[kind]
    try:
        value = read(text) if pattern.fullmatch(text) else None
    except ValueError:
        return None
    return None if value in (math.inf, -math.inf) else value


_TYPES: dict[str, tuple[re.Pattern[str], Callable[[str], Value]]] = {
    "integer": (re.compile(r"-?(0|[1-9][0-9]{0,17})"), int),
    "number": (re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]+([eE][+-]?[0-9]+)?|[eE][+-][0-9]+)?"), float),
    "boolean": (re.compile("true|false", re.IGNORECASE | re.ASCII), lambda text: text.lower() == "true"),
    "time": (re.compile(".+", re.DOTALL), read_time),
}
