"""How well the captions can be answered at all: the R@1 of a reader who sees every attribute without error."""

from collections.abc import Mapping, Sequence

import numpy as np


def oracle_r1(persons: Mapping[int, Mapping[str, str]], queries: Sequence[Mapping[str, str]], query_ids: Sequence[int],
              gallery_ids: Sequence[int]) -> float:  # fmt: skip
    """Expected R@1, in percent, of a perfect attribute reader on text-to-image retrieval.

    The score of a gallery image is the number of stated attributes that its person has. Taking off the contradictions
    would not change the order: every image is asked the same number of questions. Among the images with the highest
    score one is drawn at random, and the expectation over that draw is taken exactly.

    Args:
        persons: id -> attribute -> value, for every person in the gallery.
        queries: what each caption states (mistakes included), and in `query_ids` whom it describes.
        gallery_ids: the person of each gallery image.
    """
    ids, images = np.unique(np.asarray(gallery_ids), return_counts=True)
    scores = np.zeros((len(queries), len(ids)), np.int32)
    for name in sorted({name for stated in queries for name in stated}):
        said = np.array([stated.get(name, "") for stated in queries])
        true = np.array([persons[int(i)].get(name, "") for i in ids])
        scores += (said[:, None] == true) & (said != "")[:, None]
    best = scores == scores.max(axis=1, keepdims=True)
    own = np.asarray(query_ids)[:, None] == ids
    chance = (best & own) @ images / (best @ images)
    return 100.0 * float(chance.mean())
