"""Reads a sentence of a query: what it wants, what it does not want, and the words that belong to no phrase.

    "a woman with a gun, without a hat or glasses"  ->  "a woman with a gun" wanted, "hat" and "glasses" unwanted
    "a woman with a gun"                            ->  phrase "woman", rest "gun"

Captions say what a person wears and seldom what not, so models do not learn "without": to them "without a hat" is
nearly "a hat".
"""

import re
from typing import NamedTuple

from input_pipeline.noun_phrases import attribute_phrases, recognised_phrases, tag

# Over the classes of `noun_phrases.tag`. What only leads to a negation goes with it: "with no hat", "who isn't wearing
# glasses". A comma ends what is negated: "not tall, red coat".
_WORD = "[aMCTxg]"
_THING = f"(?:(?:{_WORD}{{1,9}}[&o]){{0,9}}{_WORD}{{0,9}}N+|{_WORD}{{1,9}})"
_NEGATED = re.compile(f"[pbwr]*n[dhvbip]*(?P<things>{_THING}(?:o[dhnvbip]*{_THING})*)")
_NEXT = re.compile(f"(?:^|o[dhnvbip]*)(?P<thing>{_THING})")
_NEITHER = re.compile(r"\bneither\b", re.IGNORECASE)
_KNOWN = re.compile("[MCTN]")  # a word of the lexicon: "no doubt" negates nothing about a person
_CONTENT = re.compile("[xvVg]")
_LINKS = frozenset(
    {
        "carried",
        "carries",
        "carry",
        "carrying",
        "clad",
        "did",
        "do",
        "does",
        "dressed",
        "dressing",
        "had",
        "has",
        "have",
        "having",
        "held",
        "hold",
        "holding",
        "holds",
        "seem",
        "seems",
        "seen",
        "show",
        "shown",
        "shows",
        "wear",
        "wearing",
        "wears",
        "wore",
        "worn",
    }
)  # verbs that only join a person and a thing


class Wording(NamedTuple):
    """A sentence without its negations, and the things that they negate; either may be empty."""

    wanted: str
    unwanted: list[str]


def read_negations(text: str) -> Wording:
    """Splits a sentence into what it wants and what it does not want. A sentence without a negation stays as it is."""
    letters, spans = tag(_NEITHER.sub("no     ", text))
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
    """Returns unknown words and verbs, but those that only join a person and a thing."""
    letters, spans = tag(text)
    words = [text[start:stop] for letter, (start, stop) in zip(letters, spans, strict=True) if _CONTENT.match(letter)]
    return [word for word in words if word.lower() not in _LINKS]
