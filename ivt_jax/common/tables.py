"""Reads tables of records, CSV or JSONL, as spreadsheets, programs and people write them.

    for line, record in read_table(Path("my.csv"), key=("image",), known=("caption",)):
        print(line, record["image"], record["caption"])

A table is NAME.csv, whose first line names the columns, or NAME.jsonl, an object on each line. Both are UTF-8, with or
without a byte order mark, or UTF-16 with one. The separator of a CSV is the first of comma, semicolon and tab that
gives the first line the key column. If blanks surround the names of columns, they are dropped, there and around all
values. Empty columns and lines at the end are ignored, and so is a first column without a name, the row numbers of
pandas and R. "", null and NaN are missing values: "".
"""

import collections
import csv
import io
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ivt_jax.common.errors import DataError, UserError
from ivt_jax.common.files import decode_list, is_utf8

SUFFIXES = (".csv", ".jsonl")
_SEPARATORS = (",", ";", "\t")


class NoKeyError(DataError):
    """A table without its key column. names: the columns that it has, [] if none can be read."""

    names: Sequence[str] = ()


class _Names(NamedTuple):
    """key: the accepted names of the column that finds the separator, the preferred one first; known: others."""

    key: Sequence[str]
    known: Sequence[str]

    def read(self, names: Sequence[str]) -> list[str]:
        """Returns the names as the reader spells them: `Image` as `image`, and any name of the key as its first."""
        result = [*names]
        for name in (*self.key, *self.known):
            if name not in result and [other.lower() for other in result].count(name) == 1:
                result = [name if other.lower() == name else other for other in result]
        found = next((name for name in self.key if name in result), self.key[0])
        return [self.key[0] if name == found else name for name in result]


def read_table(
    path: Path, key: Sequence[str], known: Sequence[str] = (), nested: Collection[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the line number and name -> text of each record of a table.

    key: the accepted names, in lower case, of the column that each CSV must have; the value is under the first of them.
    known: other names in lower case. Both are found in any case if exactly one column has the name; other names stay.
    nested: names whose values of a JSONL may be lists and objects, which are yielded unchanged.
    Raises UserError for a missing or malformed table, NoKeyError for a CSV without the key. Records of a JSONL may lack
    the key.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is neither .csv nor .jsonl: rename it if it is one of them")
    try:
        content = path.read_bytes()
        text = decode_list(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not UTF-8 text: save the file as UTF-8") from None
    yield from readers[path.suffix.lower()](path, text, _Names(key, known), nested)


def _read_csv(path: Path, text: str, names: _Names, nested: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # Python's own limit is 131,072 characters of a value
    separator, header, padded = _read_header(path, text, names)
    last = 0
    try:
        reader = _csv_reader(text, separator, padded)
        for values in reader:
            line, last = last + 1, reader.line_num  # a value may hold line breaks
            values = [value.strip() for value in values] if padded else values
            if line == 1 or not any(value.strip() for value in values):
                continue
            if len(values) < len(header) or any(values[len(header) :]):
                raise DataError(f"{path}: line {line} has {len(values)} values for {len(header)} columns")
            yield line, {name: value for name, value in zip(header, values, strict=False) if name}
    except csv.Error as error:
        raise DataError(f"{path}: line {last + 1} is malformed: {error}") from None


def _csv_reader(text: str, separator: str, padded: bool, strict: bool = True) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=padded, strict=strict)


def _read_header(path: Path, text: str, names: _Names) -> tuple[str, list[str], bool]:
    """Returns the separator of a CSV, the names of its columns, and whether blanks surround a name."""
    widest: list[str] = []
    for separator in _SEPARATORS:
        try:
            found = [name.strip() for name in next(_csv_reader(text, separator, True), [])]
        except csv.Error:  # a quote ends before another separator
            continue
        while found and not found[-1]:
            found.pop()
        widest = max(widest, found, key=len)
        header = names.read(found)
        if names.key[0] not in header:
            continue
        if not all(header[1:]) or len({*header}) < len(header):
            raise DataError(f"{path}: the first line has a column without a name, or two of the same name")
        plain = next(_csv_reader(text, separator, False, strict=False))  # a quote after a blank is no mistake
        return separator, header, any(name != name.strip() for name in plain)
    first = text.partition("\n")[0].strip()[:80]
    if "\0" in first:  # UTF-16 without a byte order mark
        raise DataError(f"{path}: line 1 is not UTF-8 text: save the file as UTF-8")
    error = NoKeyError(f"{path}: the first line has no column {names.key[0]}; it is {first or 'empty'}")
    error.names = widest
    raise error


def _read_jsonl(path: Path, text: str, names: _Names, nested: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            # NaN is not JSON, but Python writes it for missing values.
            record = json.loads(content, parse_constant=lambda name: None, object_pairs_hook=_object)
            if not isinstance(record, dict):
                raise ValueError("expected an object")
            header = names.read([*record])
            values = [_value(name, value, name in nested) for name, value in zip(header, record.values(), strict=True)]
            yield line, dict(zip(header, values, strict=True))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {line} is malformed: {error}") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    for name, count in collections.Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name} is named twice")
    return dict(pairs)


def _value(name: str, value: Any, nested: bool) -> Any:
    """Returns a JSON value as the text that a CSV would have; lists and objects unchanged if `nested`."""
    if not name:
        raise ValueError("a value has no name")
    if isinstance(value, dict | list):
        if not nested:
            raise ValueError(f"{name} is a list or an object")
        if not is_utf8(json.dumps(value, ensure_ascii=False)):
            raise ValueError(f"{name} is not Unicode text")
        return value
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    if not is_utf8(name + text):
        raise ValueError(f"{name} is not Unicode text")
    return text
