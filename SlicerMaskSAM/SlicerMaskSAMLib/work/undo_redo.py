"""Undo and redo of the module's changes in the scene, prompts included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.history import UndoStep
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.prompt_answering import PromptAnswering
from SlicerMaskSAMLib.work.structures import StructureState, has_segment


class UndoRedo:
    """Applies the steps of the history.

    Args:
        context: Shared parts of the module.
        answering: The refined structures.
        choose: Chooses a segment of a segmentation.
    """

    def __init__(self, context: Context, answering: PromptAnswering, choose: Callable[[Any, str], None]) -> None:
        self._context, self._answering, self._choose = context, answering, choose

    def undo(self) -> None:
        """Remove unanswered prompts or, if there are none, undo the last step."""
        if not self._answering.discard_pending():
            self._apply(self._context.history.undo(), back=True)
        self._context.changed()

    def redo(self) -> None:
        """Redo the last undone step."""
        self._apply(self._context.history.redo(), back=False)
        self._context.changed()

    def _apply(self, step: UndoStep[StructureState, bridge.Geometry] | None, *, back: bool) -> None:
        if step is None:
            return
        segmentation = self._context.scene.GetNodeByID(step.segmentation)
        if segmentation is None:
            self._context.log(f"{step.text}: the segmentation no longer exists; nothing was changed.")
            return
        if self._grid_changed(step):
            self._context.log(f"{step.text}: the volume was moved; nothing was changed.")
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

    def _grid_changed(self, step: UndoStep[StructureState, bridge.Geometry]) -> bool:
        """Whether the grid of the step's volume changed, e.g. by a hardened transform."""
        state = step.before
        volume = self._context.scene.GetNodeByID(state.volume) if isinstance(state, StructureState) else None
        return volume is not None and not bridge.geometry(volume).same(step.geometry)

    def _write_changes(self, segmentation: Any, step: UndoStep[StructureState, bridge.Geometry], *, back: bool) -> None:
        lost = False
        for change in reversed(step.changes) if back else step.changes:
            if not has_segment(segmentation, change.segment_id):
                lost = True
                continue
            now = bridge.read_segment(segmentation, change.segment_id, step.geometry, change.box)
            then = change.undone(now) if back else change.redone(now)
            bridge.write_segment(segmentation, change.segment_id, step.geometry, change.box, then)
        if lost:
            self._context.log(f"{step.text}: a segment no longer exists; the others were changed.")

    def _remove(self, segmentation: Any, segment_id: str, step: UndoStep[StructureState, bridge.Geometry]) -> None:
        """Remove a segment that the step created, unless something was drawn in it since."""
        if has_segment(segmentation, segment_id) and bridge.extent(segmentation, segment_id, step.geometry) is None:
            bridge.remove_segment(segmentation, segment_id)

    def _restore_prompts(self, segmentation: Any, state: StructureState) -> None:
        """Restore a structure's prompts and its label."""
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
