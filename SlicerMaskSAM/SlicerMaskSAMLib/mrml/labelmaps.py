"""Voxels of segments in Slicer's labelmaps, on any grid and extent.

Several segments may share a labelmap. Slicer's own functions copy and scan whole labelmaps to change a segment; these
touch the voxels of a box only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import DTypeLike
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from MaskSAMCore.errors import InputError
from SlicerMaskSAMLib.mrml.volumes import Geometry, matrix_array, vtk_matrix
from SlicerMaskSAMLib.values.sparse import VoxelBox, box_shape

BINARY = "Binary labelmap"
SURFACE = "Closed surface"
ALIGNED = 0.05
"""Largest distance, in voxels, at which a labelmap still counts as lying on a grid."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GridVoxels:
    """The voxels of a labelmap that is aligned with a grid.

    Attributes:
        voxels: Array (k, j, i), a view into Slicer's memory.
        box: Box on the grid; it may reach beyond the grid.
    """

    voxels: np.ndarray
    box: VoxelBox

    def _ends(self, box: VoxelBox) -> list[tuple[int, int, int, int]]:
        """The ends of both boxes along each axis."""
        return list(zip(self.box[::2], self.box[1::2], box[::2], box[1::2], strict=True))

    def holds(self, box: VoxelBox) -> bool:
        """Whether the box lies inside."""
        return all(a <= c and d <= b for a, b, c, d in self._ends(box))

    def common(self, box: VoxelBox) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The common voxels, as slices of `voxels` and of an array on the box."""
        shared = [(max(a, c), max(a, c, min(b, d)), a, c) for a, b, c, d in self._ends(box)]
        return (
            tuple(slice(low - own, high - own) for low, high, own, _ in shared),
            tuple(slice(low - other, high - other) for low, high, _, other in shared),
        )


def segment_of(segmentation: Any, segment_id: str) -> Any:
    """The vtkSegment of an ID.

    Raises:
        InputError: The segmentation or the segment is gone, or it is stored as surfaces.
    """
    if segmentation is None or segmentation.GetSegmentation() is None:
        raise InputError("there is no segmentation", remedy="Choose one, or segment first.")
    segment = segmentation.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        raise InputError("the segment no longer exists", where=segmentation.GetName(), why=segment_id)
    if segmentation.GetSegmentation().GetSourceRepresentationName() != BINARY or not segment.GetRepresentation(BINARY):
        raise InputError(
            "its segments are surfaces, not voxels",
            where=segmentation.GetName(),
            remedy="Make the binary labelmap its source representation (module Segmentations).",
        )
    return segment


def segments_sharing(segmentation: Any, image: Any) -> list[str]:
    """IDs of the segments stored in this labelmap."""
    segments = segmentation.GetSegmentation()
    return [each for each in segments.GetSegmentIDs() if segments.GetSegment(each).GetRepresentation(BINARY) is image]


def _extent(image: Any) -> VoxelBox:
    i0, i1, j0, j1, k0, k1 = image.GetExtent()
    return k0, k1 + 1, j0, j1 + 1, i0, i1 + 1


def _corners(box: VoxelBox) -> np.ndarray:
    """(8, 3) ijk of the centres of the box's corner voxels."""
    k0, k1, j0, j1, i0, i1 = box
    return np.array(list(product((i0, i1 - 1), (j0, j1 - 1), (k0, k1 - 1))), dtype=np.float64)


def is_empty(image: Any) -> bool:
    """Whether the labelmap has no voxels, like that of a segment that was just added."""
    return min(box_shape(_extent(image))) < 1 or image.GetPointData().GetScalars() is None


