"""The simulated user: clicks and boxes made from a target mask, for training and for evaluation (model.md §6.6).

Whatever is drawn comes from the generator that is handed in, so the same generator gives the same prompts. Clicks are
array indices with voxel centres at integers, boxes are as in `masks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MaskSAMCore.errors import InputError
from MaskSAMCore.preprocessing.masks import Box2D, bounds, interior_point, interior_voxel, largest_component

# Directions shorter than this would need steps of many box sides.
_LEAST_DIRECTION = 0.05


@dataclass(frozen=True)
class Click:
    """A click.

    Attributes:
        position: Index of a voxel, in the order of the array's axes.
        positive: Whether it says "this belongs to the structure".
    """

    position: tuple[int, ...]
    positive: bool


def _choose(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    places = np.flatnonzero(mask)
    chosen = rng.choice(places, size=min(count, places.size), replace=False)
    return np.stack(np.unravel_index(chosen, mask.shape), axis=-1).astype(float)


def random_clicks(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Different pixels of a mask, each as likely as any other.

    Args:
        mask: (H, W).
        count: How many; all pixels if there are fewer.
        rng: Source of chance.

    Returns:
        (n, 2) float, (y, x).
    """
    return _choose(mask, count, rng)


def ring_clicks(
    mask: np.ndarray, count: int, rng: np.random.Generator, *, ring: float = 10, forbidden: np.ndarray | None = None
) -> np.ndarray:
    """Different background pixels near a mask: negative clicks.

    Args:
        mask: (H, W).
        count: How many; all that there are if fewer.
        rng: Source of chance.
        ring: Greatest distance from the mask, in pixels.
        forbidden: (H, W), further pixels where no click may be.

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
    """The next click of a user who corrects the largest error.

    Missing and superfluous voxels are taken apart into components that touch by their faces; among equally large ones
    a missing part comes first, then the first in row-major order.

    Args:
        predicted: (H, W) or (D, H, W), what the model gave.
        target: The truth, of the same shape.
        rng: Source of chance for a random voxel of the component, as in training; None takes its innermost voxel.
        spacing: Of the array's axes, for the innermost voxel; None if all are equal.

    Returns:
        A positive click on a missing part, a negative one on a superfluous part, or None if there is no error.

    Raises:
        InputError: The two are of different shapes, or of neither two nor three axes.
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
    """A box as a hurried user draws it, by SAM's rule for its training.

    Args:
        box: (x0, y0, x1, y1).
        size: (H, W) of the picture, which the result does not leave.
        rng: Source of chance.
        share: Standard deviation of each coordinate's shift, as a share of the box's side along that axis.
        most: Greatest shift, in pixels.

    Returns:
        A box, at least one pixel wide and high.
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
    """A box of a given overlap with another one, its edges moved in a random direction until that is reached.

    Args:
        box: (x0, y0, x1, y1).
        iou: Intersection over union of the result with `box`, reached to 1e-9.
        rng: Source of chance.

    Returns:
        A box that may leave the picture.

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

    # The overlap only falls along any direction, down to nothing, so every direction reaches `iou` exactly once.
    near, far = 0.0, 1.0
    while _iou(moved(far), box) > iou:
        far *= 2
    for _ in range(64):
        middle = (near + far) / 2
        near, far = (middle, far) if _iou(moved(middle), box) > iou else (near, middle)
    return moved(near)
