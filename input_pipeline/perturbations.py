"""Perturbs captions, to measure robustness: functions of (caption, rng). None of them empties a caption."""

import re
from collections.abc import Callable

import numpy as np

from input_pipeline.noun_phrases import attribute_phrases
from input_pipeline.text_levels import LONGEST

TYPO_RATE = 0.2  # share of the words of four letters and more that get a typo
_WORD = re.compile(r"[^\W\d_]{4,}")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_CLAUSE_END = re.compile(r"[.,;!?]+")
# The keys at the left and the right of each letter on an English keyboard.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = {key: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in _ROWS for i, key in enumerate(row)}


def typos(caption: str, rng: np.random.Generator, rate: float = TYPO_RATE) -> str:
    """Makes one typo in words of four letters and more, each with probability `rate`, but not in the first letter.

    Two letters are swapped, or one is dropped, doubled or replaced by its neighbour on the keyboard.
    """

    def slip(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() >= rate:
            return word
        i = int(rng.integers(1, len(word) - 1))
        near = _NEIGHBOURS.get(word[i].lower(), word[i])
        slips = (
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            word[:i] + word[i + 1 :],
            word[: i + 1] + word[i:],
            word[:i] + near[int(rng.integers(len(near)))] + word[i + 1 :],
        )
        return slips[int(rng.integers(len(slips)))]

    return _WORD.sub(slip, caption)


def first_sentence(caption: str, rng: np.random.Generator) -> str:
    """Returns the first sentence that has a letter or a digit."""
    sentences = _SENTENCE_END.split(caption.strip())
    return next((s for s in sentences if any(c.isalnum() for c in s)), caption)


def shuffled_phrases(caption: str, rng: np.random.Generator) -> str:
    """Shuffles the parts between commas and full stops."""
    parts = [part.strip() for part in _CLAUSE_END.split(caption)]
    parts = [part for part in parts if part]
    return ", ".join(parts[i] for i in rng.permutation(len(parts))) if parts else caption


def dropped_attributes(caption: str, rng: np.random.Generator) -> str:
    """Deletes half of the attribute phrases (rounded down) from the caption."""
    phrases = [phrase for phrase in attribute_phrases(caption) if phrase in caption]
    shorter = caption
    for i in rng.permutation(len(phrases))[: len(phrases) // 2]:
        shorter = shorter.replace(phrases[i], "", 1)
    shorter = " ".join(shorter.split())
    return shorter if any(c.isalnum() for c in shorter) else caption


PERTURBATIONS: dict[str, Callable[[str, np.random.Generator], str]] = {
    "typos": typos,
    "first sentence only": first_sentence,
    "phrases shuffled": shuffled_phrases,
    "half of the attributes dropped": dropped_attributes,
}


def perturb(name: str, captions: list[str], seed: int) -> list[str]:
    """Perturbs all captions, each with a generator keyed by (seed, name, index of the caption).

    Only the first LONGEST characters of a caption are used, as in training.
    """
    kind, cut = list(PERTURBATIONS).index(name), [caption.lstrip()[:LONGEST] for caption in captions]
    return [PERTURBATIONS[name](c, np.random.default_rng([seed, kind, i])) for i, c in enumerate(cut)]
