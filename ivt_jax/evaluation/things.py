"""Which things a model can tell by their phrases, measured on validation: coats well, glasses perhaps not at all.

A phrase is judged by its thing, the last word: "red coat" by "coat". Each time that a caption says "red coat", its own
image is compared with all images whose persons' captions never say so; the share of those with a lower similarity,
equal ones counting half, is the area under the ROC curve of the phrase for this image. 0.5 is chance, 1 is perfect. The
mean over a thing's phrases is what the model can tell of it. Search shows how well pictures fit a phrase only then.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from input_pipeline.noun_phrases import attribute_phrases
from ivt_jax.evaluation.calibration import area

if TYPE_CHECKING:
    from ivt_jax.evaluation.protocols import Embeddings

LEAST_AREA = 0.7  # below, a picture fits no better than another too often
LEAST_PERSONS = 5  # of whom the captions name the thing; of fewer persons the mean says little
_MOST = 40  # occurrences of a thing, evenly spaced, in a dataset: more change little and take time

Told = dict[str, tuple[float, int]]  # thing -> mean area, number of persons


def measure_things(
    parts: Iterable[tuple[Sequence[str], "Embeddings"]], embed: Callable[[list[str]], np.ndarray]
) -> Told:
    """Measures all things that captions name. parts: captions of each dataset, with the embeddings of its split.

    embed: N phrases -> (N, D) float32 of length 1.
    """
    areas, persons = defaultdict(list), defaultdict(set)
    for number, (captions, e) in enumerate(parts):
        said = [{phrase.lower() for phrase in attribute_phrases(caption)} for caption in captions]
        chosen = _choose(said)
        phrases = sorted({phrase for phrase, _ in chosen})
        fits = dict(zip(phrases, embed(phrases) @ e.image.T, strict=True)) if phrases else {}
        sayers = defaultdict(set)  # the persons of whom a caption says the phrase
        for caption, own in enumerate(said):
            for phrase in own:
                sayers[phrase].add(e.text_person[caption])
        others = {phrase: ~np.isin(e.image_person, list(sayers[phrase])) for phrase in phrases}
        for phrase, caption in chosen:
            fit, other = fits[phrase], others[phrase]
            if other.any():
                thing = thing_of(phrase)
                areas[thing].append(area(fit[[e.text_image[caption]]], fit[other]))
                persons[thing].add((number, int(e.text_person[caption])))
    return {thing: (round(float(np.mean(areas[thing])), 4), len(persons[thing])) for thing in sorted(areas)}


def can_tell(things: Mapping[str, Sequence[float]], phrase: str) -> bool:
    """Whether validation shows that the model can tell the thing of a phrase. things: as `measure_things` returns."""
    mean, persons = things.get(thing_of(phrase), (0.0, 0))
    return mean >= LEAST_AREA and persons >= LEAST_PERSONS


def thing_of(phrase: str) -> str:
    """Returns the last word of a phrase, in lower case and without a plural s."""
    word = phrase.lower().split()[-1]
    return word.removesuffix("s") if not word.endswith("ss") else word


def _choose(said: Sequence[set[str]]) -> list[tuple[str, int]]:
    """Returns up to _MOST (phrase, caption) of each thing."""
    found = defaultdict(list)
    for caption, phrases in enumerate(said):
        for phrase in sorted(phrases):
            found[thing_of(phrase)].append((phrase, caption))
    return [
        pairs[i]
        for pairs in found.values()
        for i in np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), _MOST)).astype(int))
    ]
