"""Measures on the validation split which nouns a model can tell, such as coats but not glasses.

The noun of a phrase is its last word: "coat" of "red coat". For up to 40 captions with the noun, the phrase is compared
with the caption's image and with the images of all persons whose captions never have "red coat". The share of those
with a lower similarity, ties counting half, is the area under the ROC curve: 0.5 is chance, 1 is perfect. The area of a
noun is the mean over its phrases. Search gives a phrase a fit only if its noun has LEAST_AREA or more.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from input_pipeline.noun_phrases import attribute_phrases
from ivt_jax.evaluation.calibration import area

if TYPE_CHECKING:
    from ivt_jax.evaluation.protocols import Embeddings

LEAST_AREA = 0.7  # below, a wrong picture fits better than a right one too often
LEAST_PERSONS = 5  # whose captions have the noun; the mean over fewer is not reliable
_MOST = 40  # occurrences of a noun in a dataset, evenly spaced: more hardly change the mean and take time

NounAreas = dict[str, tuple[float, int]]  # noun -> mean area, number of persons


def measure_nouns(
    parts: Iterable[tuple[Sequence[str], "Embeddings"]], embed: Callable[[list[str]], np.ndarray]
) -> NounAreas:
    """Measures all nouns of the captions. parts: captions of each dataset, with the embeddings of its split.

    embed: N phrases -> (N, D) float32 of length 1.
    """
    areas, persons = defaultdict(list), defaultdict(set)
    for number, (captions, e) in enumerate(parts):
        said = [{phrase.lower() for phrase in attribute_phrases(caption)} for caption in captions]
        chosen = _choose(said)
        phrases = sorted({phrase for phrase, _ in chosen})
        fits = dict(zip(phrases, embed(phrases) @ e.image.T, strict=True)) if phrases else {}
        described = defaultdict(set)  # phrase -> the persons whose captions have it
        for caption, own in enumerate(said):
            for phrase in own:
                described[phrase].add(e.text_person[caption])
        others = {phrase: ~np.isin(e.image_person, list(described[phrase])) for phrase in phrases}
        for phrase, caption in chosen:
            fit, other = fits[phrase], others[phrase]
            if other.any():
                noun = noun_of(phrase)
                areas[noun].append(area(fit[[e.text_image[caption]]], fit[other]))
                persons[noun].add((number, int(e.text_person[caption])))
    return {noun: (round(float(np.mean(areas[noun])), 4), len(persons[noun])) for noun in sorted(areas)}


def can_tell(nouns: Mapping[str, Sequence[float]], phrase: str) -> bool:
    """Whether validation shows that the model can tell the noun of a phrase. nouns: as `measure_nouns` returns."""
    mean, persons = nouns.get(noun_of(phrase), (0.0, 0))
    return mean >= LEAST_AREA and persons >= LEAST_PERSONS


def noun_of(phrase: str) -> str:
    """Returns the last word of a phrase, in lower case and without a plural s."""
    word = phrase.lower().split()[-1]
    return word.removesuffix("s") if not word.endswith("ss") else word


def _choose(said: Sequence[set[str]]) -> list[tuple[str, int]]:
    """Returns up to _MOST (phrase, caption) of each noun."""
    found = defaultdict(list)
    for caption, phrases in enumerate(said):
        for phrase in sorted(phrases):
            found[noun_of(phrase)].append((phrase, caption))
    return [
        pairs[i]
        for pairs in found.values()
        for i in np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), _MOST)).astype(int))
    ]
