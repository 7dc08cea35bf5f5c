"""Fixtures of the panel: the window, and a panel with a controller that only writes down what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from Testing.panel import slicer_gui
from Testing.panel.slicer_gui import Gui


@pytest.fixture
def gui(scene: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gui]:
    """Slicer's main window over an empty scene."""
    opened = slicer_gui.open_window(monkeypatch)
    yield opened
    opened.window.deleteLater()
    assert opened.answers == [], "a question was expected that nobody asked"


@dataclass(kw_only=True)
class Desk:
    """A panel that the user has opened, and what lies behind it."""

    gui: Gui
    panel: Any
    controller: Any
    parameters: Any
    scene: Any

    @property
    def ui(self) -> Any:
        return self.panel.ui

    def show(self, **fields: Any) -> None:
        """Change the controller's status and let the panel show it."""
        self.controller.show(**fields)
        self.panel.tick()

    def asked(self) -> list[Any]:
        """What the controller was asked for since the last time."""
        asked, self.controller.asked = self.controller.asked, []
        return asked

    def press(self, name: str) -> None:
        """Press a button of the .ui file, as a user can: it must be there to be pressed."""
        button = getattr(self.ui, name)
        assert button.enabled, f"{name} is grey"
        assert not button.isHidden(), f"{name} is hidden"
        button.click()


@pytest.fixture
def desk(gui: Gui, scene: Any) -> Iterator[Desk]:
    """A panel over a controller that is ready for everything."""
    from SlicerMaskSAMLib.mrml.parameters import MaskSAMParameterNode
    from SlicerMaskSAMLib.window.panel import Panel
    from Testing.panel.fake_controller import FakeController
    from Testing.slicer import environment

    panel = Panel()
    controller = FakeController(panel.mark_changed)
    parameters = MaskSAMParameterNode(environment.parameter_node())
    gui.window.setCentralWidget(panel.widget)
    panel.bind(controller, parameters)
    panel.enter()
    made = Desk(gui=gui, panel=panel, controller=controller, parameters=parameters, scene=scene)
    made.show(can_segment=True, can_refine=True, can_export=True, can_teach=True)
    made.asked()
    yield made
    panel.close()
