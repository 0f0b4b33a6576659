"""How the sentences and the picture of a query become one vector.

Similarities are added as they are: a phrase that the model cannot tell, such as "woman" for many models, is about
equally similar to all pictures and so decides nothing. A sentence counts as many times as it has phrases; so a sentence
and one of its phrases again is nearly the sentence. An unwanted part has a third of the weight of all that is wanted:

    term                                        man in a red hoodie    grey trousers    not glasses
    weight w                                    1                      2                -1
    number of phrases n                         2                      1                1
    share w * n; unwanted: w * (2 + 2) / 3      2                      2                -4/3
    query = sum of (share * embedding) / sum of |share|, here / (2 + 2 + 4/3)

A picture has two thirds of the weight of the wanted words: it is the base that they change. Its similarities may spread
more than those of sentences (in models from contrastive pre-training they do), so its share is divided by the ratio of
the spreads. From all that, a quarter of the mean of pictures that are not meant ("not this person") is taken away, in
units of the query's length. BENCHMARKS.md has what this was chosen by.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

UNWANTED = 1 / 3  # share of an unwanted part, of all that is wanted
PICTURE = 2 / 3  # share of a picture, of the wanted words
UNLIKE = 1 / 4  # share of the pictures that are not meant, of the query
# Descriptions whose similarities spread like those of usual sentences.
TYPICAL = (
    "a man in a black jacket and blue jeans",
    "a woman in a white shirt, a red skirt and black shoes",
    "a man with a green T-shirt, beige shorts and a backpack",
    "a woman wearing a brown coat and dark trousers",
)
_EQUAL = 1e-6  # the largest entry of a vector that is rounding
_LEAST_SPREAD = 1e-6  # standard deviation of similarities in an index of equal pictures


class Part(NamedTuple):
    """A sentence or a picture of a query: embedding (D,) float32 of length 1, weight, and its number of phrases."""

    embedding: np.ndarray
    weight: float
    phrases: int = 1


def compose(
    texts: Sequence[Part], picture: Part | None = None, ratio: float = 1.0, unlike: np.ndarray | None = None
) -> np.ndarray | None:
    """Returns the query (D,) float32, None if its parts cancel each other out.

    ratio: the spread of the picture's similarities to the index, divided by that of usual sentences. unlike: embeddings
    (n, D) of pictures that are not meant.
    """
    wanted = sum(part.weight * part.phrases for part in texts if part.weight > 0)
    own = max(picture.weight, 0) * (PICTURE * wanted or 1) if picture else 0.0
    base = wanted + own or 1

    def unwanted(weight: float) -> float:
        return UNWANTED * base * weight

    shares = [part.weight * part.phrases if part.weight > 0 else unwanted(part.weight) for part in texts]
    embeddings = [part.embedding for part in texts]
    if picture:
        shares.append((own or unwanted(picture.weight)) / ratio)
        embeddings.append(picture.embedding)
    weights = np.array(shares) / np.abs(shares).sum()
    vector = weights @ np.array(embeddings, float)
    if unlike is not None:
        vector -= UNLIKE * np.linalg.norm(vector) * unlike.mean(0)
    return None if np.abs(vector).max() < _EQUAL else vector.astype(np.float32)


def spread_ratio(sample: np.ndarray, picture: np.ndarray, sentences: np.ndarray) -> float:
    """Returns `compose`'s ratio. sample: rows of the index (S, D); picture (D,); sentences (n, D), those of TYPICAL."""
    own, usual = (sample @ picture).std(), (sample @ sentences.T).std(0).mean()
    return float(own / usual) if min(own, usual) > _LEAST_SPREAD else 1.0
