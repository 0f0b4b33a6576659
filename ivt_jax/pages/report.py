"""The report of a run: one HTML file with its figures, pictures and style inside, that opens anywhere, offline."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.annotations import title_of
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import lines_of, printable, write_text
from ivt_jax.encoding.images import open_image
from ivt_jax.evaluation.protocols import Embeddings, standard_dedup
from ivt_jax.evaluation.ranking import first_found
from ivt_jax.pages.figures import cmc_figure, loss_figures, roc_figure, validation_figures
from ivt_jax.pages.render import TEMPLATES, data_uri
from ivt_jax.pages.render import render as render_page
from ivt_jax.run.workdir import flatten, load_record, read_json

TOP = 10
QUERIES, FAILURES, SEED = 20, 8, 0
_THUMBNAIL = (160, 192)  # width, height at most


def write_report(workdir: Path | str) -> Path:
    """Writes report.html from what a run left in its workdir; without test results it shows the curves alone.

    Raises UserError where the folder holds neither a config.json nor a metrics.jsonl.
    """
    workdir = Path(workdir)
    run = load_record(workdir) if (workdir / "config.json").exists() else {}
    training, validation = read_metrics(workdir / "metrics.jsonl")
    if not run and not training and not validation:
        raise UserError(f"{workdir} has no config.json and no metrics.jsonl: name the --workdir of a run")
    config = run.pop("config", {})
    sections = {
        "dataset": title_of(config.get("data", {}).get("name", "a dataset of its own")),
        "run": workdir.resolve().name,
        "curves": loss_figures(training) + validation_figures(validation),
        "config": {key: json.dumps(value) for key, value in flatten(config).items()},
        "environment": environment_rows(run, training),
    }
    if (workdir / "test" / "summary.json").exists():
        sections |= retrieval_sections(workdir / "test")
    if (workdir / "cross_domain.json").exists():
        sections["matrix"] = matrix_section(json.loads((workdir / "cross_domain.json").read_text(encoding="utf-8")))
    path = workdir / "report.html"
    write_text(path, render(**sections))
    return path


def render(**sections: Any) -> str:
    """The page with the sections given; report.html says what each consists of, and leaves out those that lack."""
    return render_page(TEMPLATES / "report.html", **sections)


def read_metrics(path: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The training lines and the validation lines of metrics.jsonl; a last line cut short by a crash is left out."""
    lines = []
    for line in lines_of(path.read_bytes().decode()) if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [x for x in lines if "loss" in x], [x for x in lines if any(key.endswith("/t2i/R1") for key in x)]


def retrieval_sections(folder: Path) -> dict[str, Any]:
    """What the page shows of the test split."""
    summary, items = read_json(folder / "summary.json"), read_json(folder / "items.json")
    with np.load(folder / "embeddings.npz") as arrays:
        embeddings = Embeddings(**arrays)
    image, text, image_person, text_person, *_ = embeddings
    both = standard_dedup(embeddings)  # the page shows every image once
    ranks = {"text to image": both["t2i"], "image to text": both["i2t"]}
    first = ranks["text to image"].first
    sections = {
        "summary": summary,
        "chance": chance(text_person, image_person),
        "cmc": cmc_figure(ranks, summary["oracle_R1"]),
        "roc": roc_figure(summary["calibration"]["roc"]) if "calibration" in summary else None,
        "strips": [strip(q, embeddings, items, first) for q in sample_queries(first)],
        "failures": [strip(q, embeddings, items, first) for q in hardest_queries(first, text_person)],
    }
    persons = read_json(Path(items["root"]) / "attributes.json").get("persons")
    if persons:
        top = np.concatenate([(text[q : q + 1024] @ image.T).argmax(1) for q in range(0, len(text), 1024)])
        sections |= attribute_sections(persons, text_person, image_person[top], image_person)
    return sections


