"""Slice views: what they show, and the clicks in them that belong to a tool of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import slicer
import vtk

from SlicerMaskSAMLib.mrml import markups
from SlicerMaskSAMLib.values.choices import Tool

DRAG_PX = 5
"""The mouse moves that far between press and release without it being a drag."""
FIRST = 10.0
"""Priority before Slicer's own interactor style, whose is 0."""

Position = tuple[int, int]


class Views:
    """The slice views of the scene."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene

    def slice_nodes(self) -> list[Any]:
        """Those that the layout shows; all of them where there is no layout."""
        found = markups.nodes(self._scene, "vtkMRMLSliceNode")
        return [node for node in found if node.IsMappedInLayout()] or found

    def slice_node(self) -> Any:
        """The first of them; None if there is none."""
        return next(iter(self.slice_nodes()), None)

    def position(self) -> np.ndarray | None:
        """What is in the middle of the first one, (3,) mm world RAS; None if there is none."""
        node = self.slice_node()
        if node is None:
            return None
        width, height, _ = node.GetDimensions()
        return np.array(node.GetXYToRAS().MultiplyPoint((width / 2, height / 2, 0, 1))[:3])

    def jump(self, world: Sequence[float]) -> None:
        """Show the slices through a point, (3,) mm world RAS; where it would lie beside the view, it is centred."""
        for node in self.slice_nodes():
            node.JumpSliceByOffsetting(*(float(value) for value in world))
            back = vtk.vtkMatrix4x4()
            vtk.vtkMatrix4x4.Invert(node.GetXYToRAS(), back)
            x, y = back.MultiplyPoint((*(float(value) for value in world), 1))[:2]
            width, height, _ = node.GetDimensions()
            if not (0 <= x < width and 0 <= y < height):
                node.JumpSliceByCentering(*(float(value) for value in world))


class SliceClickObserver:
    """Takes the left button in one slice view while a tool is on; everything else is Slicer's.

    A click includes, with Ctrl it excludes; a drag draws a box, which is seen while it is drawn. Shift and Alt, other
    buttons, Slicer's own place mode, and prompts under the mouse, which are there to be dragged, stay untouched.

    Args:
        interactor: Of the slice view.
        slice_node: Of the same view.
        on_point: Told a click: (3,) mm world RAS, whether it includes, the slice node.
        on_box: Told a box: two opposite corners, (3,) mm world RAS each, the slice node.
        tool: Which tool is on; with Tool.BOX a mere click is nothing.
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
        """Leave the view as it was."""
        self.cancel()
        for tag in self._tags.values():
            self._interactor.RemoveObserver(tag)
        self._tags.clear()

    def cancel(self) -> None:
        """Give up what is being drawn."""
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
        self._on_move(_interactor, event)  # where no move came before
        start, end, drawn, tool = self._pressed, self._interactor.GetEventPosition(), self._frame, self._tool()
        self.cancel()
        if drawn is not None and tool != Tool.NONE:
            self._on_box(self._world(start), self._world(end), self._slice_node)
        elif tool == Tool.POINT:
            self._on_point(self._world(start), self._positive, self._slice_node)

    def _is_for_tool(self) -> bool:
        """Whether a press belongs to the tool."""
        scene, mode = self._slice_node.GetScene(), self._slice_node.GetInteractionNode()
        if self._tool() == Tool.NONE or scene is None or self._interactor.GetShiftKey() or self._interactor.GetAltKey():
            return False
        placing = mode is not None and mode.GetCurrentInteractionMode() == slicer.vtkMRMLInteractionNode.Place
        return not placing and not markups.under_mouse(scene)

    def _abort_event(self, event: str) -> None:
        """Let nobody behind us hear of the event."""
        self._interactor.GetCommand(self._tags[event]).SetAbortFlag(1)

    def _world(self, position: Position) -> np.ndarray:
        convert, xyz, ras = slicer.vtkMRMLAbstractSliceViewDisplayableManager, [0.0] * 3, [0.0] * 3
        convert.ConvertDeviceToXYZ(self._interactor, self._slice_node, *position, xyz)
        convert.ConvertXYZToRAS(self._slice_node, xyz, ras)
        return np.array(ras)


class ThreeDClickObserver:
    """Notices a click in a 3-D view while a tool is on, so that the user can be told; the event stays Slicer's.

    Args:
        interactor: Of the 3-D view.
        on_miss: Called for a click; turning the view by a drag is none.
        tool: Which tool is on.
    """

    def __init__(self, interactor: Any, on_miss: Callable[[], None], tool: Callable[[], Tool]) -> None:
        self._interactor, self._on_miss, self._tool = interactor, on_miss, tool
        self._pressed: Position | None = None
        self._tags = [
            interactor.AddObserver("LeftButtonPressEvent", self._on_press, FIRST),
            interactor.AddObserver("LeftButtonReleaseEvent", self._on_release, FIRST),
        ]

    def remove(self) -> None:
        """Leave the view as it was."""
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
    """The rectangle that is being drawn, on top of the view that the mouse is in."""

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
        self._actor.GetProperty().SetColor(*markups.FRAME.color)
        self._actor.GetProperty().SetLineWidth(2)
        self._renderer.AddViewProp(self._actor)

    def draw(self, start: Position, end: Position) -> None:
        """Draw it between two corners, pixels of the window."""
        left, bottom = self._renderer.GetOrigin()
        for index, (x, y) in enumerate((start, (end[0], start[1]), end, (start[0], end[1]))):
            self._corners.SetPoint(index, x - left, y - bottom, 0)
        self._corners.Modified()
        self._interactor.Render()

    def remove(self) -> None:
        """Take it away."""
        self._renderer.RemoveViewProp(self._actor)
        self._interactor.Render()
