"""The pictures of the panel are drawn, and nothing in them is cut off at the width that Slicer gives a panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from SlicerMaskSAMLib.values.status import ModelRow, TrainingResult
from Testing.panel import examples
from Testing.panel.conftest import Desk
from Testing.panel.pictures import SECTIONS, WIDTH, draw_all, hippocampus_scene, overlay, picture

STATES = {
    "setup": examples.NEEDS_SETUP,
    "idle": examples.IDLE,
    "working": examples.WORKING,
    "prompts": examples.PROMPTED,
    "teach": examples.TAUGHT,
}


@pytest.mark.slow
def test_every_state_has_its_picture(scene: Any, tmp_path: Path) -> None:
    written = draw_all(tmp_path)
    import qt

    assert [path.stem for path in written] == [f"panel_{name}" for name in SECTIONS]
    for path in written:
        image = qt.QImage(str(path))
        assert image.width() == WIDTH
        shades = {image.pixel(x, y) for x in range(0, WIDTH, 7) for y in range(0, image.height(), 7)}
        assert len(shades) > 3, f"{path.name} is empty"


@pytest.mark.parametrize("name", list(STATES))
def test_nothing_is_cut_off_or_covered(desk: Desk, tmp_path: Path, name: str) -> None:
    hippocampus_scene(desk.parameters)
    desk.panel.widget.setParent(None)
    desk.show(**STATES[name])
    image = picture(desk.panel, tmp_path / "panel.png", SECTIONS[name])
    assert image.width() == WIDTH, "something needs more room"
    assert faults(desk.panel.widget) == []


def test_long_texts_are_wrapped_and_long_names_shortened(desk: Desk, tmp_path: Path) -> None:
    hippocampus_scene(desk.parameters)
    desk.parameters.inputVolume.SetName(
        "A volume whose name somebody took from four DICOM tags and the date of the day"
    )
    desk.parameters.segmentation.SetName("The segmentation of " + desk.parameters.inputVolume.GetName())
    desk.panel.widget.setParent(None)
    sentence = "It is not possible to do this because of a reason that takes many words to be told. "
    model = ModelRow(
        name="a-model-with-a-name-that-goes-on-and-on-and-on-and-on-and-on", modality="MR", licence="", structures=()
    )
    desk.show(**examples.PROMPTED | {"messages": (sentence * 2,), "suggestion": "Structure " * 12, "models": (model,)})
    desk.parameters.model = model.name
    image = picture(desk.panel, tmp_path / "panel.png", ("segmentSection", "refineSection"))
    assert image.width() == WIDTH
    assert faults(desk.panel.widget) == []


def test_the_overlay_of_a_training_result_fits(desk: Desk, tmp_path: Path) -> None:
    desk.panel.widget.setParent(None)
    desk.panel.widget.resize(WIDTH, WIDTH)
    result = TrainingResult(
        model="ours", dice={}, left_out=(), worst_case="case", overlay=overlay(tmp_path), seconds=1.0
    )
    desk.show(**examples.TAUGHT | {"training_result": result})
    picture(desk.panel, tmp_path / "panel.png", SECTIONS["teach"])
    label = desk.ui.overlayLabel
    assert label.pixmap.width() <= label.width


def faults(widget: Any) -> list[str]:
    """Visible widgets that reach over their parent's edge, cover a neighbour, or are too small for their text."""
    found = []
    children = [child for child in widget.children() if child.isWidgetType() and child.visible]
    for index, child in enumerate(children):
        if child.isWindow() or not child.name or child.name.startswith("qt_"):
            continue
        place = child.geometry
        if not widget.rect.contains(place):
            found.append(f"{child.name} reaches over the edge")
        found += [f"{child.name} covers {other.name}" for other in children[:index] if place.intersects(other.geometry)]
        text = getattr(child, "text", "")
        if isinstance(text, str) and text and not getattr(child, "wordWrap", False):
            needed = child.fontMetrics().horizontalAdvance(text)
            if not hasattr(child, "placeholderText") and needed > child.width:
                found.append(f"{child.name} cuts its text off")
        elif getattr(child, "wordWrap", False) and child.height < child.heightForWidth(child.width):
            found.append(f"{child.name} is too low for its text")
        if not getattr(child, "collapsed", False):
            found += faults(child)
    return found
