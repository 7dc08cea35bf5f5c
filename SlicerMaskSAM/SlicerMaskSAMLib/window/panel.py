"""Panel of the module: connects widgets of the .ui file and controller. Qt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from MaskSAMCore.config.resources import resource
from SlicerMaskSAMLib.mrml.parameters import MaskSAMParameterNode
from SlicerMaskSAMLib.mrml.regions import new_region
from SlicerMaskSAMLib.values.choices import OverlapPolicy, Region, Scope, Speed, Tool
from SlicerMaskSAMLib.values.status import Phase
from SlicerMaskSAMLib.window.dialogs import Dialogs
from SlicerMaskSAMLib.window.hotkeys import HotKeys
from SlicerMaskSAMLib.window.icons import icons
from SlicerMaskSAMLib.window.rendering import Rendering
from SlicerMaskSAMLib.window.slicebar import SliceBar
from SlicerMaskSAMLib.window.viewclicks import ViewClicks
from SlicerMaskSAMLib.work.controller import Controller

TICK_MS = 20
STATUS_MESSAGE_MS = 5000


class Panel:
    """The module's panel.

    A controller is attached by `bind` and detached by `unbind`; without one, the panel is disabled.

    Args:
        dialogs: Asks the user for consent and files.

    Attributes:
        widget: Root widget of the .ui file.
        ui: Its child widgets by name.
    """

    def __init__(self, dialogs: Dialogs | None = None) -> None:
        self.widget = slicer.util.loadUI(str(resource("UI", "SlicerMaskSAM.ui")))
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.widget.setMRMLScene(slicer.mrmlScene)
        self._dialogs = dialogs or Dialogs()
        self._bound: tuple[Controller, MaskSAMParameterNode] | None = None
        self._gui_tag = self._observer = 0
        self._entered = self._changed = self._showing = False
        self._tool = Tool.NONE
        bar = SliceBar(self._jump_to, self.ui.sliceBarPlace)
        fill(self.ui.sliceBarPlace, bar)
        drawn = icons()
        self._rendering = Rendering(self.ui, bar, drawn)
        for button in ("point", "box", "exclude"):
            getattr(self.ui, f"{button}Button").icon = drawn[button]
        self._clicks = ViewClicks(self._on_point, self._on_box, lambda: self._tool)
        self._keys = HotKeys(self._hotkeys())
        self._timer = qt.QTimer(self.widget)
        self._timer.setInterval(TICK_MS)
        wire(self._timer, "timeout()", self.tick)
        self._wire()

    @property
    def _controller(self) -> Controller:
        if self._bound is None:
            raise RuntimeError("the panel is not bound to a controller")
        return self._bound[0]

    @property
    def _parameters(self) -> MaskSAMParameterNode:
        if self._bound is None:
            raise RuntimeError("the panel is not bound to a parameter node")
        return self._bound[1]

    # -- lifetime ----------------------------------------------------------------------------------------------------

    def bind(self, controller: Controller, parameters: MaskSAMParameterNode) -> None:
        """Show a controller and its parameter node, and forward user actions to it."""
        self.unbind()
        self._bound = controller, parameters
        self._gui_tag = parameters.connectGui(self.ui)
        for combo, texts in self._choices().items():
            for index, text in enumerate(texts):
                getattr(self.ui, combo).setItemText(index, text)
        self._observer = parameters.AddObserver("ModifiedEvent", self._on_parameters)
        self.widget.enabled = True
        if self._entered:
            self._begin()
        self._show_parameters()
        self._render()

    def unbind(self) -> None:
        """Detach the controller, for instance because the scene is being closed."""
        if self._bound is not None:
            self._parameters.RemoveObserver(self._observer)
            self._parameters.disconnectGui(self._gui_tag)
        self._bound = None
        self.widget.enabled = False

    def enter(self) -> None:
        """Called when the user opens the module."""
        self._entered = True
        self._keys.install(slicer.util.mainWindow())
        self._clicks.attach()
        self._timer.start()
        if self._bound is not None:
            self._begin()

    def exit(self) -> None:
        """Called when the user opens another module. Running tasks continue."""
        self._entered = False
        self._keys.remove()
        self._choose_tool(Tool.NONE)
        self._clicks.detach()
        if self._bound is not None:
            self._controller.exit()

    def close(self) -> None:
        """Called when the module ends."""
        if self._entered:
            self.exit()
        self._timer.stop()
        self.unbind()

    def mark_changed(self) -> None:
        """Render the status again at the next tick."""
        self._changed = True

    def tick(self) -> None:
        """Let the controller continue, and show its status; called by a timer."""
        bound = self._bound
        if bound is None:
            return
        controller, _ = bound
        controller.tick()
        if self._bound is not bound:
            return  # the scene was closed meanwhile: Slicer processes events during long calls
        if self._changed:
            self._render()
        if not self._entered and controller.status().phase not in (Phase.WORKING, Phase.CANCELLING):
            self._timer.stop()

    # -- display -----------------------------------------------------------------------------------------------------

    def _render(self) -> None:
        self._changed, self._showing = False, True
        try:
            status = self._controller.status()
            self._rendering.show(status)
            selected = [status.segment_id] if status.segment_id else []
            if list(self.ui.segmentsTable.selectedSegmentIDs()) != selected:
                self.ui.segmentsTable.setSelectedSegmentIDs(selected)
            if not status.can_refine:
                self._choose_tool(Tool.NONE)
        finally:
            self._showing = False

    def _on_parameters(self, _caller: Any, _event: str) -> None:
        self._show_parameters()
        self._changed = True

    def _show_parameters(self) -> None:
        """Show parameters that connectGui does not handle."""
        ui, parameters = self.ui, self._parameters
        self._rendering.show_model(parameters.model)
        ui.roiRow.visible = parameters.region is Region.ROI
        ui.newRoiButton.enabled = parameters.inputVolume is not None
        ui.sampleButton.visible = parameters.inputVolume is None
        self._showing = True
        try:
            if ui.segmentsTable.segmentationNode() is not parameters.segmentation:
                ui.segmentsTable.setSegmentationNode(parameters.segmentation)
                ui.startSelector.setCurrentNode(parameters.segmentation)
                ui.show3DButton.setSegmentationNode(parameters.segmentation)
        finally:
            self._showing = False

    @staticmethod
    def _choices() -> dict[str, list[str]]:
        """Texts of the choices, in the order of the combo boxes."""
        texts = {
            Region.WHOLE: _("Whole volume"),
            Region.ROI: _("Region of interest"),
            Region.VIEW: _("Current view"),
            Speed.FAST: _("Fast"),
            Speed.ACCURATE: _("Accurate"),
            Scope.SLICE: _("This slice"),
            Scope.SLAB: _("Neighbouring slices"),
            Scope.VOLUME: _("Whole volume"),
            OverlapPolicy.PROTECT: _("Protect other segments"),
            OverlapPolicy.REPLACE: _("Take from other segments"),
            OverlapPolicy.OVERLAP: _("Allow overlap"),
        }
        combos = {"regionCombo": Region, "speedCombo": Speed, "scopeCombo": Scope, "neighboursCombo": OverlapPolicy}
        return {combo: [texts[member] for member in kind] for combo, kind in combos.items()}

    # -- user actions ------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        """Connect the signals of all widgets that connectGui does not handle."""
        ui = self.ui
        presses = (
            (ui.setUpButton, self._set_up),
            (ui.cancelButton, self._action("cancel")),
            (ui.newButton, self._new_structure),
            (ui.sampleButton, self._action("try_sample")),
            (ui.allButton, lambda: self._want_listed(True)),
            (ui.noneButton, lambda: self._want_listed(False)),
            (ui.newRoiButton, self._new_roi),
            (ui.segmentButton, self._action("segment")),
            (ui.pointButton, lambda: self._toggle_tool(Tool.POINT)),
            (ui.boxButton, lambda: self._toggle_tool(Tool.BOX)),
            (ui.startButton, self._start_from),
            (ui.deletePromptButton, self._delete_prompt),
            (ui.clearPromptsButton, self._action("clear_prompts")),
            (ui.nextCandidateButton, self._action("next_candidate")),
            (ui.takeSuggestionButton, self._action("take_suggestion")),
            (ui.runAutomaticButton, self._action("run_automatic")),
            (ui.worstButton, self._action("jump_to_worst")),
            (ui.undoButton, self._action("undo")),
            (ui.redoButton, self._action("redo")),
            (ui.acceptButton, self._action("accept")),
            (ui.nextButton, self._next_structure),
            (ui.tableButton, self._action("volumes_table")),
            (ui.exportButton, self._export),
            (ui.commandButton, self._copy_command),
            (ui.caseButton, self._save_case),
            (ui.folderButton, self._choose_folder),
            (ui.removeCaseButton, self._remove_case),
            (ui.teachButton, self._teach),
        )
        for button, press in presses:
            wire(button, "clicked()", press)
        wire(ui.importModelAction, "triggered()", self._import_model)
        wire(ui.removeModelAction, "triggered()", self._remove_model)
        wire(ui.removeEverythingAction, "triggered()", self._remove_everything)
        wire(ui.volumeSelector, "nodeActivated(vtkMRMLNode*)", self._choose_volume)
        wire(ui.modelCombo, "activated(int)", self._choose_model)
        wire(ui.searchEdit, "textChanged(QString)", self._rendering.search)
        wire(ui.wantedList, "itemChanged(QListWidgetItem*)", self._want)
        wire(ui.segmentsTable, "selectionChanged(QItemSelection,QItemSelection)", self._choose_segment)
        wire(ui.scopeCombo, "activated(int)", self._set_scope)
        wire(ui.automaticCheck, "clicked(bool)", self._show_automatic)

    def _hotkeys(self) -> dict[str, Callable[[], None]]:
        ui = self.ui
        return {
            "P": ui.pointButton.click,
            "X": ui.boxButton.click,
            "N": ui.excludeButton.click,
            "A": ui.acceptButton.click,
            "E": ui.nextButton.click,
            "Z": ui.undoButton.click,
            "Y": ui.redoButton.click,
            "Shift+Del": ui.clearPromptsButton.click,
            "Ctrl+Return": ui.segmentButton.click,
            "Ctrl+Enter": ui.segmentButton.click,
            "Esc": self._escape,
        }

    def _action(self, name: str) -> Callable[[], None]:
        """Slot of a button that only calls a method of the controller."""

        return lambda: getattr(self._controller, name)()

    def _escape(self) -> None:
        """Esc cancels the running task; without one, it switches the tool off."""
        if self._bound is not None and self._controller.status().phase is Phase.WORKING:
            self._controller.cancel()
        else:
            self._choose_tool(Tool.NONE)

    def _set_up(self) -> None:
        if self._dialogs.consent(self._controller.setup_text()):
            self._controller.set_up()

    def _import_model(self) -> None:
        path = self._dialogs.model_file()
        if path:
            self._controller.import_model(path)

    def _remove_model(self) -> None:
        name = self._parameters.model
        if name and self._dialogs.consent(_("Remove the model {name} from this computer?").format(name=name)):
            self._controller.remove_model(name)

    def _remove_everything(self) -> None:
        question = _("Delete the base weights, the sample data and your own models from this computer?")
        if self._dialogs.consent(question):
            self._controller.remove_everything()

    def _choose_volume(self) -> None:
        self._controller.choose_volume(self.ui.volumeSelector.currentNode())

    def _begin(self) -> None:
        """Enter the controller. If no volume is chosen, choose the one that Slicer shows."""
        if self._parameters.inputVolume is None:
            self._choose_shown_volume()
        self._controller.enter()

    def _choose_shown_volume(self) -> None:
        shown = slicer.app.applicationLogic().GetSelectionNode().GetActiveVolumeID()
        node = slicer.mrmlScene.GetNodeByID(shown) if shown else None
        if node is not None and node.IsA("vtkMRMLScalarVolumeNode"):
            self._controller.choose_volume(node)

    def _choose_model(self, index: int) -> None:
        self._controller.choose_model(self.ui.modelCombo.itemData(index))

    def _want(self, item: Any) -> None:
        self._controller.set_wanted([item.text()], item.checkState() == qt.Qt.Checked)

    def _want_listed(self, on: bool) -> None:
        items = [self.ui.wantedList.item(row) for row in range(self.ui.wantedList.count)]
        self._controller.set_wanted([item.text() for item in items if not item.isHidden()], on)

    def _new_roi(self) -> None:
        self._parameters.roi = new_region(slicer.mrmlScene, self._parameters.inputVolume)

    def _toggle_tool(self, tool: Tool) -> None:
        self._choose_tool(Tool.NONE if self._tool is tool else tool)

    def _choose_tool(self, tool: Tool) -> None:
        self._tool = tool
        self.ui.pointButton.checked = tool is Tool.POINT
        self.ui.boxButton.checked = tool is Tool.BOX

    def _on_point(self, world: Any, positive: bool, slice_node: Any) -> None:
        if self._bound is not None:
            self._controller.click(world, positive and not self.ui.excludeButton.checked, slice_node)

    def _on_box(self, corner: Any, opposite: Any, slice_node: Any) -> None:
        if self._bound is not None:
            self._controller.draw_box(corner, opposite, slice_node)

    def _choose_segment(self, _selected: Any, _deselected: Any) -> None:
        chosen = self.ui.segmentsTable.selectedSegmentIDs()
        if chosen and not self._showing and self._bound is not None:
            self._controller.choose_segment(chosen[0])

    def _new_structure(self) -> None:
        self._controller.new_structure(self._take_name())

    def _next_structure(self) -> None:
        self._controller.next_structure(self._take_name())

    def _take_name(self) -> str:
        """The name in the text field, which is cleared."""
        name = self.ui.nameEdit.text.strip()
        self.ui.nameEdit.text = ""
        return name

    def _start_from(self) -> None:
        self._controller.start_from(self.ui.startSelector.currentSegmentID())

    def _set_scope(self, index: int) -> None:
        self._controller.set_scope(list(Scope)[index])

    def _show_automatic(self, on: bool) -> None:
        self._controller.show_automatic(on)

    def _delete_prompt(self) -> None:
        item = self.ui.promptsList.currentItem()
        if item is not None:
            self._controller.delete_prompt(item.data(qt.Qt.UserRole))

    def _jump_to(self, index: int) -> None:
        self._controller.jump_to(index)

    def _export(self) -> None:
        path = self._dialogs.dicom_file()
        if path:
            self._controller.export_dicom(path, allow_uncoded=self.ui.uncodedCheck.checked)

    def _copy_command(self) -> None:
        line = self._controller.command_line()
        if line:
            slicer.app.clipboard().setText(line)
            slicer.util.showStatusMessage(_("Copied: {line}").format(line=line), STATUS_MESSAGE_MS)

    def _save_case(self) -> None:
        self._controller.save_case(self.ui.caseNameEdit.text.strip())

    def _choose_folder(self) -> None:
        folder = self._dialogs.folder(self._parameters.trainingFolder)
        if folder:
            self._parameters.trainingFolder = folder

    def _remove_case(self) -> None:
        item = self.ui.casesTree.currentItem()
        if item is not None and self._dialogs.consent(_("Delete the training case {name}?").format(name=item.text(0))):
            self._controller.remove_case(item.text(0))

    def _teach(self) -> None:
        if self._controller.status().task == "teach":
            self._controller.cancel()
        else:
            self._controller.teach(self.ui.newModelNameEdit.text.strip())


def wire(sender: Any, signal: str, slot: Callable[..., None]) -> None:
    """Connect a Qt signal; AttributeError if there is none of this name."""
    if not sender.connect(signal, slot):
        raise AttributeError(f"{sender.objectName} has no signal {signal}")


def fill(place: Any, widget: Any) -> None:
    """Put a widget that .ui files cannot contain into an empty one."""
    layout = qt.QVBoxLayout(place)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.addWidget(widget)
