"""The module as Slicer loads it: its panel with the real controller and a real worker process that answers by rule."""

from __future__ import annotations

import inspect
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.zoo import installed
from SlicerMaskSAMLib.values.choices import Tool
from Testing.panel.fake_controller import FakeController
from Testing.panel.hands import wait_for
from Testing.panel.slicer_gui import Gui
from Testing.slicer import environment, rig
from Testing.slicer.rig import BRIGHT, CORNER
from Testing.workers import REPO, alive, fake

NO_TORCH = """
import sys
sys.path[:0] = [{repo!r}, {module!r}]
import pytest
from Testing.panel import slicer_gui
from Testing.slicer import environment
environment.start()
gui = slicer_gui.open_window(pytest.MonkeyPatch())
import qt
import SlicerMaskSAM
parent = __import__("slicer").qMRMLWidget()
qt.QVBoxLayout(parent)
widget = SlicerMaskSAM.SlicerMaskSAMWidget(parent)
widget.setup()
widget.enter()
widget.exit()
widget.cleanup()
heavy = sorted({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "monai", "timm", "SimpleITK"}})
raise SystemExit(f"it imports {{heavy}}" if heavy else 0)
"""


class Module:
    """The module in Slicer's module area, with an engine that answers by rule."""

    def __init__(self, gui: Gui) -> None:
        import qt
        import slicer

        import SlicerMaskSAM

        self.gui = gui
        self.parent = slicer.qMRMLWidget()
        qt.QVBoxLayout(self.parent)
        gui.window.setCentralWidget(self.parent)
        self.widget = SlicerMaskSAM.SlicerMaskSAMWidget(self.parent)
        self.widget.setup()
        self.widget.enter()

    @property
    def ui(self) -> Any:
        return self.widget.panel.ui

    @property
    def status(self) -> Any:
        return self.widget.logic.controller.status()

    @property
    def parameters(self) -> Any:
        return self.widget.logic.parameters

    def press(self, name: str) -> None:
        """Press a button when it can be pressed."""
        button = getattr(self.ui, name)
        wait_for(lambda: button.enabled)
        button.click()

    def settle(self) -> None:
        """Wait until nothing is going on that a user would wait for."""
        self.widget.panel.tick()
        wait_for(lambda: not self.status.task)

    def choose_volume(self) -> Any:
        """A volume of noise, chosen in the list."""
        volume = rig.volume()
        self.ui.volumeSelector.choose(volume)
        return volume

    def segment(self) -> None:
        """Press Segment and wait."""
        self.press("segmentButton")
        self.settle()

    def click(self, place: tuple[float, float, float]) -> None:
        """Click at a place (mm RAS) in the axial view, and wait for the answer."""
        red = self.gui.layout.sliceWidget("Red")
        red.mrmlSliceNode().JumpSliceByCentering(*place)
        red.click(100, 100)
        self.settle()

    def segments(self) -> list[str]:
        """Names in the list of structures."""
        listed = self.ui.segmentsTable.segmentationNode()
        return list(rig.segments(listed)) if listed is not None else []


