"""Measure on PEDES-Synth's test split what search finds by queries of different kinds.

    python -m ivt_jax.benchmarks.queries --workdir runs/demo [runs/demo-1 runs/demo-2]

Each query looks for a person: by a caption, by the caption split into its phrases, by both, with a phrase at weight 2,
with an unwanted phrase, written otherwise, by a picture, and by a picture with one thing in another colour. For the
last, that other person is drawn and added to the gallery, and the right answers are the pictures of it in other scenes.
Several runs of one recipe are averaged query by query; intervals, 95%, are bootstraps over persons.

An unwanted phrase is one that the person lacks and another of the first ten has. It should move pictures of persons who
have it down: of those among the first fifty, the mean rank should be a larger number than before. The last table says
how often it is.
"""

import argparse
import copy
import io
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from input_pipeline.perturbations import typos
from input_pipeline.synthetic.parts import list_shots
from input_pipeline.synthetic.persons import Attributes, change_one
from input_pipeline.synthetic.renderer import render
from input_pipeline.synthetic.writer import QUALITY
from ivt_jax.benchmarks.grounding import true_phrases
from ivt_jax.common.command import filled_path, positive
from ivt_jax.common.progress import progress
from ivt_jax.common.startup import run_command
from ivt_jax.evaluation.nouns import can_tell
from ivt_jax.retrieval.queries.query import MAX_TERMS, Query, Term, phrases_of
from ivt_jax.retrieval.queries.spelling import suggest

if TYPE_CHECKING:
    from ivt_jax.encoding.encoder import Encoder

BATCH = 64
FIRST = 10  # an unwanted phrase is one that a picture among these has
LOOKED_AT = 50  # pictures whose ranks are compared, before and after the unwanted phrase
SENTENCE = "the sentence"  # the kind that others are compared with
COLOURS = {"upper_colour": "upper", "lower_colour": "lower", "shoes_colour": "shoes", "bag_colour": "bag"}

# JAX, Flax and Orbax are imported where they are used: `--help` and a mistyped flag answer at once.


class Gallery(NamedTuple):
    """The N pictures of a split, and one changed person for each, drawn in the same scenes."""

    persons: np.ndarray  # (N,) ids
    who: dict[int, dict[str, str]]  # id -> part -> phrase
    captions: list[list[str]]  # of each picture
    pixels: list[bytes]
    changes: dict[int, str]  # id -> the phrase by which the changed person differs
    changed: list[bytes]  # pictures of the changed persons, in the order of `persons`


class Trial(NamedTuple):
    """A query for the pictures in `right` (N or 2N,) bool; `left_out`: pictures that are not ranked."""

    query: Query
    right: np.ndarray
    left_out: tuple[int, ...] = ()


def read_gallery(root: Path, split: str = "test") -> Gallery:
    """Reads a split of PEDES-Synth and draws the changed persons. Raises DataError as `list_shots`."""
    shots = list_shots(root, split)
    jobs = {job.person_id: job for job, _ in shots}
    others = {id: _recoloured(job.who, random.Random(f"changed/{id}")) for id, job in jobs.items()}
    changed = []
    for job, shot in progress(shots, len(shots), "drawing: ", "pictures", brief=True):
        file, paint = io.BytesIO(), copy.copy(shot.paint)
        image = render(others[job.person_id][0], shot.build, shot.scene, job.arguments.size, paint)
        image.save(file, "JPEG", quality=QUALITY)
        changed.append(file.getvalue())
    return Gallery(
        np.array([job.person_id for job, _ in shots]),
        {id: {part: str(phrase) for part, phrase in true_phrases(job.who).items()} for id, job in jobs.items()},
        [[caption for caption, _ in shot.captions] for _, shot in shots],
        [(root / "imgs" / shot.path).read_bytes() for _, shot in shots],
        {id: phrase for id, (_, phrase) in others.items()},
        changed,
    )


def _recoloured(who: Attributes, rng: random.Random) -> tuple[Attributes, str]:
    """Draws a person with one thing in another colour; returns it, and the phrase for the thing."""
    while True:
        other = change_one(who, rng)
        names = [name for name in COLOURS if getattr(who, name) != getattr(other, name)]
        part = COLOURS[names[0]] if len(names) == 1 else ""
        if part and replace(who, **{names[0]: getattr(other, names[0])}) == other and part in true_phrases(who):
            return other, str(true_phrases(other)[part])


