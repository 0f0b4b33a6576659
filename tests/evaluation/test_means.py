import numpy as np
import pytest

from ivt_jax.evaluation.calibration import TopScores
from ivt_jax.evaluation.means import mean_of, mean_summary, pooled


def summary(r1, queries, **more):
    """A summary of test with one score, whatever the protocol."""
    ways = {"t2i": {"R1": r1}, "i2t": {"R1": r1 + 1}}
    return {
        "step": 40, **ways, "interval": {"t2i": {"R1": [0, 100]}}, "queries": queries, "gallery": 3, "persons": 2,
        "protocols": {"standard": {"R1": r1}, **more}, "selected_on": "val",
        "last": {"step": 60, "t2i": {"R1": r1 - 2}, "i2t": {"R1": 0.0}}, "oracle_R1": None,
    }  # fmt: skip


def test_datasets_count_equally_whatever_their_size():
    mean = mean_summary({"cuhk": summary(30.0, 6000, release={"R1": 5.0}), "own": summary(60.0, 10)})
    assert mean == {
        "parts": ["cuhk", "own"], "step": 40, "t2i": {"R1": 45.0}, "i2t": {"R1": 46.0}, "queries": 6010, "gallery": 6,
        "persons": 4, "protocols": {"standard": {"R1": 45.0}}, "selected_on": "val",
        "last": {"step": 60, "t2i": {"R1": 43.0}, "i2t": {"R1": 0.0}},
    }  # fmt: skip


def test_one_dataset_is_its_own_mean():
    scores = {"t2i": {"R1": 100 / 3, "mAP": 0.1}, "i2t": {"R1": 2 / 7, "mAP": 0.2}}
    assert mean_of([scores]) == scores


def test_queries_of_all_datasets_are_pooled():
    one = TopScores(np.array([0.5]), np.array([True]), np.array([0.25]), 10)
    other = TopScores(np.array([0.7, 0.8, 0.9]), np.array([False] * 3), np.array([0.1, 0.2, 0.3]), 30)
    both = pooled([one, other])
    assert (both.top.tolist(), both.right.tolist()) == ([0.5, 0.7, 0.8, 0.9], [True, False, False, False])
    assert both.absent.tolist() == [0.25, 0.1, 0.2, 0.3]
    assert both.gallery == pytest.approx((10 + 3 * 30) / 4)
