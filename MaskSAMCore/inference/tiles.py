"""Sparse slices (`Tile`), and the state of one structure, which consists of them.

Everything here is immutable. A new state shares the unchanged tiles with the former one, so that former states cost
little, and an interrupted answer leaves nothing half done.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from MaskSAMCore.inference.frame import Frame

LOGIT_LIMIT = 16.0
"""Logits are limited to plus or minus this."""
Rect = tuple[int, int, int, int]
"""(y0, y1, x0, x1), the upper ones exclusive."""


@dataclass(frozen=True, eq=False)
class Tile:
    """A rectangle of a slice: `array` (h, w), its first pixel at (y, x)."""

    y: int
    x: int
    array: np.ndarray

    @property
    def rect(self) -> Rect:
        height, width = self.array.shape
        return self.y, self.y + height, self.x, self.x + width

    def covers(self, rect: Rect) -> bool:
        y0, y1, x0, x1 = self.rect
        return y0 <= rect[0] and rect[1] <= y1 and x0 <= rect[2] and rect[3] <= x1

    def cut(self, rect: Rect, fill: float = 0) -> np.ndarray:
        """A copy of the part `rect` of the slice, with `fill` outside of the tile."""
        out: np.ndarray = np.full((rect[1] - rect[0], rect[3] - rect[2]), fill, self.array.dtype)
        part = overlap(self.rect, rect)
        if part is not None:
            out[inside(part, rect)] = self.array[inside(part, self.rect)]
        return out

    def put(self, other: Tile, fill: float = 0) -> Tile:
        """Both tiles as one, `other` on top; `fill` where there is neither."""
        if other.covers(self.rect):
            return other
        whole = union(self.rect, other.rect)
        out = self.cut(whole, fill)
        out[inside(other.rect, whole)] = other.array
        return Tile(whole[0], whole[2], out)


def overlap(a: Rect, b: Rect) -> Rect | None:
    """The part that two rectangles share; None if there is none."""
    y0, y1, x0, x1 = max(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), min(a[3], b[3])
    return (y0, y1, x0, x1) if y0 < y1 and x0 < x1 else None


def union(a: Rect, b: Rect) -> Rect:
    """The smallest rectangle around both."""
    return min(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), max(a[3], b[3])


def inside(part: Rect, whole: Rect) -> tuple[slice, slice]:
    """`part` as slices of an array that covers `whole`."""
    return slice(part[0] - whole[0], part[1] - whole[0]), slice(part[2] - whole[2], part[3] - whole[2])


def trimmed(y: int, x: int, array: np.ndarray) -> Tile | None:
    """The smallest tile with all nonzero pixels of an array whose first pixel is at (y, x); None if all are 0."""
    rows, columns = np.flatnonzero(array.any(axis=1)), np.flatnonzero(array.any(axis=0))
    if not len(rows):
        return None
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return Tile(y + y0, x + x0, np.ascontiguousarray(array[y0:y1, x0:x1]))


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Limits of a result: per axis of (D, H, W) the lowest and highest prepared edge, or None for no limit."""

    limits: tuple[tuple[float, float] | None, ...] = (None, None, None)

    def allows(self, axis: int, index: np.ndarray | int) -> np.ndarray:
        """Whether the centres of prepared voxels lie within the limits of an axis; bool, shaped like `index`."""
        limit, centre = self.limits[axis], np.asarray(index) + 0.5
        return np.full(centre.shape, True) if limit is None else (centre > limit[0]) & (centre < limit[1])


@dataclass(frozen=True, kw_only=True)
class State:
    """One structure after a number of its prompts.

    Attributes:
        planes: Logits (float16) by prepared slice, in the part of the slice that has an answer.
        given: The prepared slices whose logits come from a mask of the user.
        slices: Mask (bool) by turned slice of the scan; empty slices are left out.
        quality: Estimated IoU by prepared slice.
        windows: By start of a slab along depth, the start (y, x) of the window that was used there last.
        clip: Limits of the answers.
        classes: Class probabilities of the last answer, the last one for "no object".
        messages: For the user, about the last prompt.
    """

    planes: Mapping[int, Tile] = field(default_factory=lambda: MappingProxyType({}))
    given: frozenset[int] = frozenset()
    slices: Mapping[int, Tile] = field(default_factory=lambda: MappingProxyType({}))
    quality: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    windows: Mapping[int, tuple[int, int]] = field(default_factory=lambda: MappingProxyType({}))
    clip: Clip | None = None
    classes: tuple[float, ...] = ()
    messages: tuple[str, ...] = ()


def probability(logits: np.ndarray) -> np.ndarray:
    """Sigmoid in float32."""
    return 1 / (1 + np.exp(-logits.astype(np.float32)))


