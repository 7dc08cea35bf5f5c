"""faults.md row 55: a segmentation edited or deleted meanwhile; only agreed segments are written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from SlicerMaskSAMLib.mrml import bridge
from Testing.slicer import rig as rigs
from Testing.slicer.rig import BRIGHT, CORNER, Rig, bright, voxels


@pytest.fixture
def volume(rig: Rig) -> Any:
    """A volume that is being segmented anew, into the segmentation of its first run."""
    volume = rig.choose(rigs.volume())
    rig.segment()
    rig.controller.choose_model("slow")
    assert rig.working()
    return volume


@pytest.fixture
def segmentation(rig: Rig, volume: Any) -> Any:
    return rig.parameters.segmentation


def paint(segmentation: Any, name: str, volume: Any) -> np.ndarray:
    """Edit a segment as the user does; what it holds then."""
    import slicer.util

    mask = np.zeros(bridge.geometry(volume).shape, np.uint8)
    mask[2:4, 5:9, 5:9] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, rigs.segments(segmentation)[name], volume)
    return mask != 0


@pytest.mark.slow
def test_a_segment_that_was_edited_is_kept_beside_the_new_one(rig: Rig, volume: Any, segmentation: Any) -> None:
    mine = paint(segmentation, BRIGHT, volume)
    assert rig.idle()
    assert list(rigs.segments(segmentation)) == [CORNER, BRIGHT, f"{BRIGHT} (2)"]
    np.testing.assert_array_equal(voxels(segmentation, BRIGHT, volume), mine)
    np.testing.assert_array_equal(voxels(segmentation, f"{BRIGHT} (2)", volume), bright(volume))
    assert rig.has_message(f"{BRIGHT} was edited during the segmentation; both versions are kept.")


@pytest.mark.slow
def test_one_undo_takes_all_of_it_back_and_leaves_the_edit(rig: Rig, volume: Any, segmentation: Any) -> None:
    mine, corner = paint(segmentation, BRIGHT, volume), voxels(segmentation, CORNER, volume)
    assert rig.idle()
    rig.controller.undo()
    assert list(rigs.segments(segmentation)) == [CORNER, BRIGHT]
    np.testing.assert_array_equal(voxels(segmentation, BRIGHT, volume), mine)
    np.testing.assert_array_equal(voxels(segmentation, CORNER, volume), corner)
    rig.controller.redo()
    np.testing.assert_array_equal(voxels(segmentation, f"{BRIGHT} (2)", volume), bright(volume))


@pytest.mark.slow
def test_a_segment_that_was_removed_comes_anew(rig: Rig, volume: Any, segmentation: Any) -> None:
    segmentation.GetSegmentation().RemoveSegment(rigs.segments(segmentation)[BRIGHT])
    assert rig.idle()
    np.testing.assert_array_equal(voxels(segmentation, BRIGHT, volume), bright(volume))


@pytest.mark.slow
def test_a_segment_that_was_drawn_meanwhile_is_kept(rig: Rig, volume: Any, segmentation: Any) -> None:
    segmentation.GetSegmentation().RemoveSegment(rigs.segments(segmentation)[BRIGHT])
    segmentation.GetSegmentation().AddEmptySegment("", BRIGHT)
    mine = paint(segmentation, BRIGHT, volume)
    assert rig.idle()
    np.testing.assert_array_equal(voxels(segmentation, BRIGHT, volume), mine)
    np.testing.assert_array_equal(voxels(segmentation, f"{BRIGHT} (2)", volume), bright(volume))


@pytest.mark.slow
def test_segments_of_other_names_stay_as_they_were_edited(rig: Rig, volume: Any, segmentation: Any) -> None:
    segmentation.GetSegmentation().AddEmptySegment("", "Tumour")
    mine = paint(segmentation, "Tumour", volume)
    assert rig.idle()
    np.testing.assert_array_equal(voxels(segmentation, "Tumour", volume), mine)


@pytest.mark.slow
def test_a_segmentation_that_was_deleted_is_made_anew(rig: Rig, volume: Any, segmentation: Any) -> None:
    rig.scene.RemoveNode(segmentation)
    assert rig.idle()
    [made] = rigs.segmentations()
    assert rig.parameters.segmentation is made
    assert rig.has_message("was deleted")
    np.testing.assert_array_equal(voxels(made, BRIGHT, volume), bright(volume))


@pytest.mark.slow
def test_another_segmentation_that_was_chosen_meanwhile_is_left_alone(rig: Rig, volume: Any, segmentation: Any) -> None:
    other = bridge.new_segmentation(rig.scene, "Other", volume=volume)
    other.GetSegmentation().AddEmptySegment("", BRIGHT)
    rig.parameters.segmentation = other
    mine = paint(other, BRIGHT, volume)
    assert rig.idle()
    np.testing.assert_array_equal(voxels(other, BRIGHT, volume), mine)
    assert list(rigs.segments(other)) == [BRIGHT]
    assert rig.parameters.segmentation is other
