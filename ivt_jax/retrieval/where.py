"""Filters: a small language of comparisons over an index's fields, read into a tree that every store renders itself.

    camera = 3 and time > '2024-05-01'
    (track in ('a', 'b') or not indoors = true) and note is missing

The comparisons are = != < <= > >=; `in` takes a list; `and`, `or`, `not` and parentheses join them, `not` binding
closest and `or` least; keywords in small letters or large ones. Text and times stand in quotes, single or double, a
quote within doubled. A field whose name holds other characters than letters, digits and _ stands in backticks. A time
is ISO 8601, without a zone in UTC, and a date alone is its midnight.

There are two truths: a comparison with a missing value is false, that by != too, and `not` of it is true.

No input reaches a store but through this tree, in which a field is one that the index has, and a value is of its type.
"""

import datetime
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_utf8

Value = int | float | bool | str | datetime.datetime  # a time is aware, in UTC
TYPES: dict[str, type] = {
    "integer": int, "number": float, "boolean": bool, "text": str, "time": datetime.datetime,
}  # fmt: skip
OPERATORS: dict[str, Callable[[Value, Value], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
LONGEST = 2000  # characters of a filter
DEEPEST = 20  # parentheses and `not` within one another
_INT64 = 2**63
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<quoted>`(?:[^`]|``)+`)
    |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?!\w))
    |(?P<name>[^\W\d]\w*)
    |(?P<mark>!=|<=|>=|==|<>|[=<>(),])
    |(?P<end>\Z))""",
    re.VERBOSE | re.IGNORECASE,
)
_KEYWORDS = {"and", "or", "not", "in", "is", "missing", "true", "false"}


@dataclass(frozen=True)
class Comparison:
    """The field has a value, which compares so with this one; operator: a key of OPERATORS."""

    field: str
    operator: str
    value: Value


@dataclass(frozen=True)
class OneOf:
    """The field has one of these values."""

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Missing:
    """The field has no value."""

    field: str


@dataclass(frozen=True)
class All:
    """Every part holds."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True)
class Some:
    """One part at least holds."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: "Condition"


Condition = Comparison | OneOf | Missing | All | Some | Not


def parse(text: str, fields: Mapping[str, str]) -> Condition:
    """Reads a filter on an index with these fields (name -> key of TYPES).

    Raises UserError, with the place in the text, where it is malformed, too long or too deep, names a field that the
    index lacks, or compares one with a value of another type.
    """
    if len(text) > LONGEST:
        raise UserError(f"the filter has {len(text):,} characters, at most {LONGEST:,} are read")
    reader = _Reader(text, fields)
    condition = reader.some()
    if reader.token.kind != "end":
        raise reader.wrong("expected and, or, or the end")
    return condition


class _Token(NamedTuple):
    kind: str  # a group of _TOKEN, or "keyword"
    text: str  # of a keyword in small letters
    place: int


class _Reader:
    """Recursive descent, a method for each rule; `token` is the next one."""

    def __init__(self, text: str, fields: Mapping[str, str]):
        self._text, self._fields, self._depth = text, fields, 0
        self.token = self._read(0)

    def some(self) -> Condition:
        parts = [self._every()]
        while self._take("or"):
            parts.append(self._every())
        return Some(tuple(parts)) if len(parts) > 1 else parts[0]

    def wrong(self, what: str) -> UserError:
        found = self._text[self.token.place :][:20]
        return UserError(f"the filter at character {self.token.place + 1}, {found!r}: {what}")

    def _every(self) -> Condition:
        parts = [self._one()]
        while self._take("and"):
            parts.append(self._one())
        return All(tuple(parts)) if len(parts) > 1 else parts[0]

    def _one(self) -> Condition:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self.wrong(f"more than {DEEPEST} parentheses and nots within one another")
        if self._take("not"):
            condition: Condition = Not(self._one())
        elif self._take("("):
            condition = self.some()
            self._expect(")")
        else:
            condition = self._comparison()
        self._depth -= 1
        return condition

    def _comparison(self) -> Condition:
        field = self._field()
        if self._take("is"):
            negated = self._take("not")
            self._expect("missing")
            return Not(Missing(field)) if negated else Missing(field)
        if self._take("in"):
            self._expect("(")
            values = [self._value(field)]
            while self._take(","):
                values.append(self._value(field))
            self._expect(")")
            return OneOf(field, tuple(values))
        symbol = self.token.text
        if symbol not in OPERATORS or self.token.kind != "mark":
            raise self.wrong("expected one of = != < <= > >= in, is")
        if self._fields[field] == "boolean" and symbol not in ("=", "!="):
            raise self.wrong(f"{field} is true or false, and compares by = and != alone")
        self._advance()
        return Comparison(field, symbol, self._value(field))

    def _field(self) -> str:
        kind, text, _ = self.token
        if kind not in ("name", "quoted"):
            raise self.wrong("expected a field")
        name = text[1:-1].replace("``", "`") if kind == "quoted" else text
        if name not in self._fields:
            if not self._fields:
                raise self.wrong(
                    "the index has no fields: make it of a list with columns (python -m ivt_jax.index --list)"
                )
            raise self.wrong(f"the index has no such field; it has: {', '.join(self._fields)}")
        self._advance()
        return name

    def _value(self, field: str) -> Value:
        wanted, (kind, text, _) = self._fields[field], self.token
        try:
            value = _READ[wanted](kind, text)
        except ValueError:
            raise self.wrong(f"{field} is compared with {_SAID[wanted]}") from None
        self._advance()
        return value

    def _take(self, text: str) -> bool:
        """Passes over a keyword or mark, where that is what comes."""
        found = self.token.kind in ("keyword", "mark") and self.token.text == text
        if found:
            self._advance()
        return found

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self.wrong(f"expected {text}")

    def _advance(self) -> None:
        self.token = self._read(self._end)

    def _read(self, start: int) -> _Token:
        match = _TOKEN.match(self._text, start)
        if not match or not match.lastgroup:
            place = start + len(self._text[start:]) - len(self._text[start:].lstrip())
            self.token = _Token("", "", place)
            raise self.wrong("cannot be read; text stands in quotes, a field with such characters in backticks")
        self._end, kind, text = match.end(), match.lastgroup, match[match.lastgroup]
        if kind == "name" and text.lower() in _KEYWORDS:
            kind, text = "keyword", text.lower()
        return _Token(kind, text, match.start(match.lastgroup))


