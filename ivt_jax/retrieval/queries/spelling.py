"""Suggests corrections for words outside the captions' vocabulary: "a wmoan in a rde coat" -> "a woman in a red coat".

A search uses the text as typed. Candidates are words of the shipped vocabulary that the model's tokenizer knows.
Distances are those of optimal string alignment: letters left out, put in, replaced, or swapped with their neighbour.
"""

import functools
import re
from typing import Any

from input_pipeline import wardrobe
from input_pipeline.tokenizer import SHIPPED
from ivt_jax.common.files import lines_of

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_DOUBLED = re.compile(r"(.)\1")
_SHORTEST = 3  # letters of a word that may be misspelt
_LONG = 8  # letters from which two mistakes are looked for, otherwise one
_TOKENS = 8  # enough for a word and the special tokens
_MOST_UNKNOWN = 1 / 3  # of the words; a sentence with more is in another language
_MOST_CORRECTED = 40  # words; each takes milliseconds
_THINGS = frozenset().union(
    wardrobe.PERSONS, wardrobe.GARMENTS, wardrobe.FOOTWEAR, wardrobe.CARRIED, wardrobe.HAIR, wardrobe.COLOURS
)


def suggest(text: str, tokenizer: Any) -> str:
    """Returns the text with likely mistakes corrected, "" if there are none. tokenizer: the model's."""

    def correct(match: re.Match[str]) -> str:
        word = match[0]
        if _is_known(word.lower()) or _is_name(match) or word.lower().endswith("less"):
            return word
        near = _nearest(word.lower())
        if near is None or tokenizer.unread(near, _TOKENS)[0]:
            return word
        return near.upper() if word.isupper() else near.capitalize() if word[0].isupper() else near

    if sum(not _is_known(word) for word in _WORD.findall(text.lower())) > _MOST_CORRECTED:
        return ""
    corrected = _WORD.sub(correct, text)
    words = _WORD.findall(corrected.lower())
    mostly_unknown = sum(not _is_known(word) for word in words) > _MOST_UNKNOWN * len(words)
    return "" if corrected == text or mostly_unknown else corrected


def _is_known(word: str) -> bool:
    known = len(word) < _SHORTEST or not word.isalpha() or not word.isascii()  # also words such as "isn't" and "hi-vis"
    return known or word in _words() or word.removesuffix("s") in _words()


def _is_name(match: re.Match[str]) -> bool:
    """Whether a word may be a name, such as that of a brand: only its first letter is upper case, within a sentence."""
    before = match.string[: match.start()].rstrip()
    return match[0][0].isupper() and not match[0].isupper() and before[-1:] not in ("", ".", "!", "?")


@functools.lru_cache(maxsize=4096)
def _nearest(word: str) -> str | None:
    """Returns the most similar known word, None if all are too far.

    Of equally similar ones it is one with the same letters, but for doubled ones ("red" for "rde" and "redd"), then one
    with a letter that was left out ("woman" for "wman"), then one of persons, things and colours.
    """
    from rapidfuzz.distance import OSA  # slow to import

    most = 2 if len(word) >= _LONG else 1
    near_length = [other for other in _words() if abs(len(other) - len(word)) <= most]  # at least so many mistakes
    # Words of three letters have too many neighbours: only swapped or missing letters are corrected.
    others = [other for other in near_length if len(word) > _SHORTEST or len(other) > len(word) or {*other} == {*word}]
    distances = {other: OSA.distance(word, other, score_cutoff=most) for other in others}
    near = [other for other, distance in distances.items() if distance <= most]
    letters = {"".join(sorted(spelt)) for spelt in (word, _DOUBLED.sub(r"\1", word))}

    def order(other: str) -> tuple[int, bool, bool, bool, str]:
        same = "".join(sorted(other)) in letters
        return distances[other], not same, len(other) <= len(word), other not in _THINGS, other

    return min(near, key=order, default=None)


@functools.cache
def _words() -> frozenset[str]:
    """Returns the whole words of the shipped vocabulary and of the lexicon."""
    listed = [line for line in lines_of(SHIPPED.read_text(encoding="utf-8")) if line.isalpha() and len(line) > 1]
    return frozenset(listed) | _THINGS
