"""Reads a sentence of a query: what it wants, what it does not want, and the words that belong to no phrase.

    "a woman with a gun, without a hat or glasses"  ->  "a woman with a gun" wanted, "hat" and "glasses" unwanted
    "a woman with a gun"                            ->  phrase "woman", rest "gun"

Captions say what a person wears and seldom what not, so models do not learn "without": to them "without a hat" is
nearly "a hat".
"""

import re
from typing import NamedTuple

from input_pipeline.noun_phrases import attribute_phrases, recognised_phrases, tag

# Letters are the word classes of `noun_phrases.tag`; l is a linking verb. Words that introduce a negation are removed
# with it: "with no hat", "who isn't wearing glasses". A comma ends a negation: "not tall, red coat".
_WORD = "[aMCTxg]"
_THING = f"(?:(?:{_WORD}{{1,9}}[&o]){{0,9}}{_WORD}{{0,9}}N+|{_WORD}{{1,9}})"
_NEGATED = re.compile(f"[&pbwrl]*n[dhvlbip]*(?P<things>{_THING}(?:o[dhnvlbip]*{_THING})*)")
_NEXT = re.compile(f"(?:^|o[dhnvlbip]*)(?P<thing>{_THING})")
_NEITHER = re.compile(r"\bneither\b", re.IGNORECASE)
_KNOWN = re.compile("[MCTN]")  # a word of the lexicon: "no doubt" negates nothing about a person
_CONTENT = re.compile("[xvVg]")
# Verbs that only link a person and a thing.
_LINKS = """carried carries carry carrying clad did do does dressed dressing had has have having held hold holding holds
    seem seems seen show shown shows wear wearing wears wore worn"""


class Wording(NamedTuple):
    """A sentence without its negations, and the things that they negate; either may be empty."""

    wanted: str
    unwanted: list[str]


def read_negations(text: str) -> Wording:
    """Splits a sentence into wanted and unwanted text. A sentence without a negation is returned as it is."""
    letters, spans = _tag(_NEITHER.sub("no     ", text))  # of the same length, so that the spans are those of the text
    kept, unwanted, end = [], [], 0
    for match in _NEGATED.finditer(letters):
        if not _KNOWN.search(match["things"]):
            continue
        kept.append(text[end : spans[match.start()][0]])
        end = spans[match.end() - 1][1]
        first = match.start("things")
        for thing in _NEXT.finditer(match["things"]):
            start, stop = thing.span("thing")
            unwanted.append(text[spans[first + start][0] : spans[first + stop - 1][1]])
    if not unwanted:
        return Wording(text, [])
    wanted = re.sub(r"\s+([,.;!?])", r"\1", " ".join(part.strip() for part in (*kept, text[end:]))).strip(" ,;")
    return Wording(wanted if recognised_phrases(wanted) or _content(wanted) else "", unwanted)


def rest_of(text: str) -> str:
    """Returns the words of a sentence that are in none of its phrases and say something, in their order."""
    covered = " ".join(attribute_phrases(text, scenery=True)).lower().split()
    return " ".join(word for word in _content(text) if word.lower() not in covered)


def _content(text: str) -> list[str]:
    """Returns unknown words and verbs, except linking verbs."""
    letters, spans = _tag(text)
    return [text[start:stop] for letter, (start, stop) in zip(letters, spans, strict=True) if _CONTENT.match(letter)]


def _tag(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Tags as `noun_phrases.tag`, linking verbs with l."""
    letters, spans = tag(text)
    links = _LINKS.split()
    linking = [text[start:stop].lower() in links for start, stop in spans]
    return "".join("l" if link else letter for letter, link in zip(letters, linking, strict=True)), spans
