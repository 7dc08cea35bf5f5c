"""Slice and 3-D views without a display: Slicer's slice logic and displayable managers, real mouse events, pictures.

Needs EGL (libegl1 with libgl1-mesa-dri) or OSMesa; without them VTK ends the process, so `missing` asks another one.
"""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

# torchvision loads it; where Mesa has drawn before, its LLVM meets Mesa's, and the process ends.
with contextlib.suppress(ImportError):
    importlib.import_module("triton")

SLICE_MANAGERS = (
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
)
THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLMarkupsDisplayableManager",
)
_TRIAL = """
import vtkmodules.vtkRenderingOpenGL2
from vtkmodules.vtkRenderingCore import vtkRenderer, vtkRenderWindow
window = vtkRenderWindow()
window.SetOffScreenRendering(1)
window.AddRenderer(vtkRenderer())
window.Render()
raise SystemExit(0 if window.SupportsOpenGL() else 1)
"""


@cache
def missing() -> str:
    """Why nothing can be drawn here; "" where it can."""
    trial = subprocess.run([sys.executable, "-c", _TRIAL], capture_output=True, timeout=120, check=False)
    if trial.returncode == 0:
        return ""
    return "VTK cannot draw offscreen (install libegl1 and libgl1-mesa-dri, or libosmesa6)"


class _View:
    """A render window with Slicer's displayable managers in it."""

    def __init__(self, factory: Any, managers: Sequence[str], style: Any, size: tuple[int, int]) -> None:
        import slicer
        import vtk

        self.size = size
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.ShowWindowOff()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self.interactor.Initialize()
        self.interactor.UpdateSize(*size)
        factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        for manager in managers:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        self.group = slicer.vtkMRMLDisplayableManagerGroup()
        self.group.SetRenderer(self.renderer)
        self.group.Initialize(factory, self.renderer)
        self.style = style
        self.style.SetDisplayableManagers(self.group)
        self.style.SetInteractor(self.interactor)
        self.node: Any = None

    def render(self) -> None:
        """Draw now."""
        self.window.Render()

    def picture(self) -> np.ndarray:
        """What is drawn: (height, width, 3) uint8, the first row at the top."""
        import vtk
        from vtk.util.numpy_support import vtk_to_numpy

        self.render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.ReadFrontBufferOff()
        grab.Update()
        pixels = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
        return pixels.reshape(self.size[1], self.size[0], 3)[::-1].copy()

    def save(self, path: Path | str) -> None:
        """Write the picture as .png."""
        import vtk

        self.render()
        grab, writer = vtk.vtkWindowToImageFilter(), vtk.vtkPNGWriter()
        grab.SetInput(self.window)
        grab.ReadFrontBufferOff()
        writer.SetFileName(str(path))
        writer.SetInputConnection(grab.GetOutputPort())
        writer.Write()

    def event(self, name: str, xy: Sequence[float], *, ctrl: bool = False, shift: bool = False) -> None:
        """One event of the mouse at a place of the window, pixels from its lower left."""
        x, y = (round(float(value)) for value in xy)
        self.interactor.SetEventInformation(x, y, int(ctrl), int(shift))
        self.interactor.InvokeEvent(name)

    def close(self) -> None:
        """Take the view out of the scene and free its window."""
        import slicer

        self.style.SetInteractor(None)
        self.group.SetMRMLDisplayableNode(None)
        self.group.SetRenderer(None)
        # Without a renderer they crash when they hear of another mouse mode, so nobody may keep them.
        self.style = self.group = None
        self.window.Finalize()
        if self.node is not None and slicer.mrmlScene.IsNodePresent(self.node):
            slicer.mrmlScene.RemoveNode(self.node)


