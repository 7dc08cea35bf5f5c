"""What the tests of the panel do besides pressing buttons: choose, wait, and put nodes into the scene."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from Testing.slicer import environment


def choose(combo: Any, index: int) -> None:
    """Choose a line of a combo box as a user does."""
    combo.setCurrentIndex(index)
    combo.activated.emit(index)


def a_volume() -> Any:
    return environment.add_volume(np.zeros((8, 10, 12), np.int16))


def a_segmentation(*names: str) -> Any:
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
    for name in names:
        node.GetSegmentation().AddEmptySegment(name, name)
    return node


def wait_for(condition: Any) -> None:
    """Let Qt work until something is so; a minute is forever."""
    import qt

    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        qt.QApplication.processEvents()


def let_events_pass(times: int) -> None:
    """Let Qt work for as long as its timer would need for so many ticks."""
    import qt

    from SlicerMaskSAMLib.window.panel import TICK_MS

    for _ in range(times):
        time.sleep(TICK_MS / 1000)
        qt.QApplication.processEvents()
