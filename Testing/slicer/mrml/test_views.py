"""Clicks in slice views: real VTK events through Slicer's own interactor style, displayable managers and markups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import slicer

from SlicerMaskSAMLib.mrml.bridge import ijk_to_world, world_to_ijk
from SlicerMaskSAMLib.mrml.prompts import PromptNodes
from SlicerMaskSAMLib.mrml.views import SliceClickObserver, ThreeDClickObserver, Views
from SlicerMaskSAMLib.values.choices import Scope, Tool
from Testing.slicer import environment
from Testing.slicer.heart import messages, prompt_lists

SHAPE = (20, 40, 50)
OBLIQUE = environment.affine(spacing=(0.8, 1.1, 2.5), angles=(15, -25, 30), origin=(5, -40, 60))
MOVED = environment.affine(angles=(-20, 10, 40), origin=(30, 20, -10))
BETWEEN = 1.0
"""Priority of an observer behind the catcher and before Slicer's own style, which keeps some events for itself."""
CENTRE = (24.0, 19.0, 9.0)
"""Voxel (i, j, k) in the middle."""


@dataclass(kw_only=True)
class Desk:
    """A slice view whose clicks are caught; `points` and `boxes` are what was told."""

    view: Any
    volume: Any
    tool: Tool = Tool.POINT
    points: list[tuple[np.ndarray, bool]] = field(default_factory=list)
    boxes: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.catcher = SliceClickObserver(
            self.view.interactor, self.view.node, self._point, self._box, lambda: self.tool
        )

    def _point(self, world: np.ndarray, positive: bool, slice_node: Any) -> None:
        assert slice_node is self.view.node
        self.points.append((world, positive))

    def _box(self, first: np.ndarray, second: np.ndarray, slice_node: Any) -> None:
        assert slice_node is self.view.node
        self.boxes.append((first, second))

    def counts(self) -> tuple[int, int]:
        """Number of reported points and boxes."""
        return len(self.points), len(self.boxes)

    def world(self, ijk: tuple[float, ...]) -> np.ndarray:
        return ijk_to_world(self.volume, [ijk])[0]

    def press(self, xy: tuple[int, int], **keys: bool) -> None:
        """Left button pressed and released at some pixels."""
        for event in ("EnterEvent", "MouseMoveEvent", "LeftButtonPressEvent", "LeftButtonReleaseEvent"):
            self.view.event(event, xy, **keys)

    def hold(self, *path: tuple[int, int]) -> None:
        """Left button pressed at the first place and held along the others."""
        self.view.event("MouseMoveEvent", path[0])
        self.view.event("LeftButtonPressEvent", path[0])
        for xy in path[1:]:
            self.view.event("MouseMoveEvent", xy)

    def window_level(self) -> tuple[float, float]:
        display = self.volume.GetDisplayNode()
        return display.GetWindow(), display.GetLevel()


def scan(affine: np.ndarray = OBLIQUE) -> Any:
    """A volume with a bright cube in the middle."""
    voxels = np.zeros(SHAPE, np.int16)
    voxels[7:12, 14:25, 19:30] = 500
    return environment.add_volume(voxels, affine)


@pytest.fixture
def desk(scene: Any, views: Any) -> Desk:
    volume = scan()
    view = views.slice()
    view.show(volume)
    view.jump(ijk_to_world(volume, [CENTRE])[0])
    return Desk(view=view, volume=volume)


@pytest.fixture
def adjusting(scene: Any) -> Any:
    """Slicer's mouse mode in which a drag changes window and level."""
    return mouse_mode(scene, slicer.vtkMRMLInteractionNode.AdjustWindowLevel)


def overhear(view: Any) -> list[str]:
    """What gets past us of the left button, before Slicer's own style hears it."""
    heard: list[str] = []
    for event in ("LeftButtonPressEvent", "LeftButtonDoubleClickEvent", "LeftButtonReleaseEvent"):
        view.interactor.AddObserver(event, lambda _, name: heard.append(name), BETWEEN)
    return heard


def mouse_mode(scene: Any, mode: int) -> Any:
    node = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    node.SetCurrentInteractionMode(mode)
    return node


