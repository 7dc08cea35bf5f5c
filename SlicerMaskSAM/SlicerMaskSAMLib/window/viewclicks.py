"""Clicks in the views of Slicer's layout, between `attach` and `detach`. Qt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer

from SlicerMaskSAMLib.mrml.views import SliceClickObserver, ThreeDClickObserver
from SlicerMaskSAMLib.mrml.volumes import WorldPoint
from SlicerMaskSAMLib.values.choices import Tool

LAYOUT_CHANGED = "layoutChanged(int)"


class ViewClicks:
    """Observers of all slice views and 3-D views, updated when the layout changes.

    Args:
        on_point: Called with a position (mm, RAS world), whether it is included, and the view's slice node. For a click
            in a 3-D view the node is None.
        on_box: Called with two corners (mm, RAS world) and the slice node.
        tool: Returns the active tool.
    """

    def __init__(
        self,
        on_point: Callable[[WorldPoint, bool, Any], None],
        on_box: Callable[[WorldPoint, WorldPoint, Any], None],
        tool: Callable[[], Tool],
    ) -> None:
        self._on_point, self._on_box, self._tool = on_point, on_box, tool
        self._observers: list[SliceClickObserver | ThreeDClickObserver] = []
        self._layout: Any = None

    def attach(self) -> None:
        """Observe the views. Safe to call twice."""
        self.detach()
        self._layout = slicer.app.layoutManager()
        if self._layout is not None:  # None where Slicer runs without a main window
            self._layout.connect(LAYOUT_CHANGED, self._observe)
            self._observe()

    def detach(self) -> None:
        """Remove all observers."""
        self._remove_observers()
        if self._layout is not None:
            self._layout.disconnect(LAYOUT_CHANGED, self._observe)
        self._layout = None

    def _observe(self) -> None:
        self._remove_observers()
        for name in self._layout.sliceViewNames():
            widget = self._layout.sliceWidget(name)
            interactor, node = widget.sliceView().interactor(), widget.mrmlSliceNode()
            self._observers.append(SliceClickObserver(interactor, node, self._on_point, self._on_box, self._tool))
        for index in range(self._layout.threeDViewCount):
            interactor = self._layout.threeDWidget(index).threeDView().interactor()
            self._observers.append(ThreeDClickObserver(interactor, self._on_miss, self._tool))

    def _on_miss(self) -> None:
        self._on_point((0.0, 0.0, 0.0), True, None)

    def _remove_observers(self) -> None:
        for observer in self._observers:
            observer.remove()
        self._observers = []
