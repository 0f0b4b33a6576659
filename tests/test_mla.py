"""Multi-level alignment: what is stacked into one CMPM."""

import numpy as np
import pytest

from ivt_jax.losses.contrastive import cmpm_loss
from ivt_jax.losses.mla import mla_loss

BATCH, WIDTH = 6, 5
IDS = np.array([3, 3, 8, 1, 8, 2])


@pytest.fixture(scope="module")
def sides():
    rng = np.random.default_rng(0)
    views, levels = 2 * rng.standard_normal((2, 3, BATCH, WIDTH)).astype(np.float32)
    return list(views), list(levels)


def test_three_levels_are_one_matching_of_all(sides):
    views, levels = sides
    expected = cmpm_loss(np.concatenate(views), np.concatenate(levels), np.concatenate([IDS] * 3))
    np.testing.assert_allclose(mla_loss(views, levels, IDS), expected, rtol=1e-6)


def test_levels_are_each_others_positives(sides):
    views, levels = sides
    apart = np.mean([cmpm_loss(v, t, IDS) for v, t in zip(views, levels, strict=True)])
    assert abs(mla_loss(views, levels, IDS) - apart) > 0.1


@pytest.mark.parametrize("groups", [2, 3])
def test_groups_are_the_mean_over_slices_of_the_batch(sides, groups):
    views, levels = sides
    size = BATCH // groups
    slices = [slice(start, start + size) for start in range(0, BATCH, size)]
    expected = np.mean([mla_loss([v[s] for v in views], [t[s] for t in levels], IDS[s]) for s in slices])
    np.testing.assert_allclose(mla_loss(views, levels, IDS, groups), expected, rtol=1e-6)
    assert abs(mla_loss(views, levels, IDS, groups) - mla_loss(views, levels, IDS)) > 0.1


def test_a_single_view_serves_all_levels(sides):
    views, levels = sides
    np.testing.assert_allclose(mla_loss(views[:1], levels, IDS), mla_loss(views[:1] * 3, levels, IDS), rtol=1e-6)


def test_a_single_level_serves_all_views(sides):
    views, levels = sides
    np.testing.assert_allclose(mla_loss(views, levels[1:2], IDS), mla_loss(views, levels[1:2] * 3, IDS), rtol=1e-6)


def test_one_view_and_one_level_are_plain_cmpm(sides):
    views, levels = sides
    np.testing.assert_allclose(mla_loss(views[:1], levels[:1], IDS), cmpm_loss(views[0], levels[0], IDS), rtol=1e-6)


@pytest.mark.parametrize("views, levels", [(2, 3), (3, 2)])
def test_counts_that_do_not_fit_are_refused(sides, views, levels):
    with pytest.raises(ValueError, match=f"{views} views cannot be matched with {levels} text levels"):
        mla_loss(sides[0][:views], sides[1][:levels], IDS)
