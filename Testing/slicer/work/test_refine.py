"""Clicks, boxes and the buttons of the section Refine, on Slicer's scene with an engine whose answers are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from SlicerMaskSAMLib.values.choices import OverlapPolicy, Scope
from Testing.slicer import environment
from Testing.slicer.desk import BLOCK, SHAPE, Desk, block, cube, point
from Testing.slicer.toy_engine import answer

FAR = np.s_[17:19, 25:28, 35:38]


# -- clicks ------------------------------------------------------------------------------------------------------------


def test_the_first_click_makes_a_structure(desk: Desk) -> None:
    desk.click(20, 15, 10)
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))
    assert desk.rows == ["Include (20, 15, 10), slab"]
    assert desk.segmentation.GetName() == "Scan segmentation"
    assert desk.name == "Structure 1"


def test_clicks_add_up_and_exclude(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.click(26, 15, 10)
    desk.click(20, 17, 10, positive=False)
    prompts = [point(20, 15, 10, candidate=0), point(26, 15, 10), point(20, 17, 10, positive=False)]
    assert np.array_equal(desk.voxels(), answer(SHAPE, prompts))


def test_the_engine_always_gets_the_full_list(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.click(26, 15, 10, positive=False)
    first, second = desk.engine.prompted()
    assert [each["position"] for each in second] == [pytest.approx((20, 15, 10)), pytest.approx((26, 15, 10))]
    assert first == second[:1]


def test_a_first_click_that_excludes_is_not_taken(desk: Desk) -> None:
    desk.click(20, 15, 10, positive=False)
    assert desk.segmentation is None
    assert not desk.engine.asked
    assert "The structure is empty" in desk.messages[0]


def test_a_box_fills_itself(desk: Desk) -> None:
    desk.refinement.draw_box(desk.world(9.6, 4.6, 10), desk.world(20.4, 12.4, 10), desk.view)
    desk.settle()
    assert np.array_equal(desk.voxels(), block(np.s_[10:11, 5:13, 10:21]))
    assert desk.context.history.undo_text == "Box in Structure 1"


def test_the_scope_goes_with_the_click(desk: Desk) -> None:
    desk.refinement.set_scope(Scope.SLICE)
    desk.click(20, 15, 10)
    assert np.flatnonzero(desk.voxels().any(axis=(1, 2))).tolist() == [10]


def test_a_change_of_the_scope_answers_the_last_click_anew(desk: Desk) -> None:
    reached = []
    for scope in (Scope.SLICE, Scope.SLAB, Scope.VOLUME):
        desk.refinement.set_scope(scope)
        if scope is Scope.SLICE:
            desk.click(20, 15, 10)
        desk.settle()
        reached.append(int(desk.voxels().any(axis=(1, 2)).sum()))
    assert reached == [1, 7, SHAPE[0]]
    assert desk.rows == ["Include (20, 15, 10), volume"]
    desk.refinement.undo()
    assert desk.voxels().any(axis=(1, 2)).sum() == 7
    assert desk.rows == ["Include (20, 15, 10), slab"]


def test_the_candidates_of_a_single_click_are_shown_in_turn(desk: Desk) -> None:
    desk.click(20, 15, 10)
    assert (desk.shown.candidates, desk.shown.candidate) == (3, 0)
    for candidate, half in ((1, 2), (2, 1), (0, 3)):
        desk.refinement.next_candidate()
        desk.settle()
        assert desk.shown.candidate == candidate
        assert np.array_equal(desk.voxels(), cube(20, 15, 10, half))


def test_the_chosen_candidate_is_kept(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.refinement.next_candidate()
    desk.click(30, 15, 10)
    assert np.array_equal(desk.voxels(), answer(SHAPE, [point(20, 15, 10, candidate=1), point(30, 15, 10)]))
    assert desk.shown.candidates == 0
    desk.refinement.next_candidate()
    assert desk.messages == ["Only a single click that includes has other candidates."]


def test_a_dragged_prompt_is_answered_anew(desk: Desk) -> None:
    desk.click(20, 15, 10)
    (node,) = environment.nodes("vtkMRMLMarkupsFiducialNode")
    node.SetNthControlPointPositionWorld(0, desk.world(10, 10, 8))
    desk.settle()
    assert np.array_equal(desk.voxels(), cube(10, 10, 8))
    desk.refinement.undo()
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))
    assert desk.rows == ["Include (20, 15, 10), slab"]


# -- deleting ----------------------------------------------------------------------------------------------------------


def test_a_deleted_prompt_counts_no_more(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.click(30, 15, 10)
    desk.refinement.delete_prompt(desk.shown.prompts[0].key)
    desk.settle()
    assert np.array_equal(desk.voxels(), answer(SHAPE, [point(30, 15, 10)]))
    assert desk.context.history.undo_text == "Delete a prompt of Structure 1"


def test_without_prompts_a_new_structure_is_empty_again(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.refinement.delete_prompt(desk.shown.prompts[0].key)
    desk.settle()
    assert not desk.voxels().any()
    assert desk.rows == []


@pytest.mark.parametrize(
    "delete",
    [
        lambda desk: desk.refinement.delete_prompt(desk.shown.prompts[-1].key),
        lambda desk: desk.refinement.clear_prompts(),
    ],
)
def test_without_prompts_a_segment_is_what_it_was_before_the_first_one(
    liver: Desk, delete: Callable[[Desk], None]
) -> None:
    liver.click(13, 8, 6, positive=False)
    delete(liver)
    liver.settle()
    assert np.array_equal(liver.voxels(), block(BLOCK))
    assert liver.rows == []


def test_clearing_gives_back_what_was_taken_from_other_segments(liver: Desk) -> None:
    liver.parameters.neighbours = OverlapPolicy.REPLACE
    liver.refinement.new_structure("Spleen")
    liver.click(10, 8, 6)
    liver.click(15, 8, 6)
    assert not np.array_equal(liver.voxels("Liver"), block(BLOCK))
    liver.refinement.clear_prompts()
    liver.settle()
    assert np.array_equal(liver.voxels("Liver"), block(BLOCK))
    assert not liver.voxels("Spleen").any()


def test_after_undo_and_redo_it_is_still_known_what_was_taken(liver: Desk) -> None:
    liver.parameters.neighbours = OverlapPolicy.REPLACE
    liver.refinement.new_structure("Spleen")
    liver.click(14, 8, 6)
    liver.refinement.undo()
    liver.refinement.redo()
    liver.refinement.clear_prompts()
    liver.settle()
    assert np.array_equal(liver.voxels("Liver"), block(BLOCK))


def test_after_undo_nothing_counts_as_taken(liver: Desk) -> None:
    liver.parameters.neighbours = OverlapPolicy.REPLACE
    liver.refinement.new_structure("Spleen")
    liver.click(14, 8, 6)
    liver.refinement.undo()
    liver.paint("Liver", BLOCK, 0)
    liver.click(14, 8, 6)
    liver.refinement.clear_prompts()
    liver.settle()
    assert not liver.voxels("Liver").any()


def test_what_is_cleared_comes_back_by_undo(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.click(30, 15, 10)
    before, rows = desk.voxels(), desk.rows
    desk.refinement.clear_prompts()
    desk.settle()
    desk.refinement.undo()
    assert np.array_equal(desk.voxels(), before)
    assert desk.rows == rows


def test_a_click_right_after_the_last_was_deleted_starts_from_the_segment_before(liver: Desk) -> None:
    liver.click(20, 15, 10)
    liver.refinement.clear_prompts()
    liver.click(30, 15, 10)
    assert np.array_equal(liver.voxels(), block(BLOCK) | answer(SHAPE, [point(30, 15, 10)]))


# -- segments that were there before -----------------------------------------------------------------------------------


def test_the_first_click_on_a_segment_starts_from_it(liver: Desk) -> None:
    liver.click(15, 8, 6)
    assert np.array_equal(liver.voxels(), block(BLOCK) | answer(SHAPE, [point(15, 8, 6)]))
    assert [each["kind"] for each in liver.engine.prompted()[-1]] == ["mask", "point"]
    liver.refinement.undo()
    assert np.array_equal(liver.voxels(), block(BLOCK))
    assert liver.rows == []


def test_a_first_click_may_exclude_from_a_segment(liver: Desk) -> None:
    liver.click(13, 8, 6, positive=False)
    assert np.array_equal(liver.voxels(), block(BLOCK) & ~answer(SHAPE, [point(13, 8, 6)]))


def test_it_may_exclude_several_pieces_at_once(liver: Desk) -> None:
    liver.paint("Liver", np.s_[4:9, 8:9, 6:14], 0)
    liver.click(10, 9, 6, positive=False)
    parts = block(BLOCK) & ~block(np.s_[4:9, 8:9, 6:14])
    assert np.array_equal(liver.voxels(), parts & ~answer(SHAPE, [point(10, 9, 6)]))


def test_what_was_painted_between_two_clicks_stays(desk: Desk) -> None:
    desk.click(20, 15, 10)
    hole = np.s_[9:11, 14:16, 19:21]  # around the click
    desk.paint(desk.name, FAR)
    desk.paint(desk.name, hole, 0)
    desk.click(28, 15, 10)
    edited = (answer(SHAPE, [point(20, 15, 10, candidate=0), point(28, 15, 10)]) | block(FAR)) & ~block(hole)
    assert np.array_equal(desk.voxels(), edited)
    desk.refinement.undo()
    assert np.array_equal(desk.voxels(), (cube(20, 15, 10) | block(FAR)) & ~block(hole))
    desk.refinement.undo()
    assert np.array_equal(desk.voxels(), block(FAR))


def test_a_click_on_what_was_painted_decides_about_it(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.paint(desk.name, FAR)
    desk.click(34.6, 26, 17, positive=False)
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))
    desk.paint(desk.name, np.s_[9:11, 14:16, 18:20], 0)
    desk.click(18, 14, 9)
    assert desk.voxels()[9:11, 14:16, 18:20].all()


def test_a_structure_starts_from_itself(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.paint(desk.name, FAR)
    desk.refinement.start_from(desk.parameters.segmentID)
    assert desk.rows == ["Segment at the start"]
    assert desk.shown.quality == {}
    assert np.array_equal(desk.voxels(), cube(20, 15, 10) | block(FAR))
    desk.click(30, 15, 10)
    assert np.array_equal(desk.engine.prompted()[-1][0]["mask"][-1, -1, -1], 1)
    assert np.array_equal(desk.voxels(), cube(20, 15, 10) | block(FAR) | answer(SHAPE, [point(30, 15, 10)]))
    desk.refinement.undo()
    desk.refinement.undo()
    assert desk.rows == ["Include (20, 15, 10), slab"]


def test_a_structure_starts_from_a_copy_of_another(liver: Desk) -> None:
    source = liver.parameters.segmentID
    liver.refinement.new_structure("Spleen")
    liver.refinement.start_from(source)
    assert np.array_equal(liver.voxels("Spleen"), block(BLOCK))
    assert np.array_equal(liver.voxels("Liver"), block(BLOCK))
    liver.click(20, 8, 6)
    assert np.array_equal(liver.voxels("Spleen"), block(BLOCK) | answer(SHAPE, [point(20, 8, 6)]))
    assert np.array_equal(liver.voxels("Liver"), block(BLOCK))
    liver.refinement.undo()
    liver.refinement.undo()
    assert not liver.voxels("Spleen").any()
    assert liver.rows == []


def test_nothing_starts_from_an_empty_segment(desk: Desk) -> None:
    desk.refinement.new_structure("Liver")
    desk.refinement.start_from(desk.parameters.segmentID)
    assert desk.messages == ["Liver is empty; there is nothing to start from."]


@pytest.mark.parametrize("policy", OverlapPolicy)
def test_a_click_follows_the_policy_and_is_undone_as_one_step(liver: Desk, policy: OverlapPolicy) -> None:
    liver.parameters.neighbours = policy
    liver.refinement.new_structure("Spleen")
    liver.click(14, 8, 6)
    spleen, old = cube(14, 8, 6), block(BLOCK)
    assert np.array_equal(liver.voxels("Spleen"), spleen & ~old if policy is OverlapPolicy.PROTECT else spleen)
    assert np.array_equal(liver.voxels("Liver"), old & ~spleen if policy is OverlapPolicy.REPLACE else old)
    liver.refinement.undo()
    assert np.array_equal(liver.voxels("Liver"), old)
    assert not liver.voxels("Spleen").any()
    liver.refinement.redo()
    assert np.array_equal(liver.voxels("Liver"), old & ~spleen if policy is OverlapPolicy.REPLACE else old)


def test_a_click_into_a_protected_segment_is_reported(liver: Desk) -> None:
    liver.refinement.new_structure("Spleen")
    liver.click(13, 8, 6)
    assert liver.messages == ["The click is inside Liver, which is protected; change Overlap to take voxels from it."]
