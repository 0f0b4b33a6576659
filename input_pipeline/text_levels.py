"""The three text levels of multi-level alignment (IVT section 3.2): a caption as sentence, phrase and words.

Each function gives non-empty text for every caption that holds more than white space, and is deterministic in (caption,
state of the generator).
"""

import re
from collections.abc import Sequence

import numpy as np

LEVELS = ("sentence", "phrase", "word")

_SHORTEST_PHRASE = 6  # characters: the release keeps what is longer than 5

_PUNCTUATION = re.compile(r"[.,;:!?()\"\u3001\u3002\uff0c]+")

# Words of closed classes, which join or introduce the phrases of a description and are no part of them: prepositions
# ("of" stays, for "pair of shoes"), conjunctions, pronouns as subjects, auxiliaries.
_BOUNDARY = re.compile(
    r"\b(?:with|without|in|on|at|by|to|into|onto|over|under|above|below|from|for|around|across|along|through|behind|"
    r"beside|near|between|against|towards?|while|as|but|because|when|where|who|whose|which|that|he|she|they|it|there|"
    r"is|are|was|were|be|been|being|am|has|have|had|does|do|did)\b(?:['\u2019]s\b)?",
    re.IGNORECASE,
)
_COORDINATION = re.compile(r"\b(and|or|also|then)\b", re.IGNORECASE)


def sentence(caption: str) -> str:
    """The whole caption, its white space collapsed."""
    return " ".join(caption.split())


def phrase(caption: str, rng: np.random.Generator) -> str:
    """One clause, drawn as released: of each sentence its longest comma part, or the rest of its parts joined again.

    Candidates of up to 5 characters do not count; where none is left, the whole caption is the phrase.
    """
    candidates = []
    for part in sentence(caption).split("."):
        clauses = [clause.strip() for clause in part.split(",")]
        longest = max(clauses, key=len)
        clauses.remove(longest)
        candidates += [longest, ", ".join(clauses)]
    candidates = [c for c in candidates if len(c) >= _SHORTEST_PHRASE]
    return candidates[rng.integers(len(candidates))] if candidates else sentence(caption)


def attribute_phrases(caption: str) -> list[str]:
    """What the caption states, phrase by phrase, by its punctuation and closed-class words alone.

    Clauses end at punctuation and at words that join or introduce ("with", "in", "is", "she", ...), which are left out.
    A clause is cut at "and" only where at least two words stand on either side: "black and white shoes" is one phrase.

        "The tall man is wearing a grey coat, and he has a bag on his back."
        -> ["The tall man", "wearing a grey coat", "a bag", "his back"]
    """
    phrases: list[str] = []
    for clause in _PUNCTUATION.split(caption):
        for piece in _BOUNDARY.split(clause):
            phrases += _coordinated(piece)
    return [p for p in phrases if any(c.isalnum() for c in p)]


def _coordinated(piece: str) -> list[str]:
    """`piece` cut at its coordinating words, unless a single word stands on one side."""
    parts = [" ".join(part.split()) for part in _COORDINATION.split(piece)]
    phrases = parts[:1]
    for joint, part in zip(parts[1::2], parts[2::2], strict=True):
        if part and phrases[-1] and (" " not in part or " " not in phrases[-1]):
            phrases[-1] += f" {joint} {part}"
        else:
            phrases.append(part)
    return phrases


def words(caption: str, rng: np.random.Generator, attributes: Sequence[str] = ()) -> str:
    """A random non-empty subset of the attribute phrases, each kept with probability 1/2, joined by commas.

    attributes: the phrases that the dataset gives (`att`); where it gives none, they are taken from the caption, for
    the making of the release's was never published.
    """
    phrases = attributes or attribute_phrases(caption)
    if not phrases:
        return sentence(caption)
    keep = rng.random(len(phrases)) < 0.5
    if not keep.any():
        keep[rng.integers(len(phrases))] = True
    return ", ".join(p for p, kept in zip(phrases, keep, strict=True) if kept)


def draw_levels(
    caption: str, rng: np.random.Generator, levels: Sequence[str] = LEVELS, attributes: Sequence[str] = ()
) -> dict[str, str]:
    """The caption at each of `levels`, in their order; phrases and words are drawn anew at every call."""
    draw = {
        "sentence": lambda: sentence(caption),
        "phrase": lambda: phrase(caption, rng),
        "word": lambda: words(caption, rng, attributes),
    }
    return {level: draw[level]() for level in levels}
