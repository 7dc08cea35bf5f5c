"""Undo and redo of all that the module did in the scene, with the prompts that belong to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.history import Step
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.prompt_answering import Answers
from SlicerMaskSAMLib.work.structures import Moment, has_segment


class Timeline:
    """Goes back and forth in the history.

    Args:
        context: What all parts share.
        answers: Where the structures are.
        choose: Makes a segment of a segmentation the current one.
    """

    def __init__(self, context: Context, answers: Answers, choose: Callable[[Any, str], None]) -> None:
        self._context, self._answers, self._choose = context, answers, choose

    def undo(self) -> None:
        """Take back prompts that were not answered yet, or else the last step."""
        if not self._answers.take_back():
            self._go(self._context.history.undo(), back=True)
        self._context.changed()

    def redo(self) -> None:
        """Do again what was taken back last."""
        self._go(self._context.history.redo(), back=False)
        self._context.changed()

    def _go(self, step: Step | None, *, back: bool) -> None:
        if step is None:
            return
        segmentation = self._context.scene.GetNodeByID(step.segmentation)
        if segmentation is None:
            self._context.say(f"{step.text}: its segmentation is gone, so nothing changes.")
            return
        if self._moved(step):
            self._context.say(f"{step.text}: the volume lies elsewhere now, so nothing changes.")
            return
        if not back:
            for segment_id, label in step.created:
                if not has_segment(segmentation, segment_id):
                    bridge.add_segment(segmentation, label, segment_id=segment_id)
        self._flip(segmentation, step, back=back)
        if step.changes:
            self._answers.redraw(segmentation, step.geometry)
        if back:
            for segment_id, _ in step.created:
                self._remove(segmentation, segment_id, step)
        moment = step.before if back else step.after
        if isinstance(moment, Moment):
            self._recall(segmentation, moment)
        elif not back and step.created:
            self._choose(segmentation, step.created[-1][0])

    def _moved(self, step: Step) -> bool:
        """Whether the grid of the step's volume is another one now, because its transform was hardened for instance."""
        moment = step.before
        volume = self._context.scene.GetNodeByID(moment.volume) if isinstance(moment, Moment) else None
        return volume is not None and not bridge.geometry(volume).same(step.geometry)

    def _flip(self, segmentation: Any, step: Step, *, back: bool) -> None:
        lost = False
        for change in reversed(step.changes) if back else step.changes:
            if not has_segment(segmentation, change.segment_id):
                lost = True
                continue
            now = bridge.read_segment(segmentation, change.segment_id, step.geometry, change.box)
            then = change.undone(now) if back else change.redone(now)
            bridge.write_segment(segmentation, change.segment_id, step.geometry, change.box, then)
        if lost:
            self._context.say(f"{step.text}: a segment of it is gone; the others changed.")

    def _remove(self, segmentation: Any, segment_id: str, step: Step) -> None:
        """Remove a segment that the step made, but for one that somebody has drawn in since."""
        if has_segment(segmentation, segment_id) and bridge.extent(segmentation, segment_id, step.geometry) is None:
            bridge.remove_segment(segmentation, segment_id)

    def _recall(self, segmentation: Any, moment: Moment) -> None:
        """Bring back a structure's prompts, and what is known of it."""
        volume = self._context.scene.GetNodeByID(moment.volume)
        if volume is None or not has_segment(segmentation, moment.segment_id):
            return
        if moment.label is not None:
            bridge.set_label(segmentation, moment.segment_id, moment.label)
        structure = self._answers.of(self._context.prompts.of(segmentation, moment.segment_id, volume))
        structure.prompts.restore(moment.prompts)
        structure.begin_anew(moment.prompts, moment.taken)
        self._answers.touch(structure)
        self._choose(segmentation, moment.segment_id)
