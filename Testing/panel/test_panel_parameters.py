"""Every parameter goes from its widget to the parameter node, through a saved scene, and to a new panel."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from MaskSAMCore.config.resources import resource
from SlicerMaskSAMLib.values.choices import OverlapPolicy, Region, Scope, Speed
from Testing.panel.conftest import Desk
from Testing.panel.examples import MODELS
from Testing.panel.hands import a_segmentation, a_volume, choose
from Testing.slicer import environment

WITHOUT_WIDGET = {"skippedStructures", "segmentID", "device", "model"}
"""Set by the controller, which the buttons' tests see, or in another way than by a widget of their own."""


def widgets() -> dict[str, str]:
    """The widget of each parameter, as the .ui file says."""
    found = {}
    for widget in ElementTree.parse(resource("UI", "SlicerMaskSAM.ui")).iter("widget"):
        for own in widget.findall("property"):
            if own.get("name") == "SlicerParameterName":
                found[own.findtext("string")] = widget.get("name")
    return found


def test_every_parameter_has_a_widget_or_a_reason(desk: Desk) -> None:
    assert set(desk.parameters.allParameters) == set(widgets()) | WITHOUT_WIDGET


def test_the_widgets_set_the_parameters(desk: Desk) -> None:
    volume, segmentation, roi = a_volume(), a_segmentation("Left"), a_region()
    ui, parameters = desk.ui, desk.parameters
    ui.volumeSelector.choose(volume)
    ui.segmentationSelector.choose(segmentation)
    ui.roiSelector.choose(roi)
    for combo in (ui.regionCombo, ui.scopeCombo, ui.neighboursCombo):
        choose(combo, 1)
    choose(ui.speedCombo, 0)
    ui.automaticCheck.click()
    ui.folderEdit.text = "/data/cases"
    assert (parameters.inputVolume, parameters.segmentation, parameters.roi) == (volume, segmentation, roi)
    assert (parameters.region, parameters.scope, parameters.speed) == (Region.ROI, Scope.SLAB, Speed.FAST)
    assert (parameters.neighbours, parameters.showAutomatic) == (OverlapPolicy.REPLACE, True)
    assert parameters.trainingFolder == "/data/cases"


def test_a_new_panel_shows_the_parameters_of_a_scene_that_was_saved(desk: Desk, tmp_path: Path) -> None:
    fill(desk.parameters)
    saved = environment.save_scene(tmp_path / "scene.mrb")
    desk.panel.close()
    environment.open_scene(saved)
    panel, parameters = new_panel(desk)
    ui = panel.ui
    chosen = (ui.volumeSelector, ui.segmentationSelector, ui.roiSelector)
    assert [selector.currentNode().GetName() for selector in chosen] == ["Volume", "Segmentation", "Region"]
    assert ui.regionCombo.currentText == "Region of interest"
    assert ui.speedCombo.currentText == "Fast"
    assert ui.scopeCombo.currentText == "Whole volume"
    assert ui.neighboursCombo.currentText == "Allow overlap"
    assert ui.automaticCheck.checked
    assert ui.folderEdit.text == "/data/cases"
    assert ui.modelCombo.currentText == "hippocampus-mr (MR)"
    assert ui.segmentsTable.segmentationNode() is parameters.segmentation
    assert (parameters.segmentID, parameters.device) == ("Left", "cpu")
    assert list(parameters.skippedStructures) == ["Posterior hippocampus"]


def test_showing_a_scene_chooses_nothing_anew(desk: Desk) -> None:
    fill(desk.parameters)
    assert desk.asked() == []


def test_the_box_of_the_region_is_shown_where_it_counts(desk: Desk) -> None:
    assert desk.ui.roiRow.isHidden()
    desk.parameters.region = Region.ROI
    assert not desk.ui.roiRow.isHidden()
    assert not desk.ui.newRoiButton.enabled, "there is no volume to place it in"


def fill(parameters: Any) -> None:
    """Give every parameter another value than its own at first."""
    parameters.inputVolume, parameters.segmentation, parameters.roi = a_volume(), a_segmentation("Left"), a_region()
    parameters.region, parameters.speed, parameters.scope = Region.ROI, Speed.FAST, Scope.VOLUME
    parameters.neighbours, parameters.showAutomatic = OverlapPolicy.OVERLAP, True
    parameters.trainingFolder, parameters.device, parameters.segmentID = "/data/cases", "cpu", "Left"
    parameters.model, parameters.skippedStructures = "hippocampus-mr", ["Posterior hippocampus"]


def a_region() -> Any:
    import slicer

    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")


def new_panel(desk: Desk) -> tuple[Any, Any]:
    """Another panel over the scene as it is, and its parameters."""
    from SlicerMaskSAMLib.mrml.parameters import MaskSAMParameterNode
    from SlicerMaskSAMLib.window.panel import Panel

    panel, parameters = Panel(), MaskSAMParameterNode(environment.parameter_node())
    desk.controller.show(models=MODELS)
    panel.bind(desk.controller, parameters)
    return panel, parameters


@pytest.mark.parametrize("combo", ["regionCombo", "speedCombo", "scopeCombo", "neighboursCombo"])
def test_choices_have_texts(desk: Desk, combo: str) -> None:
    listed = getattr(desk.ui, combo)
    assert all(listed.itemText(index)[1].islower() for index in range(listed.count))
