"""The bridge: segments in the labelmaps that Slicer keeps them in, of any extent and on any grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util
import vtk

from SlicerMaskSAMLib.mrml import bridge
from Testing.slicer.masks import (
    OBLIQUE,
    SHAPE,
    WHOLE,
    add,
    block,
    by_slicer,
    labelmap,
    layers,
    put_by_slicer,
)

# -- what Slicer made of it ----------------------------------------------------------------------------------------


def test_a_segment_that_slicer_cropped(segmentation: Any, grid: Any, volume: Any) -> None:
    a, b = add(segmentation, "A"), add(segmentation, "B")
    first, second = block(4, 6, 10, 14, 8, 12), block(1, 2, 2, 4, 2, 5)
    put_by_slicer(segmentation, a, first)
    assert labelmap(segmentation, a).GetNumberOfPoints() < first.size
    assert np.array_equal(bridge.read_segment(segmentation, a, grid), first)
    assert np.array_equal(bridge.read_segment(segmentation, a, grid, (5, 9, 12, 20, 0, 9)), first[5:9, 12:20, 0:9])
    assert not bridge.read_segment(segmentation, a, grid, (0, 2, 0, 2, 0, 2)).any()
    assert bridge.extent(segmentation, a, grid) == (4, 6, 10, 14, 8, 12)
    bridge.write_segment(segmentation, b, grid, (0, 3, 0, 6, 0, 7), second[0:3, 0:6, 0:7])
    bridge.write_segment(segmentation, a, grid, (9, 10, 23, 24, 29, 30), np.ones((1, 1, 1), np.uint8))
    first[9, 23, 29] = 1
    for segment_id, mask in ((a, first), (b, second)):
        assert np.array_equal(bridge.read_segment(segmentation, segment_id, grid), mask)
        assert np.array_equal(by_slicer(segmentation, segment_id, volume), mask)


def test_slicer_goes_on_with_what_was_written(segmentation: Any, grid: Any) -> None:
    a, b = add(segmentation, "A", block(2, 8, 2, 10, 2, 10)), add(segmentation, "B", block(2, 8, 2, 10, 10, 20))
    put_by_slicer(segmentation, a, block(0, 3, 12, 20, 12, 20))
    assert np.array_equal(bridge.read_segment(segmentation, a, grid), block(0, 3, 12, 20, 12, 20))
    assert np.array_equal(bridge.read_segment(segmentation, b, grid), block(2, 8, 2, 10, 10, 20))


def test_the_segment_editors_undo_restores_what_was_written_over(segmentation: Any, grid: Any) -> None:
    mask = block(2, 8, 2, 10, 2, 10)
    kidney = add(segmentation, "A", mask)
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(segmentation.GetSegmentation())
    history.SaveState()
    bridge.write_segment(segmentation, kidney, grid, (0, 10, 0, 12, 0, 12), np.zeros((10, 12, 12), np.uint8))
    assert not bridge.read_segment(segmentation, kidney, grid).any()
    history.RestorePreviousState()
    assert np.array_equal(bridge.read_segment(segmentation, kidney, grid), mask)
    bridge.write_segment(segmentation, kidney, grid, (0, 1, 0, 1, 0, 1), np.ones((1, 1, 1), np.uint8))
    assert bridge.read_segment(segmentation, kidney, grid).sum() == mask.sum() + 1


def test_layers_that_slicer_joined(segmentation: Any, grid: Any) -> None:
    first, second = block(2, 8, 2, 10, 2, 10), block(2, 8, 2, 10, 8, 20)
    a, b = add(segmentation, "A", first), add(segmentation, "B", second)
    assert layers(segmentation) == 2
    first[:, :, 8:] = 0
    bridge.write_segment(segmentation, a, grid, WHOLE, first)
    segmentation.GetSegmentation().CollapseBinaryLabelmaps(False)
    assert layers(segmentation) == 1
    assert np.array_equal(bridge.read_segment(segmentation, a, grid), first)
    assert np.array_equal(bridge.read_segment(segmentation, b, grid), second)


# -- other grids ---------------------------------------------------------------------------------------------------


def test_a_grid_with_another_origin_is_the_same_lattice(segmentation: Any, grid: Any, volume: Any) -> None:
    a, b = add(segmentation, "A"), add(segmentation, "B")
    shared = slicer.vtkOrientedImageData()
    shared.SetDimensions(6, 4, 2)
    shared.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    shared.GetPointData().GetScalars().Fill(segmentation.GetSegmentation().GetSegment(a).GetLabelValue())
    shifted = OBLIQUE.copy()
    shifted[:3, 3] = (OBLIQUE @ (4, 3, 2, 1))[:3]
    shared.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(shifted))
    for each in (a, b):
        segmentation.GetSegmentation().GetSegment(each).AddRepresentation("Binary labelmap", shared)
    expected = block(2, 4, 3, 7, 4, 10)
    assert np.array_equal(bridge.read_segment(segmentation, a, grid), expected)
    bridge.write_segment(segmentation, a, grid, (0, 1, 0, 1, 0, 2), np.ones((1, 1, 2), np.uint8))
    expected[0, 0, :2] = 1
    assert np.array_equal(bridge.read_segment(segmentation, a, grid), expected)
    assert np.array_equal(by_slicer(segmentation, a, volume), expected)
    assert layers(segmentation) == 1


def test_a_finer_grid_is_read_by_its_nearest_voxels(segmentation: Any, grid: Any) -> None:
    a, b = add(segmentation, "A"), add(segmentation, "B")
    finer = OBLIQUE @ np.diag([0.5, 0.5, 0.5, 1])
    finer[:3, 3] = (OBLIQUE @ (-0.25, -0.25, -0.25, 1))[:3]
    mask = block(2, 5, 6, 10, 7, 15)
    twice = mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    put_by_slicer(segmentation, a, twice, finer)
    assert np.array_equal(bridge.read_segment(segmentation, a, grid), mask)
    assert np.array_equal(bridge.read_segment(segmentation, a, grid, (4, 6, 7, 9, 12, 17)), mask[4:6, 7:9, 12:17])
    assert bridge.extent(segmentation, a, grid) == (2, 5, 6, 10, 7, 15)
    assert set(bridge.other_segments(segmentation, b, grid, (4, 6, 7, 9, 12, 17))) == {a}


def test_writing_brings_a_segment_alone_to_the_grid(segmentation: Any, grid: Any) -> None:
    a, b = add(segmentation, "A"), add(segmentation, "B")
    finer = OBLIQUE @ np.diag([0.5, 0.5, 0.5, 1])
    finer[:3, 3] = (OBLIQUE @ (-0.25, -0.25, -0.25, 1))[:3]
    mask, other = block(2, 5, 6, 10, 7, 15), block(6, 9, 6, 10, 7, 15)
    put_by_slicer(segmentation, a, mask.repeat(2, 0).repeat(2, 1).repeat(2, 2), finer)
    put_by_slicer(segmentation, b, other.repeat(2, 0).repeat(2, 1).repeat(2, 2), finer)
    fine = labelmap(segmentation, b).GetSpacing()
    bridge.write_segment(segmentation, a, grid, (0, 1, 0, 1, 0, 1), np.ones((1, 1, 1), np.uint8))
    mask[0, 0, 0] = 1
    assert np.array_equal(bridge.read_segment(segmentation, a, grid), mask)
    assert np.allclose(labelmap(segmentation, a).GetSpacing(), grid.spacing)
    assert labelmap(segmentation, b).GetSpacing() == fine
    assert np.array_equal(bridge.read_segment(segmentation, b, grid), other)


def test_what_lies_beyond_the_volume_is_kept(segmentation: Any, grid: Any) -> None:
    a, b = add(segmentation, "A"), add(segmentation, "B", block(8, 9, 20, 22, 25, 28))
    wide = OBLIQUE.copy()
    wide[:3, 3] = (OBLIQUE @ (-5, -5, -5, 1))[:3]
    put_by_slicer(segmentation, a, np.ones((8, 9, 10), np.uint8), wide)
    assert np.array_equal(bridge.read_segment(segmentation, a, grid), block(0, 3, 0, 4, 0, 5))
    assert bridge.extent(segmentation, a, grid) == (0, 3, 0, 4, 0, 5)
    bridge.write_segment(segmentation, a, grid, (9, 10, 20, 24, 20, 30), np.ones((1, 4, 10), np.uint8))
    larger = bridge.Geometry(shape=(20, 30, 40), affine=wide)
    assert bridge.read_segment(segmentation, a, larger).sum() == 8 * 9 * 10 + 40
    assert np.array_equal(bridge.read_segment(segmentation, b, grid), block(8, 9, 20, 22, 25, 28))


def test_a_segment_outside_the_volume_is_nowhere_in_it(segmentation: Any, grid: Any) -> None:
    a = add(segmentation, "A")
    away = OBLIQUE.copy()
    away[:3, 3] = (OBLIQUE @ (-50, 40, 20, 1))[:3]
    put_by_slicer(segmentation, a, np.ones((8, 9, 10), np.uint8), away)
    assert bridge.extent(segmentation, a, grid) is None
    assert not bridge.read_segment(segmentation, a, grid).any()


@pytest.mark.parametrize("first", [True, False])
def test_more_segments_than_a_byte_counts(segmentation: Any, grid: Any, first: bool) -> None:
    ids = [add(segmentation, str(number)) for number in range(260 if first else 0)]
    for number in range(260):
        if not first:
            ids.append(add(segmentation, str(number)))
        k, j, i = (int(value) for value in np.unravel_index(2 * number, SHAPE))
        box = (k, k + 1, j, j + 1, i, i + 1)
        bridge.write_segment(segmentation, ids[number], grid, box, np.ones((1, 1, 1), np.uint8))
    assert layers(segmentation) == 1
    for number, each in enumerate(ids):
        assert np.flatnonzero(bridge.read_segment(segmentation, each, grid)).tolist() == [2 * number]


def test_values_that_belong_to_no_segment_stay_apart(segmentation: Any, grid: Any) -> None:
    a = add(segmentation, "A")
    value = segmentation.GetSegmentation().GetSegment(a).GetLabelValue()
    stray = slicer.vtkOrientedImageData()
    stray.SetExtent(4, 6, 3, 5, 2, 4)
    stray.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(OBLIQUE))
    stray.AllocateScalars(vtk.VTK_SHORT, 1)
    stray.GetPointData().GetScalars().Fill(256 + value)
    segmentation.GetSegmentation().GetSegment(a).AddRepresentation("Binary labelmap", stray)
    bridge.write_segment(segmentation, a, grid, (0, 1, 0, 1, 0, 1), np.ones((1, 1, 1), np.uint8))
    assert np.array_equal(bridge.read_segment(segmentation, a, grid), block(0, 1, 0, 1, 0, 1))