class SliceView(_View):
    """One slice view, as "Red", "Green" and "Yellow" of Slicer's layouts.

    Args:
        name: Layout name of its slice node.
        orientation: "Axial", "Sagittal" or "Coronal".
        size: Width and height, pixels.
    """

    def __init__(self, name: str = "Red", orientation: str = "Axial", size: tuple[int, int] = (400, 300)) -> None:
        import slicer
        import vtk

        style = slicer.vtkMRMLSliceViewInteractorStyle()
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        slicer.app.applicationLogic().GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(slicer.mrmlScene)
        style.SetSliceLogic(self.logic)
        super().__init__(slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), SLICE_MANAGERS, style, size)
        self.node = self.logic.AddSliceNode(name)
        self.node.SetOrientation(orientation)
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._background = vtk.vtkActor2D()
        self._background.SetMapper(self._mapper)
        self._background.GetProperty().SetDisplayLocationToBackground()
        self.group.SetMRMLDisplayableNode(self.node)
        self.logic.ResizeSliceNode(*size)

    def show(self, volume: Any) -> None:
        """Put a volume into the background and fit the view to it."""
        self.logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
        self.logic.FitSliceToBackground(*self.size)
        self._mapper.SetInputConnection(self.logic.GetImageDataConnection())
        self.renderer.AddViewProp(self._background)
        self.render()

    def jump(self, world: Sequence[float]) -> None:
        """Show the slice through a point, world RAS mm, with the point in the middle."""

        self.node.JumpSliceByCentering(*(float(value) for value in world))
        self.render()

    def xy(self, world: Sequence[float]) -> tuple[float, float]:
        """Pixels at which a point, world RAS mm, is drawn."""
        import vtk

        back = vtk.vtkMatrix4x4()
        back.DeepCopy(self.node.GetXYToRAS())
        back.Invert()
        x, y, *_ = back.MultiplyPoint((*(float(value) for value in world), 1.0))
        return x, y

    def world(self, xy: Sequence[float]) -> np.ndarray:
        """The point, world RAS mm, that is drawn at some pixels."""
        return np.array(self.node.GetXYToRAS().MultiplyPoint((float(xy[0]), float(xy[1]), 0.0, 1.0))[:3])

    def move(self, world: Sequence[float], *, ctrl: bool = False) -> None:
        """The mouse comes to a point."""
        self.event("EnterEvent", self.xy(world), ctrl=ctrl)
        self.event("MouseMoveEvent", self.xy(world), ctrl=ctrl)

    def click(self, world: Sequence[float], *, ctrl: bool = False) -> None:
        """Left button pressed and released at a point."""
        self.move(world, ctrl=ctrl)
        self.event("LeftButtonPressEvent", self.xy(world), ctrl=ctrl)
        self.event("LeftButtonReleaseEvent", self.xy(world), ctrl=ctrl)

    def drag(self, start: Sequence[float], end: Sequence[float], *, ctrl: bool = False, steps: int = 4) -> None:
        """Left button held from one point to another."""
        first, last = np.asarray(start, float), np.asarray(end, float)
        self.move(first, ctrl=ctrl)
        self.event("LeftButtonPressEvent", self.xy(first), ctrl=ctrl)
        for share in np.linspace(0, 1, steps + 1)[1:]:
            self.event("MouseMoveEvent", self.xy(first + share * (last - first)), ctrl=ctrl)
        self.event("LeftButtonReleaseEvent", self.xy(last), ctrl=ctrl)

    def close(self) -> None:
        """Take the view out of the scene and the application logic."""
        import slicer

        self.logic.GetSliceCompositeNode().SetBackgroundVolumeID(None)
        super().close()
        slicer.app.applicationLogic().GetSliceLogics().RemoveItem(self.logic)
        self.logic.SetMRMLScene(None)


class ThreeDView(_View):
    """One 3-D view.

    Args:
        name: Layout name of its view node.
        size: Width and height, pixels.
    """

    def __init__(self, name: str = "1", size: tuple[int, int] = (400, 300)) -> None:
        import slicer

        style = slicer.vtkMRMLThreeDViewInteractorStyle()
        super().__init__(slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), THREE_D_MANAGERS, style, size)
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self.logic.SetMRMLScene(slicer.mrmlScene)
        slicer.app.applicationLogic().GetViewLogics().AddItem(self.logic)
        self.node = self.logic.AddViewNode(name)
        self.group.SetMRMLDisplayableNode(self.node)

    def fit(self) -> None:
        """Look at everything that is there."""
        self.render()
        self.renderer.ResetCamera()
        self.render()

    def click(self, xy: Sequence[float], *, ctrl: bool = False) -> None:
        """Left button pressed and released at some pixels."""
        for name in ("EnterEvent", "MouseMoveEvent", "LeftButtonPressEvent", "LeftButtonReleaseEvent"):
            self.event(name, xy, ctrl=ctrl)

    def close(self) -> None:
        """Take the view out of the scene and the application logic."""
        import slicer

        super().close()
        slicer.app.applicationLogic().GetViewLogics().RemoveItem(self.logic)
        self.logic.SetMRMLScene(None)
