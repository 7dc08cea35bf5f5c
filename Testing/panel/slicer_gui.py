"""The window side of the Slicer application over the scene of Testing/slicer/environment.py, for tests of the panel.

Stand-ins: the modules `qt`, `ctk`, `slicer.i18n` and `slicer.ScriptedLoadableModule`, the qMRML widgets, the main
window, the layout manager with its slice views, and what `slicer.app` says of them.
"""

from __future__ import annotations

import sys
import types
import unittest
from collections.abc import Callable
from typing import Any

from Testing.panel import connect_gui
from Testing.slicer import environment

VIEWS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}
SIZE = (200, 200)
"""Of a view, in pixels and in mm."""


class SliceWidget:
    """A slice view of the layout, as far as clicks go; nothing is drawn."""

    def __init__(self, name: str, orientation: str) -> None:
        import slicer
        import vtk

        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSliceNode")
        node.UnRegister(None)
        node.SetName(name)
        node.SetLayoutName(name)
        node.SetSingletonTag(name)
        self._node = slicer.mrmlScene.AddNode(node)
        self._node.SetOrientation(orientation)
        self._node.SetMappedInLayout(1)
        self._node.SetDimensions(*SIZE, 1)
        self._node.SetFieldOfView(*SIZE, 1)
        self._window, self._interactor = vtk.vtkRenderWindow(), vtk.vtkRenderWindowInteractor()
        self._window.SetSize(*SIZE)
        self._window.AddRenderer(vtk.vtkRenderer())
        self._interactor.SetRenderWindow(self._window)

    def mrmlSliceNode(self) -> Any:
        return self._node

    def sliceView(self) -> SliceWidget:
        return self

    def interactor(self) -> Any:
        return self._interactor

    def click(self, x: int, y: int, *, ctrl: bool = False) -> None:
        """Press and release the left button at a pixel of the view."""
        self._interactor.SetEventInformation(x, y, int(ctrl), 0)
        for event in ("LeftButtonPressEvent", "LeftButtonReleaseEvent"):
            self._interactor.InvokeEvent(event)


class ThreeDWidget:
    """A 3-D view of the layout, as far as clicks go; nothing is drawn."""

    def __init__(self) -> None:
        import vtk

        self._interactor = vtk.vtkRenderWindowInteractor()

    def threeDView(self) -> ThreeDWidget:
        return self

    def interactor(self) -> Any:
        return self._interactor

    def click(self, x: int, y: int) -> None:
        """Press and release the left button at a pixel of the view."""
        self._interactor.SetEventInformation(x, y, 0, 0)
        for event in ("LeftButtonPressEvent", "LeftButtonReleaseEvent"):
            self._interactor.InvokeEvent(event)


class LayoutManager:
    """The three slice views and the 3-D view of Slicer's usual layout."""

    threeDViewCount = 1

    def __init__(self) -> None:
        self.widgets = {name: SliceWidget(name, orientation) for name, orientation in VIEWS.items()}
        self.solid = ThreeDWidget()
        self.slots: list[Callable[..., None]] = []

    def threeDWidget(self, index: int) -> ThreeDWidget | None:
        return self.solid if index == 0 else None

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(self.widgets)

    def sliceWidget(self, name: str) -> SliceWidget | None:
        return self.widgets.get(name)

    def connect(self, signal: str, slot: Callable[..., None]) -> bool:
        if signal != "layoutChanged(int)":
            return False
        self.slots.append(slot)
        return True

    def disconnect(self, signal: str, slot: Callable[..., None]) -> bool:
        self.slots.remove(slot)
        return signal == "layoutChanged(int)"


