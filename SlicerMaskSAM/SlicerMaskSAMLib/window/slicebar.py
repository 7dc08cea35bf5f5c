"""Bar with the estimated quality of every slice; a click goes to the slice. Qt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt

UNSURE, BETWEEN, SURE = (213, 94, 0), (240, 228, 66), (0, 158, 115)
"""Colours that colour-blind people can tell apart (palette of Okabe and Ito)."""
LOW, HIGH = 0.5, 1.0
"""Estimated IoU at both ends of the colour scale."""


def quality_color(quality: float) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) for an estimated IoU (0 to 1)."""
    place = min(max((quality - LOW) / (HIGH - LOW), 0.0), 1.0) * 2
    first, second = (UNSURE, BETWEEN) if place < 1 else (BETWEEN, SURE)
    share = place % 1 if place < 2 else 1.0
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


class SliceBar(qt.QWidget):
    """Bar with one cell per slice.

    Args:
        on_slice: Called with the index of the clicked slice.
    """

    def __init__(self, on_slice: Callable[[int], None], parent: Any = None) -> None:
        super().__init__(parent)
        self._on_slice = on_slice
        self._quality: dict[int, float] = {}
        self._slices = 0
        self._worst: int | None = None

    def show_quality(self, quality: Mapping[int, float], slices: int, worst: int | None) -> None:
        """Show the estimates; slices without one are grey, the worst one is marked."""
        self._quality, self._slices, self._worst = dict(quality), slices, worst
        self.update()

    def slice_at(self, x: int) -> int | None:
        """Index of the slice at a distance in pixels from the left; None outside the bar."""
        if not self._slices or not 0 <= x < self.width:
            return None
        return x * self._slices // self.width

    def mousePressEvent(self, event: Any) -> None:
        """Go to the slice under the mouse (Qt event handler)."""
        index = self.slice_at(event.pos().x())
        if index is not None:
            self._on_slice(index)

    def paintEvent(self, _event: Any) -> None:
        """Draw the cells (Qt event handler)."""
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
