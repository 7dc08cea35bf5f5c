"""Coordinates between a scan and the prepared image that the network sees, and resampling of a part of it.

There are three grids: the scan (k, j, i); the scan with its axes turned to depth, height, width, neither cropped nor
resampled ("turned"); and the prepared image (d, h, w), cropped and resampled. Positions are continuous, with voxel
centres at integers. Edges are counted from the border: voxel i covers i to i + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from MaskSAMCore.inference.results import Bounds
from MaskSAMCore.preprocessing.preprocess import PreprocessingRecord
from MaskSAMCore.preprocessing.resample import SHRINK


@dataclass(frozen=True, kw_only=True, eq=False)
class Taps:
    """Linear resampling along one axis: n targets, each a weighted sum of t sources.

    Attributes:
        index: (n, t) indices of the sources; repeated at the border.
        weight: (n, t); rows sum to 1.
    """

    index: np.ndarray
    weight: np.ndarray

    def rows(self, low: int, high: int) -> slice:
        """The targets that depend on the sources from low to high, exclusive."""
        used = np.flatnonzero(((self.index >= low) & (self.index < high) & (self.weight > 0)).any(axis=1))
        return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)

    def part(self, rows: slice) -> Taps:
        """The same for these targets alone."""
        return Taps(index=self.index[rows], weight=self.weight[rows])

    def within(self, low: int, high: int) -> Taps:
        """The same with the sources from low to high alone; the border of that part is repeated."""
        return Taps(index=self.index.clip(low, high - 1) - low, weight=self.weight)

    def matrix(self, size: int) -> np.ndarray:
        """As a matrix (n, size) float32, for `size` sources."""
        out: np.ndarray = np.zeros((len(self.index), size), np.float32)
        np.add.at(out, (np.arange(len(self.index))[:, None], self.index), self.weight)
        return out


def taps(size: int, target: int, *, smooth: bool) -> Taps:
    """The linear kernel of `resample.resample` along one axis, from `size` voxels to `target`.

    Args:
        size: Number of sources.
        target: Number of targets.
        smooth: Widen the kernel where the axis shrinks, against aliasing.
    """
    scale = size / target
    centre = (np.arange(target) + 0.5) * scale
    support = max(scale, 1.0) if smooth else 1.0
    count = int(np.ceil(support)) * 2 + 1
    index = np.floor(centre - support).astype(int)[:, None] + np.arange(count)
    weight = np.maximum(1 - np.abs(index + 0.5 - centre[:, None]) / support, 0)
    if smooth:
        # the antialiased kernel stops at the border, the plain one repeats it
        weight[(index < 0) | (index >= size)] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    return Taps(index=index.clip(0, size - 1), weight=weight.astype(np.float32))


class Frame:
    """Maps positions and blocks between a scan and its prepared image, by its preprocessing record."""

    def __init__(self, record: PreprocessingRecord) -> None:
        self.record = record
        self.size = tuple(record.source_shape[a] for a in record.axes)
        """(D, H, W) of the turned scan."""
        self.scale = tuple(n / c for n, c in zip(record.shape, record.cropped, strict=True))

    @property
    def axis(self) -> int:
        """The axis of (K, J, I) that is depth."""
        return self.record.axes[0]

    def turn(self, ijk: Sequence[float]) -> tuple[float, float, float]:
        """A position (i, j, k) of the scan as turned (d, h, w)."""
        kji = tuple(ijk)[::-1]
        turned = [kji[a] for a in self.record.axes]
        d, h, w = (n - 1 - t if f else t for t, n, f in zip(turned, self.size, self.record.flips, strict=True))
        return d, h, w

    def unturn(self, turned: Sequence[float]) -> tuple[float, float, float]:
        """A turned position (d, h, w) as (i, j, k) of the scan."""
        kji = [0.0, 0.0, 0.0]
        for a, t, n, f in zip(self.record.axes, turned, self.size, self.record.flips, strict=True):
            kji[a] = n - 1 - t if f else t
        return kji[2], kji[1], kji[0]

    def prepared(self, turned: Sequence[float]) -> tuple[float, float, float]:
        """A turned position on the prepared grid."""
        d, h, w = (e - 0.5 for e in self.edges([t + 0.5 for t in turned]))
        return d, h, w

    def edges(self, turned: Sequence[float]) -> tuple[float, float, float]:
        """Turned edges on the prepared grid."""
        d, h, w = ((t - v) * s for t, v, s in zip(turned, self.record.lower, self.scale, strict=True))
        return d, h, w

    def unedges(self, prepared: Sequence[float]) -> tuple[float, float, float]:
        """Prepared edges on the turned grid."""
        d, h, w = (p / s + v for p, v, s in zip(prepared, self.record.lower, self.scale, strict=True))
        return d, h, w

    @cached_property
    def nearest(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per axis and turned index, the nearest prepared index; -1 outside of the crop."""
        d, h, w = (self._nearest(axis) for axis in range(3))
        return d, h, w

    def _nearest(self, axis: int) -> np.ndarray:
        record = self.record
        out = np.full(self.size[axis], -1)
        inside = np.arange(record.cropped[axis])
        place = ((inside + 0.5) * self.scale[axis]).astype(int).clip(0, record.shape[axis] - 1)
        out[record.lower[axis] : record.upper[axis]] = place
        return out

    @cached_property
    def taps(self) -> tuple[Taps, Taps, Taps]:
        """Per axis, resampling from the prepared image to the crop of the turned scan."""
        record = self.record
        shrinks = [n > SHRINK * c for n, c in zip(record.shape, record.cropped, strict=True)]
        smooth = (shrinks[0], shrinks[1] or shrinks[2], shrinks[1] or shrinks[2])
        d, h, w = (taps(n, c, smooth=s) for n, c, s in zip(record.shape, record.cropped, smooth, strict=True))
        return d, h, w

    @cached_property
    def forward_taps(self) -> tuple[Taps, Taps, Taps]:
        """Per axis, resampling from the crop of the turned scan to the prepared image."""
        record = self.record
        shrinks = [c > SHRINK * n for n, c in zip(record.shape, record.cropped, strict=True)]
        smooth = (shrinks[0], shrinks[1] or shrinks[2], shrinks[1] or shrinks[2])
        d, h, w = (taps(c, n, smooth=s) for n, c, s in zip(record.shape, record.cropped, smooth, strict=True))
        if record.nearest_depth:
            centre = ((np.arange(record.shape[0]) + 0.5) / self.scale[0]).astype(int).clip(0, record.cropped[0] - 1)
            d = Taps(index=centre[:, None], weight=np.ones((len(centre), 1), np.float32))
        return d, h, w

    def block(self, box: Bounds) -> tuple[slice, slice, slice]:
        """A turned box (d0, d1, h0, h1, w0, w1) as slices (k, j, i) of the scan."""
        out = [slice(0, 0)] * 3
        for a, (low, high), n, f in zip(
            self.record.axes, (box[:2], box[2:4], box[4:]), self.size, self.record.flips, strict=True
        ):
            out[a] = slice(n - high, n - low) if f else slice(low, high)
        return out[0], out[1], out[2]

    def turned(self, block: np.ndarray) -> np.ndarray:
        """A block (k, j, i) of the scan as (d, h, w), a view."""
        d, h, w = (slice(None, None, -1 if f else 1) for f in self.record.flips)
        return block.transpose(self.record.axes)[d, h, w]

    def unturned(self, block: np.ndarray) -> np.ndarray:
        """A turned block (d, h, w) as (k, j, i), a view."""
        d, h, w = (slice(None, None, -1 if f else 1) for f in self.record.flips)
        return block[d, h, w].transpose(np.argsort(self.record.axes))
