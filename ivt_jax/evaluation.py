"""How good the retrieval is: embed a split, rank it in both directions, R@k, mAP and mINP, with intervals over persons.

A query is right where it finds any item of its own person. Ties count against the model: a wrong item with the same
similarity ranks first. So no figure depends on the order of the gallery or on a sort, and an encoder that maps all
inputs to one point scores worst instead of by luck.
"""

import functools
import json
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.errors import UserError
from ivt_jax.images import normalise
from ivt_jax.models.ivt import PAD_ID
from ivt_jax.workdir import write_json

_CHUNK = 1024  # queries whose similarities are held at once


class Ranks(NamedTuple):
    """How each query did, three (Q,) float64 arrays; nan where the gallery has no item of the query's person."""

    first: np.ndarray  # rank of the best right item, from 1
    average_precision: np.ndarray  # in [0, 1]
    inverse_penalty: np.ndarray  # INP, in [0, 1]: right items / rank of the worst of them


def rank_queries(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray, average_precision: str = "standard"
) -> Ranks:
    """Ranks the gallery for every query: similarity (Q, G) float, person ids (Q,) and (G,) int.

    average_precision: with the j-th right item (j from 0) of R at 0-based rank r_j, "standard" is
    1/R sum (j+1)/(r_j+1), as IRRA and the field; "trapezoid" averages each term with j/r_j (1 at r_j = 0), as released.
    """
    if average_precision not in ("standard", "trapezoid"):
        raise UserError(f'average_precision is "standard" or "trapezoid", not {average_precision!r}')
    by_person = np.argsort(gallery_ids, kind="stable")
    starts, ends = (np.searchsorted(gallery_ids[by_person], query_ids, side) for side in ("left", "right"))
    ranks = np.full((3, len(query_ids)), np.nan)
    for query in np.flatnonzero(ends > starts):
        row = np.sort(similarity[query])
        right = np.sort(similarity[query, by_person[starts[query] : ends[query]]])
        if np.isnan(row[-1]):
            raise UserError("a similarity is not a number: the parameters are not finite")
        found = np.arange(1, len(right) + 1)
        # 1-based ranks, best first: the wrong items that are as similar or more, then the right ones up to this.
        at_least = len(row) - np.searchsorted(row, right, "left") - (len(right) - np.searchsorted(right, right, "left"))
        rank = at_least[::-1] + found
        precision = found / rank
        if average_precision == "trapezoid":
            before = np.where(rank == 1, 1.0, (found - 1) / np.maximum(rank - 1, 1))
            precision = (precision + before) / 2
        ranks[:, query] = rank[0], precision.mean(), len(right) / rank[-1]
    return Ranks(*ranks)


def rank_embeddings(queries: np.ndarray, gallery: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> Ranks:
    """`rank_queries` by the dot products of (Q, D) and (G, D) float32, some queries at a time to bound memory."""
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(queries), _CHUNK)]
    parts = [rank_queries(queries[chunk] @ gallery.T, query_ids[chunk], gallery_ids) for chunk in chunks]
    return Ranks(*map(np.concatenate, zip(*parts, strict=True)))


def query_scores(ranks: Ranks) -> dict[str, np.ndarray]:
    """Every query's share in R1, R5, R10, mAP and mINP: (Q,) float64 in percent, nan where there is no match."""
    recalls = {f"R{k}": np.where(np.isnan(ranks.first), np.nan, 100.0 * (ranks.first <= k)) for k in (1, 5, 10)}
    return recalls | {"mAP": 100 * ranks.average_precision, "mINP": 100 * ranks.inverse_penalty}


