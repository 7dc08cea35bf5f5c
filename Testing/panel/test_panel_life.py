"""The panel comes to life and ends: its timer, its catchers in the slice views, the end of a scene."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from MaskSAMCore.config.resources import resource
from SlicerMaskSAMLib.values.status import Phase
from Testing.panel.conftest import Desk
from Testing.panel.hands import a_volume, let_events_pass, wait_for
from Testing.panel.slicer_gui import SliceWidget


def test_every_property_in_the_ui_file_is_one_of_its_widget(desk: Desk) -> None:
    unknown = [
        f"{widget.get('class')}.{own.get('name')}"
        for widget in ElementTree.parse(resource("UI", "SlicerMaskSAM.ui")).iter("widget")
        for own in widget.findall("property")
        if own.get("stdset") != "0"
        and getattr(desk.ui, widget.get("name")).metaObject().indexOfProperty(own.get("name")) < 0
    ]
    assert unknown == []


def drag(widget: SliceWidget) -> None:
    """Draw a box in a slice view."""
    widget.interactor().SetEventInformation(60, 60, 0, 0)
    widget.interactor().InvokeEvent("LeftButtonPressEvent")
    widget.interactor().SetEventInformation(140, 120, 0, 0)
    widget.interactor().InvokeEvent("LeftButtonReleaseEvent")


def names(calls: list[Any]) -> list[str]:
    return [call[0] for call in calls]


@pytest.mark.parametrize("view", ["Red", "Yellow", "Green"])
def test_a_click_in_a_view_is_a_point_in_the_world(desk: Desk, view: str) -> None:
    widget = desk.gui.layout.sliceWidget(view)
    desk.press("pointButton")
    widget.click(150, 100)
    ((name, world, positive, node),) = desk.asked()
    expected = widget.mrmlSliceNode().GetXYToRAS().MultiplyPoint((150, 100, 0, 1))[:3]
    assert (name, positive, node) == ("click", True, widget.mrmlSliceNode())
    assert tuple(world) == pytest.approx(expected)


def test_without_a_tool_clicks_are_slicers(desk: Desk) -> None:
    desk.gui.layout.sliceWidget("Red").click(100, 100)
    assert desk.asked() == []


def test_a_drag_is_a_box(desk: Desk) -> None:
    red = desk.gui.layout.sliceWidget("Red")
    desk.press("boxButton")
    drag(red)
    ((name, corner, opposite, node),) = desk.asked()
    assert (name, node) == ("draw_box", red.mrmlSliceNode())
    assert abs(corner - opposite) == pytest.approx([80, 60, 0])


def test_a_click_in_the_3d_view_has_no_place(desk: Desk) -> None:
    desk.gui.layout.solid.click(10, 10)
    assert desk.asked() == [], "no tool is on"
    desk.press("pointButton")
    desk.gui.layout.solid.click(10, 10)
    ((name, _place, _positive, node),) = desk.asked()
    assert (name, node) == ("click", None)
    desk.panel.exit()
    desk.ui.pointButton.click()
    desk.gui.layout.solid.click(10, 10)
    assert desk.asked() == [("exit",)]


def test_a_view_of_a_new_layout_is_caught_too(desk: Desk) -> None:
    desk.gui.layout.widgets["Red+"] = SliceWidget("Red+", "Axial")
    for slot in desk.gui.layout.slots:
        slot()
    desk.press("pointButton")
    desk.gui.layout.sliceWidget("Red+").click(100, 100)
    desk.gui.layout.sliceWidget("Red").click(100, 100)
    assert names(desk.asked()) == ["click", "click"], "each view once"


def test_after_exit_clicks_are_slicers_again(desk: Desk) -> None:
    red = desk.gui.layout.sliceWidget("Red")
    desk.press("pointButton")
    desk.panel.exit()
    assert not desk.ui.pointButton.checked
    desk.ui.pointButton.click()
    red.click(100, 100)
    assert desk.asked() == [("exit",)]
    assert desk.gui.layout.slots == []


def test_the_timer_lets_the_controller_go_on(desk: Desk) -> None:
    wait_for(lambda: desk.controller.ticks > 3)
    desk.controller.show(headline="Ready")
    wait_for(lambda: desk.ui.headlineLabel.text == "Ready")


def test_after_exit_the_timer_stops_when_the_work_is_done(desk: Desk) -> None:
    desk.show(phase=Phase.WORKING, task="segment")
    desk.panel.exit()
    before = desk.controller.ticks
    wait_for(lambda: desk.controller.ticks > before)
    desk.controller.show(phase=Phase.IDLE, task="")
    wait_for(lambda: not desk.ui.cancelButton.enabled)
    desk.panel.tick()
    after = desk.controller.ticks
    let_events_pass(10)
    assert desk.controller.ticks == after


def test_the_volume_that_slicer_shows_is_chosen_on_entering(desk: Desk) -> None:
    import slicer

    first, shown = a_volume(), a_volume()
    desk.panel.exit()
    slicer.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(shown.GetID())
    desk.asked()
    desk.panel.enter()
    assert desk.asked() == [("choose_volume", shown), ("enter",)]
    desk.parameters.inputVolume = first
    desk.panel.enter()
    assert desk.asked() == [("enter",)]


def test_without_a_controller_nothing_can_be_pressed(desk: Desk) -> None:
    desk.panel.unbind()
    desk.ui.segmentButton.click()
    desk.gui.layout.sliceWidget("Red").click(100, 100)
    desk.panel.tick()
    assert desk.asked() == []
    desk.panel.bind(desk.controller, desk.parameters)
    desk.press("segmentButton")
    assert desk.asked() == [("enter",), ("segment",)], "and a new one looks what is there"


def test_the_scene_may_end_in_the_middle_of_a_tick(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk.controller, "tick", desk.panel.unbind)
    desk.panel.mark_changed()
    desk.panel.tick()
    assert not desk.panel.widget.enabled


def test_a_panel_that_is_unbound_leaves_the_parameters_alone(desk: Desk) -> None:
    volume = a_volume()
    desk.parameters.inputVolume = volume
    desk.panel.unbind()
    desk.ui.volumeSelector.setCurrentNode(None)
    assert desk.parameters.inputVolume is volume
