"""Undo and redo of all that the module did in the scene, with the prompts that belong to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.history import UndoStep
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.prompt_answering import PromptAnswering
from SlicerMaskSAMLib.work.structures import StructureState, has_segment


class UndoRedo:
    """Goes back and forth in the history.

    Args:
        context: What all parts share.
        answers: Where the structures are.
        choose: Makes a segment of a segmentation the current one.
    """

    def __init__(self, context: Context, answering: PromptAnswering, choose: Callable[[Any, str], None]) -> None:
        self._context, self._answering, self._choose = context, answering, choose

    def undo(self) -> None:
        """Take back prompts that were not answered yet, or else the last step."""
        if not self._answering.discard_pending():
            self._apply(self._context.history.undo(), back=True)
        self._context.changed()

    def redo(self) -> None:
        """Do again what was taken back last."""
        self._apply(self._context.history.redo(), back=False)
        self._context.changed()

    def _apply(self, step: UndoStep | None, *, back: bool) -> None:
        if step is None:
            return
        segmentation = self._context.scene.GetNodeByID(step.segmentation)
        if segmentation is None:
            self._context.log(f"{step.text}: its segmentation is gone, so nothing changes.")
            return
        if self._grid_changed(step):
            self._context.log(f"{step.text}: the volume lies elsewhere now, so nothing changes.")
            return
        if not back:
            for segment_id, label in step.created:
                if not has_segment(segmentation, segment_id):
                    bridge.add_segment(segmentation, label, segment_id=segment_id)
        self._write_changes(segmentation, step, back=back)
        if step.changes:
            self._answering.mark_surfaces(segmentation, step.geometry)
        if back:
            for segment_id, _ in step.created:
                self._remove(segmentation, segment_id, step)
        state = step.before if back else step.after
        if isinstance(state, StructureState):
            self._restore_prompts(segmentation, state)
        elif not back and step.created:
            self._choose(segmentation, step.created[-1][0])

    def _grid_changed(self, step: UndoStep) -> bool:
        """Whether the grid of the step's volume is another one now, because its transform was hardened for instance."""
        state = step.before
        volume = self._context.scene.GetNodeByID(state.volume) if isinstance(state, StructureState) else None
        return volume is not None and not bridge.geometry(volume).same(step.geometry)

    def _write_changes(self, segmentation: Any, step: UndoStep, *, back: bool) -> None:
        lost = False
        for change in reversed(step.changes) if back else step.changes:
            if not has_segment(segmentation, change.segment_id):
                lost = True
                continue
            now = bridge.read_segment(segmentation, change.segment_id, step.geometry, change.box)
            then = change.undone(now) if back else change.redone(now)
            bridge.write_segment(segmentation, change.segment_id, step.geometry, change.box, then)
        if lost:
            self._context.log(f"{step.text}: a segment of it is gone; the others changed.")

    def _remove(self, segmentation: Any, segment_id: str, step: UndoStep) -> None:
        """Remove a segment that the step made, but for one that somebody has drawn in since."""
        if has_segment(segmentation, segment_id) and bridge.extent(segmentation, segment_id, step.geometry) is None:
            bridge.remove_segment(segmentation, segment_id)

    def _restore_prompts(self, segmentation: Any, state: StructureState) -> None:
        """Bring back a structure's prompts, and what is known of it."""
        volume = self._context.scene.GetNodeByID(state.volume)
        if volume is None or not has_segment(segmentation, state.segment_id):
            return
        if state.label is not None:
            bridge.set_label(segmentation, state.segment_id, state.label)
        structure = self._answering.structure_of(self._context.prompts.of(segmentation, state.segment_id, volume))
        structure.prompts.restore(state.prompts)
        structure.reset(state.prompts, state.taken)
        self._answering.enqueue(structure)
        self._choose(segmentation, state.segment_id)
