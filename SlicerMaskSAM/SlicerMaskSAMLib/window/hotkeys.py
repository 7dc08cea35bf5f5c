"""Keys of the panel, alive between `install` and `remove` only, and never while the user is typing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt

TYPED_IN = ("QLineEdit", "QTextEdit", "QPlainTextEdit", "QAbstractSpinBox")
"""Widgets that take the keys themselves; the Python console is a QTextEdit."""


class HotKeys:
    """Shortcuts of the main window.

    Args:
        actions: What each key does, by its name for QKeySequence, "Shift+Del".
    """

    def __init__(self, actions: Mapping[str, Callable[[], None]]) -> None:
        self._actions = dict(actions)
        self._shortcuts: list[Any] = []

    def install(self, window: Any) -> None:
        """Bring the keys to life in a window; once more does no harm."""
        self.remove()
        for key, action in self._actions.items():
            shortcut = qt.QShortcut(qt.QKeySequence(key), window)
            shortcut.autoRepeat = False
            shortcut.connect("activated()", _unless_typing(action))
            self._shortcuts.append(shortcut)

    def remove(self) -> None:
        """End them."""
        for shortcut in self._shortcuts:
            shortcut.enabled = False
            shortcut.deleteLater()
        self._shortcuts = []


def _unless_typing(action: Callable[[], None]) -> Callable[[], None]:
    def act() -> None:
        # Letters go to a text field by themselves; Shift+Del, Ctrl+Enter and Esc would not.
        focus = qt.QApplication.focusWidget()
        if focus is None or not any(focus.inherits(kind) for kind in TYPED_IN):
            action()

    return act
