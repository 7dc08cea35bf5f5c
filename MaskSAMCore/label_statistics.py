"""Statistics of the structures of a label map: voxels, volume, centroid, and the intensities of the scan inside.

The command `segment --statistics` and the module's volumes table use the same sums, so both give the same numbers.
Only numpy is needed to add up one structure; `measure_structures` finds the structures' boxes with scipy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.volume import LabelMap, Slices, Triple, Volume

AT_ONCE = 4_000_000
"""Voxels of a box that are looked at together, so that temporary arrays stay small."""


class Intensities(NamedTuple):
    """Values of one channel inside a structure, in the units of the scan (HU for CT)."""

    mean: float
    sd: float
    minimum: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class StructureStatistics:
    """What is known about one structure.

    Attributes:
        voxels: Number of voxels.
        volume_ml: Volume, mL.
        centroid_ras: Mean of the voxel centres, RAS mm; None for an empty structure.
        intensities: One entry per channel of the scan; None where no voxel has a finite value.
    """

    voxels: int
    volume_ml: float
    centroid_ras: Triple | None
    intensities: tuple[Intensities | None, ...]


class StructureSums:
    """Running sums over one structure, which may be given in parts (a slab of slices at a time).

    The standard deviation is that of a sample (n - 1), as in ITK and in Slicer's Segment Statistics, and 0 for one
    voxel. Voxels that are NaN or infinite count for volume and centroid, not for the intensities.

    Args:
        channels: Number of channels of the scan; 0 for volume and centroid alone.
    """

    def __init__(self, channels: int = 1) -> None:
        self.voxels = 0
        self._places = np.zeros(3, np.float64)
        self._channels = [_Moments() for _ in range(channels)]

    def add(self, mask: np.ndarray, values: np.ndarray | None = None, corner: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Add a part of the structure.

        Args:
            mask: `(k, j, i)`, bool or 0/1; what it covers must not be added twice.
            values: `(k, j, i)`, or `(C, k, j, i)`, of any number type; not needed for 0 channels.
            corner: (k, j, i) of the part's first voxel in the volume.
        """
        inside = mask.astype(bool, copy=False)
        flat = inside.sum(axis=0, dtype=np.int64)
        counts = (inside.sum(axis=(1, 2), dtype=np.int64), flat.sum(axis=1), flat.sum(axis=0))
        count = int(counts[0].sum())
        if not count:
            return
        self.voxels += count
        self._places += [float(n @ np.arange(at, at + len(n))) for n, at in zip(counts, corner, strict=True)]
        if values is None:
            return
        for moments, channel in zip(self._channels, values if values.ndim == 4 else values[None], strict=True):
            moments.add(channel[inside])

    @property
    def centroid_ijk(self) -> Triple | None:
        """Mean (i, j, k) of the voxels, in voxels; None without any."""
        if not self.voxels:
            return None
        k, j, i = (float(v) for v in self._places / self.voxels)
        return i, j, k

    @property
    def intensities(self) -> tuple[Intensities | None, ...]:
        """One entry per channel; None where no voxel has a finite value."""
        return tuple(moments.result() for moments in self._channels)


class _Moments:
    """Count, mean and squared deviations of one channel, merged part by part without loss of digits."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        values = values.astype(np.float64)
        values = values[np.isfinite(values)]
        if not values.size:
            return
        mean = float(values.mean())
        gap, whole = mean - self.mean, self.count + values.size
        self.squares += float(np.square(values - mean).sum()) + gap**2 * self.count * values.size / whole
        self.mean += gap * values.size / whole
        self.count = whole
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))

    def result(self) -> Intensities | None:
        if not self.count:
            return None
        sd = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return Intensities(mean=self.mean, sd=sd, minimum=self.minimum, maximum=self.maximum)


def measure_structures(labels: LabelMap, volume: Volume) -> dict[int, StructureStatistics]:
    """Statistics of every structure: those of the label table, found or not, and ids without a name.

    Args:
        labels: `(K, J, I)` on the grid of the scan.
        volume: The scan, one or several channels.

    Raises:
        GeometryError: Label map and scan differ in size.
    """
    from scipy.ndimage import find_objects

    if labels.array.shape != volume.grid.shape:
        why = f"the label map has {labels.array.shape} voxels (k, j, i), the scan {volume.grid.shape}"
        raise GeometryError("the label map is not on the grid of the scan", where=volume.source, why=why)
    found = {number: box for number, box in enumerate(find_objects(labels.array), start=1) if box is not None}
    named = [label.id for label in labels.labels.labels] if labels.labels else []
    return {
        number: _measured(labels, volume, number, found.get(number)) for number in {**dict.fromkeys(named), **found}
    }


def _measured(labels: LabelMap, volume: Volume, number: int, box: Slices | None) -> StructureStatistics:
    values, grid = volume.as_channels(), volume.grid
    sums = StructureSums(len(values))
    if box is not None:
        depth, *plane = box
        step = max(1, AT_ONCE // math.prod(s.stop - s.start for s in plane))
        for low in range(depth.start, depth.stop, step):
            part = (slice(low, min(low + step, depth.stop)), *plane)
            sums.add(labels.array[part] == number, values[(slice(None), *part)], (low, *(s.start for s in plane)))
    centroid = sums.centroid_ijk
    r, a, s = grid.to_ras(centroid) if centroid is not None else (0.0, 0.0, 0.0)
    return StructureStatistics(
        voxels=sums.voxels,
        volume_ml=sums.voxels * grid.voxel_volume_ml,
        centroid_ras=None if centroid is None else (float(r), float(a), float(s)),
        intensities=sums.intensities,
    )
