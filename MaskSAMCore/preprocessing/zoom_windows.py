"""Windows of the click model: part of a scan at some zoom, as a patch of fixed size.

A window's pixels are squares of `side` mm; its slices are as far apart as the scan's own, or as its pixels are wide, if
that is more. Training and the engine sample windows alike.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MaskSAMCore.volume import Shape, Triple

THIN, THICK = 1.6, 3.2
"""Anisotropy of the voxels from which the second and the third level are pooled within the slices only."""
CUBES: tuple[tuple[float, tuple[Shape, ...]], ...] = (
    (THIN, ((32, 64, 64), (48, 48, 48))),
    (THICK, ((24, 64, 64), (20, 80, 80))),
    (math.inf, ((16, 80, 80), (12, 96, 96))),
)
"""Sizes (D, H, W) of patches by the anisotropy of their voxels."""
AIR = 0.05
"""Share of a patch that must lie within the scan."""


def facts(spacing: Triple, finest: float, answered: bool) -> list[float]:
    """The numbers `PATCH_FACTS` of a patch.

    Args:
        spacing: Of the patch's voxels along (d, h, w), mm.
        finest: The smallest voxel side of the scan, mm.
        answered: Whether there is a former answer.
    """
    depth, height, width = spacing
    side = math.sqrt(height * width)
    return [math.log2(depth / side), math.log2(side / finest), float(answered)]


def flat_levels(spacing: Triple, levels: int) -> int:
    """How many of the first levels are pooled within the slices alone: the thicker the slices, the more.

    Args:
        spacing: Of the patch's voxels along (d, h, w), mm.
        levels: Of the network.
    """
    ratio = spacing[0] / math.sqrt(spacing[1] * spacing[2])
    return min(1 + (ratio >= THIN) + (ratio >= THICK), levels - 1)


def patch_size(anisotropy: float, rng: np.random.Generator | None = None) -> Shape:
    """(D, H, W) of a patch for voxels that are so much longer along depth; the first size without `rng`."""
    sizes = next(each for limit, each in CUBES if anisotropy < limit)
    return sizes[0] if rng is None else sizes[int(rng.integers(len(sizes)))]


def normalised(image: Tensor) -> Tensor:
    """A patch with mean 0 and deviation 1 between its 0.5th and 99.5th percentile, to which it is clipped."""
    flat = image.flatten()
    ranks = torch.tensor([0.005, 0.995], device=flat.device)
    low, high = torch.quantile(flat[:: max(1, len(flat) // 20_000)].float(), ranks)
    x = image.float().clamp(low, high)
    return (x - x.mean()) / x.std(correction=0).clamp_min(1e-6)


def seen_part(
    points: np.ndarray, shape: tuple[int, ...], steps: np.ndarray, *, least: float = AIR
) -> tuple[np.ndarray, np.ndarray] | None:
    """First and last voxel, exclusive, of the part of the volume that a patch sees.

    None if less than a share of `least` of the patch lies within the volume.
    """
    flat = points.reshape(-1, 3)
    margin = np.ceil(steps) + 1
    low = np.clip(np.floor(flat.min(0) - margin), 0, shape).astype(int)
    high = np.clip(np.ceil(flat.max(0) + margin) + 1, 0, shape).astype(int)
    seen = ((flat >= -0.5) & (flat <= np.array(shape) - 0.5)).all(1).mean()
    return (low, high) if seen > least and (high > low).all() else None


def pool_factors(steps: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many voxels are averaged along each axis before points so many voxels apart are read."""
    return tuple(int(max(1, min(math.floor(step + 0.2), n))) for step, n in zip(steps, shape, strict=True))


def sampled(array: np.ndarray, points: np.ndarray, steps: np.ndarray) -> Tensor:
    """Values (D, H, W) of an array at points (D, H, W, 3) in its voxels, averaged where the steps are large; 0 outside.

    Args:
        array: float32.
        points: In voxels of the array.
        steps: Distance of neighbouring points along each axis, in voxels.
    """
    pool = pool_factors(steps, array.shape)
    x = torch.from_numpy(array)
    if max(pool) > 1:
        x = F.avg_pool3d(x[None, None], pool, ceil_mode=True, count_include_pad=False)[0, 0]
    return read_points(x, points, pool)


def read_points(x: Tensor, points: np.ndarray, pool: tuple[int, ...]) -> Tensor:
    """Values (D, H, W) of an array that was averaged by `pool`, at points (D, H, W, 3) in voxels of before; 0 outside.

    Args:
        x: (d, h, w) float32.
        points: Where.
        pool: From `pool_factors`.
    """
    at = torch.from_numpy((points - (np.array(pool) - 1) / 2) / pool).float()
    extent = torch.tensor(x.shape) - 1
    grid = torch.where(extent > 0, at / extent.clamp_min(1) * 2 - 1, at * 2).flip(-1)[None]
    return F.grid_sample(x[None, None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0, 0]
