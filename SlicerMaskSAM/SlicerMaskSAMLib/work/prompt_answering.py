"""Answers prompts: keeps voxels of structures in agreement with their markups.

Markups may change at any time, even while the engine answers. So no prompt is queued: a structure is marked as changed,
and its markups are compared with what its voxels show.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from MaskSAMCore.errors import MaskSAMError, PromptError
from MaskSAMCore.labels import Label
from MaskSAMCore.progress import Cancelled
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.prompt_values import BoxPrompt, PointPrompt, Snapshot
from SlicerMaskSAMLib.mrml.prompts import Key, PromptList
from SlicerMaskSAMLib.values.history import SegmentChange, UndoStep
from SlicerMaskSAMLib.values.sparse import SparseMask, VoxelBox
from SlicerMaskSAMLib.values.tasks import Steps, Waitable
from SlicerMaskSAMLib.work import segment_conflicts
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.segment_conflicts import SegmentEdit
from SlicerMaskSAMLib.work.structures import Structure, StructureState, has_segment, start_of


class PromptAnswering:
    """The structures that are refined, and the queue of those whose prompts changed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._structures: dict[Key, Structure] = {}
        self._queue: dict[Key, Structure] = {}
        self._outdated: dict[str, tuple[Any, bridge.Geometry]] = {}

    @property
    def has_work(self) -> bool:
        """Whether `steps` has anything to do."""
        return bool(self._queue or self._outdated)

    def structure_of(self, prompts: PromptList, applied: Snapshot | None = None) -> Structure:
        """The structure of a list of prompts.

        Args:
            prompts: The list.
            applied: The prompts that its voxels show, for a structure that is not known yet; None for all of the list.
        """
        found = self._structures.get(prompts.key)
        if found is not None and prompts.key not in self._queue and found.applied and not prompts.snapshot():
            found = None  # the segment was removed together with its prompts
        if found is None:
            found = Structure(prompts, prompts.snapshot() if applied is None else applied)
            self._structures[prompts.key] = found
        return found

    def enqueue(self, structure: Structure) -> None:
        """Queue a structure whose prompts changed, or whose answer details are outdated."""
        self._queue.pop(structure.prompts.key, None)
        self._queue[structure.prompts.key] = structure

    def mark_surfaces(self, segmentation: Any, geometry: bridge.Geometry) -> None:
        """Mark surfaces as outdated; they are refreshed when the queue is empty."""
        self._outdated[segmentation.GetID()] = segmentation, geometry

    def clear(self) -> None:
        """Forget all structures, because the scene was replaced."""
        self._structures.clear()
        self._queue.clear()
        self._outdated.clear()

    def discard_pending(self) -> bool:
        """Remove the newest unanswered prompts; returns whether there were any."""
        for structure in (*reversed(self._queue.values()), *reversed(self._structures.values())):
            if self._exists(structure) and structure.pending:
                structure.prompts.restore(structure.without_last())
                structure.withdraw()
                return True
        return False

    def steps(self) -> Steps:
        """Answer prompts until the queue is empty, then refresh the surfaces.

        Raises:
            Cancelled: The user cancelled, or the prompts changed while they were answered; call `steps` again for the
                rest.
            MaskSAMError: A prompt cannot be answered and was removed; or the engine failed, and the prompts stay
                unanswered until they are changed again.
        """
        while self._queue:
            structure = next(iter(self._queue.values()))
            yield from self._process(structure)
            yield None
        yield from self._refresh_surfaces()

    def _refresh_surfaces(self) -> Generator[None, None, None]:
        """Refresh outdated surfaces, one at a time, as long as no prompts wait."""
        while self._outdated and not self._queue:
            key, (segmentation, geometry) = next(iter(self._outdated.items()))
            outdated = bridge.outdated_surfaces(segmentation) if self._context.scene.IsNodePresent(segmentation) else []
            if outdated:
                bridge.refresh_surface(segmentation, outdated[0], geometry)
            else:
                self._outdated.pop(key, None)
            yield None

    def _process(self, structure: Structure) -> Generator[Waitable | None, Any, None]:
        if not self._exists(structure):
            self._queue.pop(structure.prompts.key, None)
            self._structures.pop(structure.prompts.key, None)
        elif structure.pending:
            yield from self._answer(structure)
        else:
            self._queue.pop(structure.prompts.key, None)
            if structure.accepted:
                self.accept(structure)
            elif structure.stale:
                yield from self._refresh_details(structure)

    def accept(self, structure: Structure) -> None:
        """Remove the prompts and keep the voxels, once all prompts are answered."""
        structure.accepted = structure.pending
        if structure.accepted:
            self.enqueue(structure)
        if structure.accepted or not structure.applied:
            return
        before = self.state_of(structure)
        structure.prompts.clear()
        structure.reset((), {})
        self.push_step(structure, f"Accept {structure.name}", before)

    @staticmethod
    def state_of(structure: Structure, label: Label | None = None) -> StructureState:
        """The present state of a structure, for the history."""
        prompts = structure.prompts
        return StructureState(
            segment_id=prompts.segment_id,
            volume=prompts.volume.GetID(),
            prompts=structure.applied,
            taken=structure.taken,
            label=label,
        )

    def push_step(
        self,
        structure: Structure,
        text: str,
        before: StructureState,
        changes: tuple[SegmentChange, ...] = (),
        label: Label | None = None,
    ) -> None:
        """Add a step of this structure to the history.

        Args:
            structure: The structure, in its state after the step.
            text: Name of the step.
            before: Its state before the step.
            changes: Voxel changes of all segments.
            label: New label of the segment, if the step changed it.
        """
        self._context.history.push(
            UndoStep(
                text=text,
                changes=changes,
                before=before,
                after=self.state_of(structure, label),
                segmentation=structure.prompts.segmentation.GetID(),
                geometry=bridge.geometry(structure.prompts.volume),
            )
        )
        self._context.changed()

    # -- answering ---------------------------------------------------------------------------------------------------

    def _answer(self, structure: Structure) -> Generator[Waitable | None, Any, None]:
        prompts, wanted = structure.prompts, structure.next_prompts()
        try:
            fingerprint = bridge.fingerprint(prompts.volume)
            found = yield from self._request(structure, wanted)
            if not self._exists(structure):
                self._context.log("The segment was deleted before it was updated; the answer is discarded.")
            elif bridge.fingerprint(prompts.volume) == fingerprint and structure.still_wanted(wanted):
                self._apply(structure, wanted, *found)
        except MaskSAMError as error:
            self._on_error(structure, wanted, error)
            raise

    def _on_error(self, structure: Structure, wanted: Snapshot, error: MaskSAMError) -> None:
        """Remove prompts that cannot be answered; keep those of a failed engine."""
        if isinstance(error, Cancelled) and structure.withdrawn:
            return
        structure.accepted = False
        if isinstance(error, PromptError) and structure.still_wanted(wanted):
            structure.prompts.restore(structure.without(wanted))
        if isinstance(error, PromptError):
            return
        if isinstance(error, Cancelled) and self._exists(structure):
            structure.prompts.restore(structure.applied)
        self._queue.pop(structure.prompts.key, None)

    def _request(
        self, structure: Structure, wanted: Snapshot
    ) -> Generator[Waitable | None, Any, tuple[SparseMask, SparseMask, VoxelBox | None]]:
        """Steps to the masks of the applied and the wanted prompts.

        Returns both masks, and the box in which they differ.
        """
        link, (_, model) = self._context.engine_link, self._context.require_inputs()
        base = structure.applied or start_of(wanted)
        goal = start_of(base) if wanted == start_of(wanted) else wanted
        try:
            before = yield from structure.mask_for(link, model.name, base)
        except PromptError:  # no longer answerable: start from the segment itself
            prompts = structure.prompts
            before = segment_conflicts.read_mask(
                prompts.segmentation, prompts.segment_id, bridge.geometry(prompts.volume)
            )
            if goal == start_of(goal):
                return before, before, None
        after = yield from structure.mask_for(link, model.name, goal)
        yield None  # this takes some time for large structures
        changed = before.differing_box(after)
        yield None
        return before, after, changed

    def _apply(
        self, structure: Structure, wanted: Snapshot, before: SparseMask, after: SparseMask, changed: VoxelBox | None
    ) -> None:
        prompts, details, state = structure.prompts, structure.details, self.state_of(structure)
        geometry = bridge.geometry(prompts.volume)
        edit = SegmentEdit(
            segment_id=prompts.segment_id,
            before=before,
            after=after,
            clicks=structure.new_clicks(wanted, details.axis),
            policy=self._context.parameters.neighbours,
            taken=structure.taken,
        )
        found = segment_conflicts.resolve(prompts.segmentation, geometry, edit, changed)
        segment_conflicts.write(prompts.segmentation, geometry, found)
        self.mark_surfaces(prompts.segmentation, geometry)
        text = f"{_step_text(structure.applied, wanted)} {structure.name}"
        structure.applied, structure.taken, structure.stale = wanted, found.taken, False
        if wanted == start_of(wanted):
            prompts.clear()
            structure.reset((), {})
        self.push_step(structure, text, state, found.changes)
        for line in details.messages if wanted == structure.applied else ():
            self._context.log(line)
        for name in found.protected:
            self._context.log(f"The click is inside {name}, which is protected; change Overlap to take voxels from it.")

    def _refresh_details(self, structure: Structure) -> Generator[Waitable | None, Any, None]:
        """Request the details of the shown answer again, after undo or redo."""
        structure.stale = False
        _, model = self._context.require_inputs()
        yield from structure.mask_for(self._context.engine_link, model.name, structure.applied)
        self._context.changed()

    def _exists(self, structure: Structure) -> bool:
        """Whether segment and volume still exist."""
        prompts, scene = structure.prompts, self._context.scene
        return bool(
            scene.IsNodePresent(prompts.segmentation)
            and scene.IsNodePresent(prompts.volume)
            and has_segment(prompts.segmentation, prompts.segment_id)
        )


def _step_text(before: Snapshot, after: Snapshot) -> str:
    """Name of the user's action, for the undo button."""
    if len(after) < len(before):
        return "Delete prompts of" if after == start_of(after) else "Delete a prompt of"
    last = after[-1] if len(after) > len(before) else None
    if isinstance(last, PointPrompt):
        return "Click in" if last.positive else "Exclude from"
    return "Box in" if isinstance(last, BoxPrompt) else "Change a prompt of"
