"""A prepared split as the model sees it: embedded, scored under every protocol, and written for the report."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivt_jax.common.files import whole_file, write_text
from ivt_jax.common.progress import progress
from ivt_jax.encoding.embedding import embed_images, embed_texts
from ivt_jax.evaluation.protocols import Embeddings, image_records, protocol_scores, reranked
from ivt_jax.evaluation.ranking import Ranks, bootstrap_interval, first_found, mean_scores, query_scores, rank_chunks
from ivt_jax.run.workdir import write_json

TOP = 10  # of the gallery, for each query in queries.jsonl

RERANKED = "standard, re-ranked"  # the protocol `standard` after k-reciprocal re-ranking


def embed_split(model: Any, params: Any, source: Any, tokenizer: Any, config: Any) -> Embeddings:
    """Embeds every image and caption of a prepared split.

    source: input_pipeline.pipeline.Source; config: the run's.
    """
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
    """Captions at the length of sentences -> (N, D) float32, L2-normalised."""
    ids = tokenizer.encode(captions, config.text.length["sentence"])
    return embed_texts(model, params, ids, config.runtime.eval_batch_size)


def split_captions(source: Any) -> list[str]:
    """The captions of a split, in the order of its pairs."""
    return [source.captions[image][caption] for image, caption in zip(*source.pairs, strict=True)]


def both_scores(ranks: dict[str, Ranks]) -> dict[str, dict[str, float]]:
    """Mean scores in percent of text to image ("t2i") and image to text ("i2t")."""
    return {way: mean_scores(query_scores(ranks[way])) for way in ("t2i", "i2t")}


def summarise(
    embeddings: Embeddings, ranks: dict[str, Ranks], source: Any, step: int, rerank: bool = False
) -> dict[str, Any]:
    """What is told of a split, of which `ranks` are those of `standard`: the keys of summary.json, scores in percent.

    t2i, i2t and their 95% intervals by the protocol `standard`; text to image by every protocol, with `rerank` after
    re-ranking too; the numbers of queries, gallery entries and persons; the checkpoint's step; the oracle's R@1 where
    the data have one.
    """
    scores = {way: query_scores(ranks[way]) for way in ("t2i", "i2t")}
    persons = {"t2i": embeddings.text_person, "i2t": embeddings.image_person[image_records(embeddings)]}
    protocols = protocol_scores(embeddings, source.name, ranks["t2i"])
    if rerank:
        protocols[RERANKED] = mean_scores(query_scores(reranked(embeddings)))
    return {
        "step": step,
        **both_scores(ranks),
        "interval": {
            way: {name: bootstrap_interval(v, persons[way]) for name, v in values.items()}
            for way, values in scores.items()
        },
        "protocols": protocols,
        "queries": len(embeddings.text),
        "gallery": len(persons["i2t"]),
        "persons": len(np.unique(embeddings.image_person)),
        "oracle_R1": oracle(source),
    }


def oracle(source: Any) -> float | None:
    """R@1 in percent of a perfect reader of the captions' attributes, which attributes.json of PEDES-Synth tells."""
    attributes = source.root / "attributes.json"
    return json.loads(attributes.read_text())["oracle"][source.split]["R1"] if attributes.exists() else None


def write_results(workdir: Path, summary: dict[str, Any], source: Any, embeddings: Embeddings) -> None:
    """Writes the split's folder: embeddings.npz, items.json and summary.json, which the report reads, queries.jsonl."""
    folder = Path(workdir) / source.split
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "embeddings.npz") as partial, partial.open("wb") as file:
        np.savez(file, **embeddings._asdict())
    items = {
        "root": str(source.root.absolute()), "images": str(source.images.absolute()), "paths": source.paths,
        "captions": split_captions(source),
    }  # fmt: skip
    write_json(folder / "items.json", items)
    lines = query_lines(embeddings, items["paths"], items["captions"])
    write_text(folder / "queries.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "summary.json", summary)  # last: where it is, the rest is whole


def query_lines(embeddings: Embeddings, paths: list[str], captions: list[str]) -> Iterator[dict[str, Any]]:
    """Every text query: what it asks for, how it did, and the first TOP of the gallery of unique images.

    Ranks count from 1; rank, average_precision and inverse_penalty are None where the query has no match.
    """
    image, text, image_person, text_person, text_image, _ = embeddings
    for chunk, similarity, ranks in rank_chunks(text, image, text_person, image_person):
        how = (ranks.first, ranks.average_precision, ranks.inverse_penalty)
        for row, query in enumerate(range(len(text))[chunk]):
            right = image_person == text_person[query]
            order = first_found(similarity[row], right, TOP)
            figures = [float(values[row]) if right.any() else None for values in how]
            scores = similarity[row, order].round(6).tolist()
            yield {
                "caption": captions[query], "image": paths[text_image[query]], "person": int(text_person[query]),
                **dict(zip(("rank", "average_precision", "inverse_penalty"), figures, strict=True)),
                "top": [
                    {"image": paths[i], "score": score, "hit": bool(right[i])}
                    for i, score in zip(order, scores, strict=True)
                ],
            }  # fmt: skip
