"""A prepared split as the model sees it: embedded, scored under every protocol, and written for the report."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ivt_jax.evaluation.embedding import embed_images, embed_texts
from ivt_jax.evaluation.protocols import Embeddings, image_records, protocol_scores, standard
from ivt_jax.evaluation.ranking import bootstrap_interval, mean_scores, query_scores, rank_chunks
from ivt_jax.workdir import write_json, write_text

TOP = 10  # of the gallery, for each query in queries.jsonl


@dataclass(frozen=True)
class Evaluation:
    """`summary`: t2i and i2t scores in percent, their 95% intervals, and the numbers of queries, images and persons."""

    summary: dict[str, Any]
    embeddings: Embeddings


def evaluate_split(model: Any, params: Any, source: Any, tokenizer: Any, config: Any) -> Evaluation:
    """Embeds every image and caption of a prepared split and scores text-to-image and image-to-text retrieval.

    source: input_pipeline.pipeline.Source; config: the run's.
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
        image_copies=source.copies,
    )
    return Evaluation(summarise(embeddings, source.name), embeddings)


def summarise(embeddings: Embeddings, dataset: str) -> dict[str, Any]:
    """Scores of both directions and their intervals, and text-to-image by every protocol; the keys of summary.json."""
    ranks = standard(embeddings)
    scores = {way: query_scores(ranks[way]) for way in ("t2i", "i2t")}
    persons = {"t2i": embeddings.text_person, "i2t": embeddings.image_person[image_records(embeddings)]}
    return {
        **{way: mean_scores(values) for way, values in scores.items()},
        "interval": {
            way: {name: bootstrap_interval(v, persons[way]) for name, v in values.items()}
            for way, values in scores.items()
        },
        "protocols": protocol_scores(embeddings, dataset, ranks["t2i"]),
        "queries": len(embeddings.text),
        "gallery": len(persons["i2t"]),
        "persons": len(np.unique(embeddings.image_person)),
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
    """Writes the split's folder: embeddings.npz, items.json and summary.json, which the report reads, queries.jsonl."""
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
    lines = query_lines(result.embeddings, items["paths"], items["captions"])
    write_text(folder / "queries.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "summary.json", summary)  # last: where it is, the rest is whole


def query_lines(embeddings: Embeddings, paths: list[str], captions: list[str]) -> Iterator[dict[str, Any]]:
    """Every text query: what it asks for, how it did, and the first TOP of the gallery of unique images.

    Ranks count from 1; rank, average_precision and inverse_penalty are None where the query has no match. Of equal
    scores the wrong image comes first, as in `ranking`.
    """
    image, text, image_person, text_person, text_image, _ = embeddings
    for chunk, similarity, ranks in rank_chunks(text, image, text_person, image_person):
        for row, query in enumerate(range(len(text))[chunk]):
            right = image_person == text_person[query]
            order = np.lexsort((right, -similarity[row]))[:TOP]
            figures = [float(values[row]) if right.any() else None for values in ranks]
            scores = similarity[row, order].round(6).tolist()
            yield {
                "caption": captions[query], "image": paths[text_image[query]], "person": int(text_person[query]),
                **dict(zip(("rank", "average_precision", "inverse_penalty"), figures, strict=True)),
                "top": [
                    {"image": paths[i], "score": score, "hit": bool(right[i])}
                    for i, score in zip(order, scores, strict=True)
                ],
            }  # fmt: skip
