"""Resized positions against the definition, worked out point by point."""

import math

import numpy as np
import pytest

from ivt_jax.conversion.positions import resize_positions


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
