"""The panel shows what the status says, in plain words and in the right places."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import SlicerMaskSAMLib
from SlicerMaskSAMLib.values.status import Phase, Progress
from Testing.panel import slicer_gui
from Testing.panel.conftest import Desk
from Testing.panel.examples import IDLE, NEEDS_SETUP, PROMPTED, TAUGHT, WORKING
from Testing.panel.hands import a_segmentation


def texts(listed: Any) -> list[str]:
    """The lines of a list."""
    return [listed.item(row).text() for row in range(listed.count)]


def test_the_status_line_shows_state_device_model_and_licence(desk: Desk) -> None:
    desk.show(**IDLE)
    desk.parameters.model = "hippocampus-mr"
    assert desk.ui.headlineLabel.text == "Ready"
    assert desk.ui.deviceLabel.text == "CPU, 2 threads, 12.3 GB free"
    assert desk.ui.licenceLabel.text == "Model hippocampus-mr, licence CC-BY-SA-4.0"


def test_set_up_vanishes_when_the_engine_is_ready(desk: Desk) -> None:
    desk.show(**NEEDS_SETUP)
    assert not desk.ui.setUpButton.isHidden()
    assert not desk.ui.segmentButton.enabled
    desk.show(**IDLE, phase=Phase.IDLE)
    assert desk.ui.setUpButton.isHidden()


def test_a_model_for_another_modality_is_grey_with_the_reason(desk: Desk) -> None:
    import qt

    desk.show(**IDLE)
    model = desk.ui.modelCombo.model()
    usable = [bool(model.flags(model.index(row, 0)) & qt.Qt.ItemIsEnabled) for row in range(2)]
    assert usable == [True, False]
    assert "CT" in desk.ui.modelCombo.itemData(1, qt.Qt.ToolTipRole)
    desk.parameters.model = "headneck-ct"
    assert desk.ui.licenceLabel.text == "Model headneck-ct: It was made for CT; this volume is MR."


def test_the_chosen_model_stays_shown_when_the_list_changes(desk: Desk) -> None:
    desk.parameters.model = "headneck-ct"
    desk.show(**IDLE)
    assert desk.ui.modelCombo.currentText == "headneck-ct (CT)"
    desk.show(models=IDLE["models"][::-1])
    assert desk.ui.modelCombo.currentText == "headneck-ct (CT)"


def test_segment_becomes_cancel_and_shows_the_way_to_go(desk: Desk) -> None:
    desk.show(**WORKING)
    assert desk.ui.segmentButton.text == "Cancel"
    assert (desk.ui.progressBar.value, desk.ui.progressBar.maximum) == (12, 40)
    assert desk.ui.headlineLabel.text == "Segmenting: Slices: 12 of 40, about 20 s left"
    assert not desk.ui.teachButton.enabled
    desk.show(phase=Phase.CANCELLING)
    assert (desk.ui.segmentButton.text, desk.ui.segmentButton.enabled) == ("Cancelling…", False)
    assert not desk.ui.cancelButton.enabled
    desk.show(phase=Phase.IDLE, task="", progress=None)
    assert (desk.ui.segmentButton.text, desk.ui.segmentButton.enabled) == ("Segment", True)
    assert desk.ui.headlineLabel.text == "Segmenting"
    assert (desk.ui.progressBar.value, desk.ui.progressBar.maximum) == (0, 1), "an empty bar that stands still"


def test_work_of_unknown_length_moves_to_and_fro(desk: Desk) -> None:
    desk.show(**WORKING | {"progress": Progress(done=0, total=0, text="Installing PyTorch")})
    assert desk.ui.progressBar.maximum == 0
    assert desk.ui.headlineLabel.text == "Segmenting: Installing PyTorch"


def test_an_answer_to_a_click_turns_no_button_grey(desk: Desk) -> None:
    desk.show(**IDLE)
    desk.show(phase=Phase.WORKING, task="refine", can_segment=False, can_export=False)
    assert desk.ui.segmentButton.enabled
    assert desk.ui.tableButton.enabled
    assert desk.ui.cancelButton.enabled


def test_minutes_are_shown_as_minutes(desk: Desk) -> None:
    desk.show(**WORKING | {"progress": Progress(done=1, total=9, text="Training", seconds_left=250.0)})
    assert desk.ui.headlineLabel.text.endswith("about 4 min left")


def test_the_last_three_messages_are_shown_and_all_in_the_tool_tip(desk: Desk) -> None:
    desk.show(messages=("one", "two", "three", "four"))
    assert desk.ui.messagesLabel.text == "two\nthree\nfour"
    assert desk.ui.messagesLabel.toolTip == "one\ntwo\nthree\nfour"


def test_structures_have_their_colour_and_their_tick(desk: Desk) -> None:
    import qt

    first, second = IDLE["structures"]
    desk.show(structures=(first, replace(second, wanted=False)))
    ticks = [desk.ui.wantedList.item(row).checkState() == qt.Qt.Checked for row in range(2)]
    assert texts(desk.ui.wantedList) == ["Anterior hippocampus", "Posterior hippocampus"]
    assert ticks == [True, False]
    swatch = desk.ui.wantedList.item(0).icon().pixmap(8, 8).toImage().pixelColor(4, 4)
    assert (swatch.red(), swatch.green(), swatch.blue()) == first.color
    assert desk.asked() == [], "showing them is no choice"


def test_the_search_hides_other_structures_and_survives_an_update(desk: Desk) -> None:
    desk.show(**IDLE)
    desk.ui.searchEdit.text = "ANT"
    assert [desk.ui.wantedList.item(row).isHidden() for row in range(2)] == [False, True]
    desk.show(structures=IDLE["structures"][::-1])
    assert [desk.ui.wantedList.item(row).isHidden() for row in range(2)] == [True, False]


def test_prompts_are_listed_and_the_selected_one_stays_selected(desk: Desk) -> None:
    desk.show(**PROMPTED)
    assert texts(desk.ui.promptsList)[1] == "Include, slice 18"
    desk.ui.promptsList.setCurrentRow(3)
    desk.show(prompts=PROMPTED["prompts"][1:])
    assert desk.ui.promptsList.currentItem().text() == "Exclude, slice 20"


def test_empty_rows_are_hidden(desk: Desk) -> None:
    rows = (desk.ui.candidateRow, desk.ui.suggestionRow, desk.ui.qualityRow)
    assert all(row.isHidden() for row in rows)
    desk.show(**PROMPTED)
    assert not any(row.isHidden() for row in rows)
    assert desk.ui.candidateLabel.text == "Candidate 2 of 3"
    assert desk.ui.suggestionLabel.text == "Looks like: Posterior hippocampus"
    assert desk.ui.qualityLabel.text == "Estimated overlap: 78% on average over 22 slices"


def test_the_structure_that_is_refined_is_selected_in_the_list(desk: Desk) -> None:
    desk.parameters.segmentation = a_segmentation("Left", "Right")
    desk.show(segment_id="Right")
    assert list(desk.ui.segmentsTable.selectedSegmentIDs()) == ["Right"]
    assert desk.asked() == [], "showing it is no choice"


def test_a_list_that_shows_what_it_should_is_left_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.parameters.segmentation = a_segmentation("Left", "Right")
    desk.show(segment_id="Right", **PROMPTED)
    desk.ui.promptsList.setCurrentRow(1)
    item, selections = desk.ui.promptsList.item(1), []
    monkeypatch.setattr(type(desk.ui.segmentsTable), "setSelectedSegmentIDs", lambda _, ids: selections.append(ids))
    desk.show(headline="Answering")
    assert selections == []
    assert desk.ui.promptsList.item(1) is item


def test_the_training_result_is_shown_with_its_picture(desk: Desk, tmp_path: Path) -> None:
    from Testing.panel.pictures import overlay

    desk.panel.widget.resize(400, 400)
    desk.show(**TAUGHT | {"training_result": replace(TAUGHT["training_result"], overlay=overlay(tmp_path))})
    lines = desk.ui.trainingResultLabel.text.splitlines()
    assert lines[0] == "our-hippocampus was taught in 4 min."
    assert "  Posterior hippocampus: 0.81" in lines
    assert lines[-1] == "The worst case, hippocampus_204:"
    assert desk.ui.overlayLabel.pixmap.width() == 400 - 32
    desk.show(training_result=None)
    assert desk.ui.overlayLabel.isHidden()
    assert desk.ui.trainingResultLabel.isHidden()


def test_training_cases_are_listed_with_their_structures(desk: Desk) -> None:
    desk.show(**TAUGHT)
    row = desk.ui.casesTree.topLevelItem(0)
    assert (row.text(0), row.text(1)) == ("hippocampus_003", "Anterior hippocampus, Posterior hippocampus")


def test_undo_names_the_step(desk: Desk) -> None:
    desk.show(**PROMPTED)
    assert desk.ui.undoButton.toolTip == "Undo (Z): Click in Anterior hippocampus"
    assert not desk.ui.redoButton.enabled


def test_a_structure_that_cannot_be_refined_leaves_no_tool_in_the_hand(desk: Desk) -> None:
    desk.press("pointButton")
    desk.show(can_refine=False)
    assert not desk.ui.pointButton.checked


@pytest.mark.parametrize("ground", ["#f0f0f0", "#323232"])
def test_icons_stand_out_from_light_and_from_dark_windows(desk: Desk, ground: str) -> None:
    import qt

    from SlicerMaskSAMLib.window.icons import icons

    before = qt.QApplication.palette()
    palette = qt.QPalette(before)
    palette.setColor(qt.QPalette.Window, qt.QColor(ground))
    qt.QApplication.setPalette(palette)
    try:
        drawn = icons()
    finally:
        qt.QApplication.setPalette(before)
    for name, icon in drawn.items():
        image = icon.pixmap(48, 48).toImage()
        pixels = [image.pixelColor(x, y) for x in range(48) for y in range(48)]
        inks = [pixel.lightness() for pixel in pixels if pixel.alpha() == 255]
        assert max(abs(ink - qt.QColor(ground).lightness()) for ink in inks) > 80, name


@pytest.mark.parametrize("file", ["panel", "rendering", "dialogs"])
def test_every_text_goes_through_the_translation(file: str) -> None:
    """Words in the code of the panel are arguments of `_`; other texts hold no words."""
    tree = ast.parse((Path(SlicerMaskSAMLib.__file__).parent / "window" / f"{file}.py").read_text(encoding="utf-8"))
    translated = {
        id(text)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "_"
        for text in call.args
    }
    documentation = {id(part.value) for part in ast.walk(tree) if isinstance(part, ast.Expr)}
    raised = {id(text) for part in ast.walk(tree) if isinstance(part, ast.Raise) for text in ast.walk(part)}
    loose = [
        text.value
        for text in ast.walk(tree)
        if isinstance(text, ast.Constant)
        and isinstance(text.value, str)
        and id(text) not in translated | documentation | raised
        and " " in text.value.strip()
        and "*" not in text.value
    ]
    assert loose == []


def test_the_translation_is_what_is_shown(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slicer_gui.translated, "marks", ("«", "»"))
    desk.show(**WORKING)
    desk.show(**PROMPTED, phase=Phase.IDLE, task="")
    assert desk.ui.segmentButton.text == "«Segment»"
    assert desk.ui.candidateLabel.text == "«Candidate 2 of 3»"
