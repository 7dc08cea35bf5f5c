"""Geometry of binary masks in two and three dimensions: boxes, interior points, largest components.

Boxes are half-open, (x0, y0, x1, y1) in voxels with x along the last axis: voxel i covers i to i + 1. Points are array
indices, (y, x) or (d, h, w), with voxel centres at integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

Box2D = tuple[float, float, float, float]

REACH = 1.5
"""Standard deviation, in pixels, of the change of the logits around a click; see `enforce_clicks`."""
SURE = 1.0
"""Logit, in the direction of the click, that the click's pixel gets; see `enforce_clicks`."""


def bounds(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Slices of the bounding box of a mask with any number of axes; None if it is empty."""
    found = []
    for axis in range(mask.ndim):
        rows = np.any(mask, axis=tuple(a for a in range(mask.ndim) if a != axis)).reshape(-1)
        if not rows.any():
            return None
        found.append(slice(int(rows.argmax()), rows.size - int(rows[::-1].argmax())))
    return tuple(found)


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Bounding box (x0, y0, x1, y1) of a mask (H, W); None if it is empty."""
    found = bounds(mask)
    if found is None:
        return None
    rows, columns = found
    return columns.start, rows.start, columns.stop, rows.stop


def _deepest(mask: np.ndarray, spacing: Sequence[float]) -> tuple[int, ...] | None:
    found = bounds(mask)
    if found is None:
        return None
    # scipy's transform ignores what is outside the array; the frame makes it background.
    framed = np.pad(np.asarray(mask[found], bool), 1)
    depth = ndimage.distance_transform_edt(framed, sampling=spacing)
    place = np.unravel_index(int(depth.argmax()), depth.shape)
    return tuple(int(p) - 1 + s.start for p, s in zip(place, found, strict=True))


def interior_point(mask: np.ndarray, spacing: Sequence[float] = (1.0, 1.0)) -> tuple[int, int] | None:
    """The pixel of a mask that is furthest from the background; outside the image is background too.

    Args:
        mask: (H, W).
        spacing: Spacing of rows and of columns.

    Returns:
        (y, x), the first in row-major order among equals; None if the mask is empty.
    """
    place = _deepest(mask, spacing)
    return None if place is None else (place[0], place[1])


def interior_voxel(mask: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> tuple[int, int, int] | None:
    """`interior_point` of a mask (D, H, W), with the spacing of its three axes: (d, h, w)."""
    place = _deepest(mask, spacing)
    return None if place is None else (place[0], place[1], place[2])


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest face-connected component of a mask; the first in row-major order among equals.

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
    """Move the edges of a box outwards by `share` of its sides, but not beyond the image.

    Args:
        box: (x0, y0, x1, y1).
        share: Share of the width for the edges in x, of the height for those in y.
        size: (H, W) of the image.
    """
    x0, y0, x1, y1 = (float(c) for c in box)
    more_x, more_y = share * (x1 - x0), share * (y1 - y0)
    height, width = size
    return max(x0 - more_x, 0.0), max(y0 - more_y, 0.0), min(x1 + more_x, float(width)), min(y1 + more_y, float(height))


def enforce_clicks(logits: np.ndarray, clicks: Sequence[tuple[float, float, bool]]) -> np.ndarray:
    """Change a slice's logits smoothly so that every positive click is inside the mask and every negative one outside.

    Adds a Gaussian of `REACH` pixels at every click. The weights set the logit of clicks on the wrong side to `SURE` or
    `-SURE`, and keep the logit of the others.

    Args:
        logits: (H, W) float32.
        clicks: (y, x, positive), voxel centres at integers; clicks outside the slice are ignored.

    Returns:
        A new array, or `logits` itself if every click is on the right side already.
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
