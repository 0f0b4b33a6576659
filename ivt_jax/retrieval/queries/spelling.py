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

_WORD = re.compile(r"[^\W\d_]+")
_SHORTEST = 3  # letters of a word that may be misspelt
_LONG = 8  # letters from which two mistakes are looked for, otherwise one
_TOKENS = 8  # enough for a word and the special tokens
_MOST_UNKNOWN = 1 / 3  # of the words; a sentence with more is in another language
_THINGS = frozenset().union(
    wardrobe.PERSONS, wardrobe.GARMENTS, wardrobe.FOOTWEAR, wardrobe.CARRIED, wardrobe.HAIR, wardrobe.COLOURS
)


def suggest(text: str, tokenizer: Any) -> str:
    """Returns the text with likely mistakes corrected, "" if there are none. tokenizer: the model's."""

    def correct(match: re.Match[str]) -> str:
        word = match[0]
        near = word if _is_known(word.lower()) else _nearest(word.lower())
        unreadable, *_ = tokenizer.unread(near or word, _TOKENS)
        if near is None or near == word or unreadable:
            return word
        return near.capitalize() if word[:1].isupper() and not word.isupper() else near

    corrected = _WORD.sub(correct, text)
    words = _WORD.findall(corrected.lower())
    mostly_unknown = sum(not _is_known(word) for word in words) > _MOST_UNKNOWN * len(words)
    return "" if corrected == text or mostly_unknown else corrected


def _is_known(word: str) -> bool:
    return len(word) < _SHORTEST or not word.isascii() or word in _words() or word.removesuffix("s") in _words()


@functools.lru_cache(maxsize=4096)
def _nearest(word: str) -> str | None:
    """Returns the most similar known word, first of persons, things and colours; None if all are too far."""
    from rapidfuzz.distance import OSA  # slow to import

    most = 2 if len(word) >= _LONG else 1
    near = [(OSA.distance(word, other, score_cutoff=most), other not in _THINGS, other) for other in _words()]
    distance, _, best = min(near)
    return best if distance <= most else None


@functools.cache
def _words() -> frozenset[str]:
    """Returns the whole words of the shipped vocabulary and of the lexicon."""
    listed = [line for line in lines_of(SHIPPED.read_text(encoding="utf-8")) if line.isalpha() and len(line) > 1]
    return frozenset(listed) | _THINGS
