"""Resampling of skewed and irregularly spaced volumes; done only on request of the user."""

from __future__ import annotations

from itertools import product

import numpy as np

from MaskSAMCore.errors import ResourceError
from MaskSAMCore.volume import Grid

GROWTH_LIMIT = 8.0


def upright_grid(grid: Grid) -> Grid:
    """The smallest grid with axes at right angles that covers a skewed grid.

    i keeps its direction, and j its plane; k becomes their normal, with the distance of the planes as spacing. So the
    slices of a CT with gantry tilt are only shifted.

    Args:
        grid: Any invertible grid, RAS mm.

    Raises:
        ResourceError: The result would be more than `GROWTH_LIMIT` times larger.
    """
    q, r = np.linalg.qr(grid.affine[:3, :3])
    signs = np.where(np.diag(r) < 0, -1.0, 1.0)
    q, r = q * signs, r * signs[:, None]
    spacing = np.diag(r)
    corners = np.array(list(product(*((0, n - 1) for n in grid.shape[::-1])))) @ r.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    sizes = np.ceil((high - low) / spacing - 1e-6).astype(int) + 1
    growth = float(np.prod(sizes)) / float(np.prod(grid.shape))
    if growth > GROWTH_LIMIT:
        raise ResourceError("the skewed volume is too large once straightened", why=f"{growth:.1f} times its size")
    affine = np.eye(4)
    affine[:3, :3] = q * spacing
    affine[:3, 3] = grid.affine[:3, 3] + q @ low
    i, j, k = (int(n) for n in sizes)
    return Grid(shape=(k, j, i), affine=affine)


def resample_onto(array: np.ndarray, grid: Grid, target: Grid, *, fill: float | None = None) -> np.ndarray:
    """Resample `(K, J, I)` float32 linearly from `grid` to `target`; outside is `fill`, or the minimum if None."""
    from scipy.ndimage import affine_transform

    step = np.linalg.inv(grid.affine) @ target.affine
    fill = float(array.min()) if fill is None else fill
    back = step[:3, :3][::-1, ::-1]
    return affine_transform(
        array,
        back,
        step[:3, 3][::-1],
        output_shape=target.shape,
        output=np.float32,
        order=1,
        cval=fill,
        prefilter=False,
    )


def regular_planes(array: np.ndarray, positions: np.ndarray, step: float) -> tuple[np.ndarray, int]:
    """Resample planes at ascending `positions` (K,), mm, linearly to equal steps from the first.

    Returns:
        `(K', J, I)` float32, and K'.
    """
    count = int(np.floor((positions[-1] - positions[0]) / step + 1e-6)) + 1
    wanted = positions[0] + step * np.arange(count)
    above = np.clip(np.searchsorted(positions, wanted, side="right"), 1, len(positions) - 1)
    out = np.empty((count, *array.shape[1:]), dtype=np.float32)
    for k, (top, where) in enumerate(zip(above, wanted, strict=True)):
        share = np.clip((where - positions[top - 1]) / (positions[top] - positions[top - 1]), 0.0, 1.0)
        out[k] = (1.0 - share) * array[top - 1] + share * array[top]
    return out, count
