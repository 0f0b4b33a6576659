"""Reads lists of pictures, CSV or JSONL (`ivt_jax.common.tables`), and infers the types of their fields.

The column `path` is relative to the folder of pictures, or absolute and inside it. A list without it may call it
`image`, as the tables of own data do. Every other column is a field; its type is the first of these that fits all its
values.

    integer    -7, 42                   at most 18 digits; 007 is text, because the zeros matter in a name
    number     0.25, 1e-3               as JSON writes them; 12e4, without sign or point, is text
    boolean    true, false              in any case
    time       2024-05-01T14:30+02:00   ISO 8601; UTC without a zone; a date is its midnight
    text       anything else
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ivt_jax.common.tables import read_table
from ivt_jax.retrieval.stores.where import Value, read_time

_FEW = 10  # 1 value in _FEW, or a single one, that does not fit the type of the others is most likely a mistake
_BRIEF = 60  # characters of a value in a message


def read_records(listed: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields line and name -> text, with "path", of each record. Raises UserError for a missing or malformed list."""
    return read_table(listed, key=("path", "image"))


def infer_fields(
    records: Sequence[Mapping[str, str]], places: Sequence[str]
) -> tuple[dict[str, str], list[dict[str, Value | None]], list[str]]:
    """Returns the type of each field, the values of each record, and a note on each field that is nearly of a type.

    records: name -> text; places: where each of them is, such as "line 3".
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
            note = f"field {name} is text, because {places[misfits[0]]} has {brief!r}"
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
