"""The report of a run: one HTML file that contains its figures, pictures and style, and opens offline."""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.annotations import title_of
from input_pipeline.datasets import datasets_of, folder_of, shared_warning, title_of_data
from ivt_jax.common.errors import UserError
from ivt_jax.common.files import lines_of, printable, write_text
from ivt_jax.encoding.images import open_image
from ivt_jax.evaluation.protocols import Embeddings, standard_dedup
from ivt_jax.evaluation.ranking import first_found
from ivt_jax.pages.figures import cmc_figure, loss_figures, roc_figure, validation_figures
from ivt_jax.pages.render import TEMPLATES, data_uri, render
from ivt_jax.run.workdir import flatten, load_record, read_json

TOP = 10  # results of each query shown
QUERIES, FAILURES, SEED = 20, 8, 0
_THUMBNAIL = (160, 192)  # largest width and height


def write_report(workdir: Path | str) -> Path:
    """Writes report.html from the files of a run; without test results it shows the training curves only.

    Raises UserError if the folder has neither a config.json nor a metrics.jsonl.
    """
    workdir = Path(workdir)
    run = load_record(workdir) if (workdir / "config.json").exists() else {}
    training, validation = read_metrics(workdir / "metrics.jsonl")
    if not run and not training and not validation:
        raise UserError(f"{workdir} has no config.json and no metrics.jsonl: name the --workdir of a run")
    config = run.pop("config", {})
    data = config.get("data", {})
    sections = {
        "dataset": title_of_data(data) if data else "a dataset of its own",
        "run": workdir.resolve().name,
        "curves": loss_figures(training) + validation_figures(validation),
        "config": {key: json.dumps(value) for key, value in flatten(config).items()},
        "environment": environment_rows(run, training),
    }
    split, summary = reported_split(workdir)
    if summary:
        sections |= split_sections(workdir, split, summary, data)
    if (workdir / "cross_domain.json").exists():
        sections["matrix"] = matrix_section(json.loads((workdir / "cross_domain.json").read_text(encoding="utf-8")))
    path = workdir / "report.html"
    write_text(path, render(TEMPLATES / "report.html", **sections))
    return path


def reported_split(workdir: Path) -> tuple[str, dict[str, Any]]:
    """Returns the split that the report shows, and its summary, {} before an evaluation.

    It is test, or val if the evaluation found no test split.
    """
    for split in ("test", "val"):
        summary = read_json(workdir / split / "summary.json")
        if "last" in summary:  # only the split that is reported has the scores of the last checkpoint
            return split, summary
    return "test", {}