def sentences(caption: str, rng: random.Random, tokenizer: object) -> dict[str, Query]:
    """Makes the queries of one caption, by kind."""
    phrases = [Term(phrase) for phrase in phrases_of([Term(caption)])]
    slips = typos(caption, np.random.default_rng(rng.getrandbits(32)), rate=1.0)
    kinds = {
        SENTENCE: [Term(caption)],
        "split into its phrases": phrases,
        "the sentence and its phrases": [Term(caption), *phrases],
        "the sentence, one phrase at weight 2": [Term(caption), rng.choice(phrases)._replace(weight=2.0)],
        'with "!!!"': [Term(f"{caption}!!!")],
        'with a final "."': [Term(f"{caption.rstrip('. ')}.")],
        "in upper case": [Term(caption.upper())],
        "one typo in each word": [Term(slips)],
        "the same, with the suggestion": [Term(suggest(slips, tokenizer) or slips)],
    }
    return {kind: Query(tuple(terms[:MAX_TERMS])) for kind, terms in kinds.items()}


def queries_of(gallery: Gallery, picture: int, rng: random.Random, tokenizer: object) -> Iterator[tuple[str, Trial]]:
    """Yields the kinds of queries that begin with a picture and its captions."""
    id, count = gallery.persons[picture], len(gallery.persons)
    same = gallery.persons == id
    for kind, query in sentences(gallery.captions[picture][0], rng, tokenizer).items():
        yield kind, Trial(query, same)
    yield "another caption of the picture", Trial(Query((Term(gallery.captions[picture][1]),)), same)
    content = gallery.pixels[picture]
    yield "a picture", Trial(Query(image=content), same, (picture,))
    both, scene = np.concatenate([np.zeros(count, bool), same]), (picture, count + picture)
    yield "a picture and one changed colour", Trial(Query((Term(gallery.changes[id]),), content), both, scene)


def rank(scores: np.ndarray, trial: Trial) -> int:
    """Returns the rank of the first right picture, from 1; equal scores count against it."""
    scores = scores.copy()
    scores[list(trial.left_out)] = -np.inf
    right = trial.right.copy()
    right[list(trial.left_out)] = False
    return int((scores[~right] >= scores[right].max()).sum()) + 1


def unwanted(gallery: Gallery, own: int, order: np.ndarray, rng: random.Random) -> str:
    """Draws a phrase that person `own` lacks and one of the first FIRST of `order` has; "" if there is none."""
    others = {phrase for i in order[:FIRST] for phrase in gallery.who[gallery.persons[i]].values()}
    left = sorted(others - {*gallery.who[own].values()})
    return rng.choice(left) if left else ""


