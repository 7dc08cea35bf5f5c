"""Every button of the .ui file is pressed, and asks the controller for the right thing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from MaskSAMCore.config.resources import resource
from SlicerMaskSAMLib.values.choices import Region, Scope
from SlicerMaskSAMLib.values.status import Phase
from Testing.panel.conftest import Desk
from Testing.panel.examples import PROMPTED, TAUGHT
from Testing.panel.hands import a_segmentation, a_volume, choose

ORDERS = {
    "cancelButton": ("cancel",),
    "segmentButton": ("segment",),
    "clearPromptsButton": ("clear_prompts",),
    "nextCandidateButton": ("next_candidate",),
    "takeSuggestionButton": ("take_suggestion",),
    "runAutomaticButton": ("run_automatic",),
    "worstButton": ("jump_to_worst",),
    "undoButton": ("undo",),
    "redoButton": ("redo",),
    "acceptButton": ("accept",),
    "tableButton": ("volumes_table",),
}
"""Buttons that only hand over an order."""
OWN_TEST = {
    "setUpButton",
    "newButton",
    "nextButton",
    "sampleButton",
    "allButton",
    "noneButton",
    "newRoiButton",
    "pointButton",
    "boxButton",
    "excludeButton",
    "startButton",
    "deletePromptButton",
    "exportButton",
    "uncodedCheck",
    "commandButton",
    "caseButton",
    "folderButton",
    "removeCaseButton",
    "teachButton",
    "automaticCheck",
    "modelsButton",
    "importModelAction",
    "removeModelAction",
    "removeEverythingAction",
    "show3DButton",
}
"""Buttons that ask, look at other widgets, or change the panel itself: below, each by its name."""
PRESSED = {"QPushButton", "QToolButton", "QCheckBox", "QRadioButton", "qMRMLSegmentationShow3DButton"}


def test_no_button_of_the_ui_file_is_forgotten() -> None:
    tree = ElementTree.parse(resource("UI", "SlicerMaskSAM.ui"))
    buttons = {widget.get("name") for widget in tree.iter("widget") if widget.get("class") in PRESSED}
    actions = {action.get("name") for action in tree.iter("action")}
    assert buttons | actions == set(ORDERS) | OWN_TEST


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_an_action_is_passed_to_the_controller(desk: Desk, name: str) -> None:
    working = {"phase": Phase.WORKING, "task": "output"} if name == "cancelButton" else {}
    desk.show(**PROMPTED, redo="Click", **working)
    desk.press(name)
    assert desk.asked() == [ORDERS[name]]


def test_set_up_asks_for_consent_and_shows_what_it_will_fetch(desk: Desk) -> None:
    desk.show(phase=Phase.NEEDS_SETUP)
    desk.gui.answers = [False]
    desk.press("setUpButton")
    assert desk.gui.asked == ["PyTorch, 200 MB"]
    assert desk.asked() == []
    desk.gui.answers = [True]
    desk.press("setUpButton")
    assert desk.asked() == [("set_up",)]


def test_a_new_structure_takes_the_name_that_was_typed_once(desk: Desk) -> None:
    desk.ui.nameEdit.text = " Hippocampus "
    desk.press("newButton")
    assert desk.asked() == [("new_structure", "Hippocampus")]
    desk.press("nextButton")
    assert desk.asked() == [("next_structure", "")]


def test_sample_data_are_offered_until_there_is_a_volume(desk: Desk) -> None:
    desk.press("sampleButton")
    assert desk.asked() == [("try_sample",)]
    desk.parameters.inputVolume = a_volume()
    assert desk.ui.sampleButton.isHidden()


def test_all_and_none_mean_the_structures_that_the_search_shows(desk: Desk) -> None:
    desk.show(**PROMPTED)
    desk.press("noneButton")
    desk.ui.searchEdit.text = "post"
    desk.press("allButton")
    assert desk.asked() == [
        ("set_wanted", ["Anterior hippocampus", "Posterior hippocampus"], False),
        ("set_wanted", ["Posterior hippocampus"], True),
    ]


def test_a_new_box_lies_in_the_volume_and_becomes_the_region(desk: Desk) -> None:
    desk.parameters.inputVolume = a_volume()
    desk.parameters.region = Region.ROI
    desk.press("newRoiButton")
    centre, size = [0.0] * 3, [0.0] * 3
    desk.parameters.roi.GetCenterWorld(centre)
    desk.parameters.roi.GetSizeWorld(size)
    assert centre == pytest.approx([5.5, 4.5, 3.5])
    assert size == pytest.approx([6.0, 5.0, 4.0])
    assert desk.ui.roiSelector.currentNode() is desk.parameters.roi


def test_the_tools_exclude_each_other_and_can_be_put_down(desk: Desk) -> None:
    def pressed() -> tuple[bool, bool]:
        return desk.ui.pointButton.checked, desk.ui.boxButton.checked

    desk.press("pointButton")
    assert pressed() == (True, False)
    desk.press("boxButton")
    assert pressed() == (False, True)
    desk.press("boxButton")
    assert pressed() == (False, False)


def test_a_segment_becomes_the_start(desk: Desk) -> None:
    desk.parameters.segmentation = a_segmentation("Left", "Right")
    desk.ui.startSelector.setCurrentSegmentID("Right")
    desk.press("startButton")
    assert desk.asked() == [("start_from", "Right")]


def test_the_selected_prompt_is_deleted(desk: Desk) -> None:
    desk.show(**PROMPTED)
    desk.press("deletePromptButton")
    assert desk.asked() == []
    desk.ui.promptsList.setCurrentRow(2)
    desk.press("deletePromptButton")
    assert desk.asked() == [("delete_prompt", "b2")]


def test_export_asks_for_the_file(desk: Desk) -> None:
    desk.gui.answers = [""]
    desk.press("exportButton")
    assert desk.asked() == []
    desk.gui.answers = ["/somewhere/seg.dcm"]
    desk.press("uncodedCheck")
    desk.press("exportButton")
    assert desk.asked() == [("export_dicom", "/somewhere/seg.dcm", True)]


def test_the_command_line_goes_to_the_clipboard(desk: Desk) -> None:
    import qt

    desk.press("commandButton")
    assert qt.QApplication.clipboard().text() == "python -m MaskSAMCore.segment scan.nii.gz"
    assert "MaskSAMCore.segment" in desk.gui.window.statusBar().currentMessage()


def test_a_training_case_is_saved_under_the_name_that_was_typed(desk: Desk) -> None:
    desk.ui.caseNameEdit.text = "patient 7"
    desk.press("caseButton")
    assert desk.asked() == [("save_case", "patient 7")]


def test_another_folder_of_training_cases(desk: Desk) -> None:
    desk.gui.answers = ["/data/cases", ""]
    desk.press("folderButton")
    desk.press("folderButton")
    assert desk.parameters.trainingFolder == "/data/cases"
    assert desk.ui.folderEdit.text == "/data/cases"


def test_a_training_case_is_removed_with_consent_only(desk: Desk) -> None:
    desk.show(**TAUGHT)
    desk.ui.casesTree.setCurrentItem(desk.ui.casesTree.topLevelItem(1))
    desk.gui.answers = [False, True]
    desk.press("removeCaseButton")
    assert desk.asked() == []
    desk.press("removeCaseButton")
    assert desk.asked() == [("remove_case", "hippocampus_017")]


def test_a_second_press_of_teach_cancels(desk: Desk) -> None:
    desk.ui.newModelNameEdit.text = "ours"
    desk.press("teachButton")
    desk.show(phase=Phase.WORKING, task="teach")
    assert desk.ui.teachButton.text == "Cancel"
    desk.press("teachButton")
    assert desk.asked() == [("teach", "ours"), ("cancel",)]


def test_automatic_prompts_are_shown(desk: Desk) -> None:
    desk.press("automaticCheck")
    assert desk.parameters.showAutomatic
    assert desk.asked() == [("show_automatic", True)]


def test_the_menu_of_models_imports_and_removes_them(desk: Desk) -> None:
    desk.parameters.model = "ours"
    assert [action.text for action in desk.ui.modelsButton.actions()] == [
        desk.ui.importModelAction.text,
        desk.ui.removeModelAction.text,
        desk.ui.removeEverythingAction.text,
    ]
    desk.gui.answers = ["", "/stick/model.zip", True, False, True]
    for action in ("importModel", "importModel", "removeModel", "removeEverything", "removeEverything"):
        getattr(desk.ui, f"{action}Action").trigger()
    assert desk.asked() == [("import_model", "/stick/model.zip"), ("remove_model", "ours"), ("remove_everything",)]
    assert "ours" in desk.gui.asked[2]


def test_exclude_turns_clicks_round(desk: Desk) -> None:
    desk.press("pointButton")
    red = desk.gui.layout.sliceWidget("Red")
    red.click(100, 100)
    red.click(100, 100, ctrl=True)
    desk.press("excludeButton")
    red.click(100, 100)
    assert [call[2] for call in desk.asked()] == [True, False, False]


def test_the_3d_button_shows_the_chosen_segmentation(desk: Desk) -> None:
    desk.parameters.segmentation = a_segmentation("Left")
    assert desk.ui.show3DButton.segmentationNode() is desk.parameters.segmentation


@pytest.mark.parametrize(("index", "scope"), list(enumerate(Scope)))
def test_a_scope_that_the_user_chooses_is_answered_again(desk: Desk, index: int, scope: Scope) -> None:
    choose(desk.ui.scopeCombo, index)
    assert desk.parameters.scope is scope
    assert desk.asked() == [("set_scope", scope)]


def test_a_model_is_chosen_by_its_name(desk: Desk) -> None:
    desk.show(**PROMPTED)
    choose(desk.ui.modelCombo, 0)
    assert desk.asked() == [("choose_model", "hippocampus-mr")]


def test_a_chosen_volume_and_segment_are_passed_on(desk: Desk) -> None:
    volume = a_volume()
    desk.ui.volumeSelector.choose(volume)
    assert desk.parameters.inputVolume is volume
    desk.parameters.segmentation = a_segmentation("Left", "Right")
    desk.ui.segmentsTable.setSelectedSegmentIDs(["Right"])
    assert desk.asked() == [("choose_volume", volume), ("choose_segment", "Right")]


def test_a_structure_that_loses_its_tick_is_not_wanted(desk: Desk) -> None:
    import qt

    desk.show(**PROMPTED)
    desk.ui.wantedList.item(1).setCheckState(qt.Qt.Unchecked)
    assert desk.asked() == [("set_wanted", ["Posterior hippocampus"], False)]
