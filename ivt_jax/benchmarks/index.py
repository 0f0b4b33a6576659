"""Measure exact and approximate search in indexes of several sizes, beside FAISS and a plain matrix product.

    python -m ivt_jax.benchmarks.index --scratch=DIR                        # with 4 GB free for a million rows
    python -m ivt_jax.benchmarks.index --scratch=DIR --workdir=runs/demo    # adds the search for sentences

The indexes are Lance's, without thumbnails, of random vectors in clusters; queries are vectors of the index with
noise. Each row has the time of one query for ten results; the methods take turns. `index` is `VectorStore.search`,
`nearest` the same without the store, `matrix product` NumPy's with a full sort, `faiss` its flat index (if installed),
`ivf` Lance's approximate index of the largest size, with its recall. `a sentence` is `Searcher.search` of a sentence
with the model of --workdir, including tokens, embedding and phrases.
"""

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from timeit import timeit
from typing import TYPE_CHECKING, Any

import numpy as np

from ivt_jax.common.command import filled_path, positive
from ivt_jax.common.progress import progress
from ivt_jax.common.startup import run_command

if TYPE_CHECKING:
    from ivt_jax.retrieval.stores.lance import LanceStore
    from ivt_jax.retrieval.stores.store import About

TOP = 10  # results of a query
WANTED = 100  # thousands of rows in the index for sentences
ROWS_AT_ONCE = 10_000
WARM_UP = 3
SENTENCES = (
    "a woman with long brown hair in a red coat and dark blue trousers, with a red shoulder bag",
    "a man in a grey hoodie and black jeans",
    "a man with short black hair, a white T-shirt, blue shorts and white shoes, and a black backpack",
    "this person has glasses and a yellow jacket",
)


def draw_vectors(count: int, dimension: int) -> np.ndarray:
    """Draws (count, dimension) float32 of length 1, about a hundred around each centre."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((-(-count // 100), dimension), np.float32)
    vectors = np.empty((count, dimension), np.float32)
    for start in range(0, count, ROWS_AT_ONCE):
        rows = vectors[start : start + ROWS_AT_ONCE]
        rng.standard_normal(rows.shape, np.float32, rows)
        rows += centres[rng.integers(len(centres), size=len(rows))]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors


def draw_queries(vectors: np.ndarray, count: int) -> np.ndarray:
    """Draws (count, D) float32 of length 1: some of the vectors (N, D), plus noise of about the same length."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((count, vectors.shape[1]), np.float32) / np.sqrt(vectors.shape[1])
    queries = vectors[rng.integers(len(vectors), size=count)] + noise
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


def make_index(place: Path, about: "About", vectors: np.ndarray) -> "LanceStore":
    """Makes an index of the vectors, without pictures."""
    from ivt_jax.retrieval.stores.lance import LanceStore
    from ivt_jax.retrieval.stores.store import Row

    store = LanceStore.create(str(place), about)
    starts = range(0, len(vectors), ROWS_AT_ONCE)
    for start in progress(starts, len(starts), f"{len(vectors):,} rows: ", "parts", brief=True):
        part = enumerate(vectors[start : start + ROWS_AT_ONCE], start)
        store.add([Row(i, f"{i:08}.jpg", f"{i:064x}", 0, 0, {}, vector, b"") for i, vector in part])
    store.optimize()
    return store


