"""The field's evaluation protocols: which items are in the gallery, and which average precision is computed.

- `standard`: as IRRA and its descendants. One gallery entry per image record of the annotation file; average precision
  is the mean of the precisions at the matches; queries without a match are left out.
- `standard-dedup`: the same with one entry per image, however many records name it.
- `release`: as the IVT release. The gallery holds the image of every second (image, caption) pair, on ICFG-PEDES that
  of every record; average precision by the trapezoid rule; a query without a match counts as a miss.

The mAPs of `standard` and `release` do not compare. Ties count against the model in all three (see `ranking`); the
release leaves them to an unstable sort.
"""

from typing import NamedTuple

import numpy as np

from ivt_jax.evaluation import ranking
from ivt_jax.evaluation.ranking import Ranks, mean_scores, query_scores, with_trapezoid
from ivt_jax.evaluation.reranking import rerank

RERANKED = "standard, re-ranked"  # the protocol `standard` after k-reciprocal re-ranking


class Embeddings(NamedTuple):
    """The embeddings of a split, of G images and Q captions, L2-normalised float32, and their person ids."""

    image: np.ndarray  # (G, D)
    text: np.ndarray  # (Q, D)
    image_person: np.ndarray  # (G,)
    text_person: np.ndarray  # (Q,)
    text_image: np.ndarray  # (Q,) index of the image that the caption was written for
    image_copies: np.ndarray  # (G,) number of image records that name the image


def image_records(e: Embeddings) -> np.ndarray:
    """Returns the image index of every image record."""
    return np.repeat(np.arange(len(e.image)), e.image_copies)


def standard(e: Embeddings) -> dict[str, Ranks]:
    """Ranks text to image ("t2i") and image to text ("i2t"), with one image entry per image record."""
    rows = image_records(e)
    t2i, i2t = ranking.rank_both_ways(e.text, e.image[rows], e.text_person, e.image_person[rows])
    return {"t2i": t2i, "i2t": i2t}


def standard_dedup(e: Embeddings) -> dict[str, Ranks]:
    """Ranks as `standard`, with every image once."""
    return standard(e._replace(image_copies=np.ones_like(e.image_copies)))


def text_to_image(e: Embeddings, rows: np.ndarray) -> Ranks:
    """Ranks the images with indices `rows` for every caption."""
    return ranking.rank_embeddings(e.text, e.image[rows], e.text_person, e.image_person[rows])


def release(e: Embeddings, dataset: str) -> Ranks:
    """Ranks text to image as the release does; `dataset` is a key of input_pipeline.annotations.LAYOUTS."""
    rows = image_records(e) if dataset == "icfg_pedes" else e.text_image[::2]
    return with_trapezoid(text_to_image(e, rows))


def reranked(e: Embeddings) -> Ranks:
    """Ranks text to image as `standard`, after k-reciprocal re-ranking."""
    rows = image_records(e)
    gallery_ids, chunks = e.image_person[rows], rerank(e.text, e.image[rows])
    return ranking.joined([ranking.rank_queries(scores, e.text_person[chunk], gallery_ids) for chunk, scores in chunks])


def protocol_scores(e: Embeddings, dataset: str, standard_t2i: Ranks) -> dict[str, dict[str, float]]:
    """Returns text-to-image scores in percent by every protocol. standard_t2i: the ranks by `standard`."""
    # Equal galleries are ranked once.
    once = standard_t2i if (e.image_copies == 1).all() else text_to_image(e, np.arange(len(e.image)))
    released = with_trapezoid(standard_t2i) if dataset == "icfg_pedes" else release(e, dataset)
    return {
        "standard": mean_scores(query_scores(standard_t2i)),
        "standard-dedup": mean_scores(query_scores(once)),
        "release": mean_scores({name: np.nan_to_num(values) for name, values in query_scores(released).items()}),
    }
