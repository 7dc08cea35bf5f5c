"""The controller without Qt: a real worker process with the fake engine, on Slicer's own scene."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from SlicerMaskSAMLib.values.status import Phase
from SlicerMaskSAMLib.work.scheduler import MESSAGES
from Testing.slicer import environment
from Testing.slicer import rig as rigs
from Testing.slicer.rig import BRIGHT, CORNER, Library, Rig, bright, fake_model, voxels
from Testing.workers import alive

SEGMENTATION = "vtkMRMLSegmentationNode"
MIDDLE = (12.0, 10.0, 3.0)
"""A place inside of the volume, mm RAS."""


@pytest.fixture
def scan(rig: Rig) -> Any:
    """A volume that was chosen, with a model."""
    return rig.choose(rigs.volume())


# -- segment ---------------------------------------------------------------------------------------------------------


def test_segment_puts_the_structures_into_the_scene(rig: Rig, scan: Any) -> None:
    found = rig.segment()
    assert list(rigs.segments(found)) == [CORNER, BRIGHT]
    np.testing.assert_array_equal(voxels(found, BRIGHT, scan), bright(scan))
    assert rig.status.headline == "Ready"
    assert rig.status.can_export


@pytest.mark.slow
def test_the_status_follows_the_run(rig: Rig, scan: Any) -> None:
    rig.controller.choose_model("slow")
    assert (rig.status.phase, rig.status.can_segment, rig.status.can_export) == (Phase.IDLE, True, False)
    assert rig.working()
    now = rig.status
    assert (now.phase, now.task, now.headline, now.can_segment) == (Phase.WORKING, "segment", "Segmenting", False)
    assert now.progress.total == scan.GetImageData().GetDimensions()[2], "in slices"
    assert rig.until(lambda: rig.status.progress is None or rig.status.progress.seconds_left is not None)
    assert rig.idle()
    assert rig.status.progress is None


@pytest.mark.slow
def test_pressed_a_second_time_it_cancels(rig: Rig, scan: Any) -> None:
    rig.controller.choose_model("slow")
    assert rig.working()
    rig.controller.segment()
    assert (rig.status.phase, rig.status.headline) == (Phase.CANCELLING, "Stopping")
    assert rig.idle()
    assert rigs.segmentations() == []
    assert rig.status.undo == ""
    assert rig.segment(), "and it can be pressed again"


def test_the_timer_never_waits(rig: Rig, scan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from MaskSAMCore.worker.jobs import Job

    result = Job.result

    def at_once(job: Job, timeout: float | None = None) -> Any:
        assert job.done(), "this would wait"
        return result(job, timeout)

    monkeypatch.setattr(Job, "result", at_once)
    assert rig.segment()


def test_the_panel_is_notified_of_changes_only(rig: Rig, scan: Any) -> None:
    before = rig.changes
    assert rig.segment()
    assert rig.changes > before
    assert rig.until(lambda: not rig.controller._scheduler._state_machine.background)
    rig.until(lambda: not rig.engines[0]._jobs)
    for _ in range(3):
        rig.controller.tick()
    before = rig.changes
    for _ in range(5):
        rig.controller.tick()
    assert rig.changes == before


def test_undo_and_redo_of_a_segmentation_are_exact(rig: Rig, scan: Any) -> None:
    found = rig.segment()
    assert rig.status.undo == "Segmentation of Scan"
    assert rig.status.redo == ""
    rig.controller.undo()
    assert rigs.segments(found) == {}
    assert rig.status.redo == "Segmentation of Scan"
    rig.controller.redo()
    assert list(rigs.segments(found)) == [CORNER, BRIGHT]
    np.testing.assert_array_equal(voxels(found, BRIGHT, scan), bright(scan))


def test_an_incomplete_request_is_reported(rig: Rig) -> None:
    assert not rig.status.can_segment
    assert rig.status.headline == "Choose a volume first."
    rig.controller.segment()
    assert rig.has_message("no volume is chosen")
    assert rig.status.phase is Phase.IDLE
    assert not rig.engines
    rig.controller.choose_volume(rigs.volume())
    assert rig.status.headline == "Choose a model first."


def test_only_wanted_structures_are_listed_so_and_segmented(rig: Rig, scan: Any) -> None:
    rig.controller.set_wanted([BRIGHT], False)
    assert [(row.name, row.wanted) for row in rig.status.structures] == [(BRIGHT, False), (CORNER, True)]
    assert list(rigs.segments(rig.segment())) == [CORNER]
    rig.controller.set_wanted([BRIGHT], True)
    assert all(row.wanted for row in rig.status.structures)


def test_an_error_of_the_engine_is_reported(scene: Any) -> None:
    with Rig(scene, library=Library(fake_model("nonsense"))) as rig:
        rig.choose(rigs.volume(), "nonsense")
        rig.segment()
        assert rig.has_message("no such model")
        assert rig.status.phase is Phase.IDLE


# -- in the background -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_shown_is_encoded_as_soon_as_volume_and_model_are_chosen(rig: Rig) -> None:
    rig.controller.choose_volume(rigs.volume())
    for _ in range(3):
        rig.controller.tick()
    assert not rig.engines, "there is no model yet"
    rig.controller.choose_model("slow")
    assert rig.until(lambda: "encode" in rig.asked)
    assert rig.asked == ["open", "encode"]
    now = rig.status
    assert (now.phase, now.task, now.headline) == (Phase.IDLE, "", "Encoding the visible slice")
    assert now.can_segment
    assert now.can_refine
    assert rig.until(lambda: rig.status.headline == "Ready")
    assert rig.asked == ["open", "encode"]


@pytest.mark.slow
def test_it_is_encoded_again_when_volume_or_view_are_others(scene: Any, views: Any) -> None:
    from SlicerMaskSAMLib.mrml.views import Views

    view = views.slice("Red", "Axial")
    with Rig(scene, views=Views(scene)) as rig:
        node = rig.choose(rigs.volume())
        view.show(node)
        assert rig.until(lambda: rig.asked.count("encode") == 1 and rig.status.headline == "Ready")
        view.node.JumpSliceByOffsetting(0, 0, 4)
        assert rig.until(lambda: rig.asked.count("encode") == 2 and rig.status.headline == "Ready")
        rigs.edit_volume(node)
        assert rig.until(lambda: rig.asked.count("encode") == 3)
        assert rig.asked.count("open") == 2


def test_the_scan_of_a_deleted_volume_is_closed(rig: Rig, scan: Any) -> None:
    rig.segment()
    rig.scene.RemoveNode(scan)
    assert rig.until(lambda: "release" in rig.asked)


@pytest.mark.slow
def test_segment_does_not_wait_for_the_background(rig: Rig, scan: Any) -> None:
    rig.controller.choose_model("slow")
    assert rig.until(lambda: "encode" in rig.asked)
    rig.controller.segment()
    assert rig.until(lambda: rig.parameters.segmentation is not None and not rig.status.task)
    assert rig.asked.count("open") == 1


def test_the_background_rests_when_the_module_is_left(rig: Rig, scan: Any) -> None:
    rig.controller.choose_model("deaf")
    assert rig.until(lambda: "encode" in rig.asked)
    rig.controller.exit()
    assert rig.status.headline == "Ready"
    rig.controller.enter()
    assert rig.until(lambda: rig.asked.count("encode") == 2), "and goes on when it is entered"


# -- one thing at a time ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_other_work_has_to_wait(rig: Rig, scan: Any) -> None:
    found = rig.segment()
    rig.controller.choose_model("slow")
    assert rig.working()
    rig.controller.volumes_table()
    assert rig.has_message("Segmenting: wait until it is done, or cancel it.")
    assert rig.idle()
    assert environment.nodes("vtkMRMLTableNode") == []
    rig.controller.volumes_table()
    assert rig.idle()
    assert len(environment.nodes("vtkMRMLTableNode")) == 1
    assert rig.parameters.segmentation is found


@pytest.mark.slow
def test_clicks_are_not_lost_while_something_else_goes_on(rig: Rig, scan: Any, views: Any) -> None:
    view = views.slice("Red", "Axial")
    view.show(scan)
    rig.controller.choose_model("slow")
    rig.controller.set_wanted([BRIGHT], False)
    assert rig.working()
    rig.controller.new_structure("Kidney")
    rig.controller.click(MIDDLE, True, view.node)
    assert rig.status.task == "segment"
    assert len(rig.status.prompts) == 1
    assert rig.until(lambda: "prompt" in rig.asked)
    assert rig.idle()
    kidney = voxels(rig.parameters.segmentation, "Kidney", scan)
    assert kidney[3, 10, 12]
    assert kidney.sum() == 125, "the cube of the fake engine"


def test_segment_begins_after_the_answer_that_is_on_its_way(rig: Rig, scan: Any, views: Any) -> None:
    view = views.slice("Red", "Axial")
    view.show(scan)
    rig.controller.click(MIDDLE, True, view.node)
    assert rig.until(lambda: rig.status.task == "refine")
    rig.controller.segment()
    assert rig.until(lambda: rig.status.task == "segment")
    assert "prompt" in rig.asked
    assert rig.idle()
    assert {BRIGHT, CORNER} < set(rigs.segments(rig.parameters.segmentation))


def test_pressed_twice_before_it_begins_it_does_not_begin(rig: Rig, scan: Any, views: Any) -> None:
    view = views.slice("Red", "Axial")
    view.show(scan)
    rig.controller.click(MIDDLE, True, view.node)
    assert rig.until(lambda: rig.status.task == "refine")
    rig.controller.segment()
    rig.controller.segment()
    assert rig.idle()
    assert "segment" not in rig.asked


# -- messages ----------------------------------------------------------------------------------------------------------


def test_the_device_is_shown_once_the_engine_runs(rig: Rig, scan: Any) -> None:
    assert rig.status.device == ""
    assert rig.until(lambda: rig.status.device == "none"), "what the fake engine calls its device"


def test_only_the_last_messages_are_kept(rig: Rig) -> None:
    for _ in range(MESSAGES + 5):
        rig.controller.segment()
    assert len(rig.status.messages) == MESSAGES


def test_what_no_command_can_do_is_reported(rig: Rig, scan: Any) -> None:
    assert rig.controller.command_line() == ""
    assert rig.has_message("no command gives this segmentation")


# -- the end ---------------------------------------------------------------------------------------------------------


def test_another_scene_brings_another_parameter_node(rig: Rig, scan: Any) -> None:
    rig.segment()
    rig.scene.Clear(False)
    rig.parameters = rigs.parameters()
    rig.controller.set_parameters(rig.parameters)
    assert rig.status.headline == "Choose a volume first."
    assert rig.status.undo == ""
    assert rig.segment() is None
    assert rig.has_message("no volume")
    rig.choose(rigs.volume())
    assert rig.segment()


def test_close_ends_the_engine_and_listens_no_more(rig: Rig, scan: Any) -> None:
    rig.segment()
    worker = rig.worker
    rig.controller.close()
    assert not alive(worker)
    before = rig.changes
    rig.scene.Clear(False)
    assert rig.changes == before


def test_after_close_nothing_of_it_observes_the_scene(scene: Any) -> None:
    with environment.observers(scene) as observers:
        with Rig(scene):
            assert observers
        assert not observers
