"""Scores of several datasets together: their means, and one calibration for all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ivt_jax.evaluation.calibration import TopScores

Scores = Mapping[str, Mapping[str, float]]  # by way ("t2i", "i2t") or protocol, then by name ("R1", "mAP")


def mean_of(scores: Sequence[Scores]) -> dict[str, dict[str, float]]:
    """Returns the means over datasets of the scores that all of them have; each dataset counts equally."""
    first, *others = scores
    return {
        way: {name: float(np.mean([part[way][name] for part in scores])) for name in names}
        for way, names in first.items()
        if all(way in part for part in others)
    }


def mean_summary(summaries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the summary of several datasets from that of each, by label: means of scores, sums of counts.

    Its "parts" are the labels. It has no intervals. That of val has the calibration, one for all datasets.
    """
    parts = list(summaries.values())
    mean = {"parts": list(summaries), "step": parts[0]["step"]}
    mean |= mean_of([{way: part[way] for way in ("t2i", "i2t")} for part in parts])
    mean["protocols"] = mean_of([part["protocols"] for part in parts])
    mean |= {name: sum(part[name] for part in parts) for name in ("queries", "gallery", "persons")}
    if "last" in parts[0]:
        last = [{way: part["last"][way] for way in ("t2i", "i2t")} for part in parts]
        mean["last"] = {"step": parts[0]["last"]["step"], **mean_of(last)}
        mean["selected_on"] = parts[0]["selected_on"]
    if "calibration" in parts[0] and all(part["calibration"] == parts[0]["calibration"] for part in parts):
        mean["calibration"] = parts[0]["calibration"]
    return mean


def pooled(scores: Sequence[TopScores]) -> TopScores:
    """Returns the top scores of all queries, each in the gallery of its own dataset.

    The size of the gallery is the mean over queries.
    """
    top, right, absent = (np.concatenate([getattr(s, name) for s in scores]) for name in ("top", "right", "absent"))
    gallery = np.average([s.gallery for s in scores], weights=[len(s.top) for s in scores])
    return TopScores(top, right, absent, round(float(gallery)))