def paint(
    slices: Mapping[int, Tile], planes: Mapping[int, Tile], touched: Mapping[int, Rect], frame: Frame
) -> dict[int, Tile]:
    """Resample changed prepared slices to the scan, as automatic mode does, in the changed part alone.

    Args:
        slices: The structure before, by turned slice of the scan.
        planes: Logits by prepared slice.
        touched: The changed prepared slices, and the changed rectangle of each.
        frame: Between the scan and the prepared grid.

    Returns:
        `slices`, with a new tile for every slice whose nearest prepared slice was changed.
    """
    out = dict(slices)
    for d, z in enumerate(frame.nearest[0]):
        rect = touched.get(int(z)) if z >= 0 else None
        where = None if rect is None else _turned_rect(rect, frame)
        if where is None:
            continue
        new = Tile(where[0], where[2], _section(planes, d, int(z), where, frame))
        whole = out[d].put(new) if d in out else new
        kept = trimmed(whole.y, whole.x, whole.array)
        if kept is None:
            out.pop(d, None)
        else:
            out[d] = kept
    return out


def _turned_rect(rect: Rect, frame: Frame) -> Rect | None:
    """The rectangle of turned pixels whose nearest prepared pixel lies in `rect`; None if there are none."""
    found = []
    for axis, (low, high) in ((1, rect[:2]), (2, rect[2:])):
        near = frame.nearest[axis]
        index = np.flatnonzero((near >= low) & (near < high))
        if not len(index):
            return None
        found += [int(index[0]), int(index[-1]) + 1]
    return found[0], found[1], found[2], found[3]


def _section(planes: Mapping[int, Tile], d: int, z: int, where: Rect, frame: Frame) -> np.ndarray:
    """Mask (bool) in the part `where` of turned slice `d`, whose nearest prepared slice is `z`."""
    lower = frame.record.lower
    out: np.ndarray = np.zeros((where[1] - where[0], where[3] - where[2]), bool)
    rows = frame.taps[1].part(slice(where[0] - lower[1], where[1] - lower[1]))
    columns = frame.taps[2].part(slice(where[2] - lower[2], where[3] - lower[2]))
    reach = (int(rows.index.min()), int(rows.index.max()) + 1, int(columns.index.min()), int(columns.index.max()) + 1)
    part = overlap(planes[z].rect, reach)
    if part is None:
        return out
    mixed = _mixed(planes, d, z, part, frame)
    # an average exceeds one half only near something that does
    high = trimmed(0, 0, mixed > 0.5)
    if high is None:
        return out
    down, across = rows.within(part[0], part[1]), columns.within(part[2], part[3])
    y, x = down.rows(*high.rect[:2]), across.rows(*high.rect[2:])
    height, width = mixed.shape
    out[y, x] = down.part(y).matrix(height) @ mixed @ across.part(x).matrix(width).T > 0.5
    return out


def _mixed(planes: Mapping[int, Tile], d: int, z: int, part: Rect, frame: Frame) -> np.ndarray:
    """Probabilities (h, w) of `part` at turned slice `d`, interpolated between the known prepared slices."""
    depth = frame.taps[0]
    place = d - frame.record.lower[0]
    total: np.ndarray = np.zeros((part[1] - part[0], part[3] - part[2]), np.float32)
    norm = 0.0
    for index, weight in zip(depth.index[place], depth.weight[place], strict=True):
        plane = planes.get(int(index))
        if weight > 0 and plane is not None and plane.covers(part):
            total += weight * probability(plane.array[inside(part, plane.rect)])
            norm += float(weight)
    return total / norm


def from_mask(mask: np.ndarray, corner: tuple[int, int, int], frame: Frame) -> tuple[dict[int, Tile], dict[int, Tile]]:
    """An existing mask as tiles.

    Args:
        mask: bool (d, h, w), turned.
        corner: Turned index (d, h, w) of its first voxel.
        frame: Between the scan and the prepared grid.

    Returns:
        The mask itself by turned slice of the scan, and logits by prepared slice.
    """
    slices = {}
    for d, part in enumerate(mask, start=corner[0]):
        tile = trimmed(corner[1], corner[2], part)
        if tile is not None:
            slices[d] = tile
    planes: dict[int, Tile] = {}
    if not slices:
        return slices, planes
    whole = functools.reduce(union, (tile.rect for tile in slices.values()))
    lower, cropped = frame.record.lower, frame.record.cropped
    rect = overlap(whole, (lower[1], lower[1] + cropped[1], lower[2], lower[2] + cropped[2]))
    if rect is None:
        return slices, planes
    depth, *plane = frame.forward_taps
    near = [t.rows(a - v, b - v) for t, a, b, v in zip(plane, rect[::2], rect[1::2], lower[1:], strict=True)]
    if any(part.start == part.stop for part in near):
        return slices, planes
    full = (lower[1], lower[1] + cropped[1], lower[2], lower[2] + cropped[2])
    down, across = (t.part(part).matrix(n) for t, part, n in zip(plane, near, cropped[1:], strict=True))
    for z in range(frame.record.shape[0]):
        mixed = np.zeros(cropped[1:], np.float32)
        for index, weight in zip(depth.index[z], depth.weight[z], strict=True):
            tile = slices.get(int(index) + lower[0])
            if tile is not None and weight > 0:
                mixed += weight * tile.cut(full)
        if mixed.any():
            share = down @ mixed @ across.T
            planes[z] = Tile(near[0].start, near[1].start, ((share - 0.5) * LOGIT_LIMIT).astype(np.float16))
    return slices, planes
