"""Prompts as the click model takes them: points along a click or scribble, and what a box or a lasso encloses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from MaskSAMCore.inference.autozoom import Hint
from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.volume import Shape

DENSE = 0.5
"""Points along a scribble are at most this far apart, in voxels."""


def hint_of(prompt: Prompt, axes: Sequence[int], voxel: np.ndarray, shape: Shape) -> Hint:
    """A prompt on the axes (d, h, w) of a scan.

    Args:
        prompt: Any but a mask, checked.
        axes: Axes of (K, J, I) in the order (d, h, w).
        voxel: Spacing along (d, h, w), mm.
        shape: (d, h, w) of the scan.
    """

    def turned(ijk: Sequence[Sequence[float]]) -> np.ndarray:
        return np.asarray(ijk, float)[:, ::-1][:, list(axes)]

    if prompt.kind == "point" and prompt.position is not None:
        return Hint(positive=prompt.positive, points=turned([prompt.position]))
    if prompt.kind == "scribble":
        points = along(turned(prompt.points))
        return Hint(positive=prompt.positive, points=thick(points, voxel, prompt.thickness, shape))
    if prompt.kind == "lasso":
        region, corner = enclosed(turned(prompt.points), shape)
        return Hint(positive=prompt.positive, region=region, corner=corner)
    ends = turned(prompt.corners or ())
    low = np.clip(np.floor(ends.min(0) + 0.5), 0, np.array(shape) - 1).astype(int)
    high = np.clip(np.floor(ends.max(0) + 0.5), 0, np.array(shape) - 1).astype(int)
    return Hint(positive=prompt.positive, region=np.ones(high - low + 1, bool), corner=low)


def along(points: np.ndarray) -> np.ndarray:
    """Points (n, 3) on a polyline (m, 3), at most `DENSE` voxels apart."""
    found = [points[:1]]
    for a, b in itertools.pairwise(points):
        steps = max(1, int(np.ceil(np.abs(b - a).max() / DENSE)))
        found.append(a + (b - a) * (np.arange(1, steps + 1) / steps)[:, None])
    return np.concatenate(found)


def thick(points: np.ndarray, voxel: np.ndarray, thickness: float, shape: Shape) -> np.ndarray:
    """The voxels within half a thickness (mm) of points (n, 3), beside the points themselves.

    A line that lies in a slice stays in it.
    """
    reach = np.floor(thickness / 2 / voxel).astype(int)
    reach[np.ptp(points, axis=0) < DENSE] = 0 if len(points) > 1 else reach[np.ptp(points, axis=0) < DENSE]
    if not reach.any():
        return points
    ranges = [np.arange(-r, r + 1) for r in reach]
    offsets = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = offsets[np.linalg.norm(offsets * voxel, axis=1) <= thickness / 2]
    spread = np.unique((np.rint(points)[:, None] + offsets).reshape(-1, 3), axis=0)
    inside = ((spread >= 0) & (spread < np.array(shape))).all(1)
    return np.concatenate([points, spread[inside]])


def enclosed(polygon: np.ndarray, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """What a closed polygon (n, 3) in a slice encloses: bool on a box of the scan, and the box's first voxel."""
    axis = int(np.ptp(polygon, axis=0).argmin())
    index = int(np.clip(np.floor(polygon[:, axis].mean() + 0.5), 0, shape[axis] - 1))
    plane = [n for n in range(3) if n != axis]
    outline = polygon[:, plane]
    room = np.array([shape[n] for n in plane])
    low = np.clip(np.floor(outline.min(0)), 0, room - 1).astype(int)
    high = np.clip(np.ceil(outline.max(0)), 0, room - 1).astype(int)
    rows, columns = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij")
    inside: np.ndarray = np.zeros(rows.shape, bool)
    for (y0, x0), (y1, x1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        crosses = (y0 > rows) != (y1 > rows)
        if y0 != y1:
            inside ^= crosses & (columns < (x1 - x0) * (rows - y0) / (y1 - y0) + x0)
    corner = np.zeros(3, int)
    corner[plane], corner[axis] = low, index
    return np.expand_dims(inside, axis), corner