def matrix_section(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The matrix of `cross_domain`: a row for each run, a column for each dataset it was tested on."""
    tests = list(dict.fromkeys(cell["tested_on"] for cell in cells))
    rows = []
    for run in dict.fromkeys(cell["run"] for cell in cells):
        row = {cell["tested_on"]: cell for cell in cells if cell["run"] == run}
        trained_on = row[tests[0]]["trained_on"]
        rows.append({"run": run, "trained_on": title_of(trained_on), "cells": [row[t] for t in tests]})
    warnings = list(dict.fromkeys(cell["warning"] for cell in cells if cell["warning"]))
    return {"tests": [title_of(test) for test in tests], "rows": rows, "warnings": warnings}


def chance(query_ids: np.ndarray, gallery_ids: np.ndarray) -> float:
    """R@1 in percent that a random order of the gallery is expected to reach."""
    persons, counts = np.unique(gallery_ids, return_counts=True)
    images = dict(zip(persons.tolist(), counts.tolist(), strict=True))
    return 100 * float(np.mean([images[i] for i in query_ids.tolist() if i in images])) / len(gallery_ids)


def sample_queries(first: np.ndarray) -> np.ndarray:
    """QUERIES of the queries with a match, drawn with a fixed seed: no picking."""
    known = np.flatnonzero(~np.isnan(first))
    return np.sort(np.random.default_rng(SEED).choice(known, min(QUERIES, len(known)), replace=False))


def hardest_queries(first: np.ndarray, persons: np.ndarray) -> list[int]:
    """The FAILURES queries whose person comes last, one for each person; a query that succeeds is none."""
    worst: dict[int, int] = {}
    for query in np.argsort(-first, kind="stable"):  # nan sorts last
        if first[query] > 1 and len(worst) < FAILURES:
            worst.setdefault(int(persons[query]), int(query))
    return list(worst.values())


def strip(query: int, embeddings: Embeddings, items: dict[str, Any], first: np.ndarray) -> dict[str, Any]:
    """A caption, the crop it was written for, and the TOP crops found; ties as in `ranking`."""
    image, text, image_person, text_person, text_image, _ = embeddings
    scores, right = image @ text[query], image_person == text_person[query]
    order = first_found(scores, right, TOP)
    folder = Path(items["images"])
    crops = [crop(folder / items["paths"][i], scores[i], bool(right[i])) for i in order]
    own = crop(folder / items["paths"][text_image[query]])
    return {"caption": items["captions"][query], "own": own, "crops": crops, "first": int(first[query])}


def crop(path: Path, score: float | None = None, hit: bool | None = None) -> dict[str, Any]:
    """One picture of a strip: outlined green or red where `hit` is known."""
    return {"image": thumbnail(path), "name": printable(path.name), "score": score, "hit": hit}


@functools.lru_cache(maxsize=4096)
def thumbnail(path: Path) -> str | None:
    """The picture as a data URI of a small JPEG; None where it cannot be read."""
    try:
        image = open_image(path)
    except UserError:
        return None
    image.thumbnail(_THUMBNAIL)
    return data_uri(image)


def attribute_sections(
    persons: dict[str, dict[str, str]], true_ids: np.ndarray, found_ids: np.ndarray, gallery_ids: np.ndarray
) -> dict[str, Any]:
    """How the first crop of each query agrees with the right person, attribute by attribute, beside a random crop."""
    true, found, gallery = ([persons[str(i)] for i in ids.tolist()] for ids in (true_ids, found_ids, gallery_ids))
    shares = []
    for name in true[0]:
        values, codes = np.unique([person[name] for person in gallery], return_inverse=True)
        frequency = dict(zip(values.tolist(), (np.bincount(codes) / len(gallery)).tolist(), strict=True))
        shares.append(
            {
                "name": name.replace("_", " "),
                "share": 100 * float(np.mean([t[name] == f[name] for t, f in zip(true, found, strict=True)])),
                "chance": 100 * float(np.mean([frequency.get(t[name], 0.0) for t in true])),
            }
        )
    names = [name for name in ("upper_colour", "lower_colour") if name in true[0]]
    return {
        "attributes": sorted(shares, key=lambda row: -row["share"]),
        "confusions": [confusion(name, [t[name] for t in true], [f[name] for f in found]) for name in names],
    }


def confusion(name: str, true: list[str], found: list[str]) -> dict[str, Any]:
    """Rows: what the right person wears; columns: what the first crop wears; the shares of a row add up to 100."""
    values = sorted({*true, *found}, key=lambda value: (-true.count(value), value))
    counts = np.zeros((len(values), len(values)))
    np.add.at(counts, ([values.index(t) for t in true], [values.index(f) for f in found]), 1)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = [{"value": v, "queries": int(c.sum()), "shares": s} for v, c, s in zip(values, counts, shares, strict=True)]
    return {"name": name.replace("_", " "), "values": values, "rows": rows}


def environment_rows(run: dict[str, Any], training: Sequence[dict[str, float]]) -> dict[str, str]:
    """Where and with what the run was made, and how fast it was."""
    rows = {"device": run.get("device", ""), "git revision": run.get("revision", "")} | run.get("versions", {})
    rates = [line["pairs_per_second"] for line in training if "pairs_per_second" in line]
    if rates:
        rows["throughput"] = f"{np.median(rates):.0f} (image, caption) pairs per second, median"
    waits = [line["input_wait"] for line in training if "input_wait" in line]
    if waits:
        rows["waiting for input"] = f"at most {np.mean(waits):.1%} of the time"
    return {name: value for name, value in rows.items() if value}
