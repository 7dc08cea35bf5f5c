"""The strip that shows slice by slice how sure the model is."""

from __future__ import annotations

from typing import Any

import pytest

from Testing.panel.conftest import Desk
from Testing.panel.examples import PROMPTED
from Testing.panel.slicer_gui import Gui

# Qt 5, which Slicer may have, knows no other way to ask where the mouse is.
pytestmark = pytest.mark.filterwarnings("ignore:Function. 'QMouseEvent.pos:DeprecationWarning")


@pytest.fixture
def bar(gui: Gui) -> Any:
    """A bar of 200 x 18 pixels; what was clicked is in its list `clicked`."""
    from SlicerMaskSAMLib.window.slicebar import SliceBar

    clicked: list[int] = []
    made = SliceBar(clicked.append)
    made.clicked = clicked
    made.resize(200, 18)
    return made


def color(bar: Any, x: int) -> tuple[int, int, int]:
    """Of the bar at a pixel from the left, in its lower half."""
    found = bar.grab().toImage().pixelColor(x, 12)
    return found.red(), found.green(), found.blue()


def click(widget: Any, x: int) -> None:
    import qt
    from PySide6.QtTest import QTest

    QTest.mouseClick(widget, qt.Qt.LeftButton, pos=qt.QPoint(x, 5))


def test_each_slice_has_a_cell_of_its_colour(bar: Any) -> None:
    from SlicerMaskSAMLib.window.slicebar import quality_color

    bar.show_quality({0: 1.0, 5: 0.5, 9: 0.75}, 10, None)
    assert [color(bar, 10), color(bar, 110), color(bar, 190)] == [quality_color(q) for q in (1.0, 0.5, 0.75)]
    assert len({color(bar, x) for x in (30, 70, 150)}) == 1, "slices without an estimate look the same"


def test_colours_go_from_unsure_to_sure(bar: Any) -> None:
    from SlicerMaskSAMLib.window.slicebar import BETWEEN, SURE, UNSURE, quality_color

    assert [quality_color(q) for q in (0.3, 0.5, 0.75, 1.0, 1.2)] == [UNSURE, UNSURE, BETWEEN, SURE, SURE]


def test_the_worst_slice_is_marked(bar: Any) -> None:
    bar.show_quality({2: 0.9, 7: 0.6}, 10, 7)
    top = bar.grab().toImage()
    assert top.pixelColor(150, 1) != top.pixelColor(150, 12)
    assert top.pixelColor(50, 1) == top.pixelColor(50, 12)


@pytest.mark.parametrize(("x", "index"), [(0, 0), (19, 0), (20, 1), (199, 9)])
def test_a_click_goes_to_the_slice_under_it(bar: Any, x: int, index: int) -> None:
    bar.show_quality({0: 1.0}, 10, None)
    click(bar, x)
    assert bar.clicked == [index]


def test_more_slices_than_pixels_can_all_be_drawn(bar: Any) -> None:
    bar.show_quality(dict.fromkeys(range(1000), 0.5), 1000, 999)
    assert color(bar, 199) == color(bar, 0)


def test_a_bar_without_slices_goes_nowhere(bar: Any) -> None:
    click(bar, 50)
    assert bar.clicked == []


def test_the_panels_bar_asks_the_controller(desk: Desk) -> None:
    from SlicerMaskSAMLib.window.slicebar import SliceBar

    desk.show(**PROMPTED)
    (bar,) = (child for child in desk.ui.sliceBarPlace.children() if type(child) is SliceBar)
    bar.resize(400, 18)
    click(bar, 205)
    assert desk.asked() == [("jump_to", 20)]
