"""The keys: each does what its button does, between enter() and exit() only, and never while the user is typing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from SlicerMaskSAMLib.values.status import Phase
from Testing.panel.conftest import Desk
from Testing.panel.examples import PROMPTED

KEYS = {
    "A": ("accept",),
    "E": ("next_structure", ""),
    "Z": ("undo",),
    "Y": ("redo",),
    "Shift+Del": ("clear_prompts",),
    "Ctrl+Return": ("segment",),
    "Ctrl+Enter": ("segment",),
}
"""Keys that give an order."""


@pytest.fixture
def strike(desk: Desk) -> Callable[[str], None]:
    """Strikes a key in the main window, wherever the focus is."""
    import qt
    from PySide6.QtTest import QTest

    desk.show(**PROMPTED, redo="Click")
    desk.gui.window.show()
    desk.gui.window.activateWindow()
    qt.QApplication.processEvents()
    desk.ui.pointButton.setFocus()

    def strike_it(key: str) -> None:
        target = qt.QApplication.focusWidget() or desk.gui.window
        combination = qt.QKeySequence(key)[0]
        QTest.keyClick(target, combination.key(), combination.keyboardModifiers())
        qt.QApplication.processEvents()

    return strike_it


@pytest.mark.parametrize("key", list(KEYS))
def test_a_key_does_the_action_of_its_button(desk: Desk, strike: Callable[[str], None], key: str) -> None:
    strike(key)
    assert desk.asked() == [KEYS[key]]


def test_keys_take_and_put_down_the_tools(desk: Desk, strike: Callable[[str], None]) -> None:
    strike("P")
    assert desk.ui.pointButton.checked
    strike("X")
    assert (desk.ui.pointButton.checked, desk.ui.boxButton.checked) == (False, True)
    strike("N")
    assert desk.ui.excludeButton.checked
    strike("Esc")
    assert not desk.ui.boxButton.checked


def test_esc_cancels_what_is_going_on(desk: Desk, strike: Callable[[str], None]) -> None:
    desk.show(phase=Phase.WORKING, task="segment")
    strike("P")
    strike("Esc")
    assert desk.asked() == [("cancel",)]
    assert desk.ui.pointButton.checked, "the tool stays in the hand"


def test_a_key_whose_button_is_grey_does_nothing(desk: Desk, strike: Callable[[str], None]) -> None:
    desk.show(can_refine=False, undo="")
    strike("A")
    strike("Z")
    assert desk.asked() == []


@pytest.mark.parametrize("key", [*KEYS, "P", "X", "N", "Esc"])
@pytest.mark.parametrize("field", ["nameEdit", "searchEdit"])
def test_no_key_is_alive_while_the_user_types(desk: Desk, strike: Callable[[str], None], key: str, field: str) -> None:
    desk.show(phase=Phase.WORKING)
    getattr(desk.ui, field).setFocus()
    strike(key)
    assert desk.asked() == []
    assert not (desk.ui.pointButton.checked)
    assert not (desk.ui.boxButton.checked)
    assert not (desk.ui.excludeButton.checked)


def test_typing_a_name_arrives_in_the_field(desk: Desk, strike: Callable[[str], None]) -> None:
    desk.ui.nameEdit.setFocus()
    for letter in "PXNAE":
        strike(letter)
    assert desk.ui.nameEdit.text.upper() == "PXNAE"


@pytest.mark.parametrize("key", [*KEYS, "P", "X", "N", "Esc"])
def test_no_key_is_alive_after_exit(desk: Desk, strike: Callable[[str], None], key: str) -> None:
    desk.panel.exit()
    desk.asked()
    strike(key)
    assert desk.asked() == []
    assert not (desk.ui.pointButton.checked)
    assert not (desk.ui.boxButton.checked)
    assert not (desk.ui.excludeButton.checked)


def test_keys_live_again_after_the_next_enter(desk: Desk, strike: Callable[[str], None]) -> None:
    desk.panel.exit()
    desk.panel.enter()
    desk.panel.enter()
    desk.asked()
    strike("A")
    assert desk.asked() == [("accept",)]