@pytest.fixture
def module(gui: Gui, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """The module, opened; nothing has to be installed, and there are models of the fake engine."""
    import SlicerMaskSAM

    def start(*, on_event: Callable[..., None], **_options: Any) -> Any:
        return fake(on_event=on_event)

    monkeypatch.setattr(SlicerMaskSAM, "EngineClient", start)
    monkeypatch.setattr(SlicerMaskSAM.Setup, "missing", lambda *_: ())
    monkeypatch.setattr(installed, "installed_models", rig.Library().installed_models)
    made = Module(gui)
    yield made
    made.widget.cleanup()


@pytest.mark.slow
def test_building_the_panel_imports_no_torch() -> None:
    code = NO_TORCH.format(repo=str(REPO), module=str(REPO / "SlicerMaskSAM"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_slicer_lists_the_module_with_an_icon(gui: Gui) -> None:
    import SlicerMaskSAM

    said = SimpleNamespace(path=SlicerMaskSAM.__file__)
    SlicerMaskSAM.SlicerMaskSAM(said)
    assert (said.title, said.categories) == ("MaskSAM", ["Segmentation"])
    assert not said.icon.pixmap(32, 32).isNull()
    assert "not a medical device" in said.helpText


def test_reload_and_test_runs_the_shipped_tests(gui: Gui, monkeypatch: pytest.MonkeyPatch) -> None:
    import SlicerMaskSAM

    class Shipped(unittest.TestCase):
        def test_that_fails(self) -> None:
            self.fail("as it should")

    shipped = ModuleType("SlicerMaskSAMModuleTest")
    shipped.Shipped = Shipped
    monkeypatch.setitem(sys.modules, "SlicerMaskSAMModuleTest", shipped)
    with pytest.raises(AssertionError, match="as it should"):
        SlicerMaskSAM.SlicerMaskSAMTest("runTest").runTest(msec=0)


def test_the_panels_tests_ask_for_what_the_real_controller_understands(gui: Gui) -> None:
    from SlicerMaskSAMLib.work.controller import Controller

    def understood(kind: type) -> dict[str, list[tuple[str, Any]]]:
        public = {name: function for name, function in vars(kind).items() if not name.startswith("_")}
        return {
            name: [(each.name, each.default) for each in inspect.signature(function).parameters.values()]
            for name, function in public.items()
            if callable(function)
        }

    asked_for, real = understood(FakeController), understood(Controller)
    del asked_for["show"]
    assert asked_for == {name: real.get(name) for name in asked_for}


def test_segment_then_click_then_undo(module: Module) -> None:
    volume = module.choose_volume()
    module.segment()
    assert module.segments() == [CORNER, BRIGHT]
    before = rig.voxels(module.parameters.segmentation, BRIGHT, volume)
    module.ui.nameEdit.text = "Kidney"
    module.press("newButton")
    module.press("pointButton")
    module.click((12.0, 10.0, 3.0))
    kidney = rig.voxels(module.parameters.segmentation, "Kidney", volume)
    assert kidney[3, 10, 12]
    np.testing.assert_array_equal(kidney & before, False, "other segments are protected")
    wait_for(lambda: module.ui.promptsList.count == 1)
    module.press("undoButton")
    module.settle()
    assert not rig.voxels(module.parameters.segmentation, "Kidney", volume).any()
    wait_for(lambda: module.ui.promptsList.count == 0 and module.ui.redoButton.enabled)


def test_the_sample_data_are_brought_and_chosen(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from SlicerMaskSAMLib.work import sample_data

    def steps(_scene: Any, parameters: Any) -> Any:
        yield None
        parameters.model = "plain"
        return rig.volume(name=sample_data.NAME)

    monkeypatch.setattr(sample_data, "steps", steps)
    module.press("sampleButton")
    wait_for(lambda: module.ui.volumeSelector.currentNode() is not None)
    assert module.ui.volumeSelector.currentNode().GetName() == sample_data.NAME
    module.settle()
    assert module.ui.sampleButton.isHidden()


def test_the_first_usable_model_is_chosen_and_its_structures_are_listed(module: Module) -> None:
    module.choose_volume()
    wait_for(lambda: module.ui.wantedList.count == 2)
    assert module.ui.modelCombo.currentText == "plain"


def test_a_second_press_cancels(module: Module) -> None:
    module.choose_volume()
    module.parameters.model = "slow"
    module.press("segmentButton")
    wait_for(lambda: module.ui.segmentButton.text == "Cancel")
    module.press("segmentButton")
    module.settle()
    wait_for(lambda: module.ui.segmentButton.text == "Segment")
    assert module.segments() == []


def test_a_scene_that_is_closed_in_the_middle_of_work_leaves_an_empty_panel(module: Module) -> None:
    import slicer

    module.choose_volume()
    module.parameters.model = "slow"
    module.press("segmentButton")
    wait_for(lambda: module.status.progress is not None)
    slicer.mrmlScene.Clear(False)
    module.settle()
    assert module.ui.volumeSelector.currentNode() is None
    assert module.segments() == []
    module.choose_volume()
    module.segment()
    assert module.segments() == [CORNER, BRIGHT], "and work goes on in the new scene"


def test_a_scene_that_is_read_brings_its_choices_and_structures(module: Module, tmp_path: Any) -> None:
    module.choose_volume()
    module.segment()
    saved = environment.save_scene(tmp_path / "scene.mrb")
    import slicer

    slicer.mrmlScene.Clear(False)
    module.settle()
    assert module.segments() == []
    assert slicer.mrmlScene.ReadFromMRB(str(saved), False)
    module.settle()
    wait_for(lambda: module.segments() == [CORNER, BRIGHT])
    assert module.ui.volumeSelector.currentNode().GetName() == "Scan"
    assert module.parameters.inputVolume is module.ui.volumeSelector.currentNode()


def test_after_exit_no_click_counts_and_work_goes_on(module: Module) -> None:
    module.choose_volume()
    module.press("segmentButton")
    module.press("pointButton")
    module.widget.exit()
    wait_for(lambda: module.segments() == [CORNER, BRIGHT])
    module.widget.panel._choose_tool(Tool.POINT)
    module.gui.layout.sliceWidget("Red").click(100, 100)
    module.settle()
    assert module.ui.promptsList.count == 0


def test_cleanup_ends_the_engine(module: Module) -> None:
    module.choose_volume()
    module.segment()
    worker = module.widget.logic.controller._context.engine_link.client.hello["pid"]
    module.widget.cleanup()
    wait_for(lambda: not alive(worker))
