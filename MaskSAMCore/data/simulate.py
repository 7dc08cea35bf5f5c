"""Simulated clicks and boxes for a target mask, in training and evaluation (model.md §6.6).

All random numbers come from the given generator. Clicks are array indices with voxel centres at integers, boxes are as
in `preprocessing.masks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MaskSAMCore.errors import InputError
from MaskSAMCore.preprocessing.masks import Box2D, bounds, interior_point, interior_voxel, largest_component

_LEAST_DIRECTION = 0.05
"""Shorter directions would need steps of many box sides; see `box_with_overlap`."""


@dataclass(frozen=True)
class Click:
    """A click on a voxel.

    Attributes:
        position: Index of the voxel, in the order of the axes of the array.
        positive: True for a click inside the structure, False for one outside.
    """

    position: tuple[int, ...]
    positive: bool


def _choose(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    places = np.flatnonzero(mask)
    chosen = rng.choice(places, size=min(count, places.size), replace=False)
    return np.stack(np.unravel_index(chosen, mask.shape), axis=-1).astype(float)


def random_clicks(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw different pixels of a mask uniformly: positive clicks.

    Args:
        mask: (H, W).
        count: Number of pixels; all pixels if there are fewer.
        rng: Random generator.

    Returns:
        (n, 2) float, (y, x).
    """
    return _choose(mask, count, rng)


def ring_clicks(
    mask: np.ndarray, count: int, rng: np.random.Generator, *, ring: float = 10, forbidden: np.ndarray | None = None
) -> np.ndarray:
    """Draw different background pixels near a mask uniformly: negative clicks.

    Args:
        mask: (H, W).
        count: Number of pixels; all if there are fewer.
        rng: Random generator.
        ring: Largest distance from the mask, in pixels.
        forbidden: (H, W), pixels where no click may be.

    Returns:
        (n, 2) float, (y, x); n is 0 for an empty mask.
    """
    found = bounds(mask)
    if found is None:
        return np.zeros((0, 2))
    reach = math.ceil(ring)
    near = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in found)
    outside = ~np.asarray(mask[near], bool)
    allowed = outside & (ndimage.distance_transform_edt(outside) <= ring)
    if forbidden is not None:
        allowed &= ~np.asarray(forbidden[near], bool)
    return _choose(allowed, count, rng) + [s.start for s in near]


def error_click(
    predicted: np.ndarray,
    target: np.ndarray,
    *,
    rng: np.random.Generator | None = None,
    spacing: Sequence[float] | None = None,
) -> Click | None:
    """The next corrective click: on the largest face-connected component of missing or of superfluous voxels.

    Among equally large components a missing one comes first, then the first in row-major order.

    Args:
        predicted: (H, W) or (D, H, W), mask of the model.
        target: The true mask, of the same shape.
        rng: Random generator for a random voxel of the component, as in training; None for its innermost voxel.
        spacing: Spacing of the axes, for the innermost voxel; None if all are equal.

    Returns:
        A positive click on a missing component, a negative one on a superfluous one, or None if there is no error.

    Raises:
        InputError: The shapes differ, or have neither two nor three axes.
    """
    if predicted.shape != target.shape or target.ndim not in (2, 3):
        shapes = f"{tuple(predicted.shape)} and {tuple(target.shape)}"
        raise InputError(f"masks of shapes {shapes} cannot be compared", where="error_click")
    predicted, target = np.asarray(predicted, bool), np.asarray(target, bool)
    found = bounds(predicted ^ target)
    if found is None:
        return None
    predicted, target = predicted[found], target[found]
    missing, extra = largest_component(target & ~predicted), largest_component(predicted & ~target)
    positive = bool(np.count_nonzero(missing) >= np.count_nonzero(extra))
    part = missing if positive else extra
    place: Sequence[float] | np.ndarray | None
    if rng is not None:
        place = _choose(part, 1, rng)[0]
    elif part.ndim == 2:
        place = interior_point(part, spacing or (1, 1))
    else:
        place = interior_voxel(part, spacing or (1, 1, 1))
    assert place is not None
    return Click(position=tuple(int(p) + s.start for p, s in zip(place, found, strict=True)), positive=positive)


def jitter_box(
    box: Sequence[float], size: Sequence[int], rng: np.random.Generator, *, share: float = 0.1, most: float = 20.0
) -> Box2D:
    """Shift the edges of a box at random, as in SAM's training.

    Args:
        box: (x0, y0, x1, y1).
        size: (H, W) of the image.
        rng: Random generator.
        share: Standard deviation of the shifts, as a share of the side of the box along the axis.
        most: Largest shift, in pixels.

    Returns:
        A box inside the image, at least one pixel wide and high.
    """
    corners = np.asarray(box, float).reshape(2, 2)
    shift = np.clip(rng.standard_normal((2, 2)) * share * (corners[1] - corners[0]), -most, most)
    limit = np.array([size[1], size[0]], float)
    low, high = np.sort(np.clip(corners + shift, 0, limit), axis=0)
    low = np.minimum(low, limit - 1)
    high = np.maximum(high, low + 1)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def box_with_overlap(box: Sequence[float], iou: float, rng: np.random.Generator) -> Box2D:
    """Move the edges of a box in a random direction until it has the given overlap with the original.

    Args:
        box: (x0, y0, x1, y1).
        iou: Intersection over union of the result and `box`, to 1e-9.
        rng: Random generator.

    Returns:
        A box that may extend beyond the image.

    Raises:
        InputError: `box` is empty, or `iou` is not in (0, 1].
    """
    x0, y0, x1, y1 = (float(c) for c in box)
    if not (x0 < x1 and y0 < y1 and 0 < iou <= 1):
        raise InputError(f"no box has an overlap of {iou} with the box {tuple(box)}", where="box_with_overlap")
    direction = np.zeros(4)
    while np.abs(direction).max() < _LEAST_DIRECTION:
        direction = rng.uniform(-1, 1, 4)
    dx0, dy0, dx1, dy1 = (direction * [x1 - x0, y1 - y0, x1 - x0, y1 - y0]).tolist()

    def moved(step: float) -> Box2D:
        return x0 + step * dx0, y0 + step * dy0, x1 + step * dx1, y1 + step * dy1

    # Along any direction the overlap decreases monotonically to 0, so there is exactly one solution.
    near, far = 0.0, 1.0
    while _iou(moved(far), box) > iou:
        far *= 2
    for _ in range(64):
        middle = (near + far) / 2
        near, far = (middle, far) if _iou(moved(middle), box) > iou else (near, middle)
    return moved(near)
