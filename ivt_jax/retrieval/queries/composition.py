"""Makes one vector from the sentences and the picture of a query.

Similarities are summed without scaling. A phrase that the model cannot tell is about equally similar to all pictures,
so it hardly changes the ranking. A sentence counts once for each of its phrases. An unwanted part has a third of the
weight of everything wanted:

    term                                        man in a red hoodie    grey trousers    not glasses
    weight w                                    1                      2                -1
    number of phrases n                         2                      1                1
    share w * n; unwanted: w * (2 + 2) / 3      2                      2                -4/3
    query = sum of (share * embedding) / sum of |share|, here / (2 + 2 + 4/3)

A picture has two thirds of the weight of the wanted sentences, divided by the spread of its similarities relative to
that of sentences: in models from contrastive pre-training a picture's similarities spread more. For rejected pictures
("not this person"),

    query = query - 1/4 * |query| * mean of their embeddings

docs/benchmarks/search.md has the comparisons that these numbers come from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

UNWANTED = 1 / 3  # share of an unwanted part, of all that is wanted
PICTURE = 2 / 3  # share of a picture, of the wanted sentences
REJECTED = 1 / 4  # share of the rejected pictures, of the query
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
    texts: Sequence[Part], picture: Part | None = None, ratio: float = 1.0, rejected: np.ndarray | None = None
) -> np.ndarray | None:
    """Returns the query (D,) float32, None if its parts cancel each other out.

    ratio: the spread of the picture's similarities to the index, divided by that of usual sentences. rejected:
    embeddings (n, D) of rejected pictures.
    """
    words = sum(part.weight * part.phrases for part in texts if part.weight > 0)
    base = (PICTURE * words if words else 1.0) if picture and picture.weight > 0 else 0.0  # of a picture of weight 1
    total = words + (base * picture.weight if picture else 0.0) or 1.0  # 1: a query of unwanted parts alone
    unwanted = UNWANTED * total
    shares = [part.weight * (part.phrases if part.weight > 0 else unwanted) for part in texts]
    parts = [*texts]
    if picture:
        shares.append(picture.weight * (base or unwanted) / ratio)
        parts.append(picture)
    vector = np.array(shares) / np.abs(shares).sum() @ np.array([part.embedding for part in parts], float)
    if rejected is not None:
        vector -= REJECTED * np.linalg.norm(vector) * rejected.mean(0)
    return None if np.abs(vector).max() < _EQUAL else vector.astype(np.float32)


def spread_ratio(sample: np.ndarray, picture: np.ndarray, sentences: np.ndarray) -> float:
    """Returns `compose`'s ratio. sample: rows of the index (S, D); picture (D,); sentences (n, D), those of TYPICAL."""
    own, usual = (sample @ picture).std(), (sample @ sentences.T).std(0).mean()
    return float(own / usual) if min(own, usual) > _LEAST_SPREAD else 1.0
