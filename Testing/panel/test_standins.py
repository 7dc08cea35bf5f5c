"""The stand-ins are as strict as PythonQt: what would fail inside Slicer fails here."""

from __future__ import annotations

from typing import Any

import pytest

from Testing.panel.slicer_gui import Gui


@pytest.fixture
def qt(gui: Gui) -> Any:
    import qt

    return qt


def test_an_attribute_that_does_not_exist_cannot_be_set(qt: Any) -> None:
    with pytest.raises(AttributeError, match="txt"):
        qt.QPushButton().txt = "Segment"


def test_a_property_is_an_attribute_and_no_function(qt: Any) -> None:
    button = qt.QPushButton("Segment")
    assert button.text == "Segment"
    with pytest.raises(TypeError):
        button.text()


def test_an_unknown_signal_is_not_connected(qt: Any) -> None:
    button = qt.QPushButton()
    assert button.connect("clicked()", print)
    assert not button.connect("clicked", print)
    assert not button.connect("pressd()", print)


def test_clicked_hands_over_false_to_slots_that_take_anything(qt: Any) -> None:
    button, heard = qt.QPushButton(), []
    button.connect("clicked(bool)", lambda *arguments: heard.append(arguments))
    button.connect("clicked(bool)", lambda: heard.append("nothing"))
    button.connect("clicked()", lambda *arguments: heard.append(arguments))
    button.click()
    assert heard == [(False,), "nothing", ()]


def test_a_slot_can_be_disconnected(qt: Any) -> None:
    button, heard = qt.QPushButton(), []
    button.connect("clicked()", heard.clear)
    assert button.disconnect("clicked()", heard.clear)
    assert not button.disconnect("clicked()", heard.clear)


def test_enums_are_ints_and_lie_flat(qt: Any) -> None:
    assert qt.Qt.Checked == 2
    assert not hasattr(qt.Qt, "CheckState")


def test_a_button_is_no_instance_of_its_base_class(qt: Any) -> None:
    button = qt.QPushButton()
    assert not isinstance(button, qt.QWidget)
    assert isinstance(button, qt.QPushButton)


def test_python_signals_are_not_offered(qt: Any) -> None:
    assert not hasattr(qt, "Signal")
    assert not hasattr(qt, "Property")


def test_a_widget_without_a_stand_in_stops_the_loading_of_a_file(qt: Any, tmp_path: Any) -> None:
    import slicer.util

    file = tmp_path / "panel.ui"
    file.write_text(
        '<ui version="4.0"><widget class="QWidget" name="Panel"/><customwidgets><customwidget>'
        "<class>ctkUnheardOf</class><extends>QWidget</extends></customwidget></customwidgets></ui>"
    )
    with pytest.raises(ValueError, match="ctkUnheardOf"):
        slicer.util.loadUI(str(file))
