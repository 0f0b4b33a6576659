"""What a text query's best score means: whether its first image is right, and whether its person is there at all.

Learned on validation, by two questions to every query that has a match. *Present*: the gallery as it is. *Absent*: the
gallery without the images of the query's person, and so smaller by those alone. Both hold for galleries of about the
size they were learned on, since the best of more images scores higher; so that size is recorded.

The probability that the first image is right is conditional on the person being in the gallery: it is fitted to the
present queries alone. How often people ask for somebody who is not there, no dataset tells; for that there is the
threshold.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ivt_jax.common.errors import UserError

_CHUNK = 1024  # queries whose similarities are held at once
_BINS = 10  # of the calibration error


class TopScores(NamedTuple):
    """Best scores of the N queries that have a match."""

    top: np.ndarray  # (N,) float64, of all images
    right: np.ndarray  # (N,) bool: the first image is of the query's person; a wrong one with the same score is first
    absent: np.ndarray  # (N,) float64, of the images of other persons; -inf where there is none
    gallery: int  # number of images


class Calibration(NamedTuple):
    """What validation says of scores: plain numbers, so JSON holds `_asdict()` and `Calibration(**...)` reads it."""

    slope: float  # P(first image is right | score, person in the gallery) = sigmoid(slope * score + offset)
    offset: float
    threshold: float  # a best score below it: nobody in the gallery fits
    miss: float  # at most this share of the present queries is called absent, on the scores it was learned on
    caught: float  # share of the absent queries that is called absent there
    gallery: int  # number of images there


class Roc(NamedTuple):
    """Absence told by a low best score, for every threshold, from none called absent to all."""

    false_alarm: np.ndarray  # (points,) share of the present queries that are called absent, from 0 to 1
    caught: np.ndarray  # (points,) share of the absent queries that are called absent, from 0 to 1
    auc: float  # P(an absent query scores lower than a present one), equal scores counting half


def top_scores(queries: np.ndarray, gallery: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> TopScores:
    """Best scores by the dot products of (Q, D) and (G, D) float32; person ids (Q,) and (G,).

    Queries without a match are left out: they are absent already. UserError where none has one.
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
    """Learns probability and threshold; UserError for `miss` outside 0..1 (1 excluded).

    The threshold is the highest that calls at most the share `miss` of the present queries absent: of their n scores
    in ascending order number floor(miss * n), from 0.
    """
    if not 0 <= miss < 1:
        raise UserError(f"the share of present queries called absent lies between 0 and 1, not {miss}")
    slope, offset = _platt(scores.top, scores.right)
    allowed = int(miss * len(scores.top) + 1e-9)  # 0.29 * 100 is a little less than 29
    threshold = float(np.sort(scores.top)[allowed])
    return Calibration(slope, offset, threshold, miss, float((scores.absent < threshold).mean()), scores.gallery)


def probability(calibration: Calibration, score: np.ndarray | float) -> np.ndarray:
    """P(the first image is of the person described | its score (...), the person is in the gallery)."""
    return expit(calibration.slope * np.asarray(score, float) + calibration.offset)


def roc(scores: TopScores) -> Roc:
    """The curve of telling absence, with a point for each distinct score, and its area (Mann-Whitney, exact)."""
    present, absent = np.sort(scores.top), np.sort(scores.absent)
    below = np.unique(np.concatenate([present, absent]))  # called absent: up to and with this score
    false_alarm, caught = (np.searchsorted(x, below, "right") / len(x) for x in (present, absent))
    less, up_to = (np.searchsorted(present, absent, side) for side in ("left", "right"))
    auc = 1 - (less + up_to).mean() / (2 * len(present))
    return Roc(np.append(0.0, false_alarm), np.append(0.0, caught), float(auc))


def judge(scores: TopScores, calibration: Calibration) -> dict[str, float]:
    """How a calibration holds on other scores.

    false_alarm: share of the present queries called absent; caught: share of the absent ones; auc: as in `roc`.
    Of the probability, over the present queries: brier, its mean squared error; ece, the expected calibration error
    (Guo et al., ICML 2017, section 2): in ten bins of equal count by probability, those with equal ones in the same,
    how far its mean lies from the share that is right, averaged with the bins' counts as weights.
    """
    p = probability(calibration, scores.top)
    error = p - scores.right
    bins = np.searchsorted(np.sort(p), p, "left") * _BINS // len(p)
    return {
        "false_alarm": float((scores.top < calibration.threshold).mean()),
        "caught": float((scores.absent < calibration.threshold).mean()),
        "auc": roc(scores).auc,
        "ece": float(np.abs(np.bincount(bins, error)).sum() / len(p)),
        "brier": float((error**2).mean()),
    }


def _platt(score: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Slope and offset of Platt's sigmoid ("Probabilistic outputs for support vector machines", 1999).

    Maximum likelihood with his targets, (r + 1) / (r + 2) for the r right and 1 / (w + 2) for the w wrong, which keep
    the fit finite where the scores separate the two. Where all are right, all wrong, or all scores equal, they tell
    nothing: the slope is 0 and the probability constant. Newton's method, halving steps that lose, as Lin, Lin and
    Weng ("A note on Platt's probabilistic outputs", 2007).
    """
    r, w = int(right.sum()), int((~right).sum())
    target = np.where(right, (r + 1) / (r + 2), 1 / (w + 2))
    least, spread = score.min(), np.ptp(score) or 1.0
    x = np.stack([(score - least) / spread, np.ones(len(score))], axis=1)

    def loss(line: np.ndarray) -> float:
        return float((np.logaddexp(0, x @ line) - target * (x @ line)).sum())

    line = np.zeros(2)
    for _ in range(100):
        p = expit(x @ line)
        gradient, hessian = x.T @ (p - target), (x.T * (p * (1 - p))) @ x
        step = np.linalg.lstsq(hessian, gradient)[0]  # of least length where the scores are all equal
        while loss(line - step) > (1 + 1e-9) * loss(line):  # more than rounding
            step /= 2
        line = line - step
        if np.abs(step).max() <= 1e-9:
            break
    slope = float(line[0] / spread)
    return slope, float(line[1] - slope * least)
