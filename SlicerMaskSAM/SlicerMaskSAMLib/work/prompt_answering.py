"""From the markups to the voxels: what was asked for is answered, one step after the other, until nothing is open.

Markups may change at any time, in the middle of an answer too. So nothing is queued: a structure is only noted as
touched, and its markups are compared with what its voxels show.
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
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work import segment_conflicts
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.segment_conflicts import SegmentEdit
from SlicerMaskSAMLib.work.structures import Structure, StructureState, has_segment, start_of


class PromptAnswering:
    """The structures that are refined, and those of them that wait for an answer."""

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
            applied: What was answered of it, where the structure is not known yet; None for all that it holds.
        """
        found = self._structures.get(prompts.key)
        if found is not None and prompts.key not in self._queue and found.applied and not prompts.snapshot():
            found = None  # its segment was removed, and its prompts with it
        if found is None:
            found = Structure(prompts, prompts.snapshot() if applied is None else applied)
            self._structures[prompts.key] = found
        return found

    def enqueue(self, structure: Structure) -> None:
        """Its prompts changed, or what is known of its answer is not about them any more."""
        self._queue.pop(structure.prompts.key, None)
        self._queue[structure.prompts.key] = structure

    def mark_surfaces(self, segmentation: Any, geometry: bridge.Geometry) -> None:
        """Voxels of it changed: its surfaces, if it has any, shall be made anew when nothing is to be answered."""
        self._outdated[segmentation.GetID()] = segmentation, geometry

    def clear(self) -> None:
        """Forget all structures; the scene is another one."""
        self._structures.clear()
        self._queue.clear()
        self._outdated.clear()

    def discard_pending(self) -> bool:
        """Take back the newest prompts that were not answered yet; whether there were any."""
        for structure in (*reversed(self._queue.values()), *reversed(self._structures.values())):
            if self._exists(structure) and structure.pending:
                structure.prompts.restore(structure.without_last())
                structure.withdraw()
                return True
        return False

    def steps(self) -> Steps:
        """Answer until nothing waits, and bring the surfaces up to date.

        Raises:
            Cancelled: Somebody ended it, or other prompts took the place of those that were asked about; what waits
                is to be answered by new steps.
            MaskSAMError: A prompt cannot be answered, and was taken back; or the engine failed, and the prompts wait
                until they are touched again.
        """
        while self._queue:
            structure = next(iter(self._queue.values()))
            yield from self._process(structure)
            yield None
        yield from self._refresh_surfaces()

    def _refresh_surfaces(self) -> Generator[None, None, None]:
        """Make surfaces anew, one at a time, unless there are prompts to be answered first."""
        while self._outdated and not self._queue:
            key, (segmentation, geometry) = next(iter(self._outdated.items()))
            outdated = bridge.outdated_surfaces(segmentation) if self._context.scene.IsNodePresent(segmentation) else []
            if outdated:
                bridge.refresh_surface(segmentation, outdated[0], geometry)
            else:
                self._outdated.pop(key, None)
            yield None

    def _process(self, structure: Structure) -> Generator[Any, Any, None]:
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
        """Let go of the prompts, keep the voxels; later, where prompts wait to be answered."""
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
        """How a structure is now, for the history."""
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
        """Enter a step of this structure into the history; `label` is its new one, where the step changed it."""
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

    # -- one answer --------------------------------------------------------------------------------------------------

    def _answer(self, structure: Structure) -> Generator[Any, Any, None]:
        prompts, wanted = structure.prompts, structure.next_prompts()
        try:
            fingerprint = bridge.fingerprint(prompts.volume)
            found = yield from self._request(structure, wanted)
            if not self._exists(structure):
                self._context.log("The segment was deleted before the answer came, which is dropped.")
            elif bridge.fingerprint(prompts.volume) == fingerprint and structure.still_wanted(wanted):
                self._apply(structure, wanted, *found)
        except MaskSAMError as error:
            self._on_error(structure, wanted, error)
            raise

    def _on_error(self, structure: Structure, wanted: Snapshot, error: MaskSAMError) -> None:
        """There is no answer: prompts that cannot have one go; those that a failed engine did not answer stay."""
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
    ) -> Generator[Any, Any, tuple[SparseMask, SparseMask, VoxelBox | None]]:
        """Steps to what the engine says of the prompts that were applied, of those that are wanted, and to the box
        around the difference.
        """
        link, (_, model) = self._context.engine_link, self._context.require_inputs()
        base = structure.applied or start_of(wanted)
        goal = start_of(base) if wanted == start_of(wanted) else wanted
        try:
            before = yield from structure.mask_for(link, model.name, base)
        except PromptError:  # what was answered once cannot be any more: the segment itself is the base
            prompts = structure.prompts
            before = segment_conflicts.read_mask(
                prompts.segmentation, prompts.segment_id, bridge.geometry(prompts.volume)
            )
            if goal == start_of(goal):
                return before, before, None
        after = yield from structure.mask_for(link, model.name, goal)
        yield None  # large structures take some time
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
            self._context.log(f"{name} is there, and other segments are protected; change that to take from it.")

    def _refresh_details(self, structure: Structure) -> Generator[Any, Any, None]:
        """Bring what is known of the answer in line with the prompts, after undo or redo."""
        structure.stale = False
        _, model = self._context.require_inputs()
        yield from structure.mask_for(self._context.engine_link, model.name, structure.applied)
        self._context.changed()

    def _exists(self, structure: Structure) -> bool:
        """Whether the segment and the volume still exist."""
        prompts, scene = structure.prompts, self._context.scene
        return bool(
            scene.IsNodePresent(prompts.segmentation)
            and scene.IsNodePresent(prompts.volume)
            and has_segment(prompts.segmentation, prompts.segment_id)
        )


def _step_text(before: Snapshot, after: Snapshot) -> str:
    """What the user did, for the undo button."""
    if len(after) < len(before):
        return "Delete prompts of" if after == start_of(after) else "Delete a prompt of"
    last = after[-1] if len(after) > len(before) else None
    if isinstance(last, PointPrompt):
        return "Click in" if last.positive else "Exclude from"
    return "Box in" if isinstance(last, BoxPrompt) else "Change a prompt of"
