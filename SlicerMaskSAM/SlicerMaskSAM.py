"""The MaskSAM module of 3D Slicer: the classes that Slicer loads."""

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

if not Path(__file__).resolve().with_name("MaskSAMCore").is_dir():
    # In a checkout MaskSAMCore is beside this folder, in an installation inside it.
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from MaskSAMCore.worker.client import EngineClient
from SlicerMaskSAMLib.engine.commands import interpreter
from SlicerMaskSAMLib.engine.install import Setup
from SlicerMaskSAMLib.mrml.parameters import MaskSAMParameterNode
from SlicerMaskSAMLib.mrml.views import Views
from SlicerMaskSAMLib.window.icons import icon_file
from SlicerMaskSAMLib.window.panel import Panel
from SlicerMaskSAMLib.work import sample_data
from SlicerMaskSAMLib.work.controller import Controller

SHIPPED_TESTS = Path(__file__).resolve().parent / "Testing" / "Python"


class SlicerMaskSAM(ScriptedLoadableModule):
    """Title, category, help and icon of the module."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = _("MaskSAM")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["The SlicerMaskSAM contributors"]
        parent.helpText = _(
            "Segments CT and MRI automatically; every structure has a name, code and colour. Clicks and boxes correct "
            "and add structures. You can teach models of your own on this computer. For research only: this is not a "
            "medical device."
        )
        parent.acknowledgementText = _(
            "After MaskSAM (B. Xie et al., ICCV 2025), with Segment Anything (A. Kirillov et al., ICCV 2023) and "
            "MobileSAM (C. Zhang et al., 2023)."
        )
        parent.icon = qt.QIcon(str(icon_file("SlicerMaskSAM")))
        slicer.app.connect("startupCompleted()", sample_data.register)


class SlicerMaskSAMLogic(ScriptedLoadableModuleLogic):
    """The module without its panel: `controller` has a method for every user action.

    A script must call `controller.tick()` repeatedly, as the panel's timer does.

    Args:
        changed: Called whenever the controller's status may have changed.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.parameters = self.getParameterNode()
        self.controller = Controller(
            slicer.mrmlScene,
            self.parameters,
            start_engine=self._start_engine,
            views=Views(slicer.mrmlScene),
            setup=Setup(),
            changed=changed,
        )

    def getParameterNode(self) -> MaskSAMParameterNode:
        """The module's parameter node in the present scene."""
        return MaskSAMParameterNode(super().getParameterNode())

    def renew_parameters(self) -> MaskSAMParameterNode:
        """Use the parameter node of a new scene, and return it."""
        self.parameters = self.getParameterNode()
        self.controller.set_parameters(self.parameters)
        return self.parameters

    def _start_engine(self, on_event: Callable[[dict[str, Any]], None]) -> EngineClient:
        return EngineClient(python=interpreter(), device=self.parameters.device, on_event=on_event)


class SlicerMaskSAMWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel in Slicer's module area."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    def setup(self) -> None:
        """Called by Slicer when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        scene = slicer.mrmlScene
        # Before the observers of the controller, which need the new parameters.
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEnd)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEnd)
        self.panel = Panel()
        self.layout.addWidget(self.panel.widget)
        self.logic = SlicerMaskSAMLogic(self.panel.mark_changed)
        self.panel.bind(self.logic.controller, self.logic.parameters)

    def enter(self) -> None:
        """Called by Slicer when the module is opened."""
        self.panel.enter()

    def exit(self) -> None:
        """Called by Slicer when another module is opened."""
        self.panel.exit()

    def cleanup(self) -> None:
        """Called by Slicer when the module or the application ends."""
        self.removeObservers()
        self.panel.close()
        self.logic.controller.close()

    def onSceneStartClose(self, _caller: Any, _event: str) -> None:
        """Called before the nodes of the scene are removed."""
        self.panel.unbind()

    def onSceneEnd(self, _caller: Any, _event: str) -> None:
        """Called after a scene was closed or loaded.

        Rebinds the panel to the new scene's parameter node.
        """
        self.panel.bind(self.logic.controller, self.logic.renew_parameters())


class SlicerMaskSAMTest(ScriptedLoadableModuleTest):
    """Test case for "Reload and Test"."""

    def runTest(self, **_options: Any) -> None:
        """Run the tests that are shipped with the module."""
        sys.path.append(str(SHIPPED_TESTS))
        try:
            suite = unittest.defaultTestLoader.loadTestsFromName("SlicerMaskSAMModuleTest")
        finally:
            sys.path.remove(str(SHIPPED_TESTS))
        result = unittest.TestResult()
        suite.run(result)
        problems = [f"{test}: {text}" for test, text in (*result.failures, *result.errors)]
        if problems:
            self.fail("\n".join(problems))
