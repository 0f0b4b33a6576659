"""Calibration of text-to-image scores: is the first image right, and is the person in the gallery at all?

Fitted on validation, where every query that has a match counts twice: *present*, with the whole gallery, and *absent*,
without the images of its person. It holds for galleries of about the same size: the best of more images scores higher.
The probability that the first image is right assumes that the person is in the gallery: present queries alone fit it.
"""

from typing import NamedTuple

import numpy as np

from ivt_jax.common.errors import UserError

_CHUNK = 1024  # queries whose similarities are held at once
_BINS = 10  # of the calibration error


class TopScores(NamedTuple):
    """Best scores of the N queries that have a match."""

    top: np.ndarray  # (N,) float64, best score in the gallery
    right: np.ndarray  # (N,) bool, the first image is of the query's person; False in a tie with another person's
    absent: np.ndarray  # (N,) float64, best score without the images of the query's person; -inf without any image
    gallery: int  # number of images


class Calibration(NamedTuple):
    """Parameters fitted on validation. JSON holds `_asdict()`; `Calibration(**...)` reads it."""

    slope: float  # P(first image is right | score, person in the gallery) = sigmoid(slope * score + offset)
    offset: float
    threshold: float  # with a lower best score, nobody in the gallery fits
    miss: float  # present queries that may score below the threshold, as a share of those fitted on
    caught: float  # absent queries that score below the threshold, as a share of those fitted on
    gallery: int  # number of images fitted on
    nouns: dict[str, tuple[float, int]] = {}  # noqa: RUF012 - of `nouns.measure_nouns`, never changed


def top_scores(queries: np.ndarray, gallery: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> TopScores:
    """Returns the best dot products of (Q, D) with (G, D) float32; person ids (Q,) and (G,).

    Leaves out queries without a match. Raises UserError if none has one, or if a product is not finite.
    """
    matched = np.flatnonzero(np.isin(query_ids, gallery_ids))
    if not len(matched):
        raise UserError("no query has an item of its person in the gallery: there is nothing to calibrate")
    own, others = [], []
    for start in range(0, len(matched), _CHUNK):
        chunk = matched[start : start + _CHUNK]
        similarity = queries[chunk] @ gallery.T
        if not np.isfinite(similarity).all():
            raise UserError("a similarity is not a finite number: the parameters are not finite")
        same = query_ids[chunk, None] == gallery_ids
        own.append(similarity.max(1, where=same, initial=-np.inf))
        others.append(similarity.max(1, where=~same, initial=-np.inf))
    best, wrong = np.concatenate(own).astype(float), np.concatenate(others).astype(float)
    return TopScores(np.maximum(best, wrong), best > wrong, wrong, len(gallery))


def fit_calibration(scores: TopScores, miss: float = 0.05) -> Calibration:
    """Fits probability and threshold. Raises UserError unless 0 <= miss < 1.

    The threshold is the highest that at most the share `miss` of the n present queries scores below: their score number
    floor(miss * n) in ascending order, counted from 0.
    """
    if not 0 <= miss < 1:
        raise UserError(f"miss, the share of present queries called absent, must be between 0 and 1, not {miss}")
    slope, offset = _platt(scores.top, scores.right)
    allowed = int(miss * len(scores.top) + 1e-9)  # 0.29 * 100 is a little less than 29
    threshold = float(np.sort(scores.top)[allowed])
    return Calibration(slope, offset, threshold, miss, float((scores.absent < threshold).mean()), scores.gallery)


def probability(calibration: Calibration, score: np.ndarray | float) -> np.ndarray:
    """Returns P(first image is right | its score, person in the gallery) for scores of any shape."""
    return sigmoid(calibration.slope * np.asarray(score, float) + calibration.offset)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-x)) in a form that never overflows."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def roc(scores: TopScores) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shares of present and of absent queries below each of n thresholds, both (n,), rising from 0 to 1."""
    present, absent = np.sort(scores.top), np.sort(scores.absent)
    below = np.unique(np.concatenate([present, absent]))
    false_alarm, caught = (np.append(0.0, np.searchsorted(x, below, "right") / len(x)) for x in (present, absent))
    return false_alarm, caught


def area(high: np.ndarray, low: np.ndarray) -> float:
    """Returns P(one of `high` exceeds one of `low`), equal ones counting half; nan if one of the two is empty."""
    if not len(high) or not len(low):
        return float("nan")
    less, up_to = (np.searchsorted(np.sort(low), high, side) for side in ("left", "right"))
    return float((less + up_to).mean() / (2 * len(low)))


def judge(scores: TopScores, calibration: Calibration) -> dict[str, float]:
    """Measures a calibration on other scores than it was fitted on.

    false_alarm, caught: shares of the present and of the absent queries below the threshold. auc: area under `roc`.
    brier: mean squared error of the present queries' probabilities. ece: their expected calibration error (Guo et al.,
    ICML 2017, section 2) in ten bins with equally many queries; equal probabilities share a bin.
    """
    p = probability(calibration, scores.top)
    error = p - scores.right
    bins = np.searchsorted(np.sort(p), p, "left") * _BINS // len(p)
    return {
        "false_alarm": float((scores.top < calibration.threshold).mean()),
        "caught": float((scores.absent < calibration.threshold).mean()),
        "auc": 1 - area(scores.absent, scores.top),
        "ece": float(np.abs(np.bincount(bins, error)).sum() / len(p)),
        "brier": float((error**2).mean()),
    }


def _platt(score: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Fits slope and offset of a sigmoid (Platt, "Probabilistic outputs for support vector machines", 1999).

    Maximum likelihood with Platt's targets, (r + 1) / (r + 2) for the r right and 1 / (w + 2) for the w wrong; they
    keep the fit finite if scores separate the two. If all are right, all wrong, or all scores equal, the slope is 0.
    Newton's method with step halving, as Lin, Lin and Weng ("A note on Platt's probabilistic outputs", 2007).
    """
    r, w = int(right.sum()), int((~right).sum())
    target = np.where(right, (r + 1) / (r + 2), 1 / (w + 2))
    least, spread = score.min(), np.ptp(score) or 1.0
    x = np.stack([(score - least) / spread, np.ones(len(score))], axis=1)

    def loss(line: np.ndarray) -> float:
        return float((np.logaddexp(0, x @ line) - target * (x @ line)).sum())

    line = np.zeros(2)
    for _ in range(100):
        p = sigmoid(x @ line)
        gradient, hessian = x.T @ (p - target), (x.T * (p * (1 - p))) @ x
        step = np.linalg.lstsq(hessian, gradient)[0]  # the shortest solution if all scores are equal
        while loss(line - step) > (1 + 1e-9) * loss(line):  # by more than rounding
            step /= 2
        line = line - step
        if np.abs(step).max() <= 1e-9:
            break
    slope = float(line[0] / spread)
    return slope, float(line[1] - slope * least)
