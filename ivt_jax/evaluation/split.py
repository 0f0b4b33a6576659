"""Evaluation of one split: embeds it, scores it by every protocol, and writes the results for the report."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivt_jax.common.files import whole_file, write_text
from ivt_jax.common.progress import progress
from ivt_jax.encoding.embedding import embed_images, embed_texts
from ivt_jax.evaluation.protocols import RERANKED, Embeddings, image_records, protocol_scores, reranked
from ivt_jax.evaluation.ranking import Ranks, bootstrap_interval, first_found, mean_scores, query_scores, rank_chunks
from ivt_jax.run.workdir import read_json, write_json

TOP = 10  # results of each query in queries.jsonl


def embed_split(model: Any, params: Any, source: Any, tokenizer: Any, config: Any) -> Embeddings:
    """Embeds every image and caption of a split. source: input_pipeline.source.Source; config: the run's."""
    from input_pipeline.pipeline import image_batches  # imports TensorFlow, which search does without

    persons = source.persons[source.person_ids]
    size, batch_size = tuple(config.model.image_size), config.runtime.eval_batch_size
    count = -(-len(source.paths) // batch_size)
    batches = image_batches(source, size, batch_size)
    return Embeddings(
        image=embed_images(model, params, progress(batches, count, "embedding images: ", "batches", brief=True)),
        text=embed_captions(model, params, split_captions(source), tokenizer, config),
        image_person=persons,
        text_person=persons[source.pairs[0]],
        text_image=source.pairs[0],
        image_copies=source.copies,
    )


def embed_captions(model: Any, params: Any, captions: Sequence[str], tokenizer: Any, config: Any) -> np.ndarray:
    """Embeds N captions, cut to the length of sentences: (N, D) float32, L2-normalised."""
    ids = tokenizer.encode(captions, config.text.length["sentence"])
    return embed_texts(model, params, ids, tokenizer.mask(ids), config.runtime.eval_batch_size)


def split_captions(source: Any) -> list[str]:
    """Returns the captions of a split, in the order of its pairs."""
    return [source.captions[image][caption] for image, caption in zip(*source.pairs, strict=True)]


def both_scores(ranks: dict[str, Ranks]) -> dict[str, dict[str, float]]:
    """Returns mean scores in percent of text to image ("t2i") and image to text ("i2t")."""
    return {way: mean_scores(query_scores(ranks[way])) for way in ("t2i", "i2t")}


def summarise(e: Embeddings, ranks: dict[str, Ranks], source: Any, step: int, rerank: bool = False) -> dict[str, Any]:
    """Returns the content of summary.json for the checkpoint of `step`; scores in percent.

    Scores of both directions by the protocol `standard`, whose ranks are `ranks`, with 95% intervals; text to image by
    every protocol, including re-ranking if `rerank`; counts of queries, gallery entries and persons; on PEDES-Synth the
    R@1 of an exact reader of the captions' attributes, if it is persons that are looked for.
    """
    persons = {"t2i": e.text_person, "i2t": e.image_person[image_records(e)]}
    attributes = read_json(source.root / "attributes.json") if source.name != "own" and source.identities else {}
    protocols = protocol_scores(e, source.name, ranks["t2i"])
    if rerank:
        protocols[RERANKED] = mean_scores(query_scores(reranked(e)))
    return {
        "step": step,
        **both_scores(ranks),
        "interval": {
            way: {name: bootstrap_interval(values, persons[way]) for name, values in query_scores(ranks[way]).items()}
            for way in persons
        },
        "protocols": protocols,
        "queries": len(e.text),
        "gallery": len(persons["i2t"]),
        "persons": len(np.unique(e.image_person)),
        "oracle_R1": attributes["oracle"][source.split]["R1"] if attributes else None,
    }


def write_results(folder: Path, summary: dict[str, Any], source: Any, embeddings: Embeddings) -> None:
    """Writes embeddings.npz, items.json, queries.jsonl and summary.json into the folder of the split."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "embeddings.npz") as partial, partial.open("wb") as file:
        np.savez(file, **embeddings._asdict())
    captions = split_captions(source)
    root, images = str(source.root.absolute()), str(source.images.absolute())
    write_json(folder / "items.json", {"root": root, "images": images, "paths": source.paths, "captions": captions})
    lines = query_lines(embeddings, source.paths, captions)
    write_text(folder / "queries.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "summary.json", summary)  # last: if it exists, the other files are complete


def query_lines(e: Embeddings, paths: list[str], captions: list[str]) -> Iterator[dict[str, Any]]:
    """Yields each text query: caption, scores, and the TOP best of the gallery with every image once.

    Ranks count from 1; rank, average_precision and inverse_penalty are None for a query without a match.
    """
    for chunk, similarity, ranks in rank_chunks(e.text, e.image, e.text_person, e.image_person):
        scores = {
            "rank": ranks.first, "average_precision": ranks.average_precision, "inverse_penalty": ranks.inverse_penalty,
        }  # fmt: skip
        for row, query in enumerate(range(len(e.text))[chunk]):
            right = e.image_person == e.text_person[query]
            order = first_found(similarity[row], right, TOP)
            yield {
                "caption": captions[query], "image": paths[e.text_image[query]], "person": int(e.text_person[query]),
                **{name: float(values[row]) if right.any() else None for name, values in scores.items()},
                "top": [
                    {"image": paths[i], "score": score, "hit": bool(right[i])}
                    for i, score in zip(order, similarity[row, order].round(6).tolist(), strict=True)
                ],
            }  # fmt: skip