# -- where a click is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["Axial", "Sagittal", "Coronal"])
@pytest.mark.parametrize("transformed", [False, True], ids=["plain", "transformed"])
def test_a_click_is_located_to_a_part_of_a_pixel(scene: Any, views: Any, orientation: str, transformed: bool) -> None:
    volume = scan()
    if transformed:
        environment.add_transform(MOVED, volume)
    view = views.slice(orientation=orientation)
    view.show(volume)
    view.jump(ijk_to_world(volume, [CENTRE])[0])
    desk = Desk(view=view, volume=volume)
    desk.press((171, 133))
    (world, positive), *others = desk.points
    assert positive
    assert not others
    assert np.allclose(world, view.world((171, 133)), atol=1e-6)
    wanted = (21.25, 17.5, 9.5)
    view.jump(desk.world(wanted))
    view.click(desk.world(wanted))
    half = np.linalg.norm(view.world((1, 1)) - view.world((0, 0))) / 2
    assert np.linalg.norm(desk.points[1][0] - desk.world(wanted)) <= half
    assert np.linalg.norm(world_to_ijk(volume, [desk.points[1][0]])[0] - wanted) < 0.3


def test_a_click_is_right_in_a_view_that_is_zoomed_panned_and_turned(desk: Desk) -> None:
    node = desk.view.node
    node.RotateToVolumePlane(desk.volume)
    node.SetFieldOfView(*(0.3 * side for side in node.GetFieldOfView()[:2]), 1)
    node.SetXYZOrigin(7, -3, 0)
    bright = desk.world((29, 24, 9))  # a corner of the cube
    node.JumpSliceByOffsetting(*bright)
    desk.view.click(bright)
    assert np.allclose(world_to_ijk(desk.volume, [desk.points[0][0]])[0], (29, 24, 9), atol=0.1)


def test_ctrl_excludes(desk: Desk) -> None:
    desk.press((200, 150))
    desk.press((210, 150), ctrl=True)
    assert [positive for _, positive in desk.points] == [True, False]


def test_a_hand_that_trembles_still_clicks_where_it_pressed(desk: Desk) -> None:
    desk.hold((200, 150), (203, 148))
    desk.view.event("LeftButtonReleaseEvent", (204, 147))
    assert desk.counts() == (1, 0)
    assert np.allclose(desk.points[0][0], desk.view.world((200, 150)))


@pytest.mark.parametrize("tool", [Tool.POINT, Tool.BOX])
def test_a_drag_is_a_box_between_press_and_release(desk: Desk, tool: Tool) -> None:
    desk.tool = tool
    desk.hold((150, 100), (180, 130), (260, 170))
    desk.view.event("LeftButtonReleaseEvent", (262, 171))
    assert desk.counts() == (0, 1)
    assert np.allclose(desk.boxes[0], [desk.view.world((150, 100)), desk.view.world((262, 171))])


def test_a_drag_without_move_events_is_a_box_too(desk: Desk) -> None:
    desk.hold((150, 100))
    desk.view.event("LeftButtonReleaseEvent", (262, 171))
    assert desk.counts() == (0, 1)


def test_the_box_tool_takes_a_mere_click_for_nothing(desk: Desk) -> None:
    desk.tool = Tool.BOX
    desk.press((200, 150))
    assert desk.counts() == (0, 0)


def test_two_clicks_in_a_hurry_are_two_clicks_and_no_double_click(desk: Desk) -> None:
    heard = overhear(desk.view)
    desk.press((200, 150))
    desk.view.event("LeftButtonDoubleClickEvent", (200, 150))
    desk.view.event("LeftButtonReleaseEvent", (200, 150))
    assert desk.counts() == (2, 0)
    assert heard == []
    desk.tool = Tool.NONE
    desk.view.event("LeftButtonDoubleClickEvent", (200, 150))
    assert heard == ["LeftButtonDoubleClickEvent"]


# -- what is seen ----------------------------------------------------------------------------------------------------


def test_the_box_is_seen_while_it_is_drawn_and_gone_afterwards(desk: Desk) -> None:
    before = desk.view.picture()
    desk.hold((100, 80), (220, 200))
    rows, columns = np.nonzero((desk.view.picture() != before).any(axis=2))
    assert (columns.min(), columns.max()) == pytest.approx((100, 220), abs=2)
    assert (rows.min(), rows.max()) == pytest.approx((300 - 200, 300 - 80), abs=2)
    desk.view.event("MouseMoveEvent", (160, 140))
    rows, columns = np.nonzero((desk.view.picture() != before).any(axis=2))
    assert columns.max() == pytest.approx(160, abs=2)
    desk.view.event("LeftButtonReleaseEvent", (160, 140))
    assert np.array_equal(desk.view.picture(), before)


@pytest.mark.parametrize("end", ["cancelled", "switched off", "removed"])
def test_a_box_that_is_given_up_leaves_nothing(desk: Desk, end: str) -> None:
    before = desk.view.picture()
    desk.hold((100, 80), (220, 200))
    if end == "cancelled":
        desk.catcher.cancel()
    elif end == "removed":
        desk.catcher.remove()
    else:
        desk.tool = Tool.NONE
    desk.view.event("LeftButtonReleaseEvent", (220, 200))
    assert desk.counts() == (0, 0)
    assert np.array_equal(desk.view.picture(), before)


