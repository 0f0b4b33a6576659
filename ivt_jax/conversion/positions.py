"""Resizes learned positions from one grid of patches to another.

As PyTorch's `interpolate(align_corners=False)`, which the release uses: half-pixel centres, no antialiasing, the border
repeated. (`jax.image.resize` antialiases by default and has another cubic kernel.)

A relative position bias stays at the distance in pixels that it was learned for. If the new grid has larger distances,
the table is stretched to cover them, as in VLMo and BEiT.
"""

import math

import numpy as np

CUBIC = -0.75  # the free coefficient of the cubic kernel (Keys 1981); PyTorch's value


def resize_positions(
    positions: np.ndarray, source: tuple[int, int], target: tuple[int, int], method: str = "bilinear"
) -> np.ndarray:
    """Returns the positions (1, 1 + rows * columns, D) of grid `source` for grid `target`; that of [CLS] stays.

    Without [CLS] they are (1, rows * columns, D). Grids are (rows, columns). For equal grids the array itself is
    returned.
    """
    if tuple(source) == tuple(target):
        return positions
    first, width = positions.shape[1] - source[0] * source[1], positions.shape[-1]
    grid = positions[0, first:].reshape(*source, width).astype(np.float64)
    rows, columns = (weights(old, new, method) for old, new in zip(source, target, strict=True))
    resized = np.einsum("ri,cj,ijd->rcd", rows, columns, grid, optimize=True).reshape(1, -1, width)
    return np.concatenate([positions[:, :first], resized.astype(positions.dtype)], axis=1)


def weights(old: int, new: int, method: str) -> np.ndarray:
    """Returns (new, old): the weight of each old point of an axis in each new point."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int)
    matrix = np.zeros((new, old))
    for offset in (0, 1) if method == "bilinear" else (-1, 0, 1, 2):
        share = kernel(np.abs(centres - first - offset), method)
        np.add.at(matrix, (np.arange(new), np.clip(first + offset, 0, old - 1)), share)
    return matrix


def kernel(x: np.ndarray, method: str) -> np.ndarray:
    """Returns the weight of points at distances `x` from 0 to 2."""
    if method == "bilinear":
        return 1 - x
    near = (CUBIC + 2) * x**3 - (CUBIC + 3) * x**2 + 1
    far = CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)


def resize_offsets(table: np.ndarray, source: tuple[int, int], target: tuple[int, int], ratio: float) -> np.ndarray:
    """Returns relative position biases (..., 2 rows - 1, 2 columns - 1) of grid `source` for grid `target`.

    Grids are (rows, columns). ratio: stride of the target in pixels / stride of the source. For equal grids the array
    itself is returned.
    """
    if tuple(source) == tuple(target):
        return table
    rows, columns = (offset_weights(old, new, ratio) for old, new in zip(source, target, strict=True))
    resized = np.einsum("ri,cj,...ij->...rc", rows, columns, table.astype(np.float64), optimize=True)
    return resized.astype(table.dtype)


def offset_weights(old: int, new: int, ratio: float) -> np.ndarray:
    """Returns (2 new - 1, 2 old - 1): the weight of each old offset of an axis in each new one, by a cubic spline.

    old, new: patches along the axis. Offset d of the new grid reads the old table at offset d * ratio.
    """
    from scipy.interpolate import CubicSpline  # slow to import, and a search imports this module

    if old == 1:
        return np.ones((2 * new - 1, 1))
    wanted = np.arange(1 - new, new) * ratio
    points = offset_points(old, math.ceil((new - 1) * ratio - 1e-9))
    matrix = CubicSpline(points, np.eye(len(points)))(np.clip(wanted, points[0], points[-1]))
    places = np.searchsorted(points, wanted)
    exact = np.append(points, np.inf)[places] == wanted
    matrix[exact] = np.eye(len(points))[places[exact]]  # without the spline's rounding
    return matrix


def offset_points(old: int, farthest: int) -> np.ndarray:
    """Returns the positions (2 old - 1,) at which the spline has the old table's numbers, in patches of the old grid.

    old: patches along the axis. farthest: largest offset that the new grid reads. If the old offsets cover it, the
    positions are these offsets, such as -2, -1, 0, 1, 2. Otherwise the steps grow away from 0 by a constant factor, so
    that they reach `farthest`. As in VLMo, the factor is found by bisection between 1.01 and 1.5.
    """
    half = old - 1
    if farthest <= half:
        return np.arange(-half, half + 1.0)
    low, high, powers = 1.01, 1.5, np.arange(half)
    while high - low > 1e-6:
        factor = (low + high) / 2
        low, high = (low, factor) if (factor**powers).sum() > farthest else (factor, high)
    distances = np.cumsum(factor**powers)
    return np.concatenate([-distances[::-1], [0], distances])
