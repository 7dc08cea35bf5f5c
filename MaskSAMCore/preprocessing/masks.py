"""Geometry of binary masks in two and three dimensions: boxes, points inside, largest components.

Boxes are half-open, (x0, y0, x1, y1) in voxels with x along the last axis, so that voxel i covers i to i + 1. Points
are array indices, (y, x) or (d, h, w), with voxel centres at integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Box2D = tuple[float, float, float, float]

REACH = 1.5
"""Standard deviation, in pixels, of what a click that the network did not follow changes around it."""
SURE = 1.0
"""Logit that such a click is lifted to."""


def bounds(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The slices that hold everything of a mask with any number of axes; None if it is empty."""
    found = []
    for axis in range(mask.ndim):
        rows = np.any(mask, axis=tuple(a for a in range(mask.ndim) if a != axis)).reshape(-1)
        if not rows.any():
            return None
        found.append(slice(int(rows.argmax()), rows.size - int(rows[::-1].argmax())))
    return tuple(found)


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The smallest box that holds a mask (H, W); None if it is empty."""
    found = bounds(mask)
    if found is None:
        return None
    rows, columns = found
    return columns.start, rows.start, columns.stop, rows.stop


def _deepest(mask: np.ndarray, spacing: Sequence[float]) -> tuple[int, ...] | None:
    found = bounds(mask)
    if found is None:
        return None
    # The transform of scipy takes what lies outside an array as unknown, hence the frame of background.
    framed = np.pad(np.asarray(mask[found], bool), 1)
    depth = ndimage.distance_transform_edt(framed, sampling=spacing)
    place = np.unravel_index(int(depth.argmax()), depth.shape)
    return tuple(int(p) - 1 + s.start for p, s in zip(place, found, strict=True))


def interior_point(mask: np.ndarray, spacing: Sequence[float] = (1.0, 1.0)) -> tuple[int, int] | None:
    """The pixel furthest from the background, which also begins behind the picture's edge.

    Args:
        mask: (H, W).
        spacing: Of rows and of columns.

    Returns:
        (y, x), the first in row-major order among equals; None if the mask is empty.
    """
    place = _deepest(mask, spacing)
    return None if place is None else (place[0], place[1])


def interior_voxel(mask: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> tuple[int, int, int] | None:
    """As `interior_point`, of a mask (D, H, W) with the spacing of its three axes: (d, h, w)."""
    place = _deepest(mask, spacing)
    return None if place is None else (place[0], place[1], place[2])


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask whose voxels touch by their faces; the first in row-major order among equals.

    Args:
        mask: Any number of axes.

    Returns:
        A new bool array of the same shape, empty if the mask is.
    """
    kept = np.zeros(mask.shape, bool)
    found = bounds(mask)
    if found is None:
        return kept
    part = np.asarray(mask[found], bool)
    labels, count = ndimage.label(part)
    kept[found] = part if count == 1 else labels == np.bincount(labels[part]).argmax()
    return kept


def dilate_box(box: Sequence[float], share: float, size: Sequence[int]) -> Box2D:
    """A box whose four edges are moved outwards by `share` of its sides, but not out of the picture.

    Args:
        box: (x0, y0, x1, y1).
        share: Of the width for the edges in x, of the height for those in y.
        size: (H, W) of the picture.
    """
    x0, y0, x1, y1 = (float(c) for c in box)
    more_x, more_y = share * (x1 - x0), share * (y1 - y0)
    height, width = size
    return max(x0 - more_x, 0.0), max(y0 - more_y, 0.0), min(x1 + more_x, float(width)), min(y1 + more_y, float(height))


def enforce_clicks(logits: np.ndarray, clicks: Sequence[tuple[float, float, bool]]) -> np.ndarray:
    """The smallest smooth change of a slice's logits after which every click is on its side of the border.

    A Gaussian of `REACH` pixels stands on every click, with weights that lift those on the wrong side to `SURE` and
    leave the others where they are. Nobody should have to click twice on one spot.

    Args:
        logits: (H, W) float32.
        clicks: (y, x, positive), voxel centres at integers; those outside of the slice are passed over.

    Returns:
        `logits` itself where every click is honoured already, else a new array.
    """
    height, width = logits.shape
    places = {(round(y), round(x)): 1.0 if positive else -1.0 for y, x, positive in clicks}
    inside = {place: sign for place, sign in places.items() if 0 <= place[0] < height and 0 <= place[1] < width}
    if not inside:
        return logits
    points, signs = np.array(list(inside), float), np.array(list(inside.values()))
    values = signs * logits[tuple(points.astype(int).T)]
    if (values > 0).all():
        return logits
    lift = signs * np.where(values > 0, 0.0, SURE - values)
    apart = ((points[:, None] - points[None]) ** 2).sum(-1)
    weights = np.linalg.solve(np.exp(-apart / (2 * REACH**2)), lift)
    rows, columns = (
        np.exp(-((np.arange(size) - points[:, axis : axis + 1]) ** 2) / (2 * REACH**2))
        for axis, size in enumerate((height, width))
    )
    return logits + np.einsum("n,ny,nx->yx", weights, rows, columns).astype(logits.dtype)