# -- what is Slicer's ------------------------------------------------------------------------------------------------


def test_window_and_level_stay_while_a_tool_is_on_and_change_when_it_is_off(desk: Desk, adjusting: Any) -> None:
    before = desk.window_level()
    desk.view.drag(desk.world((20, 15, 9)), desk.world((30, 25, 9)))
    assert desk.counts() == (0, 1)
    assert desk.window_level() == before
    desk.tool = Tool.NONE
    desk.view.drag(desk.world((20, 15, 9)), desk.world((30, 25, 9)))
    assert desk.counts() == (0, 1)
    assert desk.window_level() != before


def test_a_catcher_that_is_removed_leaves_the_view_as_it_was(scene: Any, views: Any, adjusting: Any) -> None:
    volume, view = scan(), views.slice()
    view.show(volume)
    events = "LeftButtonPressEvent", "LeftButtonDoubleClickEvent", "MouseMoveEvent", "LeftButtonReleaseEvent"
    watched = [view.interactor.HasObserver(event) for event in events]
    desk = Desk(view=view, volume=volume)
    desk.catcher.remove()
    desk.catcher.remove()
    assert [view.interactor.HasObserver(event) for event in events] == watched
    before = desk.window_level()
    view.drag(desk.world((20, 15, 9)), desk.world((30, 25, 9)))
    assert desk.counts() == (0, 0)
    assert desk.window_level() != before


def test_catchers_come_and_go_while_slicer_runs(desk: Desk) -> None:
    for _ in range(3):
        desk.catcher.remove()
        desk.catcher = SliceClickObserver(
            desk.view.interactor, desk.view.node, desk._point, desk._box, lambda: desk.tool
        )
    desk.press((200, 150))
    assert desk.counts() == (1, 0)


def test_the_wheel_and_the_other_buttons_are_slicers(desk: Desk) -> None:
    node = desk.view.node
    offset, width = node.GetSliceOffset(), node.GetFieldOfView()[0]
    desk.view.event("MouseMoveEvent", (200, 150))
    desk.view.event("MouseWheelForwardEvent", (200, 150))
    assert node.GetSliceOffset() != offset
    for event, xy in (("Press", (200, 150)), ("", (200, 190)), ("Release", (200, 190))):
        desk.view.event(f"RightButton{event}Event" if event else "MouseMoveEvent", xy)
    assert node.GetFieldOfView()[0] != width
    assert desk.counts() == (0, 0)


def test_shift_is_slicers(desk: Desk) -> None:
    origin = desk.view.node.GetXYZOrigin()
    for event, xy in (("LeftButtonPress", (200, 150)), ("MouseMove", (240, 150)), ("LeftButtonRelease", (240, 150))):
        desk.view.event(f"{event}Event", xy, shift=True)
    assert desk.counts() == (0, 0)
    assert desk.view.node.GetXYZOrigin() != origin


def test_slicers_own_place_mode_places_its_own_points(scene: Any, desk: Desk) -> None:
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    points.CreateDefaultDisplayNodes()
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    selection.SetReferenceActivePlaceNodeID(points.GetID())
    selection.SetActivePlaceNodeClassName(points.GetClassName())
    mouse_mode(scene, slicer.vtkMRMLInteractionNode.Place)
    desk.press((200, 150))
    mouse_mode(scene, slicer.vtkMRMLInteractionNode.ViewTransform)
    assert points.GetNumberOfDefinedControlPoints() == 1
    assert desk.counts() == (0, 0)
    desk.press((200, 180))
    assert desk.counts() == (1, 0)


def test_other_views_are_not_ours(desk: Desk, views: Any) -> None:
    green = views.slice("Green", "Coronal")
    green.show(desk.volume)
    green.click(desk.world(CENTRE))
    three_d = views.three_d()
    three_d.fit()
    three_d.click((200, 150))
    assert desk.counts() == (0, 0)


def test_a_click_in_a_3d_view_is_noticed_and_stays_slicers(views: Any) -> None:
    view, tools, missed = views.three_d(), [Tool.NONE], []
    seen = overhear(view)
    catcher = ThreeDClickObserver(view.interactor, lambda: missed.append("missed"), lambda: tools[0])
    view.click((200, 150))
    assert (len(missed), len(seen)) == (0, 2)
    tools[0] = Tool.BOX
    view.click((200, 150))
    assert (len(missed), len(seen)) == (1, 4)
    for event, xy in (("LeftButtonPress", (200, 150)), ("MouseMove", (240, 150)), ("LeftButtonRelease", (240, 150))):
        view.event(f"{event}Event", xy)
    assert (len(missed), len(seen)) == (1, 6)
    catcher.remove()
    view.click((200, 150))
    assert (len(missed), len(seen)) == (1, 8)


