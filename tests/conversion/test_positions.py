"""Resized positions against the definition, worked out point by point."""

import math

import numpy as np
import pytest

from ivt_jax.conversion.positions import offset_points, resize_offsets, resize_positions


def slowly(grid, rows, columns, method):
    """Each new point as a weighted sum over the old points around it; beyond the border lies the border."""
    old_rows, old_columns, width = grid.shape
    result = np.zeros((rows, columns, width))
    for r in range(rows):
        for c in range(columns):
            y, x = (r + 0.5) * old_rows / rows - 0.5, (c + 0.5) * old_columns / columns - 0.5
            for i in range(math.floor(y) - 3, math.floor(y) + 5):
                for j in range(math.floor(x) - 3, math.floor(x) + 5):
                    nearest = grid[min(max(i, 0), old_rows - 1), min(max(j, 0), old_columns - 1)]
                    result[r, c] += share(y - i, method) * share(x - j, method) * nearest
    return result


def share(distance, method):
    d = abs(distance)
    if method == "bilinear":
        return max(0.0, 1 - d)
    if d <= 1:
        return 1.25 * d**3 - 2.25 * d**2 + 1
    return -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3 if d < 2 else 0.0


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("target", [(7, 3), (4, 4), (2, 9), (1, 1)])
def test_a_grid_is_resized_as_defined(method, target):
    positions = np.random.default_rng(0).normal(size=(1, 26, 3)).astype(np.float32)
    resized = resize_positions(positions, (5, 5), target, method)
    assert resized.dtype == np.float32 and resized.shape == (1, 1 + target[0] * target[1], 3)
    np.testing.assert_array_equal(resized[:, 0], positions[:, 0])
    expected = slowly(positions[0, 1:].reshape(5, 5, 3), *target, method)
    np.testing.assert_allclose(resized[0, 1:].reshape(expected.shape), expected, atol=1e-6)


def test_the_halves_of_a_ramp():
    """Four new points on two old ones, 0 and 1: a quarter of the way in from each old centre, and the border."""
    positions = np.array([9.0, 0.0, 1.0]).reshape(1, 3, 1)
    np.testing.assert_allclose(resize_positions(positions, (2, 1), (4, 1))[0, :, 0], [9, 0, 0.25, 0.75, 1])


def test_an_equal_grid_is_left_as_it_is():
    positions = np.ones((1, 5, 2), np.float32)
    assert resize_positions(positions, (2, 2), (2, 2), "bicubic") is positions


# ---- relative positions


def test_offsets_within_the_table_are_the_central_ones_to_the_bit():
    table = np.random.default_rng(0).normal(size=(2, 3, 9, 9)).astype(np.float32)  # 5x5 patches
    np.testing.assert_array_equal(resize_offsets(table, (5, 5), (5, 3), 1.0), table[..., 2:7])
    np.testing.assert_array_equal(resize_offsets(table, (5, 5), (2, 1), 2.0), table[..., 2:7:2, 4:5])
    assert resize_offsets(table, (5, 5), (5, 5), 0.5) is table


def test_offsets_between_are_those_of_a_cubic():
    """A cubic is its own spline: at half the stride, offset d reads the polynomial at d / 2."""

    def cubic(x):
        return x**3 - 2 * x**2 + 3 * x - 4

    table = np.tile(cubic(np.arange(-4.0, 5))[:, None], (1, 9))
    resized = resize_offsets(table, (5, 5), (9, 5), 0.5)
    np.testing.assert_allclose(resized[:, 0], cubic(np.arange(-8, 9) / 2), atol=1e-12)


def test_points_beyond_the_table_are_stretched_by_a_constant_factor():
    """Distances 1, 1 + q, 1 + q + q^2 with q = 1.3027756: their last is 4."""
    q = (math.sqrt(13) - 1) / 2
    points = offset_points(4, 4)
    np.testing.assert_allclose(points, [-4, -1 - q, -1, 0, 1, 1 + q, 4], atol=1e-5)
    np.testing.assert_array_equal(offset_points(4, 3), np.arange(-3, 4))
    np.testing.assert_allclose(offset_points(3, 9), [-2.5, -1, 0, 1, 2.5], atol=1e-5)  # the factor is at most 1.5


def test_offsets_beyond_all_points_have_the_farthest_number():
    table = np.arange(5.0)[:, None] * np.ones((1, 1))  # 3x1 patches, offsets -2 to 2
    resized = resize_offsets(table, (3, 1), (6, 2), 1.0)  # the points are at -2.5, -1, 0, 1, 2.5
    np.testing.assert_allclose(resized[[0, 1, 2, 5, 8, 9, 10], 0], [0, 0, 0, 2, 4, 4, 4], atol=1e-9)
    np.testing.assert_array_equal(resized, np.repeat(resized[:, :1], 3, axis=1))
