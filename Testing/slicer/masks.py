"""What the tests of segments share: one oblique grid, masks on it, and Slicer's own way to read and write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from MaskSAMCore.labels import Label
from SlicerMaskSAMLib.mrml import bridge
from Testing.slicer import environment

SHAPE = (10, 24, 30)
OBLIQUE = environment.affine(spacing=(0.8, 0.9, 2.5), angles=(12, -20, 33), origin=(-40, 17, -333))
WHOLE = (0, 10, 0, 24, 0, 30)


def add_scan() -> Any:
    """An empty volume on the grid."""
    return environment.add_volume(np.zeros(SHAPE, np.int16), OBLIQUE, "Scan")


@pytest.fixture
def volume(scene: Any) -> Any:
    """The volume on the grid, in an otherwise empty scene."""
    return add_scan()


@pytest.fixture
def grid(volume: Any) -> bridge.Geometry:
    """Of the test's volume."""
    return bridge.geometry(volume)


@pytest.fixture
def segmentation(scene: Any, volume: Any) -> Any:
    """An empty one that belongs to the test's volume."""
    return bridge.new_segmentation(scene, "Segmentation", volume=volume)


def label(name: str) -> Label:
    """A label without codes."""
    return Label(id=1, name=name, color=(10, 200, 30))


def block(*box: int) -> np.ndarray:
    """A mask of the volume's size that fills a box."""
    k0, k1, j0, j1, i0, i1 = box
    mask = np.zeros(SHAPE, np.uint8)
    mask[k0:k1, j0:j1, i0:i1] = 1
    return mask


def add(segmentation: Any, name: str, mask: np.ndarray | None = None) -> str:
    """A segment, written over the whole grid where there is a mask."""
    new = bridge.add_segment(segmentation, label(name))
    if mask is not None:
        bridge.write_segment(segmentation, new, bridge.Geometry(shape=SHAPE, affine=OBLIQUE), WHOLE, mask)
    return new


def by_slicer(segmentation: Any, segment_id: str, volume: Any) -> np.ndarray:
    """The segment on the volume's grid, as Slicer itself exports it."""
    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, volume)


def put_by_slicer(segmentation: Any, segment_id: str, mask: np.ndarray, affine: np.ndarray = OBLIQUE) -> None:
    """Change a segment as the Segment Editor does; its labelmap is cropped to what is in it."""
    k, j, i = mask.shape
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(i, j, k)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(affine))
    vtk_to_numpy(image.GetPointData().GetScalars())[:] = mask.ravel()
    logic = slicer.modules.segmentations.logic()
    assert logic.SetBinaryLabelmapToSegment(image, segmentation, segment_id, logic.MODE_REPLACE, image.GetExtent())


def labelmap(segmentation: Any, segment_id: str) -> Any:
    """What the segment lies in."""
    return segmentation.GetSegmentation().GetSegment(segment_id).GetRepresentation("Binary labelmap")


def layers(segmentation: Any) -> int:
    """How many labelmaps there are."""
    return segmentation.GetSegmentation().GetNumberOfLayers()
