"""Reads fields of metadata from the paths of pictures.

    {camera}/{date}_{track}.jpg    3/2024-05-01_007.jpg: camera 3, date 2024-05-01, track 007
    **/{camera}_*                  c3_0001.png, also in folders: camera c3

A pattern is that of a whole path below the folder of pictures. {NAME} is one character or more without "/", as few as
possible from the left. `*` is any number of characters without "/", `**` any number with it, and `**/` also no folder.
{{ and }} are braces. Everything else stands for itself, in the same case.

Types follow from the values, as those of a list's columns (`ivt_jax.retrieval.indexing.lists`). If a path does not
fit, all fields of its picture are missing.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ivt_jax.common.errors import UserError
from ivt_jax.common.files import is_utf8, printable
from ivt_jax.retrieval.indexing.lists import infer_fields
from ivt_jax.retrieval.indexing.sources import Source

_TOKEN = re.compile(
    r"(?P<brace>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<any>\*\*/?|\*)|(?P<text>[^{}*]+)|(?P<wrong>.)", re.DOTALL
)
_FIELD = "([^/]+?)"
_ANY = {"*": "[^/]*", "**": ".*", "**/": "(?:.*/)?"}


class Pattern(NamedTuple):
    """A parsed pattern; regex has a group for each name, in the same order."""

    text: str
    names: Sequence[str]
    regex: re.Pattern[str]


def parse_pattern(text: str) -> Pattern:
    """Parses a pattern. Raises UserError, of one line, if it is malformed or has no field."""
    names, parts, open_end = list[str](), [""], False  # parts: fixed and open ones in turn; open_end: the last is open
    for match in _TOKEN.finditer(text):
        is_open = match.lastgroup in ("name", "any")
        if match["wrong"]:
            brace = f"the brace at character {match.start() + 1} has no other"
            raise _error(text, f"{brace}; {{{{ and }}}} stand for braces")
        if is_open and open_end:
            raise _error(text, f"nothing separates {match[0]} from what precedes it: put a text between them")
        if match.lastgroup == "name":
            _check_name(text, match["name"], names)
            names.append(match["name"])
        if is_open:
            parts += [_FIELD if match.lastgroup == "name" else _ANY[match[0]], ""]
        else:
            parts[-1] += re.escape(match["brace"][0] if match["brace"] else match["text"])
        open_end = is_open and match[0] != "**/"
    if not names:
        raise _error(text, "it names no field; expected for example {camera}/{date}_{track}.jpg")
    if text.startswith("/"):
        raise _error(text, "it begins with /; paths are below the folder of pictures")
    for place in range(1, len(parts) - 2, 2):
        if parts[place] == _FIELD:  # all fields but the last end where their fixed text comes first
            parts[place : place + 2] = [f"(?>{parts[place]}{parts[place + 1]})", ""]
    return Pattern(text, names, re.compile("".join(parts), re.DOTALL))


def add_fields(source: Source, pattern: Pattern) -> Source:
    """Returns a folder's source with the fields of its paths. Raises UserError if no path fits the pattern."""
    paths = [*source.pictures]
    matches = [pattern.regex.fullmatch(path) for path in paths]
    unmatched = [path for path, match in zip(paths, matches, strict=True) if not match]
    if paths and len(unmatched) == len(paths):
        raise _error(pattern.text, f"no path fits it, such as {paths[0]}")
    records = [dict(zip(pattern.names, match.groups(), strict=True)) if match else {} for match in matches]
    fields, metadata, notes = infer_fields([dict.fromkeys(pattern.names, "") | record for record in records], paths)
    pictures = {
        path: source.pictures[path]._replace(metadata=known) for path, known in zip(paths, metadata, strict=True)
    }
    origin = {**source.origin, "path_fields": pattern.text}
    return source._replace(
        fields=fields, pictures=pictures, notes=tuple(notes), unmatched=tuple(unmatched), origin=origin
    )


def _check_name(text: str, name: str, names: Sequence[str]) -> None:
    if not name.strip() or not is_utf8(name):
        raise _error(text, "a field has no name" if not name.strip() else "the name of a field is not UTF-8")
    if "/" in name:
        raise _error(text, f"the field {name} has a / in its name")
    if name in names:
        raise _error(text, f"two fields are called {name}")
    if name == "path":
        raise _error(text, "path is the path itself; choose another name")


def _error(text: str, what: str) -> UserError:
    return UserError(printable(f"--path_fields={text}: {what}"))
