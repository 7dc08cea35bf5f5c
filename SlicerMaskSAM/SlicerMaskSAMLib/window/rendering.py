"""Shows a status in the widgets of the panel. Qt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from SlicerMaskSAMLib.values.status import ModelRow, Phase, Progress, PromptRow, Status, TrainingResult
from SlicerMaskSAMLib.window.slicebar import SliceBar

LINES = 3
"""Number of messages shown; all of them are in the tool tip."""
SWATCH = 12
MARGINS = 32
"""Left and right margin of a section's contents together, in pixels."""
ICONS = {"box": "box", "start": "mask"}
"""Icons of prompts that are not clicks."""
REFINE = "refine"
DISABLED = 0
FLAGS_ROLE = int(qt.Qt.UserRole) - 1
"""Item data role in which a combo box stores whether an item can be chosen."""


class Rendering:
    """Shows the status in the panel's widgets.

    Args:
        ui: Widgets of the .ui file by name.
        bar: The slice bar.
        icons: Icons by name.
    """

    def __init__(self, ui: Any, bar: SliceBar, icons: dict[str, Any]) -> None:
        self._ui, self._bar, self._icons = ui, bar, icons
        self._shown: Status | None = None
        self._model = ""

    def show(self, status: Status) -> None:
        """Show a status. Widgets whose content did not change are not touched."""
        before, self._shown = self._shown, status
        if status == before:
            return
        self._show_state(status)
        self._show_buttons(status)
        if before is None or status.models != before.models:
            self._list_models(status.models)
        if before is None or status.structures != before.structures:
            self._list_structures(status)
        if before is None or status.prompts != before.prompts:
            self._list_prompts(status.prompts)
        if before is None or status.cases != before.cases:
            self._list_cases(status)
        if before is None or status.training_result != before.training_result:
            self._show_training_result(status.training_result)
        self._show_refinement(status)

    def show_model(self, name: str) -> None:
        """Show the chosen model with its licence, or why it cannot be used."""
        self._model, combo = name, self._ui.modelCombo
        combo.currentIndex = combo.findData(name) if name else -1
        rows = self._shown.models if self._shown is not None else ()
        row = next((row for row in rows if row.name == name), None)
        if row is None:
            text = ""
        elif row.usable:
            text = _("Model {name}, licence {licence}").format(name=row.name, licence=row.licence or _("unknown"))
        else:
            text = _("Model {name}: {reason}").format(name=row.name, reason=row.reason)
        _set_text(self._ui.licenceLabel, text)

    def _show_state(self, status: Status) -> None:
        ui, working = self._ui, status.phase in (Phase.WORKING, Phase.CANCELLING)
        progress = status.progress if working else None
        progress_line = progress_text(progress) if progress is not None else ""
        ui.headlineLabel.text = f"{status.headline}: {progress_line}" if progress_line else status.headline
        _set_text(ui.deviceLabel, status.device)
        ui.setUpButton.visible = status.phase is Phase.NEEDS_SETUP
        # With minimum and maximum 0 the bar is busy. It is never hidden, so that the layout does not jump at a click.
        ui.progressBar.maximum = progress.total if progress is not None else int(not working)
        ui.progressBar.value = progress.done if progress is not None else 0
        ui.cancelButton.enabled = status.phase is Phase.WORKING
        _set_text(ui.messagesLabel, "\n".join(status.messages[-LINES:]))
        ui.messagesLabel.toolTip = "\n".join(status.messages)

    def _show_buttons(self, status: Status) -> None:
        ui = self._ui
        refining = (ui.pointButton, ui.boxButton, ui.excludeButton, ui.newButton, ui.startButton, ui.runAutomaticButton)
        for button in (*refining, ui.acceptButton, ui.nextButton):
            button.enabled = status.can_refine
        ui.undoButton.enabled, ui.redoButton.enabled = bool(status.undo), bool(status.redo)
        ui.undoButton.toolTip = _("Undo (Z): {step}").format(step=status.undo) if status.undo else _("Undo (Z)")
        ui.redoButton.toolTip = _("Redo (Y): {step}").format(step=status.redo) if status.redo else _("Redo (Y)")
        if status.task == REFINE:
            return  # it is short: the other buttons do not flicker
        self._show_starter(ui.segmentButton, "segment", _("Segment"), status.can_segment, status)
        self._show_starter(ui.teachButton, "teach", _("Teach"), status.can_teach, status)
        idle = status.phase is Phase.IDLE
        for button in (ui.tableButton, ui.exportButton, ui.commandButton, ui.caseButton):
            button.enabled = idle and status.can_export

    @staticmethod
    def _show_starter(button: Any, task: str, text: str, ready: bool, status: Status) -> None:
        """Show a button that starts a long task, and cancels it while it runs."""
        if status.task != task:
            button.text, button.enabled = text, ready and status.phase is Phase.IDLE
        elif status.phase is Phase.CANCELLING:
            button.text, button.enabled = _("Cancelling…"), False
        else:
            button.text, button.enabled = _("Cancel"), True

    def _list_models(self, models: tuple[ModelRow, ...]) -> None:
        combo = self._ui.modelCombo
        combo.clear()
        for index, row in enumerate(models):
            combo.addItem(f"{row.name} ({row.modality})" if row.modality else row.name, row.name)
            combo.setItemData(index, row.reason or ", ".join(row.structures), qt.Qt.ToolTipRole)
            if not row.usable:
                combo.setItemData(index, DISABLED, FLAGS_ROLE)
        self.show_model(self._model)

    def _list_structures(self, status: Status) -> None:
        listed = self._ui.wantedList
        blocked = listed.blockSignals(True)
        names = [listed.item(row).text() for row in range(listed.count)]
        if names != [row.name for row in status.structures]:
            listed.clear()
            for row in status.structures:
                listed.addItem(qt.QListWidgetItem(_swatch(row.color), row.name))
        for index, row in enumerate(status.structures):
            listed.item(index).setCheckState(qt.Qt.Checked if row.wanted else qt.Qt.Unchecked)
        listed.blockSignals(blocked)
        self.search(self._ui.searchEdit.text)

    def search(self, text: str) -> None:
        """Show only structures whose name contains a text."""
        listed = self._ui.wantedList
        for index in range(listed.count):
            item = listed.item(index)
            item.setHidden(text.casefold() not in item.text().casefold())

    def _list_prompts(self, prompts: tuple[PromptRow, ...]) -> None:
        listed = self._ui.promptsList
        current = listed.currentItem()
        chosen = current.data(qt.Qt.UserRole) if current is not None else None
        listed.clear()
        for row in prompts:
            icon = ICONS.get(row.kind, "include" if row.positive else "exclude")
            item = qt.QListWidgetItem(self._icons[icon], row.text)
            item.setData(qt.Qt.UserRole, row.key)
            listed.addItem(item)
            if row.key == chosen:
                listed.setCurrentItem(item)

    def _show_refinement(self, status: Status) -> None:
        ui = self._ui
        self._bar.show_quality(status.quality, status.slices, status.worst)
        ui.qualityRow.visible = bool(status.quality)
        if status.quality:
            mean = sum(status.quality.values()) / len(status.quality)
            ui.qualityLabel.text = _("Estimated overlap: {mean:.0%} on average over {count} slices").format(
                mean=mean, count=len(status.quality)
            )
        ui.worstButton.enabled = status.worst is not None
        ui.deletePromptButton.enabled = ui.clearPromptsButton.enabled = bool(status.prompts)
        ui.candidateRow.visible = status.candidates > 1
        ui.candidateLabel.text = _("Candidate {number} of {count}").format(
            number=status.candidate + 1, count=status.candidates
        )
        ui.suggestionRow.visible = bool(status.suggestion)
        ui.suggestionLabel.text = _("Looks like: {name}").format(name=status.suggestion)

    def _list_cases(self, status: Status) -> None:
        tree = self._ui.casesTree
        tree.clear()
        for row in status.cases:
            item = qt.QTreeWidgetItem([row.name, ", ".join(row.structures)])
            item.setToolTip(1, "\n".join(row.structures))
            tree.addTopLevelItem(item)
        tree.resizeColumnToContents(0)
        self._ui.removeCaseButton.enabled = bool(status.cases)

    def _show_training_result(self, result: TrainingResult | None) -> None:
        ui = self._ui
        _set_text(ui.trainingResultLabel, training_result_text(result) if result is not None else "")
        picture = qt.QPixmap(result.overlay) if result is not None and Path(result.overlay).is_file() else qt.QPixmap()
        ui.overlayLabel.visible = not picture.isNull()
        width = ui.SlicerMaskSAM.width - MARGINS
        if picture.width() > width > 0:
            picture = picture.scaledToWidth(width, qt.Qt.SmoothTransformation)
        ui.overlayLabel.setPixmap(picture)