class Gui:
    """What a test looks at and sets.

    Attributes:
        window: The main window; shortcuts live in it.
        answers: What the next questions are answered with; a question without an answer fails the test.
        asked: Texts of the questions, file dialogs included.
        layout: The slice views.
    """

    def __init__(self) -> None:
        import qt

        self.window = qt.QMainWindow()
        self.window.objectName = "qSlicerMainWindow"
        self.answers: list[Any] = []
        self.asked: list[str] = []
        self.layout = LayoutManager()

    def ask(self, text: str, *_: Any, **__: Any) -> Any:
        """Stands for every dialog."""
        self.asked.append(text)
        if not self.answers:
            raise LookupError(f"nobody answers {text!r}")
        return self.answers.pop(0)

    def file_dialog(self, _parent: Any, title: str, *_: Any) -> Any:
        """Stands for the static functions of QFileDialog."""
        return self.ask(title)


def translated(text: str) -> str:
    """What `_` makes of a text here: the text between marks, so that a text without them was forgotten."""
    return f"{translated.marks[0]}{text}{translated.marks[1]}"


translated.marks = ("", "")  # type: ignore[attr-defined]


def _scripted() -> types.ModuleType:
    """The module `slicer.ScriptedLoadableModule`."""
    import slicer

    class ScriptedLoadableModule:
        def __init__(self, parent: Any) -> None:
            self.parent = parent
            self.moduleName = type(self).__name__

    class ScriptedLoadableModuleWidget:
        def __init__(self, parent: Any = None) -> None:
            self.parent = parent
            self.layout = parent.layout()

        def setup(self) -> None:
            pass

        def cleanup(self) -> None:
            pass

    class ScriptedLoadableModuleLogic:
        def __init__(self, parent: Any = None) -> None:
            self.moduleName = type(self).__name__.removesuffix("Logic")

        def getParameterNode(self) -> Any:
            return environment.parameter_node(self.moduleName)

    class ScriptedLoadableModuleTest(unittest.TestCase):
        def delayDisplay(self, _message: str, _seconds: int = 0) -> None:
            pass

    module = types.ModuleType("slicer.ScriptedLoadableModule")
    for kind in (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    ):
        setattr(module, kind.__name__, kind)
    module.__all__ = [name for name in vars(module) if name.startswith("Scripted")]  # type: ignore[attr-defined]
    slicer.ScriptedLoadableModule = module
    return module


def _application(gui: Gui, patch: Any) -> None:
    """Give `slicer.app` what it says of the window, as long as the test runs."""
    import qt
    import slicer

    said = {
        "testingEnabled": lambda: False,
        "layoutManager": lambda: gui.layout,
        "topLevelWidgets": lambda: [gui.window],
        "clipboard": qt.QApplication.clipboard,
        "connect": lambda signal, _slot: signal == "startupCompleted()",
    }
    for name, answer in said.items():
        patch.setattr(slicer.app, name, answer, raising=False)
    for question in ("confirmOkCancelDisplay", "confirmYesNoDisplay"):
        patch.setattr(slicer.util, question, gui.ask)
    for dialog in ("getOpenFileName", "getSaveFileName", "getExistingDirectory"):
        patch.setattr(qt.QFileDialog, dialog, staticmethod(gui.file_dialog))


def start() -> None:
    """Make all of it importable, once per process."""
    environment.start()
    if "qt" in sys.modules:
        return
    from Testing.panel import pythonqt

    sys.modules["qt"] = pythonqt.make()
    from Testing.panel import ctk_widgets, mrml_widgets

    sys.modules["ctk"] = ctk_widgets.make()
    import slicer
    import slicer.util

    for widget in mrml_widgets.WIDGETS:
        setattr(slicer, widget.__name__, widget)
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr = lambda text: translated(text)  # type: ignore[attr-defined]
    i18n.translate = lambda _context, text: translated(text)  # type: ignore[attr-defined]
    sys.modules["slicer.i18n"] = i18n
    sys.modules["slicer.ScriptedLoadableModule"] = _scripted()
    connect_gui.install()


def open_window(patch: Any) -> Gui:
    """A new main window with slice views over the scene as it is.

    Args:
        patch: pytest's monkeypatch.
    """
    start()
    gui = Gui()
    _application(gui, patch)
    return gui