def by_turns(calls: dict[str, Callable[[Any], Any]], queries: Sequence[Any]) -> dict[str, np.ndarray]:
    """Times every call with every query, in milliseconds; leaves out the first WARM_UP queries."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for query in queries:
        for name, call in calls.items():
            times[name].append(1000 * timeit(functools.partial(call, query), number=1))
    return {name: np.array(spent[WARM_UP:]) for name, spent in times.items()}


def methods(store: "LanceStore", vectors: np.ndarray) -> dict[str, Callable[[np.ndarray], Any]]:
    """Returns the exact searches to compare, each a function of one query (D,)."""
    from ivt_jax.gallery.nearest import nearest

    calls: dict[str, Callable[[np.ndarray], Any]] = {
        "index": lambda query: store.search(query[None], TOP, exact=True),
        "nearest": lambda query: nearest(query[None], vectors, TOP),
        "matrix product": lambda query: np.argsort(-(vectors @ query))[:TOP],
    }
    try:
        import faiss
    except ModuleNotFoundError:
        return calls
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    return {**calls, "faiss": lambda query: flat.search(query[None], TOP)}


def search_rows(folder: Path, count: int, dimension: int, calls: int, approximate: bool) -> Iterator[list[str]]:
    """Yields a row for each method in an index of `count` vectors, made in `folder`. approximate: add `ivf`."""
    from ivt_jax.retrieval.stores.store import About

    vectors = draw_vectors(count, dimension)
    queries = draw_queries(vectors, WARM_UP + calls)
    store = make_index(folder, About("", "", dimension, "float32", {}, {}, "", ""), vectors)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    first = timeit(lambda: store.search(queries[:1], TOP, exact=True), number=1)
    times = by_turns(methods(store, vectors), list(queries))
    for name, spent in times.items():
        note = f"{size / 1e6:,.0f} MB on disk; the first search {first:.1f} s" if name == "index" else ""
        yield _row(name, count, spent, np.median(times["index"]), note)
    if approximate:
        built = timeit(store.build_index, number=1)
        note = f"made in {built:.0f} s; recall@{TOP} {store.recall(queries, TOP):.3f}"
        spent = by_turns({"ivf": lambda query: store.search(query[None], TOP, exact=False)}, list(queries))["ivf"]
        yield _row("ivf", count, spent, np.median(times["index"]), note)


def sentence_row(scratch: Path, workdir: Path, calls: int) -> list[str]:
    """Returns the row of searches for sentences."""
    from ivt_jax.encoding.encoder import Encoder
    from ivt_jax.retrieval.indexing.build import describe_index
    from ivt_jax.retrieval.searcher import Searcher

    encoder, count = Encoder(workdir), 1000 * WANTED
    about = describe_index(encoder, workdir, "float32", {}, scratch)
    searcher = Searcher(make_index(scratch / "sentences", about, draw_vectors(count, about.dimension)), encoder=encoder)
    compiling = len(SENTENCES)  # the first search of each sentence compiles
    sentences = [SENTENCES[i % compiling] for i in range(WARM_UP + compiling + calls)]
    spent = by_turns({"a sentence": searcher.search}, sentences)["a sentence"][compiling:]
    return _row("a sentence", count, spent, np.median(spent), f"vectors of {about.dimension}")


def _row(name: str, count: int, spent: np.ndarray, ours: float, note: str) -> list[str]:
    median, late = np.percentile(spent, [50, 95])
    return [name, f"{count:,}", f"{median:.2f}", f"{late:.2f}", f"{median / ours:.2f}", note]


def run(args: argparse.Namespace) -> None:
    """Prints each row when it is measured."""

    def show(*cells: str) -> None:
        print(f"| {' | '.join(cells)} |", flush=True)

    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        show("search", "rows", "ms, p50", "ms, p95", "time / index", "")
        show(*["---"] * 6)
        if args.workdir:
            show(*sentence_row(Path(scratch), args.workdir, args.calls))
        for count in args.rows:
            folder, approximate = Path(scratch, str(count)), count == max(args.rows)
            for row in search_rows(folder, count, args.dimension, args.calls, approximate):
                show(*row)


def main(argv: list[str] | None = None) -> int:
    """Parses the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ivt_jax.benchmarks.index", description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=filled_path, help="folder for the temporary indexes (the system's)")
    parser.add_argument("--rows", type=lambda text: [positive(count) for count in text.split(",")],
                        default=[10_000, 100_000, 1_000_000], help="10000,100000,1000000")  # fmt: skip
    parser.add_argument("--dimension", type=positive, default=768, help="numbers of a vector (768)")
    parser.add_argument("--calls", type=positive, default=50, help="queries timed for each row (50)")
    parser.add_argument("--workdir", type=filled_path, help="folder of a trained run: time sentences, too")
    args = parser.parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
