"""faults.md row 54: a volume deleted, edited or changed meanwhile; the result becomes a new node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from SlicerMaskSAMLib.mrml import bridge
from Testing.slicer import environment
from Testing.slicer import rig as rigs
from Testing.slicer.rig import BRIGHT, Rig, bright, voxels

AFFINE = environment.affine(spacing=(1, 2, 3), angles=(10, 20, 30), origin=(5, -6, 7))


def delete(volume: Any) -> None:
    volume.GetScene().RemoveNode(volume)


def move(volume: Any) -> None:
    volume.SetOrigin(50, 60, 70)


def replace_image(volume: Any) -> None:
    """As modules do that crop or resample a volume in place."""
    import slicer.util

    slicer.util.updateVolumeFromArray(volume, np.ones((3, 4, 5), np.float32))


CHANGES = {"deleted": delete, "edited": rigs.edit_volume, "moved": move, "another image": replace_image}


@pytest.fixture(params=CHANGES)
def change(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    return CHANGES[request.param]


def reference_grid(segmentation: Any) -> bridge.Geometry:
    """The grid that Slicer takes a segmentation to be on."""
    import slicer
    import slicer.util
    import vtk

    converter, image, matrix = slicer.vtkSegmentationConverter, slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    name = converter.GetReferenceImageGeometryParameterName()
    converter.DeserializeImageGeometry(segmentation.GetSegmentation().GetConversionParameter(name), image)
    image.GetImageToWorldMatrix(matrix)
    return bridge.Geometry(shape=image.GetDimensions()[::-1], affine=slicer.util.arrayFromVTKMatrix(matrix))


def run(rig: Rig, change: Callable[[Any], None]) -> tuple[Any, np.ndarray]:
    """Change the volume while it is segmented; the new segmentation, and what the engine found."""
    volume = rig.parameters.inputVolume
    found, before = bright(volume), rigs.segmentations()
    rig.controller.choose_model("slow")
    assert rig.working()
    change(volume)
    assert rig.idle()
    [made] = [node for node in rigs.segmentations() if node not in before]
    return made, found


@pytest.mark.slow
def test_the_result_is_kept_on_the_grid_that_the_volume_had(rig: Rig, change: Callable[[Any], None]) -> None:
    volume = rig.choose(rigs.volume(affine=AFFINE))
    transform = environment.add_transform(environment.affine(origin=(9, 8, 7)), volume)
    grid = bridge.geometry(volume)
    made, found = run(rig, change)
    np.testing.assert_array_equal(bridge.read_segment(made, rigs.segments(made)[BRIGHT], grid) != 0, found)
    assert made.GetParentTransformNode() is transform
    assert reference_grid(made).same(grid)
    assert rig.has_message(f"{made.GetName()} is new: Scan was ")


@pytest.mark.slow
def test_it_is_not_written_over_the_chosen_segmentation(rig: Rig, change: Callable[[Any], None]) -> None:
    volume = rig.choose(rigs.volume())
    chosen, grid = rig.segment(), bridge.geometry(volume)
    before = bridge.read_segment(chosen, rigs.segments(chosen)[BRIGHT], grid)
    stamps = {each: bridge.stamp(chosen, each) for each in rigs.segments(chosen).values()}
    made, _ = run(rig, change)
    assert rig.parameters.segmentation is chosen, "the other one was not meant"
    assert {each: bridge.stamp(chosen, each) for each in rigs.segments(chosen).values()} == stamps
    np.testing.assert_array_equal(bridge.read_segment(chosen, rigs.segments(chosen)[BRIGHT], grid), before)
    assert made is not chosen


@pytest.mark.slow
def test_nor_is_it_lost_when_the_transform_went_as_well(rig: Rig) -> None:
    volume = rig.choose(rigs.volume())
    transform = environment.add_transform(environment.affine(origin=(9, 8, 7)), volume)

    def delete_both(node: Any) -> None:
        rig.scene.RemoveNode(transform)
        delete(node)

    made, found = run(rig, delete_both)
    assert made.GetParentTransformNode() is None
    assert found.any()


@pytest.mark.slow
def test_a_volume_that_was_only_renamed_or_moved_by_a_transform_is_the_same(rig: Rig) -> None:
    """The transform above it is no part of its voxels or its grid; the segmentation follows it there."""
    volume = rig.choose(rigs.volume(), "slow")
    assert rig.working()
    volume.SetName("Other name")
    transform = environment.add_transform(environment.affine(angles=(0, 0, 30)), volume)
    assert rig.idle()
    found = rig.parameters.segmentation
    assert found.GetParentTransformNode() is transform
    np.testing.assert_array_equal(voxels(found, BRIGHT, volume), bright(volume))


@pytest.mark.slow
def test_another_volume_of_the_same_name_is_not_taken_for_it(rig: Rig) -> None:
    """Deleted and loaded again: the IDs tell them apart."""
    volume = rig.choose(rigs.volume())
    grid = bridge.geometry(volume)

    def load_again(node: Any) -> None:
        delete(node)
        rig.controller.choose_volume(rigs.volume(seed=1))

    made, found = run(rig, load_again)
    np.testing.assert_array_equal(bridge.read_segment(made, rigs.segments(made)[BRIGHT], grid) != 0, found)
    assert rig.parameters.segmentation is None