def progress_text(progress: Progress) -> str:
    """ "Slices: 12 of 40, about 20 s left"."""
    counted = _("{done} of {total}").format(done=progress.done, total=progress.total)
    text = f"{progress.text}: {counted}" if progress.total > 1 else progress.text
    if progress.seconds_left is None:
        return text
    return f"{text}, {_('about {time} left').format(time=_duration(progress.seconds_left))}"


def training_result_text(result: TrainingResult) -> str:
    """The result of teaching in a few lines."""
    lines = [_("{model} was taught in {time}.").format(model=result.model, time=_duration(result.seconds))]
    if result.dice:
        lines.append(_("Dice on held-out cases ({cases}):").format(cases=", ".join(result.left_out)))
        lines += [f"  {name}: {dice:.2f}" for name, dice in result.dice.items()]
    if result.worst_case:
        lines.append(_("The worst case, {case}:").format(case=result.worst_case))
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return _("{count} s").format(count=round(seconds))
    return _("{count} min").format(count=round(seconds / 60))


def _set_text(label: Any, text: str) -> None:
    """Set a label's text; an empty label is hidden."""
    label.text = text
    label.visible = bool(text)


def _swatch(color: tuple[int, int, int]) -> Any:
    pixmap = qt.QPixmap(SWATCH, SWATCH)
    pixmap.fill(qt.QColor(*color))
    return qt.QIcon(pixmap)
