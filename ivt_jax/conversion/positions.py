"""Positions learned for one grid of patches, resized to another.

Half-pixel centres, no antialiasing, the border repeated: PyTorch's `interpolate(align_corners=False)`, with which the
release resizes. (`jax.image.resize` antialiases unless told not to, and has another cubic kernel.)
"""

import numpy as np

METHODS = ("bilinear", "bicubic")
CUBIC = -0.75  # the free coefficient of the cubic kernel (Keys 1981); PyTorch's value


def resize_positions(
    positions: np.ndarray, source: tuple[int, int], target: tuple[int, int], method: str = "bilinear"
) -> np.ndarray:
    """(1, 1 + rows * columns, D) of the grid `source` -> the same of the grid `target`; the class token's stays.

    Grids are (rows, columns). Equal grids give back the array itself.
    """
    if tuple(source) == tuple(target):
        return positions
    width = positions.shape[-1]
    grid = positions[0, 1:].reshape(*source, width).astype(np.float64)
    rows, columns = (weights(old, new, method) for old, new in zip(source, target, strict=True))
    resized = np.einsum("ri,cj,ijd->rcd", rows, columns, grid, optimize=True).reshape(1, -1, width)
    return np.concatenate([positions[:, :1], resized.astype(positions.dtype)], axis=1)


def weights(old: int, new: int, method: str) -> np.ndarray:
    """(new, old): what each of `old` points along an axis gives to each of `new` points."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int)
    matrix = np.zeros((new, old))
    for offset in (0, 1) if method == "bilinear" else (-1, 0, 1, 2):
        share = kernel(np.abs(centres - first - offset), method)
        np.add.at(matrix, (np.arange(new), np.clip(first + offset, 0, old - 1)), share)
    return matrix


def kernel(distance: np.ndarray, method: str) -> np.ndarray:
    """The weight of a point at a distance from 0 to 2."""
    if method == "bilinear":
        return 1 - distance
    a, x = CUBIC, distance
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, far)
