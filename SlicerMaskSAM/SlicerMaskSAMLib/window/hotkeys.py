"""Keyboard shortcuts of the panel, inactive while the user is typing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt

TYPED_IN = ("QLineEdit", "QTextEdit", "QPlainTextEdit", "QAbstractSpinBox")
"""Widgets that handle keys themselves; the Python console is a QTextEdit."""


class HotKeys:
    """Shortcuts of the main window.

    Args:
        actions: Action of each key, named as for QKeySequence: "Shift+Del".
    """

    def __init__(self, actions: Mapping[str, Callable[[], None]]) -> None:
        self._actions = dict(actions)
        self._shortcuts: list[Any] = []

    def install(self, window: Any) -> None:
        """Activate the shortcuts in a window. Safe to call twice."""
        self.remove()
        for key, action in self._actions.items():
            shortcut = qt.QShortcut(qt.QKeySequence(key), window)
            shortcut.autoRepeat = False
            shortcut.connect("activated()", _unless_typing(action))
            self._shortcuts.append(shortcut)

    def remove(self) -> None:
        """Deactivate the shortcuts."""
        for shortcut in self._shortcuts:
            shortcut.enabled = False
            shortcut.deleteLater()
        self._shortcuts = []


def _unless_typing(action: Callable[[], None]) -> Callable[[], None]:
    def act() -> None:
        # Qt gives letters to a focused text field first, but not Shift+Del, Ctrl+Enter and Esc.
        focus = qt.QApplication.focusWidget()
        if focus is None or not any(focus.inherits(kind) for kind in TYPED_IN):
            action()

    return act
