"""The bridge: what counts as a change of a segment, and what Slicer's views are told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import slicer.util
import vtk

from MaskSAMCore.terminology import lookup
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.sparse import VoxelBox
from Testing.slicer import environment

SHAPE = (10, 24, 30)
AFFINE = environment.affine(spacing=(1, 1, 2), origin=(-20, -15, -10))
LEFT, RIGHT = (2, 8, 4, 20, 2, 12), (2, 8, 4, 20, 15, 28)


def ones(box: VoxelBox) -> np.ndarray:
    return np.ones((box[1] - box[0], box[3] - box[2], box[5] - box[4]), np.uint8)


@pytest.fixture
def volume(scene: Any) -> Any:
    return environment.add_volume(np.zeros(SHAPE, np.int16), AFFINE, "Scan")


@pytest.fixture
def pair(scene: Any, volume: Any, grid: bridge.Geometry) -> tuple[Any, str, str]:
    """A segmentation with two segments side by side in one labelmap."""
    segmentation = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    a = bridge.add_segment(segmentation, lookup("left kidney").label(1))
    b = bridge.add_segment(segmentation, lookup("right kidney").label(2))
    bridge.write_segment(segmentation, a, grid, LEFT, ones(LEFT))
    bridge.write_segment(segmentation, b, grid, RIGHT, ones(RIGHT))
    return segmentation, a, b


def edit_elsewhere(segmentation: Any, segment_id: str) -> None:
    """What an effect of the Segment Editor does: one voxel more."""
    image = slicer.vtkOrientedImageData()
    image.SetExtent(0, 0, 0, 0, 0, 0)
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(AFFINE))
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.GetPointData().GetScalars().Fill(1)
    logic = slicer.modules.segmentations.logic()
    assert logic.SetBinaryLabelmapToSegment(image, segmentation, segment_id, logic.MODE_MERGE_MAX)


# -- stamps --------------------------------------------------------------------------------------------------------


def test_a_write_changes_the_stamp_of_its_segment_alone(pair: Any, grid: Any) -> None:
    segmentation, a, b = pair
    before = bridge.stamp(segmentation, a), bridge.stamp(segmentation, b)
    bridge.write_segment(segmentation, a, grid, (0, 1, 0, 1, 0, 1), ones((0, 1, 0, 1, 0, 1)))
    assert bridge.stamp(segmentation, a) > before[0]
    assert bridge.stamp(segmentation, b) == before[1]


def test_a_write_that_changes_nothing_is_no_change(pair: Any, grid: Any) -> None:
    segmentation, a, b = pair
    before = bridge.stamp(segmentation, a), bridge.stamp(segmentation, b)
    bridge.write_segment(segmentation, a, grid, LEFT, ones(LEFT))
    assert (bridge.stamp(segmentation, a), bridge.stamp(segmentation, b)) == before


def test_moving_to_a_labelmap_of_its_own_is_no_change_for_the_others(pair: Any, grid: Any) -> None:
    segmentation, a, b = pair
    before = bridge.stamp(segmentation, a), bridge.stamp(segmentation, b)
    shared = segmentation.GetSegmentation().GetSegment(a).GetRepresentation("Binary labelmap")
    count = shared.GetMTime()
    over = (3, 5, 5, 9, 5, 20)
    bridge.write_segment(segmentation, b, grid, over, ones(over))
    assert segmentation.GetSegmentation().GetNumberOfLayers() == 2
    assert shared.GetMTime() > count
    assert bridge.stamp(segmentation, a) == before[0]
    assert bridge.stamp(segmentation, b) > before[1]


def test_growing_the_labelmap_is_no_change_for_the_others(scene: Any, grid: Any, volume: Any) -> None:
    segmentation = bridge.new_segmentation(scene, "Segmentation", volume=volume)
    a, b = (bridge.add_segment(segmentation, lookup(side + " kidney").label(1)) for side in ("left", "right"))
    small = slicer.vtkOrientedImageData()
    small.SetExtent(2, 11, 4, 19, 2, 7)
    small.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(AFFINE))
    small.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    small.GetPointData().GetScalars().Fill(2)
    for each in (a, b):
        segmentation.GetSegmentation().GetSegment(each).AddRepresentation("Binary labelmap", small)
    before = bridge.stamp(segmentation, b)
    bridge.write_segment(segmentation, a, grid, (9, 10, 23, 24, 29, 30), ones((9, 10, 23, 24, 29, 30)))
    assert bridge.stamp(segmentation, b) == before
    assert bridge.extent(segmentation, b, grid) == (2, 8, 4, 20, 2, 12)


def test_an_edit_elsewhere_is_a_change(pair: Any) -> None:
    segmentation, a, _ = pair
    before = bridge.stamp(segmentation, a)
    edit_elsewhere(segmentation, a)
    assert bridge.stamp(segmentation, a) > before


def test_what_is_no_edit_changes_no_stamp(pair: Any, volume: Any, tmp_path: Path, views: Any) -> None:
    segmentation, a, b = pair
    before = bridge.stamp(segmentation, a), bridge.stamp(segmentation, b)
    segmentation.GetSegmentation().GetSegment(a).SetName("Renamed")
    segmentation.GetSegmentation().GetSegment(a).SetColor(1, 0, 0)
    bridge.add_segment(segmentation, lookup("liver").label(3))
    environment.add_transform(environment.affine(origin=(1, 2, 3)), volume, segmentation)
    environment.save_scene(tmp_path / "a.mrb")
    slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, a, volume)
    segmentation.CreateClosedSurfaceRepresentation()
    view = views.slice()
    view.show(volume)
    view.picture()
    assert (bridge.stamp(segmentation, a), bridge.stamp(segmentation, b)) == before


# -- views ---------------------------------------------------------------------------------------------------------


def test_a_slice_view_shows_every_write(pair: Any, grid: Any, volume: Any, views: Any) -> None:
    segmentation, a, _ = pair
    view = views.slice()
    view.show(volume)
    first = view.picture()
    hole = (2, 8, 8, 14, 4, 10)
    bridge.write_segment(segmentation, a, grid, hole, 0 * ones(hole))
    second = view.picture()
    x, y = view.xy(bridge.ijk_to_world(volume, [(6.5, 10.5, 5)])[0])
    place = round(view.size[1] - 1 - y), round(x)
    assert first[place].max() > 20
    assert second[place].max() == 0


def test_observers_are_notified_which_segment_changed(pair: Any, grid: Any) -> None:
    segmentation, a, _ = pair
    told: list[str] = []

    @vtk.calldata_type(vtk.VTK_STRING)
    def on_change(_caller: Any, _event: str, segment_id: str) -> None:
        told.append(segment_id)

    segments = segmentation.GetSegmentation()
    segments.AddObserver(slicer.vtkSegmentation.SourceRepresentationModified, on_change)
    bridge.write_segment(segmentation, a, grid, LEFT, ones(LEFT))
    assert told == []
    bridge.write_segment(segmentation, a, grid, LEFT, 0 * ones(LEFT))
    assert told == [a]


def surface(segmentation: Any, segment_id: str) -> Any:
    return segmentation.GetSegmentation().GetSegment(segment_id).GetRepresentation("Closed surface")


def test_a_write_keeps_the_surfaces_and_lists_the_outdated_one(pair: Any, grid: Any) -> None:
    segmentation, a, b = pair
    assert bridge.outdated_surfaces(segmentation) == []
    segmentation.CreateClosedSurfaceRepresentation()
    kept = surface(segmentation, b)
    bridge.write_segment(segmentation, a, grid, (0, 1, 0, 9, 0, 9), ones((0, 1, 0, 9, 0, 9)))
    assert surface(segmentation, b) is kept
    assert bridge.outdated_surfaces(segmentation) == [a]
    bridge.refresh_surface(segmentation, a, grid)
    assert bridge.outdated_surfaces(segmentation) == []
    assert surface(segmentation, b) is kept


def test_surfaces_that_slicer_cares_for_are_left_to_it(pair: Any) -> None:
    segmentation, a, b = pair
    segmentation.CreateClosedSurfaceRepresentation()
    edit_elsewhere(segmentation, a)
    assert surface(segmentation, b) is not None
    assert bridge.outdated_surfaces(segmentation) == []


def test_a_refreshed_surface_is_the_one_that_slicer_makes(pair: Any, grid: Any) -> None:
    segmentation, a, _ = pair
    segmentation.GetSegmentation().SetConversionParameter("Smoothing factor", "0.2")
    segmentation.CreateClosedSurfaceRepresentation()
    bridge.write_segment(segmentation, a, grid, (0, 4, 0, 9, 0, 9), ones((0, 4, 0, 9, 0, 9)))
    bridge.refresh_surface(segmentation, a, grid)
    mine = surface(segmentation, a)
    bounds, count, made = mine.GetBounds(), mine.GetNumberOfPoints(), mine.GetMTime()
    segmentation.GetSegmentation().CreateRepresentation("Closed surface", True)
    theirs = surface(segmentation, a)
    assert theirs.GetMTime() > made
    assert np.allclose(bounds, theirs.GetBounds(), atol=1e-4)
    assert count == theirs.GetNumberOfPoints()


def test_the_surface_of_an_emptied_segment_is_empty(pair: Any, grid: Any, capfd: pytest.CaptureFixture) -> None:
    segmentation, a, _ = pair
    segmentation.CreateClosedSurfaceRepresentation()
    bridge.write_segment(segmentation, a, grid, LEFT, 0 * ones(LEFT))
    bridge.refresh_surface(segmentation, a, grid)
    assert surface(segmentation, a).GetNumberOfPoints() == 0
    assert bridge.outdated_surfaces(segmentation) == []
    assert "ERR" not in capfd.readouterr().err


def test_a_3d_view_shows_the_refreshed_surface(pair: Any, grid: Any, views: Any) -> None:
    segmentation, a, _ = pair
    segmentation.CreateClosedSurfaceRepresentation()
    view = views.three_d()
    view.fit()
    first = view.picture()
    bridge.write_segment(segmentation, a, grid, LEFT, 0 * ones(LEFT))
    bridge.refresh_surface(segmentation, a, grid)
    assert (view.picture() != first).any(axis=2).mean() > 0.02