def _places(image: Any, geometry: Geometry) -> np.ndarray:
    """(8, 3) ijk on the grid of the labelmap's corners, in the order of `_corners`."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_world = matrix_array(matrix)
    return geometry.to_ijk(_corners(_extent(image)) @ to_world[:3, :3].T + to_world[:3, 3])


def aligned_voxels(image: Any, geometry: Geometry) -> GridVoxels | None:
    """The voxels of a labelmap on a grid; None if empty or on another grid."""
    if is_empty(image):
        return None
    extent = _extent(image)
    places = _places(image, geometry)
    shift = np.rint(places[0] - _corners(extent)[0])
    if np.abs(places - _corners(extent) - shift).max() > ALIGNED:
        return None
    di, dj, dk = (int(value) for value in shift)
    k0, k1, j0, j1, i0, i1 = extent
    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(box_shape(extent))
    return GridVoxels(voxels=voxels, box=(k0 + dk, k1 + dk, j0 + dj, j1 + dj, i0 + di, i1 + di))


def covering_box(image: Any, geometry: Geometry) -> VoxelBox:
    """The box of the grid around a labelmap's voxels; may reach beyond the grid."""
    places = _places(image, geometry)
    low = np.floor(places.min(axis=0) - 0.5 + ALIGNED).astype(int)
    high = np.ceil(places.max(axis=0) + 0.5 - ALIGNED).astype(int) + 1
    (i0, j0, k0), (i1, j1, k1) = low.tolist(), high.tolist()
    return k0, k1, j0, j1, i0, i1


def labels_in(image: Any, geometry: Geometry, box: VoxelBox) -> np.ndarray:
    """Label values (k, j, i) of a labelmap on a box of the grid. Read-only.

    They are 0 outside the labelmap.
    """
    if is_empty(image):
        return np.zeros(box_shape(box), np.uint8)
    found = aligned_voxels(image, geometry)
    if found is None:
        return _resampled(image, geometry, box)
    own, other = found.common(box)
    inner = found.voxels[own]
    if inner.shape == box_shape(box):
        return inner
    out = np.zeros(box_shape(box), found.voxels.dtype)
    out[other] = inner
    return out


def _resampled(image: Any, geometry: Geometry, box: VoxelBox) -> np.ndarray:
    """Nearest label values of a labelmap that lies on another grid."""
    k0, k1, j0, j1, i0, i1 = box
    reference, out = slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
    reference.SetExtent(i0, i1 - 1, j0, j1 - 1, k0, k1 - 1)
    reference.SetGeometryFromImageToWorldMatrix(vtk_matrix(geometry.affine))
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(image, reference, out)
    return vtk_to_numpy(out.GetPointData().GetScalars()).reshape(box_shape(box))


def bounding_box(image: Any, value: float, geometry: Geometry) -> VoxelBox | None:
    """The smallest box around a label, clipped to the grid; None if there is none."""
    if is_empty(image):
        return None
    found = aligned_voxels(image, geometry)
    reach = found.box if found is not None else covering_box(image, geometry)
    ends = zip(reach[::2], reach[1::2], geometry.shape, strict=True)
    k0, k1, j0, j1, i0, i1 = (end for a, b, n in ends for end in (max(a, 0), min(b, n)))
    if min(k1 - k0, j1 - j0, i1 - i0) < 1:
        return None
    labels = labels_in(image, geometry, (k0, k1, j0, j1, i0, i1))
    # Slice by slice, which needs less memory and stays in the processor's cache.
    planes = [k for k in range(k1 - k0) if np.count_nonzero(labels[k] == value)]
    if not planes:
        return None
    mask = np.zeros(labels.shape[1:], bool)
    for k in planes:
        mask |= labels[k] == value
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        k0 + planes[0], k0 + planes[-1] + 1, j0 + int(rows[0]), j0 + int(rows[-1]) + 1,
        i0 + int(columns[0]), i0 + int(columns[-1]) + 1,
    )  # fmt: skip


