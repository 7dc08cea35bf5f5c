"""Stand-ins for the widgets of CTK that the panel uses, with the properties and signals of the real ones."""

from __future__ import annotations

import types
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from Testing.panel.pythonqt import offer


@offer
class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A header that shows what lies below it, or cuts it off."""

    contentsCollapsed = QtCore.Signal(bool)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._collapsed = False
        self.setCheckable(True)
        self.setChecked(True)
        QtCore.QObject.connect(self, QtCore.SIGNAL("toggled(bool)"), self._toggled)

    def _is_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, collapsed: bool) -> None:
        if collapsed != self._collapsed:
            self._collapsed = collapsed
            self.setChecked(not collapsed)
            self.setMaximumHeight(self._header() if collapsed else 16777215)
            self.contentsCollapsed.emit(collapsed)

    collapsed = QtCore.Property(bool, _is_collapsed, _set_collapsed)

    def _toggled(self, checked: bool) -> None:
        self._set_collapsed(not checked)

    def _header(self) -> int:
        return self.fontMetrics().height() + 8

    def childEvent(self, event: Any) -> None:
        self.setContentsMargins(0, self._header(), 0, 0)
        super().childEvent(event)

    def hitButton(self, position: Any) -> bool:
        return position.y() < self._header()

    def sizeHint(self) -> Any:
        return super().sizeHint() if self.layout() is None else self.layout().totalSizeHint()

    def paintEvent(self, _event: Any) -> None:
        painter, height = QtGui.QPainter(self), self._header()
        header = QtCore.QRect(0, 0, QtWidgets.QWidget.width.__get__(self), height)
        painter.fillRect(header, self.palette.color(QtGui.QPalette.ColorRole.Midlight))
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(6, 0, height - 12, height)
        kind = "PE_IndicatorArrowRight" if self._collapsed else "PE_IndicatorArrowDown"
        self.style().drawPrimitive(getattr(QtWidgets.QStyle.PrimitiveElement, kind), arrow, painter, self)
        text = header.adjusted(height, 0, 0, 0)
        painter.drawText(text, QtCore.Qt.AlignmentFlag.AlignVCenter | QtCore.Qt.AlignmentFlag.AlignLeft, self.text)
        painter.end()


def make() -> types.ModuleType:
    """The module `ctk`."""
    ctk = types.ModuleType("ctk", __doc__)
    ctk.ctkCollapsibleButton = ctkCollapsibleButton  # type: ignore[attr-defined]
    return ctk
