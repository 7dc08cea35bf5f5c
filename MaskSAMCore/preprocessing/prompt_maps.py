"""Prompts drawn into the channels `PROMPT_MAPS` of a patch; training and the engine draw them alike.

Positions are (d, h, w) in voxels of the patch, centres at integers.
"""

from __future__ import annotations

import numpy as np

from MaskSAMCore.config.network_schema import PROMPT_MAPS
from MaskSAMCore.volume import Shape

INK, NEGATIVE_INK, REGION, NEGATIVE_REGION = (PROMPT_MAPS.index(name) for name in PROMPT_MAPS[1:])
SPREAD = 1.5
"""Deviation of a point's blob, in voxels along every axis: it reaches the neighbouring slices, however thick."""
REACH = 4


def empty_maps(size: Shape) -> np.ndarray:
    """Channels without a prompt, (5, D, H, W) float32."""
    return np.zeros((len(PROMPT_MAPS), *size), np.float32)


def draw_points(maps: np.ndarray, points: np.ndarray, *, positive: bool) -> None:
    """Draw points, or the points along a scribble, (n, 3); what lies outside of the patch is left out."""
    channel = maps[INK if positive else NEGATIVE_INK]
    for point in np.atleast_2d(points):
        box = [
            slice(max(0, int(np.ceil(p - REACH))), max(0, min(n, int(np.floor(p + REACH)) + 1)))
            for p, n in zip(point, channel.shape, strict=True)
        ]
        if any(s.stop <= s.start for s in box):
            continue
        gaps = [(np.arange(s.start, s.stop) - p) / SPREAD for s, p in zip(box, point, strict=True)]
        d, h, w = (np.exp(-0.5 * gap**2) for gap in gaps)
        blob = (d[:, None, None] * h[:, None] * w).astype(np.float32)
        here = channel[tuple(box)]
        np.maximum(here, blob, out=here)


def draw_region(maps: np.ndarray, inside: np.ndarray, corner: tuple[int, int, int], *, positive: bool) -> None:
    """Draw what a box or a lasso encloses: bool (d, h, w), its first voxel at `corner`."""
    channel = maps[REGION if positive else NEGATIVE_REGION]
    here, there = [], []
    for at, length, room in zip(corner, inside.shape, channel.shape, strict=True):
        here.append(slice(max(at, 0), max(min(at + length, room), 0)))
        there.append(slice(max(-at, 0), max(min(length, room - at), 0)))
    part = channel[tuple(here)]
    np.maximum(part, inside[tuple(there)].astype(np.float32), out=part)
