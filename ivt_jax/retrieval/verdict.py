"""Says what the best score of a search means, by the calibration that validation has measured."""

import json
from pathlib import Path
from typing import NamedTuple

from ivt_jax.common.errors import UserError
from ivt_jax.evaluation.calibration import Calibration, probability
from ivt_jax.retrieval.queries.query import Query
from ivt_jax.run.workdir import load_record

_MOST_GALLERIES = 10  # times the gallery of validation; in a larger index a good score comes too often by chance


class Judged(NamedTuple):
    """What the best score of an answer means. probability: that the first picture is right; None: no estimate."""

    verdict: str
    good: bool | None = None
    probability: float | None = None


def judge(
    calibration: Calibration | None, query: Query, best: float | None, searched: int, unread: str, unfinished: str
) -> Judged:
    """Says what the best score means.

    best: None if there is no result. searched: number of pictures. unread: the parts of the query that the model does
    not read. unfinished: states that a build still adds pictures. The last two are "" for nothing.
    """
    none = "No confidence estimate"
    if unfinished:  # the right picture may not be in yet
        return Judged(f"{'No such picture yet' if best is None else none}: {unfinished}")
    if best is None and searched:
        return Judged(f"{none}: all {searched:,} pictures are the query's own or were rejected")
    if best is None:
        return Judged("no good match: there is no such picture", good=False)
    if calibration is None:
        return Judged("")
    if beyond := _beyond_calibration(query):
        most = "calibration covers single sentences without filters"
        return Judged(f"{none}: {most}; this query has {beyond}")
    if unread:
        return Judged(f"{none}: the model does not read the whole sentence")
    gallery, threshold = calibration.gallery, calibration.threshold
    source = f"(from validation, with {gallery:,} pictures)"
    covered = searched <= _MOST_GALLERIES * gallery
    right = float(probability(calibration, best))
    if best < threshold:
        verdict = f"no good match: the best score lies below {threshold:.4f} {source}"
        return Judged(verdict, False, right if covered else None)
    if not covered:
        return Judged(f"{none}: calibration with {gallery:,} pictures does not cover {searched:,}")
    verdict = f"{right:.0%} likely that the first picture is right, if the person is in the index {source}"
    return Judged(verdict, True, right)


def _beyond_calibration(query: Query) -> str:
    """Returns a part of the query for which calibration has no probability, "" if there is none."""
    parts = {
        "a picture": query.image is not None or query.like is not None,
        "rejected pictures": bool(query.unlike),
        "a filter": bool(query.where.strip()),
        "an unwanted part": any(term.weight < 0 for term in query.terms),
        f"{len(query.terms)} sentences": len(query.terms) > 1,
    }
    return next((part for part, has in parts.items() if has), "")


def read_calibration(workdir: Path) -> Calibration | None:
    """Reads the calibration from the validation results of a run, or from config.json of an export; None if absent.

    Raises UserError if it is damaged.
    """
    path, remedy = workdir / "val/summary.json", "evaluate the run again, --mode=evaluate"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not summary:
            path, remedy = workdir / "config.json", "export the run again"
            summary = load_record(workdir).get("scores", {}).get("val", {})
        return Calibration(**summary["calibration"]) if "calibration" in summary else None
    except UserError:
        raise
    except (TypeError, ValueError):
        raise UserError(f"{path} is damaged: {remedy}") from None