def mean_scores(scores: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over the queries that have a match; warns of the others, raises UserError where none has."""
    without = int(np.isnan(scores["R1"]).sum())
    if without == len(scores["R1"]):
        raise UserError("no query has an item of its person in the gallery: there is nothing to score")
    if without:
        warnings.warn(f"{without} of {len(scores['R1'])} queries have no match and are left out", stacklevel=2)
    return {name: float(np.nanmean(values)) for name, values in scores.items()}


def retrieval_metrics(
    similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray, average_precision: str = "standard"
) -> dict[str, float]:
    """R1, R5, R10, mAP, mINP in percent; arguments as `rank_queries`.

    Queries without an item of their person in the gallery are left out, with a warning (the release counts them as
    misses); UserError where none has one.
    """
    return mean_scores(query_scores(rank_queries(similarity, query_ids, gallery_ids, average_precision)))


def bootstrap_interval(
    values: np.ndarray, persons: np.ndarray, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of the mean of `values` (Q,) under resampling of persons; nan values are left out.

    persons (Q,): each query's. Queries of one person fail together, so persons are drawn, each with all its queries.
    """
    known = ~np.isnan(values)
    names, index = np.unique(persons[known], return_inverse=True)
    sums, counts = np.bincount(index, values[known]), np.bincount(index)
    draws = np.random.default_rng(seed).integers(len(names), size=(samples, len(names)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def embed(encode: Callable[[np.ndarray], jax.Array], batches: Iterable[np.ndarray]) -> np.ndarray:
    """Concatenates `encode` of the batches. Shorter ones are padded to the first one's size: `encode` compiles once."""
    rows: list[np.ndarray] = []
    size = 0
    for batch in batches:
        size = size or len(batch)
        padded = np.pad(batch, [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1))
        rows.append(np.asarray(encode(padded))[: len(batch)])
    return np.concatenate(rows)


def embed_images(model: Any, params: Any, batches: Iterable[np.ndarray]) -> np.ndarray:
    """uint8 batches (b, H, W, 3) -> (N, D) float32, L2-normalised."""
    return embed(functools.partial(_encode_images, model, jax.device_put(params)), batches)


def embed_texts(model: Any, params: Any, ids: np.ndarray, batch_size: int) -> np.ndarray:
    """Token ids (N, L) int32, padded with 0 -> (N, D) float32, L2-normalised."""
    batches = (ids[start : start + batch_size] for start in range(0, len(ids), batch_size))
    return embed(functools.partial(_encode_texts, model, jax.device_put(params)), batches)


# Jitted here and not per call, so that a run's later validations find the compiled programs of the first.
@functools.partial(jax.jit, static_argnums=0)
def _encode_images(model: Any, params: Any, images: jax.Array) -> jax.Array:
    return _unit(model.apply({"params": params}, normalise(images), method="encode_image")[:, 0])


@functools.partial(jax.jit, static_argnums=0)
def _encode_texts(model: Any, params: Any, ids: jax.Array) -> jax.Array:
    return _unit(model.apply({"params": params}, ids, ids != PAD_ID, method="encode_text")[:, 0])


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Embeddings(NamedTuple):
    """A split as the model sees it: G images and Q captions, L2-normalised float32, and whom they show."""

    image: np.ndarray  # (G, D)
    text: np.ndarray  # (Q, D)
    image_person: np.ndarray  # (G,)
    text_person: np.ndarray  # (Q,)
    text_image: np.ndarray  # (Q,) index of the image that the caption was written for


@dataclass(frozen=True)
class Evaluation:
    """`summary`: t2i and i2t scores in percent, their 95% intervals, and the numbers of queries, images and persons."""

    summary: dict[str, Any]
    embeddings: Embeddings


def evaluate_split(model: Any, params: Any, source: Any, tokenizer: Any, config: Any) -> Evaluation:
    """Embeds every image and caption of a prepared split and scores text-to-image and image-to-text retrieval.

    source: input_pipeline.pipeline.Source; config: the run's. The gallery has one entry per image record.
    """
    from input_pipeline.pipeline import image_batches  # imports TensorFlow, which search does without

    size, batch_size = tuple(config.model.image_size), config.runtime.eval_batch_size
    persons = source.persons[source.person_ids]
    ids = tokenizer.encode(split_captions(source), config.text.length["sentence"])
    embeddings = Embeddings(
        image=embed_images(model, params, image_batches(source, size, batch_size)),
        text=embed_texts(model, params, ids, batch_size),
        image_person=persons,
        text_person=persons[source.pairs[0]],
        text_image=source.pairs[0],
    )
    return Evaluation(summarise(embeddings), embeddings)


def summarise(embeddings: Embeddings) -> dict[str, Any]:
    """Scores of both directions and their intervals; the keys are those of test/summary.json."""
    image, text, image_person, text_person, _ = embeddings
    scores = {
        "t2i": query_scores(rank_embeddings(text, image, text_person, image_person)),
        "i2t": query_scores(rank_embeddings(image, text, image_person, text_person)),
    }
    persons = {"t2i": text_person, "i2t": image_person}
    return {
        **{way: mean_scores(values) for way, values in scores.items()},
        "interval": {
            way: {name: bootstrap_interval(v, persons[way]) for name, v in values.items()}
            for way, values in scores.items()
        },
        "queries": len(text),
        "gallery": len(image),
        "persons": len(np.unique(image_person)),
    }


def split_captions(source: Any) -> list[str]:
    """The captions of a split, in the order of its pairs."""
    return [source.captions[image][caption] for image, caption in zip(*source.pairs, strict=True)]


def split_summary(step: int, source: Any, result: Evaluation) -> dict[str, Any]:
    """What is told of a split: the checkpoint's step, the scores, the oracle's R@1 where the data have one.

    The attributes.json of PEDES-Synth, in the dataset's folder, tells it.
    """
    attributes = source.root / "attributes.json"
    oracle = json.loads(attributes.read_text())["oracle"][source.split]["R1"] if attributes.exists() else None
    return {"step": step, **result.summary, "oracle_R1": oracle}


def write_results(workdir: Path, summary: dict[str, Any], source: Any, result: Evaluation) -> None:
    """Writes {embeddings.npz, items.json, summary.json} into the folder of the split, what the report reads."""
    folder = Path(workdir) / source.split
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "embeddings.tmp", "wb") as file:
        np.savez(file, **result.embeddings._asdict())
    os.replace(folder / "embeddings.tmp", folder / "embeddings.npz")
    items = {
        "root": str(source.root.absolute()), "images": str(source.images.absolute()), "paths": source.paths,
        "captions": split_captions(source),
    }  # fmt: skip
    write_json(folder / "items.json", items)
    write_json(folder / "summary.json", summary)  # last: where it is, the rest is whole
