"""Measure time and peak memory of an evaluation without the embedding, at the sizes of the datasets.

    python -m ivt_jax.benchmarks.ranking                    # ICFG-PEDES: 19,848 captions, 19,848 images
    python -m ivt_jax.benchmarks.ranking --queries=6156 --gallery=3074 --persons=1000 --rerank

Draws random embeddings around a centre for each person; ranking them takes as long as those of a trained model. `peak`
is the process's maximum so far, including the embeddings.
"""

import argparse
import resource
from collections import deque
from pathlib import Path
from timeit import timeit
from types import SimpleNamespace

import numpy as np

from ivt_jax.common.command import positive
from ivt_jax.evaluation.calibration import fit_calibration, top_scores
from ivt_jax.evaluation.protocols import Embeddings, reranked, standard
from ivt_jax.evaluation.split import query_lines, summarise


def draw_split(queries: int, gallery: int, persons: int, width: int) -> Embeddings:
    """Draws the embeddings of a split, (., width) float32, at some distance from their person's centre."""
    rng = np.random.default_rng(0)
    image_person, text_image = np.arange(gallery) % persons, np.arange(queries) % gallery
    centres = rng.standard_normal((persons, width), np.float32)

    def around(person: np.ndarray, noise: float) -> np.ndarray:
        x = rng.standard_normal((len(person), width), np.float32)
        x *= noise
        x += centres[person]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x

    text_person = image_person[text_image]
    image, text = around(image_person, 2.0), around(text_person, 3.0)
    return Embeddings(image, text, image_person, text_person, text_image, np.ones(gallery, np.int64))


def main(argv: list[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m ivt_jax.benchmarks.ranking", description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=positive, default=19848)
    parser.add_argument("--gallery", type=positive, default=19848)
    parser.add_argument("--persons", type=positive, default=1000)
    parser.add_argument("--width", type=positive, default=768)
    parser.add_argument("--rerank", action="store_true", help="measure k-reciprocal re-ranking, too")
    options = parser.parse_args(argv)

    e = draw_split(options.queries, options.gallery, options.persons, options.width)
    source = SimpleNamespace(name="icfg_pedes", root=Path("nowhere"), identities=True)
    paths, captions = [""] * options.gallery, [""] * options.queries
    pieces = {
        "scores, intervals, protocols": lambda: summarise(e, standard(e), source, 0),
        "queries.jsonl": lambda: deque(query_lines(e, paths, captions), maxlen=0),
        "calibration": lambda: fit_calibration(top_scores(e.text, e.image, e.text_person, e.image_person)),
    }
    if options.rerank:
        pieces["re-ranking"] = lambda: reranked(e)
    print(f"{'':32}{'seconds':>10}{'peak, MiB':>12}\n{'embeddings':32}{'':10}{peak():>12.0f}")
    for name, piece in pieces.items():
        print(f"{name:32}{timeit(piece, number=1):>10.1f}{peak():>12.0f}", flush=True)


def peak() -> float:
    """Returns the process's peak memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
