"""From one structure to the next: names, accepting, suggestions, automatic prompts, and views."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.inference.results import Suggestion
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.auto_prompts import AutomaticPromptNodes
from Testing.slicer import environment, rig
from Testing.slicer.desk import SHAPE, Desk, cube
from Testing.slicer.rig import BRIGHT, CORNER
from Testing.slicer.toy_engine import answer


def names(desk: Desk) -> list[str]:
    return list(rig.segments(desk.segmentation))


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_structure_gets_its_codes_by_its_name(desk: Desk) -> None:
    desk.refinement.new_structure("kidney_L")
    label = bridge.segment_label(desk.segmentation, desk.parameters.segmentID)
    assert label.name == "Left kidney"
    assert (label.type.value, label.modifier.meaning) == ("64033007", "Left")


def test_a_structure_of_the_model_has_the_model_s_colour(desk: Desk) -> None:
    desk.refinement.new_structure("liver")
    label = bridge.segment_label(desk.segmentation, desk.parameters.segmentID)
    assert (label.name, label.color) == (BRIGHT, desk.context.label(1).color)


def test_an_unknown_name_is_taken_as_it_is(desk: Desk) -> None:
    desk.refinement.new_structure("Tumour bed 3")
    label = bridge.segment_label(desk.segmentation, desk.parameters.segmentID)
    assert (label.name, label.type) == ("Tumour bed 3", None)


def test_the_next_structure_is_the_first_of_the_model_s_that_is_missing(desk: Desk) -> None:
    desk.refinement.next_structure()
    desk.refinement.next_structure()
    desk.refinement.next_structure()
    assert names(desk) == [BRIGHT, CORNER, "Structure 3"]


def test_structures_that_are_not_wanted_are_not_the_next_ones(desk: Desk) -> None:
    desk.parameters.skippedStructures = [BRIGHT]
    desk.refinement.next_structure()
    assert names(desk) == [CORNER]


def test_the_next_structure_may_be_there_already(desk: Desk) -> None:
    desk.refinement.new_structure("left kidney")
    kidney = desk.parameters.segmentID
    desk.refinement.new_structure("Spleen")
    desk.refinement.next_structure("Kidney, left")
    assert desk.parameters.segmentID == kidney
    assert names(desk) == ["Left kidney", "Spleen"]


def test_a_renamed_segment_stays_the_same_structure(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.segmentation.GetSegmentation().GetSegment(desk.parameters.segmentID).SetName("Lesion")
    desk.click(26, 15, 10)
    assert desk.voxels("Lesion").sum() > cube(20, 15, 10).sum()
    assert desk.context.history.undo_text == "Click in Lesion"


def test_only_the_prompts_of_the_chosen_structure_are_shown(desk: Desk) -> None:
    desk.click(20, 15, 10)
    first = desk.parameters.segmentID
    desk.refinement.new_structure()
    desk.click(8, 15, 10)

    def visible() -> list[bool]:
        return [bool(node.GetDisplayVisibility()) for node in environment.nodes("vtkMRMLMarkupsFiducialNode")]

    assert visible() == [False, True]
    desk.refinement.choose_segment(first)
    assert visible() == [True, False]
    assert desk.rows == ["Include (20, 15, 10), slab"]


# -- accepting ---------------------------------------------------------------------------------------------------------


def test_accepting_keeps_the_voxels_and_lets_the_prompts_go(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.refinement.accept()
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))
    assert desk.rows == []
    desk.refinement.undo()
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))
    assert desk.rows == ["Include (20, 15, 10), slab"]


def test_after_accepting_a_click_starts_from_what_was_accepted(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.refinement.accept()
    desk.click(30, 15, 10)
    second = answer(SHAPE, [{"kind": "point", "position": (30, 15, 10), "positive": True, "scope": "slab"}])
    assert np.array_equal(desk.voxels(), cube(20, 15, 10) | second)
    assert len(desk.rows) == 2


def test_what_is_accepted_too_early_is_accepted_when_it_is_answered(desk: Desk) -> None:
    desk.press(20, 15, 10)
    desk.refinement.next_structure("Spleen")
    desk.press(8, 15, 10)
    desk.settle()
    assert np.array_equal(desk.voxels("Structure 1"), cube(20, 15, 10))
    assert np.array_equal(desk.voxels("Spleen"), cube(8, 15, 10))
    first = rig.segments(desk.segmentation)["Structure 1"]
    desk.refinement.choose_segment(first)
    assert desk.rows == []


def test_nothing_to_accept(desk: Desk) -> None:
    desk.refinement.accept()
    desk.refinement.new_structure("Spleen")
    desk.refinement.accept()
    assert desk.context.history.undo_text == "New structure Spleen"


# -- suggestions and messages ------------------------------------------------------------------------------------------


def test_a_suggestion_is_taken_over_and_taken_back(desk: Desk) -> None:
    desk.engine.suggested = Suggestion(label=2, name=CORNER, probability=0.9)
    desk.click(20, 15, 10)
    assert desk.shown.suggestion == CORNER
    desk.refinement.take_suggestion()
    label = bridge.segment_label(desk.segmentation, desk.parameters.segmentID)
    assert (label.name, label.type) == (CORNER, desk.context.label(2).type)
    assert desk.shown.suggestion == ""
    desk.refinement.undo()
    assert desk.name == "Structure 1"
    desk.refinement.redo()
    assert bridge.segment_label(desk.segmentation, desk.parameters.segmentID).type == label.type


def test_messages_of_the_engine_are_logged(desk: Desk) -> None:
    desk.engine.messages = ("the image is constant; the result is empty",)
    desk.click(20, 15, 10)
    assert desk.messages == ["the image is constant; the result is empty"]


def test_no_suggestion(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.refinement.take_suggestion()
    assert desk.messages == ["The model has no suggestion for this structure."]


def test_the_worst_slice_is_jumped_to(desk: Desk) -> None:
    desk.refinement.jump_to_worst()
    assert desk.messages == ["There is no answer yet; click on the structure first."]
    desk.click(20, 15, 10)
    assert desk.shown.worst == 13
    assert set(desk.shown.quality) == set(range(7, 14))
    desk.refinement.jump_to_worst()
    assert desk.view.GetSliceOffset() == pytest.approx(desk.world(20, 15, 13)[2])
    desk.refinement.jump_to(8)
    assert desk.view.GetSliceOffset() == pytest.approx(desk.world(20, 15, 8)[2])


def test_the_quality_is_counted_along_the_model_s_slices(desk: Desk) -> None:
    assert desk.shown.can_refine
    assert desk.shown.segment_id == ""
    desk.click(20, 15, 10)
    assert (desk.shown.quality_axis, desk.shown.slices) == (0, SHAPE[0])


# -- automatic prompts -------------------------------------------------------------------------------------------------


@pytest.fixture
def automatic(desk: Desk) -> AutomaticPromptNodes:
    """Those that are shown."""
    return AutomaticPromptNodes(desk.scene)


def look_at(desk: Desk, k: int) -> None:
    desk.view.SetDimensions(100, 100, 1)
    desk.view.SetFieldOfView(100, 100, 1)
    desk.view.JumpSliceByCentering(*desk.world(20, 15, k))


def test_automatic_prompts_are_shown_for_the_slice(desk: Desk, automatic: AutomaticPromptNodes) -> None:
    look_at(desk, 7)
    desk.refinement.show_automatic(True)
    desk.settle()
    assert [fields["slices"] for op, fields in desk.engine.asked if op == "automatic"] == [[7], [7]]
    assert len(automatic.nodes()) == 4
    desk.refinement.show_automatic(False)
    assert not automatic.nodes()
    assert not desk.parameters.showAutomatic


def test_structures_that_are_not_wanted_are_not_asked_for(desk: Desk, automatic: AutomaticPromptNodes) -> None:
    desk.parameters.skippedStructures = [CORNER]
    desk.refinement.show_automatic(True)
    desk.settle()
    assert [fields["label"] for op, fields in desk.engine.asked if op == "automatic"] == [1]


def test_they_are_given_to_their_structures_where_they_were_dragged_to(
    desk: Desk, automatic: AutomaticPromptNodes
) -> None:
    look_at(desk, 10)
    desk.refinement.show_automatic(True)
    desk.settle()
    dot = next(
        node
        for node in automatic.nodes()
        if node.GetName().startswith(BRIGHT) and node.IsA("vtkMRMLMarkupsFiducialNode")
    )
    dot.SetNthControlPointPositionWorld(0, desk.world(30, 20, 10))
    desk.refinement.run_automatic()
    desk.settle()
    assert names(desk) == [BRIGHT, CORNER]
    assert not automatic.nodes()
    point = {"kind": "point", "position": (30, 20, 10), "positive": True, "scope": "slab"}
    box = {"kind": "box", "corners": ((4, 2, 10), (8, 3, 10))}
    assert np.array_equal(desk.voxels(BRIGHT), answer(SHAPE, [box, point]))


def test_each_structure_is_one_step(desk: Desk) -> None:
    desk.refinement.show_automatic(True)
    desk.settle()
    desk.refinement.run_automatic()
    desk.settle()
    desk.refinement.undo()
    assert not desk.voxels(CORNER).any()
    assert desk.voxels(BRIGHT).any()
    desk.refinement.undo()
    assert not desk.voxels(BRIGHT).any()


def test_what_is_not_shown_cannot_be_run(desk: Desk) -> None:
    desk.refinement.run_automatic()
    assert desk.messages == ["The automatic prompts are not shown; show them first."]


def test_what_is_not_wanted_any_more_when_it_comes_is_not_shown(desk: Desk, automatic: AutomaticPromptNodes) -> None:
    desk.refinement.show_automatic(True)
    desk.tick(2)
    desk.refinement.show_automatic(False)
    desk.settle()
    assert not automatic.nodes()
