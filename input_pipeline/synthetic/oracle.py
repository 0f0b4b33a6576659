"""Computes the best possible R@1: that of a reader who sees every attribute without error."""

from collections.abc import Mapping, Sequence

import numpy as np


def oracle_r1(persons: Mapping[int, Mapping[str, str]], queries: Sequence[Mapping[str, str]], query_ids: Sequence[int],
              gallery_ids: Sequence[int]) -> float:  # fmt: skip
    """Returns the expected R@1, in percent, of a perfect attribute reader in text-to-image retrieval.

    The score of a gallery image is the number of stated attributes that its person has. The first result is drawn from
    the images with the highest score; the expectation is exact.
    persons: id -> attribute -> value, for every person in the gallery. queries: what each caption states, with
    mistakes; query_ids: the person it describes. gallery_ids: the person of each gallery image.
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
