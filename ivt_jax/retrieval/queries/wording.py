"""Finds what a sentence negates, and the words that belong to no phrase.

    "a woman with a gun, without a hat or glasses"  ->  "a woman with a gun" wanted, "hat" and "glasses" unwanted
    "a woman with a gun"                            ->  phrase "woman", rest "gun"

Captions say what a person wears and seldom what not, so models do not learn "without": to them "without a hat" is
nearly "a hat".

- A negation ends at a comma, at "and", and at a verb that does more than link: "with no hat and a bag" wants the bag.
  It goes on in a list with "or" or "nor": "without a hat, glasses or a bag". No list goes on after a comma and a
  preposition or a verb: "without a hat, in a red coat or jacket". After "without", "and" goes on before a thing that
  has no article: "without hat and glasses".
- Two negations, such as "never without a hat", and idioms, such as "not only", are left in the text.
- Two colours of one thing keep it: of "red, not black coat" the "red coat" is wanted.
"""

import re
from typing import NamedTuple

from input_pipeline.noun_phrases import attribute_phrases, recognised_phrases, tag

# Letters are the word classes of `noun_phrases.tag`:
#   N noun        C colour      M modifier    T participle   g gerund     a adverb    v V verbs   x unknown
#   d h article   i p preposition   & and     o or, nor, /   n negation   b to be     w who, but  r pronoun
# and l, a linking verb. Words before a negation are removed with it: "with no hat", "who isn't wearing glasses". Groups
# are atomic, so that a text of 2,000 characters takes milliseconds.
_WORD = "[aMCTxg]"
_NAMED = f"(?>(?:{_WORD}{{1,9}}[&o]){{0,9}}{_WORD}{{0,9}}N+)"
_THING = f"(?>{_NAMED}|{_WORD}{{1,9}})"
_FILL = "[dhlbip]*"
_MORE = f"(?:,[dh]*{_NAMED})*"
_LISTED = f"(?:{_MORE},?o[n]?{_FILL}{_THING})*"
_LISTED_WITHOUT = f"(?:{_MORE},?(?:o[n]?{_FILL}|&){_NAMED})*"
_LEAD = f"[&pbwrl]*(?:n{_FILL})+"
_NEGATED = re.compile(f"(?P<lead>{_LEAD})(?P<things>{_THING}{_LISTED})")
_NEGATED_WITHOUT = re.compile(f"(?P<lead>{_LEAD})(?P<things>{_THING}{_LISTED_WITHOUT})")
_NEXT = re.compile(f"(?:^|,?[on&]*,?{_FILL})(?P<thing>{_THING})")
_NEGATIONS = re.compile(
    r"\b(?:neither|anything but|except(?: for)?|lacking|minus|rather than|instead of)\b", re.IGNORECASE
)
_IDIOMS = re.compile(r"\b(?:not|isn['\u2019]t|is not)\s+(?:only|just|sure|necessarily|merely|simply)\b", re.IGNORECASE)
_KNOWN = re.compile("[MCTN]")  # a word of the lexicon: "no doubt" negates nothing about a person
_DESCRIBED = re.compile("(?:^|[^iMC])[MC]+,?$")  # a colour or modifier of a thing that comes later
_CONTENT = re.compile("[xvVg]")
# Verbs that only link a person and a thing.
_VERBS = """carried carries carry carrying clad did do does dressed dressing had has have having held hold holding holds
    seem seems seen show shown shows wear wearing wears wore worn"""
_LINKS = frozenset(_VERBS.split())
_TIDY = (  # what a removed part leaves
    (re.compile(r"\(\s*\)"), ""),
    (re.compile(r"\s+([,.;:!?)])"), r"\1"),
    (re.compile(r"\(\s+"), "("),
    (re.compile(r"([,;:])(?:\s*[,;:])+"), r"\1"),
    (re.compile(r"\b(and|or|but)(?:\s+(?:and|or|but))+\b", re.IGNORECASE), r"\1"),
    (re.compile(r"\s+"), " "),
    (re.compile(r"^(?:[\s,;:]|(?:and|or|but)\b)+|(?:[\s,;:]|\b(?:and|or|but))+$", re.IGNORECASE), ""),
)


class Wording(NamedTuple):
    """A sentence without its negations, and the things that they negate; either may be empty."""

    wanted: str
    unwanted: list[str]


def read_negations(text: str) -> Wording:
    """Splits a sentence into wanted and unwanted text. A sentence without a negation is returned as it is."""
    letters, spans = _tag(_of_length("no", _NEGATIONS, _of_length("", _IDIOMS, text)))  # spans are those of the text
    kept, unwanted, start, end = [], [], 0, 0
    while match := _NEGATED.search(letters, start):
        if _ends_with_without(text, spans, match):
            match = _NEGATED_WITHOUT.match(letters, match.start()) or match
        start = match.end()
        if not _KNOWN.search(match["things"]) or match["lead"].count("n") % 2 == 0:
            continue
        things = [thing.span("thing") for thing in _NEXT.finditer(match["things"])]
        first = match.start("things")
        unwanted += [text[spans[first + begin][0] : spans[first + stop - 1][1]] for begin, stop in things]
        kept.append(text[end : spans[match.start()][0]])
        noun = len(match["things"].rstrip("N"))  # where the last noun begins, within the things
        shares = 0 < noun < len(match["things"]) and len(things) == 1
        if shares and _DESCRIBED.search(letters[: match.start()]):
            kept[-1] = kept[-1].rstrip(" ,")
            kept.append(text[spans[first + noun][0] : spans[match.end() - 1][1]])
        end = spans[match.end() - 1][1]
    if not unwanted:
        return Wording(text, [])
    wanted = " ".join((*kept, text[end:]))
    for pattern, replacement in _TIDY:
        wanted = pattern.sub(replacement, wanted)
    return Wording(wanted if recognised_phrases(wanted) or _content(wanted) else "", unwanted)


def rest_of(text: str) -> str:
    """Returns the words of a sentence that are in none of its phrases and say something, in their order."""
    covered = {*" ".join(attribute_phrases(text, scenery=True)).lower().split()}
    return " ".join(word for word in _content(text) if word.lower() not in covered)


def _content(text: str) -> list[str]:
    """Returns unknown words and verbs, except linking verbs."""
    letters, spans = _tag(text)
    return [text[start:stop] for letter, (start, stop) in zip(letters, spans, strict=True) if _CONTENT.match(letter)]


def _tag(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Tags as `noun_phrases.tag`, but linking verbs with l and "/" with o."""
    letters, spans = tag(text)
    return "".join(map(_letter, letters, (text[slice(*span)].lower() for span in spans))), spans


def _letter(letter: str, word: str) -> str:
    return "l" if word in _LINKS else "o" if word == "/" else letter


def _of_length(word: str, pattern: re.Pattern[str], text: str) -> str:
    """Replaces matches by a word and spaces of the same length."""
    return pattern.sub(lambda match: word.ljust(len(match[0])), text)


def _ends_with_without(text: str, spans: list[tuple[int, int]], match: re.Match[str]) -> bool:
    lead = [text[slice(*spans[i])].lower() for i in range(match.start(), match.start("things"))]
    return "without" in lead
