"""Slices that are kept only where something is in them, and the state of one structure made of such slices.

Everything here is immutable: a changed state shares with the former one what did not change, so that former states
cost little and an interrupted answer leaves nothing half done.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from MaskSAMCore.inference.frame import Frame

LIMIT = 16.0
"""Logits are kept and given back to the network within this size."""
Rect = tuple[int, int, int, int]
"""(y0, y1, x0, x1), upper ones exclusive."""


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of a slice: `array` (h, w) with its first pixel at (y, x)."""

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
        """A copy of what it holds of `rect`, `fill` elsewhere."""
        out: np.ndarray = np.full((rect[1] - rect[0], rect[3] - rect[2]), fill, self.array.dtype)
        part = overlap(self.rect, rect)
        if part is not None:
            out[inside(part, rect)] = self.array[inside(part, self.rect)]
        return out

    def put(self, other: Tile, fill: float = 0) -> Tile:
        """Both, `other` over this one; `fill` where neither is."""
        if other.covers(self.rect):
            return other
        whole = union(self.rect, other.rect)
        out = self.cut(whole, fill)
        out[inside(other.rect, whole)] = other.array
        return Tile(whole[0], whole[2], out)


def overlap(a: Rect, b: Rect) -> Rect | None:
    """What two rectangles share; None if nothing."""
    y0, y1, x0, x1 = max(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), min(a[3], b[3])
    return (y0, y1, x0, x1) if y0 < y1 and x0 < x1 else None


def union(a: Rect, b: Rect) -> Rect:
    """The smallest rectangle that holds both."""
    return min(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), max(a[3], b[3])


def inside(part: Rect, whole: Rect) -> tuple[slice, slice]:
    """`part` as slices of an array that covers `whole`."""
    return slice(part[0] - whole[0], part[1] - whole[0]), slice(part[2] - whole[2], part[3] - whole[2])


def trimmed(y: int, x: int, array: np.ndarray) -> Tile | None:
    """A tile of what is not 0 in an array whose first pixel is at (y, x); None if all is."""
    rows, columns = np.flatnonzero(array.any(axis=1)), np.flatnonzero(array.any(axis=0))
    if not len(rows):
        return None
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return Tile(y + y0, x + x0, np.ascontiguousarray(array[y0:y1, x0:x1]))


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Prepared edges that a result must not leave, per axis of (D, H, W); None for no limit."""

    limits: tuple[tuple[float, float] | None, ...] = (None, None, None)

    def allows(self, axis: int, index: np.ndarray | int) -> np.ndarray:
        """Whether the centres of prepared voxels lie inside."""
        limit, centre = self.limits[axis], np.asarray(index) + 0.5
        return np.full(centre.shape, True) if limit is None else (centre > limit[0]) & (centre < limit[1])


@dataclass(frozen=True, kw_only=True)
class State:
    """One structure after some of its prompts.

    Attributes:
        planes: Prepared slice to the logits (float16) of the part of it that was answered.
        given: Those of them that are a mask of the user and not an answer.
        slices: Turned slice of the scan to the mask (bool); absent where it is empty.
        quality: Prepared slice to the estimated IoU.
        windows: Depth start of a slab to the in-plane start of the window that was used there last.
        clip: What limits the answers.
        classes: Probabilities of the classes, the last for "no object", as of the last answer.
        notes: What the user should be told.
    """

    planes: Mapping[int, Tile] = field(default_factory=lambda: MappingProxyType({}))
    given: frozenset[int] = frozenset()
    slices: Mapping[int, Tile] = field(default_factory=lambda: MappingProxyType({}))
    quality: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    windows: Mapping[int, tuple[int, int]] = field(default_factory=lambda: MappingProxyType({}))
    clip: Clip | None = None
    classes: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def probability(logits: np.ndarray) -> np.ndarray:
    """Sigmoid in float32."""
    return 1 / (1 + np.exp(-logits.astype(np.float32)))


def paint(
    slices: Mapping[int, Tile], planes: Mapping[int, Tile], touched: Mapping[int, Rect], frame: Frame
) -> dict[int, Tile]:
    """The scan's slices after prepared ones changed, resampled as in automatic mode, in the changed part alone.

    Args:
        slices: The structure so far, by turned slice.
        planes: Logits by prepared slice.
        touched: Changed prepared slices and the changed part (prepared) of each.
        frame: Of the scan.

    Returns:
        `slices` with those replaced whose nearest prepared slice was touched.
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
    """The turned pixels whose nearest prepared pixel lies in a prepared rectangle."""
    found = []
    for axis, (low, high) in ((1, rect[:2]), (2, rect[2:])):
        near = frame.nearest[axis]
        index = np.flatnonzero((near >= low) & (near < high))
        if not len(index):
            return None
        found += [int(index[0]), int(index[-1]) + 1]
    return found[0], found[1], found[2], found[3]


def _section(planes: Mapping[int, Tile], d: int, z: int, where: Rect, frame: Frame) -> np.ndarray:
    """bool: the mask in the part `where` of turned slice `d`, whose nearest prepared slice is `z`."""
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
    """Probabilities between the prepared slices, as far as these are known; (h, w) of `part`."""
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


def of_mask(mask: np.ndarray, corner: tuple[int, int, int], frame: Frame) -> tuple[dict[int, Tile], dict[int, Tile]]:
    """An existing mask as slices of the scan, unchanged, and as logits on the prepared grid.

    Args:
        mask: bool, turned (d, h, w).
        corner: Turned index of its first voxel.
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
            planes[z] = Tile(near[0].start, near[1].start, ((share - 0.5) * LIMIT).astype(np.float16))
    return slices, planes