def read_metrics(path: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Reads the training lines and the validation lines of metrics.jsonl, up to a line cut short by a crash."""
    lines = []
    for line in lines_of(path.read_bytes().decode()) if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [x for x in lines if "loss" in x], [x for x in lines if any(key.endswith("/t2i/R1") for key in x)]


def split_sections(workdir: Path, split: str, summary: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Returns the page's sections on the reported split: results of each dataset, and a warning about shared persons.

    summary: of the split, with several datasets the means. data: of the run's config.
    """
    if "parts" not in summary:
        return {"split": split, "summary": summary, "results": [retrieval_sections(workdir / split)]}
    datasets = [dataset for dataset in datasets_of(data) if dataset.label in summary["parts"]]
    results = [
        {"title": d.title, "label": d.label, **retrieval_sections(workdir / folder_of(split, d.label))}
        for d in datasets
    ]
    shared = shared_warning([d.name for d in datasets_of(data)], [d.name for d in datasets])
    return {"split": split, "summary": summary, "results": results, "shared": shared}


def retrieval_sections(folder: Path) -> dict[str, Any]:
    """Returns the results of one dataset, from the folder of the reported split."""
    summary, items = read_json(folder / "summary.json"), read_json(folder / "items.json")
    with np.load(folder / "embeddings.npz") as arrays:
        e = Embeddings(**arrays)
    ranks = standard_dedup(e)  # the page shows every image once
    first = ranks["t2i"].first
    sections = {
        "summary": summary,
        "chance": chance(e.text_person, e.image_person),
        "cmc": cmc_figure({"text to image": ranks["t2i"], "image to text": ranks["i2t"]}, summary["oracle_R1"]),
        "roc": roc_figure(summary["calibration"]["roc"]) if "roc" in summary.get("calibration", {}) else None,
        "strips": [strip(q, e, items, first) for q in sample_queries(first)],
        "failures": [strip(q, e, items, first) for q in hardest_queries(first, e.text_person)],
    }
    attributes = read_json(Path(items["root"]) / "attributes.json") if summary["oracle_R1"] is not None else {}
    if persons := attributes.get("persons"):
        top = np.concatenate([(e.text[q : q + 1024] @ e.image.T).argmax(1) for q in range(0, len(e.text), 1024)])
        sections |= attribute_sections(persons, e.text_person, e.image_person[top], e.image_person)
    return sections


def matrix_section(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Groups the cells of `cross_domain` by run: a row for each run, a column for each test dataset."""
    rows = [list(row) for _, row in groupby(cells, key=lambda cell: cell["run"])]
    return {
        "tests": [title_of(cell["tested_on"]) for cell in rows[0]],
        "rows": [{"run": r[0]["run"], "trained_on": title_of(r[0]["trained_on"]), "cells": r} for r in rows],
        "warnings": list(dict.fromkeys(cell["warning"] for cell in cells if cell["warning"])),
    }


def chance(query_ids: np.ndarray, gallery_ids: np.ndarray) -> float:
    """Returns the expected R@1, in percent, of a gallery in random order."""
    persons, counts = np.unique(gallery_ids, return_counts=True)
    known = query_ids[np.isin(query_ids, persons)]
    return 100 * float(np.mean(counts[np.searchsorted(persons, known)])) / len(gallery_ids)


def sample_queries(first: np.ndarray) -> np.ndarray:
    """Draws QUERIES of the queries that have a match, with a fixed seed. first (Q,): rank of the best match, or nan."""
    known = np.flatnonzero(~np.isnan(first))
    return np.sort(np.random.default_rng(SEED).choice(known, min(QUERIES, len(known)), replace=False))


def hardest_queries(first: np.ndarray, persons: np.ndarray) -> list[int]:
    """Returns the FAILURES queries whose best match has the worst rank, one for each person; rank 1 is no failure."""
    order = np.argsort(-first, kind="stable")
    order = order[first[order] > 1]  # drops nan, too
    _, worst = np.unique(persons[order], return_index=True)
    return order[np.sort(worst)[:FAILURES]].tolist()


def strip(query: int, e: Embeddings, items: dict[str, Any], first: np.ndarray) -> dict[str, Any]:
    """Returns a caption, the crop it was written for, and its first TOP results; ties as in `ranking`."""
    scores, right = e.image @ e.text[query], e.image_person == e.text_person[query]
    paths = [Path(items["images"]) / path for path in items["paths"]]
    return {
        "caption": items["captions"][query],
        "own": crop(paths[e.text_image[query]]),
        "crops": [crop(paths[i], scores[i], bool(right[i])) for i in first_found(scores, right, TOP)],
        "first": int(first[query]),
    }


def crop(path: Path, score: float | None = None, hit: bool | None = None) -> dict[str, Any]:
    """Returns one picture of a strip. hit: outlines it green (True) or red (False)."""
    return {"image": thumbnail(path), "name": printable(path.name), "score": score, "hit": hit}


@functools.lru_cache(maxsize=4096)
def thumbnail(path: Path) -> str | None:
    """Returns a small JPEG of the picture as a data URI; None if it cannot be read."""
    try:
        image = open_image(path)
    except UserError:
        return None
    image.thumbnail(_THUMBNAIL)
    return data_uri(image)


def attribute_sections(
    persons: dict[str, dict[str, str]], true_ids: np.ndarray, found_ids: np.ndarray, gallery_ids: np.ndarray
) -> dict[str, Any]:
    """Compares the attributes of each query's person with those of its first crop, and of a random crop.

    persons: person id -> attributes; true_ids, found_ids (Q,): the query's person, and the first crop's.
    """
    true, found, gallery = ([persons[str(i)] for i in ids.tolist()] for ids in (true_ids, found_ids, gallery_ids))
    shares = []
    for name in true[0]:
        frequency = Counter(person[name] for person in gallery)
        same = np.mean([t[name] == f[name] for t, f in zip(true, found, strict=True)])
        random = np.mean([frequency[t[name]] / len(gallery) for t in true])
        shares.append({"name": name.replace("_", " "), "share": 100 * float(same), "chance": 100 * float(random)})
    names = [name for name in ("upper_colour", "lower_colour") if name in true[0]]
    return {
        "attributes": sorted(shares, key=lambda row: -row["share"]),
        "confusions": [confusion(name, [t[name] for t in true], [f[name] for f in found]) for name in names],
    }


def confusion(name: str, true: list[str], found: list[str]) -> dict[str, Any]:
    """Returns a confusion matrix, person described (rows) by first crop (columns); a row's shares add up to 100."""
    values = sorted({*true, *found}, key=lambda value: (-true.count(value), value))
    counts = np.zeros((len(values), len(values)))
    np.add.at(counts, ([values.index(t) for t in true], [values.index(f) for f in found]), 1)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = [{"value": v, "queries": int(c.sum()), "shares": s} for v, c, s in zip(values, counts, shares, strict=True)]
    return {"name": name.replace("_", " "), "values": values, "rows": rows}


def environment_rows(run: dict[str, Any], training: Sequence[dict[str, float]]) -> dict[str, str]:
    """Returns device, versions and speed of a run."""
    rows = {"device": run.get("device", ""), "git revision": run.get("revision", "")} | run.get("versions", {})
    rates = [line["pairs_per_second"] for line in training if "pairs_per_second" in line]
    if rates:
        rows["throughput"] = f"{np.median(rates):.0f} (image, caption) pairs per second, median"
    waits = [line["input_wait"] for line in training if "input_wait" in line]
    if waits:
        rows["waiting for input"] = f"at most {np.mean(waits):.1%} of the time"
    return {name: value for name, value in rows.items() if value}
