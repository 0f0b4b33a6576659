"""Finds faults of single captions by their characters."""

import re
import unicodedata
from collections.abc import Iterator

from ivt_jax.common.messages import SHOWN

LONGEST = 98  # words and punctuation marks: 100 tokens without [CLS] and [SEP]
_READ = 10_000  # characters of a caption that are checked; no token is beyond

# Written by programs for an empty cell, or by people who mean to fill it later.
_PLACEHOLDERS = {
    "nan", "null", "none", "nil", "n/a", "na", "n.a", "undefined", "unknown", "missing", "empty", "blank", "true",
    "false", "#n/a", "#value", "#ref", "#name", "#null", "#div/0", "todo", "tbd", "tba", "test", "xxx", "caption",
    "captions", "description", "text", "string", "placeholder", "no caption", "no description", "not available",
    "object object",
}  # fmt: skip
_REFUSAL = re.compile(
    r"as an ai\b|(i'm |i am )?sorry\b"
    r"|((i'm |i am )?unable to|i can't|i cannot|i can not) (assist|help|describe|provide|identify|view)\b"
)
_CODE = re.compile(r"<\s*/?\w[^<>]*>|[{}]|\\[nrtux]|&(#\w+|amp|lt|gt|quot|apos|nbsp|[lr][sd]quo|[mn]dash|hellip);")
_STATEMENT = re.compile(
    r"(^|[;:\n])\s*print\(|\b(printf|println|len|str|int|range|eval|exec|alert|imread|imshow)\("
    r"|\w\(\s*[\"')]"  # a call with a text, or without arguments
    r"|\[\s*[\"'\]]|[\"']\s*\]"  # a list of texts, printed
    r"|^\s*(import\s+[\w.]+(\s+as\s+\w+)?\s*$|from\s+[\w.]+\s+import\b|def\s+\w+\(|class\s+\w+[(:]|#include\b|//|/\*)"
    r"|[=!<>+*/-]=|=>|&&|\|\||::|\w\s*=\s*[\w\"'(\[]"
)
_ADDRESS = re.compile(r"\b(https?|ftp|file|gs|s3)://|\bwww\.\w|\w@\w+\.\w|\.(jpe?g|png|bmp|gif|webp|tiff?|json|csv)\b")
# UTF-8 read as Latin-1 or Windows-1252: \u00e9 becomes \u00c3\u00a9, \u2019 becomes \u00e2\u20ac\u2122.
_MISREAD = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2[\u0080\u20ac]|\u00f0[\u0178\u009f]")


def caption_faults(caption: str) -> Iterator[tuple[str, str]]:
    """Yields (kind of fault, code points of unseen characters or "") for each fault of a caption that is not blank."""
    caption = caption[:_READ]
    if " ".join(caption.lower().split()).strip(".,;:-_\"'<>()[]?! ") in _PLACEHOLDERS:
        yield "captions have only a placeholder, such as nan, null, none or n/a", ""
        return
    if not any(map(str.isalpha, caption)):
        yield "captions have no letter", ""
    if _REFUSAL.match(caption.strip().lower().replace("\u2019", "'")):
        yield "captions have the refusal of a language model", ""
    if len(re.findall(r"\w+|[^\w\s]", caption)) > LONGEST:
        yield f"captions have over {LONGEST} words and marks: the rest is cut off", ""
    if _CODE.search(caption):
        yield "captions have pieces of code: tags, braces, escapes", ""
    elif _STATEMENT.search(caption):
        yield "captions have statements of a program: calls, lists, assignments", ""
    if _ADDRESS.search(caption.lower()):
        yield "captions have an address or the name of a file", ""
    if not (caption.isascii() and caption.isprintable()):
        yield from _character_faults(caption)


def _character_faults(caption: str) -> Iterator[tuple[str, str]]:
    if _MISREAD.search(caption):
        yield "captions were read in a wrong encoding, UTF-8 as Latin-1", ""
    characters = dict.fromkeys(caption)
    for kind, wrong in _UNSEEN.items():
        if found := [f"U+{ord(character):04X}" for character in characters if wrong(character)]:
            yield kind, ", ".join(found[:SHOWN])
    if any(map(_foreign, characters)):
        yield "captions have letters that are not Latin", ""
    if any(map(_styled, characters)):
        yield "captions have full-width or styled letters or marks, which tokenizers seldom know", ""


def _control(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character not in "\t\n\r"


def _invisible(character: str) -> bool:
    """Whether it is a zero-width space or joiner, direction or byte order mark, soft hyphen, filler, or selector."""
    return unicodedata.category(character) == "Cf" or character in "\u034f\u115f\u1160\u2800\u3164\uffa0\ufe0e\ufe0f"


def _lost(character: str) -> bool:
    return character == "\ufffd" or unicodedata.category(character) in ("Co", "Cn")


_UNSEEN = {
    "captions have control characters": _control,
    "captions have invisible characters: zero-width, direction marks, soft hyphens": _invisible,
    "captions have replacement, private-use or unassigned characters": _lost,
}


def _foreign(character: str) -> bool:
    latin = "LATIN" in unicodedata.name(character, "LATIN") or unicodedata.normalize("NFKC", character).isascii()
    return character.isalpha() and not latin


def _styled(character: str) -> bool:
    """Whether it is a styled Latin letter (bold, a ligature), or a full-width letter, digit or mark."""
    if unicodedata.east_asian_width(character) == "F":
        return not character.isspace()
    return character.isalpha() and not _foreign(character) and unicodedata.decomposition(character)[:1] == "<"
