"""Filters on the metadata of an index: parses them into a tree of conditions, which each store translates.

    camera = 3 and time between '2024-05-01' and '2024-05-02'
    path contains 'gate' and not track contains 'test'
    (track in ('a', 'b') or not indoors = true) and note is missing

Comparisons are = != < <= > >=, `in (...)`, `between ... and ...` with both ends, `contains` (a part of a text, in the
same case), `is missing` and `is not missing`. `not` binds closest, then `and`, then
`or`; parentheses group. Keywords may be written in capitals. Text and times are in single or double quotes; a quote
inside is doubled. A field name with other characters than letters, digits and _ is in backticks. A time is ISO 8601;
without a zone it is in UTC, and a date alone is midnight.

`path` is the path of the picture, relative to the folder of pictures. If the index has a field of its own of that name,
`path` is this field.

A comparison with a missing value is false, also with !=, and `not` of it is true.

Stores see only the tree, never the text: its fields exist in the index, and its values have the types of the fields.
"""

import datetime
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_utf8

Value = int | float | bool | str | datetime.datetime  # a time is aware, in UTC
Metadata = Mapping[str, Value | None]  # a value for each field of the index, None if missing
TYPES = {  # of a field -> the values that it is compared with
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "text": "text in quotes, such as 'gate'",
    "time": "a time in quotes, such as '2024-05-01' or '2024-05-01T14:30+02:00'",
}
OPERATORS: dict[str, Callable[[Value, Value], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
PATH = ""  # the picture's path in a condition; no field of an index has an empty name
LONGEST = 2000  # characters of a filter
DEEPEST = 20  # nested parentheses and nots
_INT64 = 2**63
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<quoted>`(?:[^`]|``)+`)
    |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?!\w))
    |(?P<keyword>(?a:and|or|not|in|is|missing|true|false))(?!\w)
    |(?P<name>[^\W\d]\w*)
    |(?P<mark>!=|<=|>=|==|<>|[=<>(),])
    |(?P<end>\Z)
    |(?P<unknown>.))""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


class Comparison(NamedTuple):
    """The field has a value, and `value of the field, operator, value` is true; operator: a key of OPERATORS."""

    field: str
    operator: str
    value: Value


class OneOf(NamedTuple):
    """The field has one of these values."""

    field: str
    values: tuple[Value, ...]


class Contains(NamedTuple):
    """The field contains this text, in the same case; field: PATH for the picture's path."""

    field: str
    text: str


class Missing(NamedTuple):
    """The field has no value."""

    field: str


class Joined(NamedTuple):
    """Every part is true, if the word is "and"; at least one, if it is "or"."""

    word: str
    parts: tuple["Condition", ...]


class Not(NamedTuple):
    """The part is false."""

    part: "Condition"


Condition = Comparison | OneOf | Contains | Missing | Joined | Not


def parse(text: str, fields: Mapping[str, str]) -> Condition:
    """Parses a filter for an index with these fields (name -> key of TYPES).

    Raises UserError if the filter is malformed, too long or too deep, names a field that the index does not have, or
    compares a field with a value of another type. Where it can, the message gives the position in the text.
    """
    if len(text) > LONGEST:
        raise UserError(f"the filter has {len(text):,} characters; the limit is {LONGEST:,}")
    parser = _Parser(text, fields)
    condition = parser.whole()
    if parser.kind != "end":
        raise parser.error("expected and, or, or the end")
    return condition


class _Parser:
    """Recursive descent, one method per rule; `kind` and `token` are the next token: a group of _TOKEN and its text."""

    def __init__(self, text: str, fields: Mapping[str, str]):
        self._text, self._fields, self._depth = text, fields, 0
        self._matches = _TOKEN.finditer(text)
        self._advance()

    def whole(self) -> Condition:
        return self._joined("or", lambda: self._joined("and", self._one))

    def _joined(self, word: str, rule: Callable[[], Condition]) -> Condition:
        parts = [rule()]
        while self._take(word):
            parts.append(rule())
        return Joined(word, tuple(parts)) if len(parts) > 1 else parts[0]

    def _one(self) -> Condition:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self.error(f"more than {DEEPEST} nested parentheses and nots")
        if self._take("not"):
            condition: Condition = Not(self._one())
        elif self._take("("):
            condition = self.whole()
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
        if self._is("contains"):
            return self._contains(field)
        if self._is("between"):
            return self._between(field)
        symbol = self.token
        if self.kind != "mark" or symbol not in OPERATORS:
            raise self.error("expected =, !=, <, <=, >, >=, in, is, between or contains")
        if self._kind_of(field) == "boolean" and symbol not in ("=", "!="):
            raise self.error(f"{field} is true or false; expected = or !=")
        self._advance()
        return Comparison(field, symbol, self._value(field))

    def _contains(self, field: str) -> Condition:
        if self._kind_of(field) != "text":
            raise self.error(f"{field} is no text; expected =, !=, <, <=, >, >=, in, is or between")
        self._advance()
        return Contains(field, str(self._value(field)))

    def _between(self, field: str) -> Condition:
        if self._kind_of(field) in ("text", "boolean"):
            more = ", <, <=, >, >=, in, is or contains" if self._kind_of(field) == "text" else ", in or is"
            raise self.error(f"{field or 'path'} is neither a number nor a time; expected =, !={more}")
        self._advance()
        least = Comparison(field, ">=", self._value(field))
        self._expect("and")
        below = self.error("the end of between is below its start; exchange them")  # with the position of the end
        most = Comparison(field, "<=", self._value(field))
        if most.value < least.value:  # type: ignore[operator]  # both are numbers, or both are times
            raise below
        return Joined("and", (least, most))

    def _kind_of(self, field: str) -> str:
        return "text" if field == PATH else self._fields[field]

    def _field(self) -> str:
        if self.kind not in ("name", "quoted"):
            raise self.error("expected a field")
        name = self.token[1:-1].replace("``", "`") if self.kind == "quoted" else self.token
        if name not in (*self._fields, "path"):
            more = "" if self._fields else " alone; --list or --path_fields of python -m ivt_jax.index add fields"
            raise self.error(f"the index has no such field; it has: {', '.join({**self._fields, 'path': ''})}{more}")
        self._advance()
        return name if name in self._fields else PATH

    def _value(self, field: str) -> Value:
        try:
            value = _convert(self.kind, self.token, self._kind_of(field))
        except ValueError:
            raise self.error(f"{field or 'path'} is compared with {TYPES[self._kind_of(field)]}") from None
        self._advance()
        return value

    def _is(self, text: str) -> bool:
        """Whether the next token is this word or mark, not in quotes. A field may have the name of an operator."""
        return self.kind in ("keyword", "mark", "name") and self.token.lower() == text

    def _take(self, text: str) -> bool:
        """As `_is`; if so, moves past it."""
        found = self._is(text)
        if found:
            self._advance()
        return found

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise self.error(f"expected {text}")

    def _advance(self) -> None:
        match = next(self._matches)
        self.kind = str(match.lastgroup)
        self.token, self._start = match[self.kind], match.start(self.kind)

    def error(self, what: str) -> UserError:
        if self.kind == "unknown":
            what = "cannot be read; put text in quotes, and a field with such characters in backticks"
        return UserError(f"the filter at character {self._start + 1}, {self._text[self._start :][:20]!r}: {what}")


def _convert(kind: str, token: str, wanted: str) -> Value:
    """Returns the value of a token as `wanted`, a key of TYPES. Raises ValueError if it is of another type."""
    match wanted, kind:
        case "integer", "number" if -_INT64 <= int(token) < _INT64:
            return int(token)
        case "number", "number" if math.isfinite(float(token)):
            return float(token)
        case "boolean", "keyword" if token.lower() in ("true", "false"):
            return token.lower() == "true"
        case "text" | "time", "text" if "\0" not in token and is_utf8(token):
            text = token[1:-1].replace(2 * token[0], token[0])
            return read_time(text) if wanted == "time" else text
    raise ValueError(token)


def read_time(text: str) -> datetime.datetime:
    """Reads a time in ISO 8601 -> aware, in UTC. Raises ValueError if it is none."""
    if "-" not in text[1:5]:  # 00120101 is a number of something, not the first day of the year 12
        raise ValueError(text)
    time = datetime.datetime.fromisoformat(text)
    try:
        return time.astimezone(datetime.UTC) if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    except OverflowError:  # in the first or the last day of the calendar
        raise ValueError(text) from None
