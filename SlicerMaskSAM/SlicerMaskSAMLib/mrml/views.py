"""Slice views, and clicks in views that belong to a tool of the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
import vtk

from SlicerMaskSAMLib.mrml import markups
from SlicerMaskSAMLib.mrml.volumes import WorldPoint
from SlicerMaskSAMLib.values.choices import Tool

DRAG_PX = 5
"""Movement in pixels, between press and release, beyond which a click is a drag."""
FIRST = 10.0
"""Observer priority; Slicer's own interactor style has 0."""

Position = tuple[int, int]


class Views:
    """The slice views of the scene."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene

    def slice_nodes(self) -> list[Any]:
        """The slice nodes that the layout shows; all of them without a layout."""
        found = markups.nodes(self._scene, "vtkMRMLSliceNode")
        return [node for node in found if node.IsMappedInLayout()] or found

    def slice_node(self) -> Any:
        """The first slice node; None if there is none."""
        return next(iter(self.slice_nodes()), None)

    def position(self) -> np.ndarray | None:
        """World position in the middle of the first slice view, (3,) mm RAS, or None."""
        node = self.slice_node()
        if node is None:
            return None
        width, height, _ = node.GetDimensions()
        return np.array(node.GetXYToRAS().MultiplyPoint((width / 2, height / 2, 0, 1))[:3])

    def jump(self, world: WorldPoint) -> None:
        """Show the slices through a point, (3,) mm world RAS.

        A view that would not contain the point is centred on it.
        """
        for node in self.slice_nodes():
            node.JumpSliceByOffsetting(*(float(value) for value in world))
            back = vtk.vtkMatrix4x4()
            vtk.vtkMatrix4x4.Invert(node.GetXYToRAS(), back)
            x, y = back.MultiplyPoint((*(float(value) for value in world), 1))[:2]
            width, height, _ = node.GetDimensions()
            if not (0 <= x < width and 0 <= y < height):
                node.JumpSliceByCentering(*(float(value) for value in world))


class SliceClickObserver:
    """Handles the left button in one slice view while a tool is active.

    A click includes, Ctrl+click excludes, a drag draws a box, shown while it is drawn. Shift, Alt, other buttons,
    Slicer's place mode, and prompts under the mouse, which can be dragged, are left to Slicer.

    Args:
        interactor: Interactor of the slice view.
        slice_node: Slice node of the view.
        on_point: Called for a click: (3,) mm world RAS, whether it includes, the slice node.
        on_box: Called for a box: two opposite corners, (3,) mm world RAS each, the slice node.
        tool: Returns the active tool; with Tool.BOX a click is ignored.
    """

    def __init__(
        self,
        interactor: Any,
        slice_node: Any,
        on_point: Callable[[np.ndarray, bool, Any], None],
        on_box: Callable[[np.ndarray, np.ndarray, Any], None],
        tool: Callable[[], Tool],
    ) -> None:
        self._interactor, self._slice_node = interactor, slice_node
        self._on_point, self._on_box, self._tool = on_point, on_box, tool
        self._pressed: Position | None = None
        self._positive = True
        self._frame: _Frame | None = None
        self._tags = {
            event: interactor.AddObserver(event, callback, FIRST)
            for event, callback in (
                ("LeftButtonPressEvent", self._on_press),
                ("LeftButtonDoubleClickEvent", self._on_press),
                ("MouseMoveEvent", self._on_move),
                ("LeftButtonReleaseEvent", self._on_release),
            )
        }

    def remove(self) -> None:
        """Remove all observers."""
        self.cancel()
        for tag in self._tags.values():
            self._interactor.RemoveObserver(tag)
        self._tags.clear()

    def cancel(self) -> None:
        """Discard the box that is being drawn."""
        self._pressed = None
        if self._frame is not None:
            self._frame.remove()
            self._frame = None

    def _on_press(self, _interactor: Any, event: str) -> None:
        self.cancel()
        if self._is_for_tool():
            self._pressed = self._interactor.GetEventPosition()
            self._positive = not self._interactor.GetControlKey()
            self._abort_event(event)

    def _on_move(self, _interactor: Any, _event: str) -> None:
        if self._pressed is None:
            return
        here = self._interactor.GetEventPosition()
        if self._frame is None and _is_drag(self._pressed, here):
            self._frame = _Frame(self._interactor)
        if self._frame is not None:
            self._frame.draw(self._pressed, here)

    def _on_release(self, _interactor: Any, event: str) -> None:
        if self._pressed is None:
            return
        self._abort_event(event)
        self._on_move(_interactor, event)  # for a release without a preceding move
        start, end, drawn, tool = self._pressed, self._interactor.GetEventPosition(), self._frame, self._tool()
        self.cancel()
        if drawn is not None and tool != Tool.NONE:
            self._on_box(self._world(start), self._world(end), self._slice_node)
        elif tool == Tool.POINT:
            self._on_point(self._world(start), self._positive, self._slice_node)

    def _is_for_tool(self) -> bool:
        """Whether a press belongs to the active tool."""
        scene, mode = self._slice_node.GetScene(), self._slice_node.GetInteractionNode()
        if self._tool() == Tool.NONE or scene is None or self._interactor.GetShiftKey() or self._interactor.GetAltKey():
            return False
        placing = mode is not None and mode.GetCurrentInteractionMode() == slicer.vtkMRMLInteractionNode.Place
        return not placing and not markups.under_mouse(scene)

    def _abort_event(self, event: str) -> None:
        """Keep observers of lower priority from receiving the event."""
        self._interactor.GetCommand(self._tags[event]).SetAbortFlag(1)

    def _world(self, position: Position) -> np.ndarray:
        convert, xyz, ras = slicer.vtkMRMLAbstractSliceViewDisplayableManager, [0.0] * 3, [0.0] * 3
        convert.ConvertDeviceToXYZ(self._interactor, self._slice_node, *position, xyz)
        convert.ConvertXYZToRAS(self._slice_node, xyz, ras)
        return np.array(ras)


class ThreeDClickObserver:
    """Notices clicks in a 3-D view while a tool is active; Slicer gets the event too.

    Args:
        interactor: Interactor of the 3-D view.
        on_miss: Called for a click, not for a drag.
        tool: Returns the active tool.
    """

    def __init__(self, interactor: Any, on_miss: Callable[[], None], tool: Callable[[], Tool]) -> None:
        self._interactor, self._on_miss, self._tool = interactor, on_miss, tool
        self._pressed: Position | None = None
        self._tags = [
            interactor.AddObserver("LeftButtonPressEvent", self._on_press, FIRST),
            interactor.AddObserver("LeftButtonReleaseEvent", self._on_release, FIRST),
        ]

    def remove(self) -> None:
        """Remove all observers."""
        for tag in self._tags:
            self._interactor.RemoveObserver(tag)
        self._tags.clear()

    def _on_press(self, _interactor: Any, _event: str) -> None:
        self._pressed = self._interactor.GetEventPosition()

    def _on_release(self, _interactor: Any, _event: str) -> None:
        start, self._pressed = self._pressed, None
        if start is not None and self._tool() != Tool.NONE and not _is_drag(start, self._interactor.GetEventPosition()):
            self._on_miss()


def _is_drag(start: Position, end: Position) -> bool:
    return max(abs(a - b) for a, b in zip(start, end, strict=True)) > DRAG_PX


class _Frame:
    """The rectangle being drawn, on top of the view under the mouse."""

    def __init__(self, interactor: Any) -> None:
        self._interactor = interactor
        self._renderer = interactor.FindPokedRenderer(*interactor.GetEventPosition())
        self._corners = vtk.vtkPoints()
        self._corners.SetNumberOfPoints(4)
        lines = vtk.vtkCellArray()
        lines.InsertNextCell(5, [0, 1, 2, 3, 0])
        self._shape = vtk.vtkPolyData()
        self._shape.SetPoints(self._corners)
        self._shape.SetLines(lines)
        mapper = vtk.vtkPolyDataMapper2D()
        mapper.SetInputData(self._shape)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(mapper)
        self._actor.GetProperty().SetColor(*markups.BOX_STYLE.color)
        self._actor.GetProperty().SetLineWidth(2)
        self._renderer.AddViewProp(self._actor)

    def draw(self, start: Position, end: Position) -> None:
        """Draw the rectangle between two corners, in pixels of the window."""
        left, bottom = self._renderer.GetOrigin()
        for index, (x, y) in enumerate((start, (end[0], start[1]), end, (start[0], end[1]))):
            self._corners.SetPoint(index, x - left, y - bottom, 0)
        self._corners.Modified()
        self._interactor.Render()

    def remove(self) -> None:
        """Remove the rectangle."""
        self._renderer.RemoveViewProp(self._actor)
        self._interactor.Render()
