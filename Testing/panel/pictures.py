"""Pictures of the panel in its states: `python -m Testing.panel.pictures FOLDER`, as the README shows them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from Testing.panel import slicer_gui
from Testing.slicer import environment

WIDTH = 400
"""Pixels that Slicer gives a module's panel."""
SECTIONS = {
    "setup": ("segmentSection",),
    "idle": ("segmentSection", "refineSection"),
    "working": ("segmentSection",),
    "prompts": ("refineSection",),
    "teach": ("outputSection", "teachSection"),
}
"""The sections that are open in each picture."""


def picture(panel: Any, path: Path, open_sections: tuple[str, ...]) -> Any:
    """Draw a panel as wide as Slicer shows it and as high as it needs; the image, which is written as well."""
    import qt

    for name in ("segmentSection", "refineSection", "outputSection", "teachSection"):
        getattr(panel.ui, name).collapsed = name not in open_sections
    widget = panel.widget
    widget.setAttribute(qt.Qt.WA_DontShowOnScreen)
    widget.show()
    for _ in range(3):  # word wrap, then the height that it asks for
        layout = widget.layout()
        height = layout.totalHeightForWidth(WIDTH) if layout.hasHeightForWidth() else layout.totalSizeHint().height()
        widget.resize(WIDTH, height)
        qt.QApplication.processEvents()
    image = widget.grab().toImage()
    image.save(str(path))
    return image


def hippocampus_scene(parameters: Any) -> None:
    """A volume with two structures in the scene, chosen in the parameters."""
    import slicer

    parameters.inputVolume = environment.add_volume(np.zeros((8, 10, 12), np.int16), name="hippocampus_003")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "hippocampus_003 segmentation")
    for name, color in (("Anterior hippocampus", (216, 101, 79)), ("Posterior hippocampus", (111, 184, 210))):
        node.GetSegmentation().AddEmptySegment(name, name, [value / 255 for value in color])
    parameters.segmentation = node


def overlay(folder: Path) -> str:
    """A picture as teaching leaves it, drawn here."""
    import qt

    image = qt.QImage(640, 360, qt.QImage.Format_RGB32)
    image.fill(qt.QColor(40, 40, 40))
    painter = qt.QPainter(image)
    for row, column in np.ndindex(2, 4):
        painter.fillRect(qt.QRect(10 + column * 158, 10 + row * 175, 148, 165), qt.QColor(90, 90, 90))
        painter.fillRect(qt.QRect(50 + column * 158, 60 + row * 175, 60, 50), qt.QColor(216, 101, 79))
    painter.end()
    path = folder / "overlay.png"
    image.save(str(path))
    return str(path)


def draw_all(folder: Path) -> list[Path]:
    """All pictures, in a folder."""
    from dataclasses import replace

    environment.clear()
    slicer_gui.start()
    from SlicerMaskSAMLib.mrml.parameters import MaskSAMParameterNode
    from SlicerMaskSAMLib.window.panel import Panel
    from Testing.panel import examples
    from Testing.panel.fake_controller import FakeController

    result = replace(examples.TAUGHT["training_result"], overlay=overlay(folder))
    states = {
        "setup": examples.NEEDS_SETUP,
        "idle": examples.IDLE,
        "working": examples.WORKING,
        "prompts": examples.PROMPTED,
        "teach": examples.TAUGHT | {"training_result": result},
    }
    written = []
    for name, status in states.items():
        with pytest.MonkeyPatch.context() as patch:
            environment.clear()
            slicer_gui.open_window(patch)
            panel = Panel()
            controller = FakeController(panel.mark_changed)
            parameters = MaskSAMParameterNode(environment.parameter_node())
            panel.bind(controller, parameters)
            if name != "setup":
                hippocampus_scene(parameters)
                parameters.model = "hippocampus-mr"
            panel.enter()
            segment = "Anterior hippocampus" if name == "prompts" else ""
            controller.show(**status, segment_id=segment)
            panel.widget.resize(WIDTH, WIDTH)
            panel.tick()
            if name == "prompts":
                panel.ui.pointButton.click()
            written.append(folder / f"panel_{name}.png")
            picture(panel, written[-1], SECTIONS[name])
            panel.close()
    (folder / "overlay.png").unlink()
    return written


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
