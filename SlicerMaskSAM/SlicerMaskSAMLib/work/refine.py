"""What clicks, boxes and the buttons of the section Refine do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from MaskSAMCore.errors import MaskSAMError
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.prompt_values import Point, Snapshot
from SlicerMaskSAMLib.mrml.prompts import PromptList
from SlicerMaskSAMLib.values.choices import Scope
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work import segment_conflicts
from SlicerMaskSAMLib.work.auto_prompts import OwnPrompts
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.prompt_answering import Answers
from SlicerMaskSAMLib.work.segment_conflicts import Answer
from SlicerMaskSAMLib.work.selection import Selection
from SlicerMaskSAMLib.work.structures import Structure, single, start_of
from SlicerMaskSAMLib.work.timeline import Timeline

NO_VIEW = "Clicks count in slice views only; a place in the 3-D view has no depth."


def told(method: Callable[..., None]) -> Callable[..., None]:
    """What goes wrong in a method of `Refinement` is said, not raised."""

    @functools.wraps(method)
    def call(self: Refinement, *args: Any, **named: Any) -> None:
        try:
            method(self, *args, **named)
        except MaskSAMError as error:
            self._context.say(str(error))

    return call


class Refinement:
    """Structures that are made and corrected by prompts.

    The methods change the prompts and return at once; `steps` answers them. What cannot be done is said, not raised.

    Args:
        context: What all parts share.
        views: The slice views (`views.Views`); None where there are none.
    """

    def __init__(self, context: Context, views: Any = None) -> None:
        self._context, self._views = context, views
        self._selection = Selection(context)
        self._answers = Answers(context)
        self._timeline = Timeline(context, self._answers, self._selection.choose)
        self._own = OwnPrompts(context, views)
        context.prompts.on_moved = self._on_moved

    # -- for the controller ------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether `steps` has anything to do."""
        return self._answers.waiting or self._own.waiting

    def steps(self) -> Steps:
        """Answer all prompts that were not answered yet (see `Answers.steps`), and ask for the model's own."""
        yield from self._answers.steps()
        yield from self._own.steps()

    def reset(self) -> None:
        """The scene was closed or read: forget its structures, and listen to its prompts."""
        self._answers.clear()
        self._own.waiting = False
        self._context.prompts.on_moved = self._on_moved

    def fields(self) -> dict[str, Any]:
        """What `Status` shows of the current structure, by the names of its fields."""
        prompts = self._selection.current()
        if prompts is None:
            return {"segment_id": "", "can_refine": self._can_refine()}
        structure, now = self._answers.of(prompts), prompts.snapshot()
        facts = structure.facts
        suggested = facts.suggestion.name if facts.suggestion else ""
        alone = single(now)
        return {
            "segment_id": prompts.segment_id,
            "prompts": prompts.rows(),
            "candidates": facts.candidates if alone else 0,
            "candidate": _candidate(now) if alone else 0,
            "suggestion": suggested if suggested != structure.name else "",
            "quality": dict(facts.quality),
            "quality_axis": facts.axis,
            "slices": bridge.geometry(prompts.volume).shape[facts.axis],
            "worst": facts.worst,
            "can_refine": self._can_refine(),
        }

    # -- prompts -----------------------------------------------------------------------------------------------------

    @told
    def click(self, world: Sequence[float], positive: bool, slice_node: Any) -> None:
        """Include or exclude a place.

        Args:
            world: (3,) mm RAS.
            positive: Whether it is included.
            slice_node: Of the view that was clicked in; None for the 3-D view, where clicks do not count.
        """
        if not self._counts(np.reshape(world, (1, 3)), slice_node):
            return
        if not positive and self._blank():
            self._context.say("Nothing is known of the structure yet: first click on it, or draw a box around it.")
            return
        prompts = self._selection.open()
        structure = self._begin(prompts)
        first = not prompts.snapshot()
        prompts.add_point(world, positive=positive, scope=self._context.parameters.scope)
        if first:
            prompts.set_last(candidate=0)
        self._added(structure)

    @told
    def draw_box(self, corner: Sequence[float], opposite: Sequence[float], slice_node: Any) -> None:
        """Add a box that was drawn in a slice view, by two opposite corners, (3,) mm RAS each."""
        if not self._counts(np.array([corner, opposite], np.float64), slice_node):
            return
        axis, _ = bridge.view_plane(self._context.parameters.inputVolume, slice_node)
        prompts = self._selection.open()
        structure = self._begin(prompts)
        prompts.add_box(corner, opposite, scope=self._context.parameters.scope, axis=axis)
        self._added(structure)

    @told
    def delete_prompt(self, key: str) -> None:
        """Delete the prompt of a row."""
        self._change(lambda prompts: prompts.remove(key))

    @told
    def clear_prompts(self) -> None:
        """Delete all prompts: the segment becomes what it was before the first one."""
        self._change(lambda prompts: prompts.clear())

    @told
    def set_scope(self, scope: Scope) -> None:
        """Choose how far prompts reach: the last one, which is answered anew, and those to come."""
        self._context.parameters.scope = scope
        self._change(lambda prompts: prompts.set_last(scope=scope))

    @told
    def next_candidate(self) -> None:
        """Show another meaning of a single click."""
        prompts = self._selection.current()
        count = self._answers.of(prompts).facts.candidates if prompts is not None else 0
        if prompts is None or not single(prompts.snapshot()) or count < 2:
            self._context.say("Only a first click that stands alone has other meanings.")
            return
        following = (_candidate(prompts.snapshot()) + 1) % count
        self._change(lambda each: each.set_last(candidate=following))

    @told
    def show_automatic(self, on: bool) -> None:
        """Show the prompts that the model gives itself in this slice, or hide them."""
        self._own.show(on)
        self._context.changed()

    @told
    def run_automatic(self) -> None:
        """Give the model's own prompts, where they were dragged to, to the structures that they are of."""
        self._context.need()
        found = self._own.take()
        if not found:
            self._context.say("The model's own prompts are not shown; show them first.")
        for name, given in found.items():
            prompts = self._selection.named(name)
            structure = self._begin(prompts)
            prompts.add(given)
            self._added(structure)

    # -- structures --------------------------------------------------------------------------------------------------

    @told
    def choose_segment(self, segment_id: str) -> None:
        """Go on with a segment; its prompts are shown, and no others."""
        self._selection.choose(self._context.parameters.segmentation, segment_id)

    @told
    def new_structure(self, name: str = "") -> None:
        """Begin a structure; where its name is known, it has codes and colour at once."""
        self._selection.choose(self._selection.segmentation(), self._selection.new(name))

    @told
    def next_structure(self, name: str = "") -> None:
        """Accept the current structure and go on with another.

        Args:
            name: Of a segment that is there, or of a new one; "" for the first of the model's that has no segment yet.
        """
        self.accept()
        prompts = self._selection.named(name or self._selection.missing())
        self._selection.choose(prompts.segmentation, prompts.segment_id)

    @told
    def accept(self) -> None:
        """Let go of the prompts and keep the voxels."""
        prompts = self._selection.current()
        if prompts is not None:
            self._answers.accept(self._answers.of(prompts))

    @told
    def start_from(self, segment_id: str) -> None:
        """Let the current structure start from a segment as it is now: from itself, or from a copy of another one."""
        prompts = self._selection.open()
        structure, geometry = self._answers.of(prompts), bridge.geometry(prompts.volume)
        segmentation, own = prompts.segmentation, prompts.segment_id
        box = bridge.extent(segmentation, segment_id, geometry)
        source = segmentation.GetSegmentation().GetSegment(segment_id).GetName()
        if box is None:
            self._context.say(f"{source} is empty; there is nothing to start from.")
            return
        before = self._answers.moment(structure)
        answer = Answer(
            segment_id=own,
            before=segment_conflicts.present(segmentation, own, geometry),
            after=segment_conflicts.present(segmentation, segment_id, geometry),
            policy=self._context.parameters.neighbours,
            sharing=frozenset({segment_id}),
        )
        found = segment_conflicts.outcome(segmentation, geometry, answer, answer.before.differing(answer.after))
        segment_conflicts.write(segmentation, geometry, found)
        self._answers.redraw(segmentation, geometry)
        prompts.clear()
        prompts.set_start(bridge.read_segment(segmentation, own, geometry, box), box)
        structure.begin_anew(prompts.snapshot(), found.taken)
        self._answers.note(structure, f"Start {structure.name} from {source}", before, found.changes)

    @told
    def take_suggestion(self) -> None:
        """Give the current structure the name, codes and colour of what the model takes it for."""
        prompts = self._selection.current()
        structure = self._answers.of(prompts) if prompts is not None else None
        suggestion = structure.facts.suggestion if structure is not None else None
        label = self._context.label(suggestion.label) if suggestion else None
        if prompts is None or structure is None or label is None:
            self._context.say("The model suggests nothing for this structure.")
            return
        old = bridge.segment_label(prompts.segmentation, prompts.segment_id)
        bridge.set_label(prompts.segmentation, prompts.segment_id, label)
        before = self._answers.moment(structure, old)
        self._answers.note(structure, f"Name {old.name} {structure.name}", before, label=label)

    # -- where to look, and back in time -----------------------------------------------------------------------------

    @told
    def jump_to_worst(self) -> None:
        """Show the slice of which the model is least sure."""
        prompts = self._selection.current()
        worst = self._answers.of(prompts).facts.worst if prompts is not None else None
        if worst is None:
            self._context.say("There is no answer yet whose slices could be compared.")
        else:
            self.jump_to(worst)

    @told
    def jump_to(self, index: int) -> None:
        """Show a slice of the current structure, by its index along `Status.quality_axis`."""
        prompts = self._selection.current()
        if prompts is None or self._views is None:
            return
        geometry, axis = bridge.geometry(prompts.volume), self._answers.of(prompts).facts.axis
        extent = bridge.extent(prompts.segmentation, prompts.segment_id, geometry) or geometry.box
        middle = np.array([(low + high - 1) / 2 for low, high in zip(extent[::2], extent[1::2], strict=True)])
        middle[axis] = min(max(index, 0), geometry.shape[axis] - 1)
        self._views.jump(bridge.ijk_to_world(prompts.volume, [middle[::-1]])[0])

    @told
    def undo(self) -> None:
        """Take back what was done last."""
        self._timeline.undo()

    @told
    def redo(self) -> None:
        """Do again what was taken back last."""
        self._timeline.redo()

    # -- changes of the prompts --------------------------------------------------------------------------------------

    def _can_refine(self) -> bool:
        volume, model = self._context.parameters.inputVolume, self._context.model
        return volume is not None and volume.GetImageData() is not None and model is not None and model.card is not None

    def _counts(self, world: np.ndarray, slice_node: Any) -> bool:
        """Whether these places, (N, 3) mm RAS, may be prompted; says why not (faults.md row 59)."""
        volume, _ = self._context.need()
        if slice_node is None:
            self._context.say(NO_VIEW)
            return False
        ijk = bridge.world_to_ijk(volume, world)
        size = np.array(bridge.geometry(volume).shape[::-1])
        if (ijk.max(axis=0) >= -0.5).all() and (ijk.min(axis=0) <= size - 0.5).all():
            return True
        self._context.say(f"That is outside of {volume.GetName()}; click inside of it.")
        return False

    def _blank(self) -> bool:
        """Whether the current structure has neither voxels nor prompts, or is not there at all."""
        prompts = self._selection.current()
        if prompts is None:
            return True
        geometry = bridge.geometry(prompts.volume)
        return not prompts.snapshot() and bridge.extent(prompts.segmentation, prompts.segment_id, geometry) is None

    def _begin(self, prompts: PromptList) -> Structure:
        """Before a prompt is added: the first one starts from what the segment holds."""
        structure = self._answers.of(prompts)
        structure.accepted = False
        if prompts.snapshot():
            return structure
        if structure.applied:  # its prompts were deleted, which waits to be answered
            prompts.restore(start_of(structure.applied))
            return structure
        geometry = bridge.geometry(prompts.volume)
        box = bridge.extent(prompts.segmentation, prompts.segment_id, geometry)
        if box is not None:
            prompts.set_start(bridge.read_segment(prompts.segmentation, prompts.segment_id, geometry, box), box)
        return structure

    def _added(self, structure: Structure) -> None:
        structure.added()
        self._answers.touch(structure)
        self._context.changed()

    def _change(self, action: Callable[[PromptList], None]) -> None:
        """Do something else to the prompts of the current structure."""
        prompts = self._selection.current()
        if prompts is None:
            return
        structure, before = self._answers.of(prompts), prompts.snapshot()
        action(prompts)
        if prompts.snapshot() != before:
            structure.withdraw()
            self._answers.touch(structure)
            self._context.changed()

    def _on_moved(self, prompts: PromptList, before: Snapshot) -> None:
        """The user dragged, added or removed a prompt in the scene."""
        structure = self._answers.of(prompts, before)
        structure.withdraw()
        self._answers.touch(structure)
        self._context.changed()


def _candidate(snapshot: Snapshot) -> int:
    first = snapshot[0] if snapshot else None
    return (first.candidate or 0) if isinstance(first, Point) else 0
