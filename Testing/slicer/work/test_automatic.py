"""How the structures of an automatic segmentation enter the scene; the engine's answer is made up here."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.errors import InputError, MaskSAMError
from MaskSAMCore.worker.results import Block, Case, Segmented
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.choices import Region, Speed
from SlicerMaskSAMLib.values.history import History
from SlicerMaskSAMLib.values.tasks import Steps, Task
from SlicerMaskSAMLib.work import automatic
from SlicerMaskSAMLib.work.automatic import AutomaticRun, SliceProgress
from SlicerMaskSAMLib.work.catalogue import Catalogue
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.segment_request import SegmentRequest
from Testing.slicer import environment, rig
from Testing.slicer.rig import BRIGHT, CORNER, voxels
from Testing.workers import SHAPE


class Answer:
    """What was asked of the engine, answered at once."""

    progress: tuple[int, int, str] | None = (1, 4, "segmenting")

    def __init__(self, result: Any) -> None:
        self._result = result

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        return self._result

    def cancel(self) -> None:
        pass


class Engine:
    """In place of the link and the engine behind it: gives the blocks that it was told to give."""

    def __init__(self) -> None:
        self.client = self
        self.blocks: list[Block] = []
        self.asked: dict[str, Any] = {}
        self.shape = SHAPE

    def case(self, volume: Any, model: str) -> Steps:
        yield None
        return Case(id=1, model=model, shape=self.shape, axis=0, labels=(), warnings=("told before",))

    def submit(self, op: str, **fields: Any) -> Answer:
        self.asked = fields
        found = Segmented(
            blocks=tuple(self.blocks), warnings=("told before", "a doubt"), device="none", windows=4, seconds=0.0
        )
        return Answer(found)

    def will_find(self, *masks: np.ndarray | None) -> None:
        """One mask of the whole volume for each label, None for what is not there."""
        self.shape = next(mask.shape for mask in masks if mask is not None)
        self.blocks = [_block(number, mask) for number, mask in enumerate(masks, start=1)]


def _block(label: int, mask: np.ndarray | None) -> Block:
    if mask is None:
        return Block(label=label, name="?", box=None, mask=np.zeros((0, 0, 0), np.uint8))
    places = np.argwhere(mask)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    box = tuple(int(v) for pair in zip(low, high, strict=True) for v in pair)
    return Block(label=label, name="?", box=box, mask=mask[tuple(map(slice, low, high))].astype(np.uint8))


def cuboid(k: slice, j: slice, i: slice, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """A mask, bool (K, J, I)."""
    mask = np.zeros(tuple(shape), bool)
    mask[k, j, i] = True
    return mask


FIRST = cuboid(slice(1, 4), slice(2, 9), slice(3, 12))
SECOND = cuboid(slice(2, 6), slice(10, 18), slice(8, 20))
OTHER = cuboid(slice(0, 3), slice(5, 15), slice(0, 8))


class Desk:
    """Volume, model, parameters and a made-up engine."""

    def __init__(self, scene: Any) -> None:
        self.scene, self.engine, self.messages = scene, Engine(), []
        self.parameters, self.history = rig.parameters(), History()
        self.volume = rig.volume()
        self.parameters.inputVolume, self.parameters.model = self.volume, "plain"
        self.context = Context(
            scene=scene,
            parameters=self.parameters,
            history=self.history,
            prompts=SimpleNamespace(),
            engine_link=self.engine,
            models=Catalogue(rig.Library()).models,
            log=self.messages.append,
            changed=lambda: None,
        )
        self.engine.will_find(FIRST, SECOND)

    def press(self, slice_node: Any = None) -> Task:
        """Request the segmentation."""
        run = AutomaticRun(self.context, SegmentRequest.of(self.context, slice_node))
        return Task("segment", run.steps(), on_error=self._fail)

    def segment(self) -> Any:
        """Press and wait; the segmentation that was written."""
        self.finish(self.press())
        return self.parameters.segmentation

    @staticmethod
    def finish(task: Task) -> None:
        while not task.ended:
            task.tick()

    @staticmethod
    def _fail(error: MaskSAMError) -> None:
        raise error

    def undo(self) -> None:
        """Take the last step back, by its changes alone."""
        step = self.history.undo()
        node, geometry = self.scene.GetNodeByID(step.segmentation), bridge.geometry(self.volume)
        for change in reversed(step.changes):
            now = bridge.read_segment(node, change.segment_id, geometry, change.box)
            bridge.write_segment(node, change.segment_id, geometry, change.box, change.undone(now))

    def paint(self, segmentation: Any, name: str, mask: np.ndarray) -> None:
        """Edit a segment as the user does, elsewhere."""
        import slicer.util

        segment_id = rig.segments(segmentation)[name]
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), segmentation, segment_id, self.volume)


@pytest.fixture
def desk(scene: Any) -> Desk:
    return Desk(scene)


# -- the order -------------------------------------------------------------------------------------------------------


def test_the_request_is_what_the_panel_shows(desk: Desk) -> None:
    desk.segment()
    assert (desk.engine.asked["roi"], desk.engine.asked["step"]) == ([], 0.5)
    desk.parameters.speed = Speed.FAST
    desk.parameters.region = Region.ROI
    desk.parameters.roi = roi = desk.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenter(8, 9, 3)
    roi.SetSize(4, 5, 2)
    desk.segment()
    assert desk.engine.asked["step"] == 1.0
    [region] = desk.engine.asked["roi"]
    np.testing.assert_allclose((region["center"], region["size"]), ((8, 9, 3), (4, 5, 2)))


def test_the_part_that_a_view_shows_is_a_region(desk: Desk, views: Any) -> None:
    view = views.slice("Red", "Axial")
    view.show(desk.volume)
    desk.parameters.region = Region.VIEW
    desk.finish(desk.press(view.node))
    [region] = desk.engine.asked["roi"]
    assert region == bridge.view_region(desk.volume, view.node)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputVolume": None}, "no volume"),
        ({"model": "nonsense"}, "no model"),
        ({"skippedStructures": [BRIGHT, CORNER]}, "no structure"),
        ({"region": Region.ROI}, "no region"),
        ({"region": Region.VIEW}, "no slice view"),
    ],
)
def test_an_incomplete_request_is_refused(desk: Desk, change: dict[str, Any], message: str) -> None:
    for name, value in change.items():
        setattr(desk.parameters, name, value)
    with pytest.raises(InputError, match=message):
        desk.press()


# -- what arrives ----------------------------------------------------------------------------------------------------


def test_structures_arrive_named_coded_coloured_and_in_place(desk: Desk) -> None:
    found = desk.segment()
    assert list(rig.segments(found)) == [BRIGHT, CORNER]
    np.testing.assert_array_equal(voxels(found, BRIGHT, desk.volume), FIRST)
    np.testing.assert_array_equal(voxels(found, CORNER, desk.volume), SECOND)
    for label in rig.fake_model("plain").card.labels.labels:
        there = bridge.segment_label(found, rig.segments(found)[label.name], label.id)
        assert (there.type, there.category, there.color) == (label.type, label.category, label.color)
    assert found.GetName() == "Scan segmentation"
    assert desk.messages == ["a doubt"]


def test_they_lie_in_the_transform_of_the_volume(desk: Desk) -> None:
    transform = environment.add_transform(environment.affine(angles=(10, 20, 30), origin=(5, 6, 7)), desk.volume)
    found = desk.segment()
    assert found.GetParentTransformNode() is transform
    np.testing.assert_array_equal(voxels(found, BRIGHT, desk.volume), FIRST)


def test_only_wanted_structures_arrive(desk: Desk) -> None:
    desk.parameters.skippedStructures = [BRIGHT]
    assert list(rig.segments(desk.segment())) == [CORNER]


def test_a_structure_that_was_not_found_is_reported_and_not_created(desk: Desk) -> None:
    desk.engine.will_find(FIRST, None)
    found = desk.segment()
    assert list(rig.segments(found)) == [BRIGHT]
    assert f"{CORNER} was not found." in desk.messages


def test_structures_arrive_one_by_one(desk: Desk) -> None:
    task, counts = desk.press(), []
    while not task.ended:
        task.tick()
        counts.append(sum(len(rig.segments(node)) for node in rig.segmentations()))
    assert counts == sorted(counts)
    assert {1, 2} <= set(counts)


def test_a_large_structure_is_written_in_parts(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "VOXELS_PER_STEP", 100)
    written: list[int] = []
    write = bridge.write_segment
    monkeypatch.setattr(bridge, "write_segment", lambda *args: written.append(args[-1].size) or write(*args))
    found = desk.segment()
    assert len(written) > 5
    assert max(written) <= 100
    np.testing.assert_array_equal(voxels(found, CORNER, desk.volume), SECOND)
    assert len(desk.history.undo().changes) == len(written)


def test_surfaces_that_are_shown_in_3d_follow(desk: Desk) -> None:
    found = desk.segment()
    found.CreateClosedSurfaceRepresentation()
    desk.engine.will_find(OTHER, SECOND)
    desk.segment()
    assert bridge.outdated_surfaces(found) == []
    surface = found.GetClosedSurfaceInternalRepresentation(rig.segments(found)[BRIGHT])
    k, j, i = (np.flatnonzero(OTHER.any(axis=axes))[[0, -1]] for axes in ((1, 2), (0, 2), (0, 1)))
    np.testing.assert_allclose(surface.GetBounds(), np.concatenate([i, j, k]), atol=1)


# -- what was there before -------------------------------------------------------------------------------------------


def test_untouched_segments_of_the_same_name_are_replaced(desk: Desk) -> None:
    before = desk.segment()
    ids = rig.segments(before)
    desk.engine.will_find(OTHER, None)
    assert desk.segment() is before
    assert rig.segments(before) == ids
    np.testing.assert_array_equal(voxels(before, BRIGHT, desk.volume), OTHER)
    assert not voxels(before, CORNER, desk.volume).any(), "the model no longer finds it"


def test_the_whole_import_is_one_step_back(desk: Desk) -> None:
    found = desk.segment()
    desk.engine.will_find(OTHER, FIRST)
    desk.segment()
    assert desk.history.undo_text == "Segmentation of Scan"
    desk.undo()
    np.testing.assert_array_equal(voxels(found, BRIGHT, desk.volume), FIRST)
    np.testing.assert_array_equal(voxels(found, CORNER, desk.volume), SECOND)
    desk.undo()
    assert not voxels(found, BRIGHT, desk.volume).any()
    assert desk.history.undo_text == ""


def test_what_lies_beyond_the_region_stays(desk: Desk) -> None:
    found = desk.segment()
    desk.parameters.region = Region.ROI
    desk.parameters.roi = roi = desk.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenter(5, 5, 2)
    roi.SetSize(4, 4, 10)
    inside = cuboid(slice(0, 6), slice(3, 8), slice(3, 8))
    piece = cuboid(slice(1, 3), slice(4, 6), slice(4, 6))
    desk.engine.will_find(piece, None)
    desk.segment()
    np.testing.assert_array_equal(voxels(found, BRIGHT, desk.volume), np.where(inside, piece, FIRST))
    np.testing.assert_array_equal(voxels(found, CORNER, desk.volume), SECOND)


def test_a_region_beside_the_volume_is_refused(desk: Desk) -> None:
    desk.parameters.region = Region.ROI
    desk.parameters.roi = roi = desk.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenter(500, 500, 500)
    roi.SetSize(4, 4, 4)
    with pytest.raises(InputError, match="holds no voxel"):
        desk.press()


def test_other_segments_stay(desk: Desk) -> None:
    found = desk.segment()
    found.GetSegmentation().GetSegment(rig.segments(found)[BRIGHT]).SetName("Mine")
    desk.engine.will_find(OTHER, SECOND)
    desk.segment()
    assert list(rig.segments(found)) == ["Mine", CORNER, BRIGHT]
    np.testing.assert_array_equal(voxels(found, "Mine", desk.volume), FIRST)
    np.testing.assert_array_equal(voxels(found, BRIGHT, desk.volume), OTHER)


def test_a_segmentation_under_another_transform_is_left_alone(desk: Desk) -> None:
    first = desk.segment()
    environment.add_transform(environment.affine(origin=(9, 0, 0)), first)
    desk.engine.will_find(OTHER, None)
    second = desk.segment()
    assert second is not first
    np.testing.assert_array_equal(
        bridge.read_segment(first, rig.segments(first)[BRIGHT], bridge.geometry(desk.volume)), FIRST
    )
    assert any("another parent transform" in line for line in desk.messages)


# -- in the middle ---------------------------------------------------------------------------------------------------


def at_first_voxels(desk: Desk, task: Task) -> Any:
    """Go on until the first structure has been written; the segmentation that it is in."""
    while not any(
        bridge.extent(node, each, bridge.geometry(desk.volume))
        for node in rig.segmentations()
        for each in rig.segments(node).values()
    ):
        task.tick()
    return rig.segmentations()[-1]


def test_cancelled_in_the_middle_a_new_segmentation_goes_again(desk: Desk) -> None:
    task = desk.press()
    at_first_voxels(desk, task)
    task.cancel()
    desk.finish(task)
    assert rig.segmentations() == []
    assert desk.parameters.segmentation is None
    assert desk.history.undo_text == ""


def test_cancelled_in_the_middle_an_old_segmentation_is_as_it_was(desk: Desk) -> None:
    found = desk.segment()
    found.GetSegmentation().RemoveSegment(rig.segments(found)[CORNER])
    desk.engine.blocks = [_block(2, SECOND), _block(1, OTHER)]
    task = desk.press()
    while not voxels(found, BRIGHT, desk.volume)[0].any():
        task.tick()
    task.cancel()
    desk.finish(task)
    assert list(rig.segments(found)) == [BRIGHT]
    np.testing.assert_array_equal(voxels(found, BRIGHT, desk.volume), FIRST)


def test_a_segmentation_that_is_deleted_while_structures_arrive_is_made_anew(desk: Desk) -> None:
    task = desk.press()
    desk.scene.RemoveNode(at_first_voxels(desk, task))
    desk.finish(task)
    found = desk.parameters.segmentation
    assert list(rig.segments(found)) == [BRIGHT, CORNER]
    np.testing.assert_array_equal(voxels(found, BRIGHT, desk.volume), FIRST)


def test_structures_join_a_segmentation_that_was_begun_meanwhile(desk: Desk) -> None:
    task = desk.press()
    desk.parameters.segmentation = begun = bridge.new_segmentation(desk.scene, "Begun", volume=desk.volume)
    mine = begun.GetSegmentation().AddEmptySegment("", BRIGHT)
    desk.paint(begun, BRIGHT, OTHER)
    desk.finish(task)
    assert rig.segmentations() == [begun]
    assert list(rig.segments(begun)) == [BRIGHT, f"{BRIGHT} (2)", CORNER]
    np.testing.assert_array_equal(bridge.read_segment(begun, mine, bridge.geometry(desk.volume)), OTHER)
    np.testing.assert_array_equal(voxels(begun, f"{BRIGHT} (2)", desk.volume), FIRST)


def test_another_volume_that_was_chosen_meanwhile_keeps_its_segmentation(desk: Desk) -> None:
    task, other = desk.press(), rig.volume(name="Other")
    mine = bridge.new_segmentation(desk.scene, "Mine", volume=other)
    desk.parameters.inputVolume, desk.parameters.segmentation = other, mine
    desk.finish(task)
    assert desk.parameters.segmentation is mine
    assert not rig.segments(mine)
    [made] = [node for node in rig.segmentations() if node is not mine]
    np.testing.assert_array_equal(voxels(made, BRIGHT, desk.volume), FIRST)


# -- progress --------------------------------------------------------------------------------------------------------


def test_progress_is_counted_in_slices() -> None:
    told = SliceProgress(job := Answer("voxels"), 30)
    assert told.progress == (7, 30, "Slices")
    job.progress = None
    assert told.progress is None
    assert told.done()
    assert told.result() == "voxels"