def labelmap(array: np.ndarray, geometry: Geometry, box: VoxelBox) -> Any:
    """A labelmap on a box of the grid that shares its memory with an array (k, j, i)."""
    k0, k1, j0, j1, i0, i1 = box
    image = slicer.vtkOrientedImageData()
    image.SetExtent(i0, i1 - 1, j0, j1 - 1, k0, k1 - 1)
    image.SetGeometryFromImageToWorldMatrix(vtk_matrix(geometry.affine))
    values = numpy_to_vtk(array.reshape(-1))
    values.SetName("ImageScalars")
    image.GetPointData().SetScalars(values)
    return image


def enlarged_copy(image: Any, geometry: Geometry, dtype: DTypeLike, only: float | None = None) -> Any:
    """A copy of a labelmap that covers the whole grid; with `only`, of one label.

    That label becomes 1. The operating system zeroes the memory on first access, so that a large grid costs almost
    nothing.
    """
    if is_empty(image):
        return labelmap(np.zeros(geometry.shape, dtype), geometry, geometry.box)
    found = aligned_voxels(image, geometry)
    old = found.box if found is not None else covering_box(image, geometry)
    ends = zip(old[::2], old[1::2], geometry.shape, strict=True)
    k0, k1, j0, j1, i0, i1 = (end for a, b, n in ends for end in (min(a, 0), max(b, n)))
    array = np.zeros((k1 - k0, j1 - j0, i1 - i0), dtype)
    inner = array[old[0] - k0 : old[1] - k0, old[2] - j0 : old[3] - j0, old[4] - i0 : old[5] - i0]
    for into, labels in zip(inner, labels_in(image, geometry, old), strict=True):
        if only is None:
            into[...] = labels
        else:
            np.equal(labels, only, out=into.view(bool))
    return labelmap(array, geometry, (k0, k1, j0, j1, i0, i1))


def erase(image: Any, value: float) -> None:
    """Clear one label from a labelmap, without invoking an event."""
    values = image.GetPointData().GetScalars()
    for plane in vtk_to_numpy(values).reshape(box_shape(_extent(image))):
        plane[plane == value] = 0
    values.Modified()


# -- modification times --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _LabelmapState:
    """Modification times of a labelmap, and of the segments written from here."""

    count: int
    others: int
    written: dict[str, int] = field(default_factory=dict)


class ChangeTracker:
    """Finds out when the voxels of a single segment changed.

    A labelmap's modification time covers all segments that share it. Every write from here is recorded; any other
    change counts for all segments of the labelmap. States are kept by the labelmap's address. VTK's modification times
    grow throughout the process, so another object at the same address is noticed.
    """

    def __init__(self) -> None:
        self._states: dict[str, _LabelmapState] = {}

    def _state(self, image: Any) -> _LabelmapState:
        address = image.GetAddressAsString("")
        state, count = self._states.get(address), image.GetMTime()
        if state is None or state.count != count:
            state = self._states[address] = _LabelmapState(count=count, others=count)
        return state

    def stamp(self, image: Any, segment_id: str) -> int:
        """Modification time of the segment's last change."""
        state = self._state(image)
        return state.written.get(segment_id, state.others)

    def was_written_here(self, image: Any, segment_id: str) -> bool:
        """Whether the segment's last change was recorded here."""
        return segment_id in self._state(image).written

    def record_replacement(self, old: Any, new: Any, count_before: int) -> None:
        """Record that a labelmap was replaced, or lost a segment.

        Args:
            old, new: The labelmaps; the same one if it was changed in place.
            count_before: Modification time of `old` before the change.
        """
        state = self._states.pop(old.GetAddressAsString(""), None)
        if state is None or state.count != count_before:
            state = _LabelmapState(count=count_before, others=count_before)
        state.count = new.GetMTime()
        self._states[new.GetAddressAsString("")] = state

    def record_write(self, image: Any, segment_id: str, count_before: int) -> None:
        """Record that only this segment's voxels changed.

        Args:
            image: The labelmap.
            segment_id: The segment.
            count_before: Modification time of the labelmap before the change.
        """
        self.record_replacement(image, image, count_before)
        state = self._state(image)
        state.written[segment_id] = state.count


changes = ChangeTracker()