# -- prompts in the view ---------------------------------------------------------------------------------------------


@pytest.fixture
def prompted(scene: Any, desk: Desk) -> Any:
    """The desk's view with a click and a box in it; `news` holds the calls of `on_user_change`."""
    desk.view.node.RotateToVolumePlane(desk.volume)
    desk.view.jump(desk.world(CENTRE))
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.GetSegmentation().AddEmptySegment("heart", "Heart")
    nodes = PromptNodes(scene)
    prompts = nodes.of(segmentation, "heart", desk.volume)
    prompts.add_point(desk.world(CENTRE), positive=True, scope=Scope.SLAB)
    prompts.add_box(desk.world((15, 10, 9)), desk.world((40, 32, 9)), scope=Scope.SLAB, axis=0)
    nodes.news = []
    nodes.on_user_change = lambda moved, before: nodes.news.append((before, messages(moved)))
    desk.view.render()
    yield nodes
    nodes.close()


def test_a_prompt_under_the_mouse_is_dragged_though_a_tool_is_on(desk: Desk, prompted: Any) -> None:
    (before,) = {each.key: each.snapshot() for each in prompt_lists(prompted)}.values()
    desk.view.drag(desk.world(CENTRE), desk.world((30, 22, 9)))
    assert desk.counts() == (0, 0)
    ((told, (point, _)),) = prompted.news
    assert told == before
    assert np.allclose(point["position"], (30, 22, 9), atol=0.3)


def test_the_side_of_a_box_is_dragged_though_a_tool_is_on(desk: Desk, prompted: Any) -> None:
    desk.view.drag(desk.world((40, 21, 9)), desk.world((45, 21, 9)))
    assert desk.counts() == (0, 0)
    ((_, (_, box)),) = prompted.news
    assert np.allclose(box["corners"], ((15.5, 10.5, 9), (44.5, 31.5, 9)), atol=0.4)


def test_markups_of_others_do_not_stand_in_the_way(scene: Any, desk: Desk) -> None:
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    points.CreateDefaultDisplayNodes()
    points.AddControlPointWorld(desk.world(CENTRE))
    desk.view.render()
    desk.view.click(desk.world(CENTRE))
    assert desk.counts() == (1, 0)


# -- the views -------------------------------------------------------------------------------------------------------


def test_views_are_those_of_the_layout(scene: Any, views: Any) -> None:
    red, green = views.slice("Red"), views.slice("Green", "Coronal")
    shown = Views(scene)
    assert shown.slice_nodes() == [red.node, green.node]
    assert shown.slice_node() is red.node
    green.node.SetMappedInLayout(1)
    assert shown.slice_nodes() == [green.node]


def test_the_position_is_the_middle_of_the_first_view(scene: Any, desk: Desk) -> None:
    assert np.allclose(Views(scene).position(), desk.world(CENTRE), atol=1e-4)
    desk.view.node.SetXYZOrigin(20, 10, 0)
    assert np.allclose(Views(scene).position(), desk.view.world((200, 150)), atol=1e-4)


def test_without_slice_views_there_is_no_position(scene: Any) -> None:
    assert Views(scene).slice_node() is None
    assert Views(scene).position() is None


def test_a_jump_shows_the_slices_of_a_point_and_leaves_the_rest_of_the_view_alone(desk: Desk, views: Any) -> None:
    green = views.slice("Green", "Coronal")
    green.show(desk.volume)
    target = desk.world((28, 22, 14))
    pixel = desk.view.world((200, 150))
    Views(slicer.mrmlScene).jump(target)
    for view in (desk.view, green):
        normal = view.node.GetSliceToRAS()
        out = np.array([normal.GetElement(row, 2) for row in range(3)])
        assert abs(out @ (view.world((200, 150)) - target)) < 1e-3
    assert np.allclose((desk.view.world((200, 150)) - pixel)[:2], 0)


def test_a_jump_to_a_point_beside_the_view_brings_it_into_the_middle(desk: Desk) -> None:
    node = desk.view.node
    node.SetFieldOfView(8, 6, 1)
    target = desk.world((45, 5, 3))
    Views(slicer.mrmlScene).jump(target)
    assert np.allclose(desk.view.world((200, 150)), target, atol=0.1)
