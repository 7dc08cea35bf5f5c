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
from SlicerMaskSAMLib.mrml.prompt_values import Box as BoxPrompt
from SlicerMaskSAMLib.mrml.prompt_values import Point, Snapshot
from SlicerMaskSAMLib.mrml.prompts import Key, PromptList
from SlicerMaskSAMLib.values.history import Change, Step
from SlicerMaskSAMLib.values.sparse import Box, Sparse
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work import segment_conflicts
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.segment_conflicts import Answer
from SlicerMaskSAMLib.work.structures import Moment, Structure, has_segment, start_of


class Answers:
    """The structures that are refined, and those of them that wait for an answer."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._structures: dict[Key, Structure] = {}
        self._touched: dict[Key, Structure] = {}
        self._redrawn: dict[str, tuple[Any, bridge.Geometry]] = {}

    @property
    def waiting(self) -> bool:
        """Whether `steps` has anything to do."""
        return bool(self._touched or self._redrawn)

    def of(self, prompts: PromptList, applied: Snapshot | None = None) -> Structure:
        """The structure of a list of prompts.

        Args:
            prompts: The list.
            applied: What was answered of it, where the structure is not known yet; None for all that it holds.
        """
        found = self._structures.get(prompts.key)
        if found is not None and prompts.key not in self._touched and found.applied and not prompts.snapshot():
            found = None  # its segment was removed, and its prompts with it
        if found is None:
            found = Structure(prompts, prompts.snapshot() if applied is None else applied)
            self._structures[prompts.key] = found
        return found

    def touch(self, structure: Structure) -> None:
        """Its prompts changed, or what is known of its answer is not about them any more."""
        self._touched.pop(structure.prompts.key, None)
        self._touched[structure.prompts.key] = structure

    def redraw(self, segmentation: Any, geometry: bridge.Geometry) -> None:
        """Voxels of it changed: its surfaces, if it has any, shall be made anew when nothing is to be answered."""
        self._redrawn[segmentation.GetID()] = segmentation, geometry

    def clear(self) -> None:
        """Forget all structures; the scene is another one."""
        self._structures.clear()
        self._touched.clear()
        self._redrawn.clear()

    def take_back(self) -> bool:
        """Take back the newest prompts that were not answered yet; whether there were any."""
        for structure in (*reversed(self._touched.values()), *reversed(self._structures.values())):
            if self._there(structure) and structure.pending:
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
        while self._touched:
            structure = next(iter(self._touched.values()))
            yield from self._look_at(structure)
            yield None
        yield from self._redraw()

    def _redraw(self) -> Generator[None, None, None]:
        """Make surfaces anew, one at a time, unless there are prompts to be answered first."""
        while self._redrawn and not self._touched:
            key, (segmentation, geometry) = next(iter(self._redrawn.items()))
            outdated = bridge.outdated_surfaces(segmentation) if self._context.scene.IsNodePresent(segmentation) else []
            if outdated:
                bridge.refresh_surface(segmentation, outdated[0], geometry)
            else:
                self._redrawn.pop(key, None)
            yield None

    def _look_at(self, structure: Structure) -> Generator[Any, Any, None]:
        if not self._there(structure):
            self._touched.pop(structure.prompts.key, None)
            self._structures.pop(structure.prompts.key, None)
        elif structure.pending:
            yield from self._answer(structure)
        else:
            self._touched.pop(structure.prompts.key, None)
            if structure.accepted:
                self.accept(structure)
            elif structure.stale:
                yield from self._look_again(structure)

    def accept(self, structure: Structure) -> None:
        """Let go of the prompts, keep the voxels; later, where prompts wait to be answered."""
        structure.accepted = structure.pending
        if structure.accepted:
            self.touch(structure)
        if structure.accepted or not structure.applied:
            return
        before = self.moment(structure)
        structure.prompts.clear()
        structure.begin_anew((), {})
        self.note(structure, f"Accept {structure.name}", before)

    @staticmethod
    def moment(structure: Structure, label: Label | None = None) -> Moment:
        """How a structure is now, for the history."""
        prompts = structure.prompts
        return Moment(
            segment_id=prompts.segment_id,
            volume=prompts.volume.GetID(),
            prompts=structure.applied,
            taken=structure.taken,
            label=label,
        )

    def note(
        self,
        structure: Structure,
        text: str,
        before: Moment,
        changes: tuple[Change, ...] = (),
        label: Label | None = None,
    ) -> None:
        """Enter a step of this structure into the history; `label` is its new one, where the step changed it."""
        self._context.history.push(
            Step(
                text=text,
                changes=changes,
                before=before,
                after=self.moment(structure, label),
                segmentation=structure.prompts.segmentation.GetID(),
                geometry=bridge.geometry(structure.prompts.volume),
            )
        )
        self._context.changed()

    # -- one answer --------------------------------------------------------------------------------------------------

    def _answer(self, structure: Structure) -> Generator[Any, Any, None]:
        prompts, wanted = structure.prompts, structure.wanted()
        try:
            fingerprint = bridge.fingerprint(prompts.volume)
            found = yield from self._ask(structure, wanted)
            if not self._there(structure):
                self._context.say("The segment was deleted before the answer came, which is dropped.")
            elif bridge.fingerprint(prompts.volume) == fingerprint and structure.wants(wanted):
                self._apply(structure, wanted, *found)
        except MaskSAMError as error:
            self._give_up(structure, wanted, error)
            raise

    def _give_up(self, structure: Structure, wanted: Snapshot, error: MaskSAMError) -> None:
        """There is no answer: prompts that cannot have one go; those that a failed engine did not answer stay."""
        if isinstance(error, Cancelled) and structure.withdrawn:
            return
        structure.accepted = False
        if isinstance(error, PromptError) and structure.wants(wanted):
            structure.prompts.restore(structure.without(wanted))
        if isinstance(error, PromptError):
            return
        if isinstance(error, Cancelled) and self._there(structure):
            structure.prompts.restore(structure.applied)
        self._touched.pop(structure.prompts.key, None)

    def _ask(self, structure: Structure, wanted: Snapshot) -> Generator[Any, Any, tuple[Sparse, Sparse, Box | None]]:
        """Steps to what the engine says of the prompts that were applied, of those that are wanted, and to the box
        around the difference.
        """
        link, (_, model) = self._context.link, self._context.need()
        base = structure.applied or start_of(wanted)
        goal = start_of(base) if wanted == start_of(wanted) else wanted
        try:
            before = yield from structure.effect(link, model.name, base)
        except PromptError:  # what was answered once cannot be any more: the segment itself is the base
            prompts = structure.prompts
            before = segment_conflicts.present(
                prompts.segmentation, prompts.segment_id, bridge.geometry(prompts.volume)
            )
            if goal == start_of(goal):
                return before, before, None
        after = yield from structure.effect(link, model.name, goal)
        yield None  # large structures take some time
        changed = before.differing(after)
        yield None
        return before, after, changed

    def _apply(
        self, structure: Structure, wanted: Snapshot, before: Sparse, after: Sparse, changed: Box | None
    ) -> None:
        prompts, facts, moment = structure.prompts, structure.facts, self.moment(structure)
        geometry = bridge.geometry(prompts.volume)
        answer = Answer(
            segment_id=prompts.segment_id,
            before=before,
            after=after,
            clicks=structure.news(wanted, facts.axis),
            policy=self._context.parameters.neighbours,
            taken=structure.taken,
        )
        found = segment_conflicts.outcome(prompts.segmentation, geometry, answer, changed)
        segment_conflicts.write(prompts.segmentation, geometry, found)
        self.redraw(prompts.segmentation, geometry)
        text = f"{_deed(structure.applied, wanted)} {structure.name}"
        structure.applied, structure.taken, structure.stale = wanted, found.taken, False
        if wanted == start_of(wanted):
            prompts.clear()
            structure.begin_anew((), {})
        self.note(structure, text, moment, found.changes)
        for line in facts.messages if wanted == structure.applied else ():
            self._context.say(line)
        for name in found.protected:
            self._context.say(f"{name} is there, and other segments are protected; change that to take from it.")

    def _look_again(self, structure: Structure) -> Generator[Any, Any, None]:
        """Bring what is known of the answer in line with the prompts, after undo or redo."""
        structure.stale = False
        _, model = self._context.need()
        yield from structure.effect(self._context.link, model.name, structure.applied)
        self._context.changed()

    def _there(self, structure: Structure) -> bool:
        """Whether the segment and the volume still exist."""
        prompts, scene = structure.prompts, self._context.scene
        return bool(
            scene.IsNodePresent(prompts.segmentation)
            and scene.IsNodePresent(prompts.volume)
            and has_segment(prompts.segmentation, prompts.segment_id)
        )


def _deed(before: Snapshot, after: Snapshot) -> str:
    """What the user did, for the undo button."""
    if len(after) < len(before):
        return "Delete prompts of" if after == start_of(after) else "Delete a prompt of"
    last = after[-1] if len(after) > len(before) else None
    if isinstance(last, Point):
        return "Click in" if last.positive else "Exclude from"
    return "Box in" if isinstance(last, BoxPrompt) else "Change a prompt of"
