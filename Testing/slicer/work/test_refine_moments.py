"""Bad moments of refining: whatever happens while the engine answers, nothing is lost and nothing wrong is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from MaskSAMCore.errors import ResourceError
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.choices import Scope
from Testing.slicer import environment, rig
from Testing.slicer.desk import SHAPE, Desk, block, cube, point
from Testing.slicer.toy_engine import answer


@pytest.fixture(params=[False, True], ids=["obeys", "deaf"])
def asked(desk: Desk, request: pytest.FixtureRequest) -> Desk:
    """A desk with a click that is being answered, by engines that can be stopped and by such that cannot."""
    desk.engine.held, desk.engine.deaf = True, request.param
    desk.press(20, 15, 10)
    desk.tick(5)
    assert len(desk.engine.prompted()) == 1
    return desk


def go_on(desk: Desk) -> None:
    desk.engine.held = False
    desk.engine.go_on()
    desk.settle()


TWO = answer(SHAPE, [point(20, 15, 10, candidate=0), point(26, 15, 10)])


# -- prompts that come meanwhile ---------------------------------------------------------------------------------------


def test_a_click_made_while_another_is_answered_is_not_lost(asked: Desk) -> None:
    asked.press(26, 15, 10)
    go_on(asked)
    assert np.array_equal(asked.voxels(), TWO)


def test_every_one_of_them_is_a_step_of_its_own(asked: Desk) -> None:
    asked.press(26, 15, 10)
    asked.press(32, 15, 10)
    go_on(asked)
    asked.refinement.undo()
    assert np.array_equal(asked.voxels(), TWO)
    assert len(asked.rows) == 2
    asked.refinement.undo()
    assert np.array_equal(asked.voxels(), cube(20, 15, 10))
    assert len(asked.rows) == 1


def test_undo_takes_back_a_click_that_is_not_answered_yet(asked: Desk) -> None:
    asked.press(26, 15, 10)
    asked.refinement.undo()
    assert asked.rows == ["Include (20, 15, 10), slab"]
    asked.refinement.undo()
    assert asked.rows == []
    go_on(asked)
    assert not asked.voxels().any()
    assert asked.context.history.undo_text == "New structure Structure 1"


@pytest.mark.parametrize(
    "change",
    [
        lambda desk: desk.refinement.undo(),
        lambda desk: desk.refinement.clear_prompts(),
        lambda desk: environment.nodes("vtkMRMLMarkupsFiducialNode")[0].RemoveNthControlPoint(0),
    ],
)
def test_what_nobody_wants_any_more_is_not_waited_for(desk: Desk, change: Callable[[Desk], None]) -> None:
    desk.engine.held = True
    desk.press(20, 15, 10)
    desk.tick(5)
    change(desk)
    desk.settle()
    assert not desk.voxels().any()
    assert desk.rows == []


def test_a_click_while_a_deletion_is_prepared_is_not_lost(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.sit_down()
    desk.refinement.clear_prompts()
    desk.engine.held = True
    desk.tick(5)
    desk.press(8, 15, 10)
    go_on(desk)
    assert np.array_equal(desk.voxels(), cube(8, 15, 10))
    assert desk.rows == ["Include (8, 15, 10), slab"]


def test_after_an_answer_that_came_in_vain_the_next_is_right(asked: Desk) -> None:
    asked.refinement.undo()
    asked.press(8, 15, 10)
    go_on(asked)
    assert np.array_equal(asked.voxels(), cube(8, 15, 10))


def test_a_prompt_that_is_dragged_meanwhile_is_answered_where_it_is(asked: Desk) -> None:
    (node,) = environment.nodes("vtkMRMLMarkupsFiducialNode")
    node.SetNthControlPointPositionWorld(0, asked.world(8, 15, 10))
    go_on(asked)
    assert np.array_equal(asked.voxels(), cube(8, 15, 10))
    asked.refinement.undo()
    assert not asked.voxels().any()


def test_a_scope_that_is_changed_meanwhile_counts(asked: Desk) -> None:
    asked.refinement.set_scope(Scope.VOLUME)
    go_on(asked)
    assert asked.voxels().any(axis=(1, 2)).all()


def test_a_structure_that_is_begun_meanwhile_gets_its_own_answer(asked: Desk) -> None:
    asked.refinement.new_structure("Spleen")
    asked.press(8, 15, 10)
    go_on(asked)
    assert np.array_equal(asked.voxels("Structure 1"), cube(20, 15, 10))
    assert np.array_equal(asked.voxels("Spleen"), cube(8, 15, 10))


def test_an_undo_while_a_later_step_is_looked_at_again(desk: Desk) -> None:
    for i in (8, 16, 24):
        desk.click(i, 15, 10)
    desk.engine.held = True
    desk.refinement.undo()
    desk.tick(5)
    desk.refinement.undo()
    desk.tick(5)
    go_on(desk)
    desk.click(32, 15, 10)
    assert np.array_equal(desk.voxels(), answer(SHAPE, [point(8, 15, 10, candidate=0), point(32, 15, 10)]))


def test_a_click_that_is_deleted_before_it_is_answered(asked: Desk) -> None:
    asked.refinement.delete_prompt(asked.shown.prompts[-1].key)
    go_on(asked)
    assert not asked.voxels().any()
    assert asked.rows == []


def test_a_first_click_on_a_segment_that_is_deleted_before_it_is_answered(desk: Desk) -> None:
    desk.refinement.new_structure("Spleen")
    desk.paint("Spleen", np.s_[17:19, 25:28, 35:38])
    before = desk.voxels()
    desk.press(20, 15, 10)
    desk.refinement.delete_prompt(desk.shown.prompts[-1].key)
    desk.settle()
    assert np.array_equal(desk.voxels(), before)
    assert desk.rows == []


# -- segments, volumes and scenes --------------------------------------------------------------------------------------


def test_the_answer_for_a_segment_that_was_deleted_is_dropped(asked: Desk) -> None:
    bridge.remove_segment(asked.segmentation, asked.parameters.segmentID)
    go_on(asked)
    assert asked.messages == ["The segment was deleted before it was updated; the answer is discarded."]
    assert rig.segments(asked.segmentation) == {}
    asked.click(8, 15, 10)
    assert np.array_equal(asked.voxels(), cube(8, 15, 10))


def test_a_segment_that_is_deleted_after_its_first_answer(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.engine.held = True
    desk.press(26, 15, 10)
    desk.tick(5)
    bridge.remove_segment(desk.segmentation, desk.parameters.segmentID)
    go_on(desk)
    assert desk.messages == ["The segment was deleted before it was updated; the answer is discarded."]


def test_the_answer_for_a_segmentation_that_was_deleted_is_dropped(asked: Desk) -> None:
    asked.scene.RemoveNode(asked.segmentation)
    go_on(asked)
    assert rig.segmentations() == []
    assert not environment.nodes("vtkMRMLMarkupsNode")


def test_the_answer_for_a_volume_that_was_deleted_is_dropped(asked: Desk) -> None:
    segmentation = asked.segmentation
    asked.scene.RemoveNode(asked.volume)
    go_on(asked)
    segment_id = rig.segments(segmentation)["Structure 1"]
    assert segmentation.GetSegmentation().GetSegment(segment_id).GetRepresentation("Binary labelmap").GetExtent()[1] < 0


def test_a_volume_that_was_edited_is_asked_about_again(asked: Desk) -> None:
    rig.edit_volume(asked.volume)
    go_on(asked)
    assert np.array_equal(asked.voxels(), cube(20, 15, 10))
    opened = [fields["case"] for op, fields in asked.engine.asked if op == "open"]
    told = [fields["case"] for op, fields in asked.engine.asked if op == "prompt"]
    assert len(opened) == 2
    assert told == opened


def test_the_scene_is_closed(asked: Desk) -> None:
    task = asked.task
    asked.scene.Clear(False)
    task.abandon()
    asked.refinement.reset()
    asked.engine.go_on()
    assert not asked.refinement.has_work
    assert rig.segmentations() == []


def test_a_segment_that_came_back_without_its_prompts_is_what_it_is(desk: Desk) -> None:
    desk.click(20, 15, 10)
    segment_id, label = desk.parameters.segmentID, bridge.segment_label(desk.segmentation, desk.parameters.segmentID)
    bridge.remove_segment(desk.segmentation, segment_id)
    bridge.add_segment(desk.segmentation, label, segment_id=segment_id)
    left = np.s_[9:11, 14:16, 19:21]  # where the click was
    desk.paint(desk.name, left)
    desk.click(8, 15, 10)
    assert np.array_equal(desk.voxels(), block(left) | answer(SHAPE, [point(8, 15, 10)]))


# -- no answer ---------------------------------------------------------------------------------------------------------


def test_a_prompt_that_cannot_be_answered_is_taken_back_alone(desk: Desk) -> None:
    desk.engine.bad.add((26, 15, 10))
    desk.click(20, 15, 10)
    desk.press(26, 15, 10)
    desk.press(32, 15, 10)
    desk.settle()
    assert desk.messages == ["prompt 2 of 2: there is no image"]
    assert desk.rows == ["Include (20, 15, 10), slab", "Include (32, 15, 10), slab"]
    assert np.array_equal(desk.voxels(), answer(SHAPE, [point(20, 15, 10, candidate=0), point(32, 15, 10)]))


def test_a_prompt_that_was_dragged_where_it_cannot_be_answered_goes_back(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.engine.bad.add((5, 5, 5))
    (node,) = environment.nodes("vtkMRMLMarkupsFiducialNode")
    node.SetNthControlPointPositionWorld(0, desk.world(5, 5, 5))
    desk.settle()
    assert desk.rows == ["Include (20, 15, 10), slab"]
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))


def test_prompts_that_a_failed_engine_did_not_answer_wait_for_the_next(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.engine.failing = ResourceError("the engine stopped, again and again")
    desk.click(26, 15, 10)
    assert desk.messages == ["the engine stopped, again and again"]
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))
    assert len(desk.rows) == 2
    assert desk.shown.quality == {k: pytest.approx(0.9 - 0.01 * k) for k in range(7, 14)}
    desk.engine.failing = None
    desk.click(32, 15, 10)
    assert [len(prompts) for prompts in desk.engine.prompted()] == [1, 2, 2, 3]
    assert np.array_equal(
        desk.voxels(), answer(SHAPE, [point(20, 15, 10, candidate=0), point(26, 15, 10), point(32, 15, 10)])
    )


def test_undo_takes_back_what_a_failed_engine_did_not_answer(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.engine.failing = ResourceError("the engine stopped, again and again")
    desk.click(26, 15, 10)
    desk.refinement.undo()
    assert desk.rows == ["Include (20, 15, 10), slab"]
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))


def test_accepting_asks_again_for_what_a_failed_engine_did_not_answer(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.engine.failing = ResourceError("the engine stopped, again and again")
    desk.click(26, 15, 10)
    desk.engine.failing = None
    desk.refinement.accept()
    desk.settle()
    assert np.array_equal(desk.voxels(), TWO)
    assert desk.rows == []


def test_a_start_that_was_damaged_in_the_scene_can_be_deleted(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.refinement.start_from(desk.parameters.segmentID)
    desk.click(26, 15, 10)
    desk.sit_down()
    (start,) = [node for node in environment.nodes("vtkMRMLScriptedModuleNode") if node.GetParameter("mask")]
    start.SetParameter("mask", "!")
    desk.refinement.reset()
    desk.click(32, 15, 10)
    assert "is damaged" in desk.messages[0]
    assert len(desk.rows) == 2
    desk.refinement.delete_prompt(desk.shown.prompts[0].key)
    desk.settle()
    assert np.array_equal(desk.voxels(), answer(SHAPE, [point(26, 15, 10)]))
    assert len(desk.rows) == 1


def test_without_any_click_a_damaged_start_leaves_the_segment_as_it_is(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.refinement.start_from(desk.parameters.segmentID)
    (start,) = [node for node in environment.nodes("vtkMRMLScriptedModuleNode") if node.GetParameter("mask")]
    start.SetParameter("mask", "!")
    desk.sit_down()
    desk.refinement.clear_prompts()
    desk.settle()
    assert np.array_equal(desk.voxels(), cube(20, 15, 10))
    assert desk.rows == []


def test_a_volume_that_lost_its_image_ends_the_answer(asked: Desk) -> None:
    asked.volume.SetAndObserveImageData(None)
    go_on(asked)
    assert asked.messages == ["Scan: the volume holds no image. Load it again."]
    assert not asked.refinement.has_work


def test_cancel_takes_back_what_was_not_answered(asked: Desk) -> None:
    asked.task.cancel()
    go_on(asked)
    assert asked.rows == []
    assert not asked.voxels().any()
    asked.click(26, 15, 10)
    assert np.array_equal(asked.voxels(), cube(26, 15, 10))


def test_a_later_answer_that_came_in_spite_of_cancel_is_forgotten_too(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.engine.held = True
    desk.press(32, 15, 10)
    desk.tick(5)
    desk.engine.go_on()
    desk.task.cancel()
    go_on(desk)
    desk.click(26, 15, 10)
    assert np.array_equal(desk.voxels(), TWO)


def test_an_answer_that_comes_after_the_work_was_ended_does_not_mislead(desk: Desk) -> None:
    desk.click(20, 15, 10)
    desk.engine.held = True
    desk.press(26, 15, 10)
    desk.tick(5)
    desk.engine.deaf = True
    desk.engine.go_on()
    desk.task.abandon()
    desk.task = None
    go_on(desk)
    assert np.array_equal(desk.voxels(), TWO)


def test_an_answer_that_came_in_spite_of_cancel_is_forgotten(asked: Desk) -> None:
    asked.engine.go_on()
    asked.task.cancel()
    go_on(asked)
    asked.click(26, 15, 10)
    assert np.array_equal(asked.voxels(), cube(26, 15, 10))


def test_what_was_to_be_accepted_is_not_when_it_was_not_answered(desk: Desk) -> None:
    desk.engine.failing = ResourceError("the engine stopped, again and again")
    desk.press(20, 15, 10)
    desk.refinement.accept()
    desk.settle()
    desk.engine.failing = None
    desk.refinement.set_scope(Scope.VOLUME)
    desk.settle()
    assert desk.voxels().any()
    assert len(desk.rows) == 1


def test_without_a_model_nothing_is_prompted(desk: Desk) -> None:
    desk.parameters.model = ""
    desk.click(20, 15, 10)
    assert desk.messages == ["no model is chosen. Choose a model first."]
    assert desk.segmentation is None
