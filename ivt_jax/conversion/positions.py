"""Resizes learned positions from one grid of patches to another.

As PyTorch's `interpolate(align_corners=False)`, which the release uses: half-pixel centres, no antialiasing, the border
repeated. (`jax.image.resize` antialiases by default and has another cubic kernel.)
"""

import numpy as np

CUBIC = -0.75  # the free coefficient of the cubic kernel (Keys 1981); PyTorch's value


def resize_positions(
    positions: np.ndarray, source: tuple[int, int], target: tuple[int, int], method: str = "bilinear"
) -> np.ndarray:
    """Returns the positions (1, 1 + rows * columns, D) of grid `source` for grid `target`; that of [CLS] stays.

    Grids are (rows, columns). For equal grids the array itself is returned.
    """
    if tuple(source) == tuple(target):
        return positions
    width = positions.shape[-1]
    grid = positions[0, 1:].reshape(*source, width).astype(np.float64)
    rows, columns = (weights(old, new, method) for old, new in zip(source, target, strict=True))
    resized = np.einsum("ri,cj,ijd->rcd", rows, columns, grid, optimize=True).reshape(1, -1, width)
    return np.concatenate([positions[:, :1], resized.astype(positions.dtype)], axis=1)


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