def has_moved_down(gallery: Gallery, phrase: str, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the pictures with the phrase, of the first LOOKED_AT before, have a larger mean rank after."""
    ranks = np.argsort(np.argsort(-after, kind="stable"), kind="stable")
    order = np.argsort(-before, kind="stable")[:LOOKED_AT]
    places = [place for place, i in enumerate(order) if phrase in gallery.who[gallery.persons[i]].values()]
    return bool(ranks[order[places]].mean() > np.mean(places))


class Measured(NamedTuple):
    """What a run found. ranks: kind -> (Q,) ranks; moved_down: of the negations, whether the model can tell the phrase,
    and whether the pictures moved down."""

    ranks: dict[str, np.ndarray]
    moved_down: list[tuple[bool, bool]]


def measure(workdir: Path, gallery: Gallery, chosen: np.ndarray) -> Measured:
    """Asks all kinds for the pictures with indices `chosen`. Raises UserError if the workdir has no model."""
    from ivt_jax.encoding.encoder import Encoder
    from ivt_jax.retrieval.queries.encoder import QueryEncoder
    from ivt_jax.retrieval.verdict import read_calibration

    encoder = Encoder(workdir)
    queries, calibration = QueryEncoder(encoder, encoder.tokenizer), read_calibration(workdir)
    nouns = calibration.nouns if calibration else {}
    images = _embed(encoder, [*gallery.pixels, *gallery.changed])
    size = len(gallery.persons)
    ranks: dict[str, list[int]] = {}
    moved_down: list[tuple[bool, bool]] = []

    def encode(query: Query) -> np.ndarray:
        return queries.encode(query, images[:size]).vector

    for picture in progress(chosen, len(chosen), f"{workdir}: ", "queries", brief=True):
        rng = random.Random(f"query/{picture}")
        for kind, trial in queries_of(gallery, int(picture), rng, encoder.tokenizer):
            scores = images[: len(trial.right)] @ encode(trial.query)
            ranks.setdefault(kind, []).append(rank(scores, trial))
            if kind == SENTENCE:
                plain, sentence = scores, trial
        own = int(gallery.persons[picture])
        phrase = unwanted(gallery, own, np.argsort(-plain, kind="stable"), rng)
        terms = (*sentence.query.terms, *([Term(phrase, -1.0)] if phrase else []))
        scores = images[:size] @ encode(Query(terms))
        ranks.setdefault("the sentence, without one thing", []).append(rank(scores, sentence))
        if phrase:
            moved_down.append((can_tell(nouns, phrase), has_moved_down(gallery, phrase, plain, scores)))
    return Measured({kind: np.array(found) for kind, found in ranks.items()}, moved_down)


def _embed(encoder: "Encoder", files: Sequence[bytes]) -> np.ndarray:
    from ivt_jax.encoding.images import load_image

    pixels = [load_image("a picture", encoder.size, content) for content in files]
    return encoder.embed(np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH))


def tables(found: Sequence[Measured], persons: np.ndarray) -> str:
    """Formats both tables in Markdown. persons: the id of each query (Q,)."""
    from ivt_jax.evaluation.ranking import bootstrap_interval

    def share(values: np.ndarray, sign: str = "") -> str:
        low, high = bootstrap_interval(values, persons)
        return f"{values.mean():{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"

    hits = {kind: np.array([100.0 * (run.ranks[kind] <= 1) for run in found]) for kind in found[0].ranks}
    plain = hits[SENTENCE].mean(0)
    lines = ["| query | R@1 of each run | R@1 | R@1 - the sentence's | R@10 |", "|---|---|---|---|---|"]
    for kind, values in hits.items():
        runs = ", ".join(f"{mean:.1f}" for mean in values.mean(1))
        ten = np.mean([100.0 * (run.ranks[kind] <= FIRST) for run in found])
        change = share(values.mean(0) - plain, "+") if values is not hits[SENTENCE] else ""
        lines.append(f"| {kind} | {runs} | {share(values.mean(0))} | {change} | {ten:.1f} |")
    lines += ["", "| unwanted phrase | negations | moved down, % of them, each run |", "|---|---|---|"]
    for known, name in ((True, "that the model can tell"), (False, "that it cannot tell")):
        moves = [[down for can, down in run.moved_down if can == known] for run in found]
        shares = ", ".join(f"{100 * np.mean(down):.1f}" if down else "-" for down in moves)
        lines.append(f"| {name} | {sum(map(len, moves)):,} | {shares} |")
    return "\n".join(lines)


def run(workdirs: Sequence[Path], root: Path | None, count: int) -> None:
    """Measures the runs one after the other and prints the tables."""
    from ivt_jax.run.workdir import load_record

    gallery = read_gallery(root or Path(load_record(workdirs[0])["config"]["data"]["root"]))
    size = len(gallery.persons)
    chosen = np.unique(np.linspace(0, size - 1, min(count, size)).astype(int))
    found = [measure(workdir, gallery, chosen) for workdir in workdirs]
    print(tables(found, gallery.persons[chosen]))


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ivt_jax.benchmarks.queries", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, type=filled_path, nargs="+", help="runs trained on PEDES-Synth")
    parser.add_argument("--root", type=filled_path, help="folder of the dataset (default: data.root of the first run)")
    parser.add_argument("--pictures", type=positive, default=400, help="how many to ask for, evenly spaced (400)")
    args = parser.parse_args(argv)
    return run_command(lambda: run(args.workdir, args.root, args.pictures))


if __name__ == "__main__":
    sys.exit(main())