# ---- values: (kind of token, its text) -> the value, ValueError where it is of another type


def _integer(kind: str, text: str) -> int:
    value = int(text if kind == "number" else "no number")
    if not -_INT64 <= value < _INT64:
        raise ValueError(text)
    return value


def _number(kind: str, text: str) -> float:
    value = float(text if kind == "number" else "no number")
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value


def _boolean(kind: str, text: str) -> bool:
    if kind != "keyword" or text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _string(kind: str, text: str) -> str:
    if kind != "text" or "\0" in text or not is_utf8(text):
        raise ValueError(text)
    quote = text[0]
    return text[1:-1].replace(2 * quote, quote)


def _time(kind: str, text: str) -> datetime.datetime:
    return read_time(_string(kind, text))


def read_time(text: str) -> datetime.datetime:
    """A time in ISO 8601, aware, in UTC. Raises ValueError where it is none."""
    if "-" not in text[1:5]:  # 00120101 is a number of something, not the first day of the year 12
        raise ValueError(text)
    time = datetime.datetime.fromisoformat(text)
    try:
        return time.astimezone(datetime.UTC) if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    except OverflowError:  # of the first or the last day that there is
        raise ValueError(text) from None


_READ: dict[str, Callable[[str, str], Value]] = {
    "integer": _integer, "number": _number, "boolean": _boolean, "text": _string, "time": _time,
}  # fmt: skip
_SAID = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "text": "text in quotes",
    "time": "a time in quotes, such as '2024-05-01' or '2024-05-01T14:30+02:00'",
}
