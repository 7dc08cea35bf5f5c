"""Undo and redo of what refining did, voxel by voxel and prompt by prompt, and the surfaces that follow."""

from __future__ import annotations

from typing import Any

import numpy as np

from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.choices import OverlapPolicy, Scope
from Testing.slicer import rig
from Testing.slicer.desk import SHAPE, Desk, block, cube, point
from Testing.slicer.toy_engine import answer

FAR = np.s_[17:19, 25:28, 35:38]


# -- undo and redo -----------------------------------------------------------------------------------------------------


def test_five_and_twenty_steps_are_undone_and_redone_exactly(liver: Desk) -> None:
    liver.parameters.neighbours = OverlapPolicy.REPLACE
    liver.refinement.new_structure("Spleen")
    states = []
    for number in range(25):
        states.append((liver.voxels("Liver"), liver.voxels("Spleen"), tuple(liver.rows)))
        liver.click(8 + number, 5 + number % 7, 4 + number % 5, positive=number % 3 != 2)
    states.append((liver.voxels("Liver"), liver.voxels("Spleen"), tuple(liver.rows)))

    def same(state: Any) -> bool:
        now = liver.voxels("Liver"), liver.voxels("Spleen"), tuple(liver.rows)
        return all(np.array_equal(a, b) for a, b in zip(now, state, strict=True))

    for state in reversed(states[:-1]):
        liver.refinement.undo()
        assert same(state)
    for state in states[1:]:
        liver.refinement.redo()
        assert same(state)


def test_after_undo_a_click_goes_on_from_there(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.click(26, 15, 10)
    desk.refinement.undo()
    desk.click(14, 15, 10)
    assert np.array_equal(desk.voxels(), answer(SHAPE, [point(20, 15, 10, candidate=0), point(14, 15, 10)]))
    assert desk.context.history.redo_text == ""


def test_after_undo_the_quality_is_that_of_what_is_shown(desk: Desk) -> None:
    desk.click(20, 15, 10)
    before = desk.shown.quality
    desk.refinement.set_scope(Scope.VOLUME)
    desk.settle()
    assert desk.shown.quality != before
    desk.refinement.undo()
    assert desk.shown.quality == {}
    desk.settle()
    assert desk.shown.quality == before


def test_undo_of_the_first_click_and_of_the_structure(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.refinement.undo()
    assert not desk.voxels().any()
    assert desk.rows == []
    desk.refinement.undo()
    assert rig.segments(desk.segmentation) == {}
    desk.refinement.redo()
    desk.refinement.redo()
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))
    assert desk.rows == ["Include (20, 15, 10), slab"]


def test_a_structure_that_somebody_drew_in_stays_when_its_making_is_undone(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.paint(desk.name, FAR)
    desk.refinement.undo()
    desk.refinement.undo()
    assert np.array_equal(desk.voxels("Structure 1"), block(FAR))


def test_undo_goes_back_to_the_structure_that_it_changes(desk: Desk) -> None:
    desk.click(20, 15, 10)
    first = desk.parameters.segmentID
    desk.refinement.new_structure()
    desk.refinement.undo()
    desk.refinement.undo()
    assert desk.parameters.segmentID == first
    assert desk.rows == []


def test_redo_goes_on_to_the_structure_that_it_brings_back(desk: Desk) -> None:
    desk.refinement.new_structure("Liver")
    first = desk.parameters.segmentID
    desk.refinement.new_structure("Spleen")
    desk.refinement.undo()
    desk.refinement.choose_segment(first)
    desk.refinement.redo()
    assert desk.name == "Spleen"


def test_undo_reports_what_it_cannot_restore(desk: Desk) -> None:
    desk.click(20, 15, 10)
    bridge.remove_segment(desk.segmentation, desk.parameters.segmentID)
    desk.refinement.undo()
    assert desk.messages == ["Click in Structure 1: a segment no longer exists; the others were changed."]
    desk.scene.RemoveNode(desk.segmentation)
    desk.refinement.undo()
    assert desk.messages[1:] == ["New structure Structure 1: the segmentation no longer exists; nothing was changed."]


def test_nothing_to_undo_or_redo(desk: Desk) -> None:
    desk.refinement.undo()
    desk.refinement.redo()
    assert desk.messages == []


# -- surfaces ----------------------------------------------------------------------------------------------------------


def test_the_surface_that_is_shown_follows_every_step(desk: Desk) -> None:
    def width() -> float:
        segment = desk.segmentation.GetSegmentation().GetSegment(desk.parameters.segmentID)
        low, high = np.reshape(segment.GetRepresentation("Closed surface").GetBounds(), (3, 2)).T
        return float(high[0] - low[0])

    desk.click(20, 15, 10)
    desk.segmentation.CreateClosedSurfaceRepresentation()
    before = width()
    desk.click(26, 15, 10)
    after = width()
    assert after > before + 3
    desk.refinement.undo()
    desk.settle()
    assert width() == before
