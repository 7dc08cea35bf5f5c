"""A strip that shows slice by slice how sure the model is; a click goes to the slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt

UNSURE, BETWEEN, SURE = (213, 94, 0), (240, 228, 66), (0, 158, 115)
"""Told apart by colour-blind people too (the palette of Okabe and Ito)."""
LOW, HIGH = 0.5, 1.0
"""Estimated IoU at the two ends of the colours."""


def quality_color(quality: float) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, for an estimated IoU from 0 to 1."""
    place = min(max((quality - LOW) / (HIGH - LOW), 0.0), 1.0) * 2
    first, second = (UNSURE, BETWEEN) if place < 1 else (BETWEEN, SURE)
    share = place % 1 if place < 2 else 1.0
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


class SliceBar(qt.QWidget):
    """One cell per slice.

    Args:
        on_slice: Called with the index of the slice that was clicked.
    """

    def __init__(self, on_slice: Callable[[int], None], parent: Any = None) -> None:
        super().__init__(parent)
        self._on_slice = on_slice
        self._quality: dict[int, float] = {}
        self._slices = 0
        self._worst: int | None = None

    def show_quality(self, quality: Mapping[int, float], slices: int, worst: int | None) -> None:
        """Show the estimates of a structure; slices without one stay grey, the worst is marked."""
        self._quality, self._slices, self._worst = dict(quality), slices, worst
        self.update()

    def slice_at(self, x: int) -> int | None:
        """Index of the slice whose cell lies at a pixel from the left."""
        if not self._slices or not 0 <= x < self.width:
            return None
        return x * self._slices // self.width

    def mousePressEvent(self, event: Any) -> None:
        """Qt's: a click goes to the slice under it."""
        index = self.slice_at(event.pos().x())
        if index is not None:
            self._on_slice(index)

    def paintEvent(self, _event: Any) -> None:
        """Qt's: draw the cells."""
        painter = qt.QPainter(self)
        painter.fillRect(qt.QRect(0, 0, self.width, self.height), self.palette.color(qt.QPalette.Midlight))
        for index, quality in self._quality.items():
            painter.fillRect(self._cell(index), qt.QColor(*quality_color(quality)))
        if self._worst is not None and self._slices:
            cell = self._cell(self._worst)
            painter.fillRect(qt.QRect(cell.x(), 0, max(cell.width(), 3), 4), self.palette.color(qt.QPalette.WindowText))
        painter.end()

    def _cell(self, index: int) -> Any:
        left, right = (self.width * edge // self._slices for edge in (index, index + 1))
        return qt.QRect(left, 0, max(right - left, 1), self.height)
