"""Actions of the section Refine: clicks, boxes, structures, undo."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import numpy as np

from MaskSAMCore.errors import MaskSAMError
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.prompt_values import PointPrompt, Snapshot
from SlicerMaskSAMLib.mrml.prompts import PromptList
from SlicerMaskSAMLib.mrml.views import Views
from SlicerMaskSAMLib.mrml.volumes import WorldPoint
from SlicerMaskSAMLib.values.choices import Scope
from SlicerMaskSAMLib.values.status import Status
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work import segment_conflicts
from SlicerMaskSAMLib.work.auto_prompts import AutomaticPrompts
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.prompt_answering import PromptAnswering
from SlicerMaskSAMLib.work.segment_conflicts import SegmentEdit
from SlicerMaskSAMLib.work.selection import Selection
from SlicerMaskSAMLib.work.structures import Structure, is_single_click, start_of
from SlicerMaskSAMLib.work.undo_redo import UndoRedo

P = ParamSpec("P")
NO_VIEW = "Click in a slice view; a position in the 3-D view has no depth."


def log_errors(method: Callable[Concatenate[Refinement, P], None]) -> Callable[Concatenate[Refinement, P], None]:
    """Decorator for methods of `Refinement`: errors become messages."""

    @functools.wraps(method)
    def call(self: Refinement, *args: P.args, **named: P.kwargs) -> None:
        try:
            method(self, *args, **named)
        except MaskSAMError as error:
            self._context.log(str(error))

    return call


class Refinement:
    """Creation and correction of structures by prompts.

    The methods change the prompts and return at once; `steps` answers them. Errors are shown as messages, not raised.

    Args:
        context: Shared parts of the module.
        views: The slice views; None if there are none.
    """

    def __init__(self, context: Context, views: Views | None = None) -> None:
        self._context, self._views = context, views
        self._selection = Selection(context)
        self._answering = PromptAnswering(context)
        self._undo_redo = UndoRedo(context, self._answering, self._selection.choose)
        self._automatic = AutomaticPrompts(context, views)
        context.prompts.on_user_change = self._on_user_change

    # -- for the controller ------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether `steps` has anything to do."""
        return self._answering.has_work or self._automatic.has_work

    def steps(self) -> Steps:
        """Answer all pending prompts, then request the automatic prompts.

        For errors see `PromptAnswering.steps`.
        """
        yield from self._answering.steps()
        yield from self._automatic.steps()

    def reset(self) -> None:
        """Forget all structures after a scene was closed or loaded."""
        self._answering.clear()
        self._automatic.has_work = False
        self._context.prompts.on_user_change = self._on_user_change

    def status(self) -> Status:
        """A status with the fields about the current structure; all others have their defaults."""
        prompts = self._selection.current()
        if prompts is None:
            return Status(can_refine=self._can_refine())
        structure, now = self._answering.structure_of(prompts), prompts.snapshot()
        details = structure.details
        suggested = details.suggestion.name if details.suggestion else ""
        alone = is_single_click(now)
        return Status(
            segment_id=prompts.segment_id,
            prompts=prompts.rows(),
            candidates=details.candidates if alone else 0,
            candidate=_candidate(now) if alone else 0,
            suggestion=suggested if suggested != structure.name else "",
            quality=dict(details.quality),
            quality_axis=details.axis,
            slices=bridge.geometry(prompts.volume).shape[details.axis],
            worst=details.worst,
            can_refine=self._can_refine(),
        )

    # -- prompts -----------------------------------------------------------------------------------------------------

    @log_errors
    def click(self, world: WorldPoint, positive: bool, slice_node: Any) -> None:
        """Include or exclude a position.

        Args:
            world: (3,) mm RAS.
            positive: Whether it is included.
            slice_node: Slice node of the view; None for the 3-D view, where clicks are ignored.
        """
        if not self._accepts(np.reshape(world, (1, 3)), slice_node):
            return
        if not positive and self._blank():
            self._context.log("The structure is empty: click on it first, or draw a box around it.")
            return
        prompts = self._selection.current_or_new()
        structure = self._prepare(prompts)
        first = not prompts.snapshot()
        prompts.add_point(world, positive=positive, scope=self._context.parameters.scope)
        if first:
            prompts.set_last(candidate=0)
        self._on_prompts_added(structure)

    @log_errors
    def draw_box(self, corner: WorldPoint, opposite: WorldPoint, slice_node: Any) -> None:
        """Add a box drawn in a slice view, by two opposite corners, (3,) mm RAS each."""
        if not self._accepts(np.array([corner, opposite], np.float64), slice_node):
            return
        axis, _ = bridge.view_plane(self._context.parameters.inputVolume, slice_node)
        prompts = self._selection.current_or_new()
        structure = self._prepare(prompts)
        prompts.add_box(corner, opposite, scope=self._context.parameters.scope, axis=axis)
        self._on_prompts_added(structure)

    @log_errors
    def delete_prompt(self, key: str) -> None:
        """Delete the prompt of a row."""
        self._change_prompts(lambda prompts: prompts.remove(key))

    @log_errors
    def clear_prompts(self) -> None:
        """Delete all prompts. The segment becomes what it was before the first one."""
        self._change_prompts(lambda prompts: prompts.clear())

    @log_errors
    def set_scope(self, scope: Scope) -> None:
        """Set how far prompts reach: those to come, and the last one, answered again."""
        self._context.parameters.scope = scope
        self._change_prompts(lambda prompts: prompts.set_last(scope=scope))

    @log_errors
    def next_candidate(self) -> None:
        """Show the next candidate mask of a single click."""
        prompts = self._selection.current()
        count = self._answering.structure_of(prompts).details.candidates if prompts is not None else 0
        if prompts is None or not is_single_click(prompts.snapshot()) or count < 2:
            self._context.log("Only a single click that includes has other candidates.")
            return
        following = (_candidate(prompts.snapshot()) + 1) % count
        self._change_prompts(lambda each: each.set_last(candidate=following))

    @log_errors
    def show_automatic(self, on: bool) -> None:
        """Show or hide the automatic prompts in the visible slice."""
        self._automatic.show(on)
        self._context.changed()

    @log_errors
    def run_automatic(self) -> None:
        """Add the automatic prompts, where they were dragged to, to their structures."""
        self._context.require_inputs()
        found = self._automatic.take()
        if not found:
            self._context.log("The automatic prompts are not shown; show them first.")
        for name, given in found.items():
            prompts = self._selection.by_name(name)
            structure = self._prepare(prompts)
            prompts.add(given)
            self._on_prompts_added(structure)

    # -- structures --------------------------------------------------------------------------------------------------

    @log_errors
    def choose_segment(self, segment_id: str) -> None:
        """Choose a segment, and show its prompts only."""
        self._selection.choose(self._context.parameters.segmentation, segment_id)

    @log_errors
    def new_structure(self, name: str = "") -> None:
        """Add a structure. A known name brings its codes and colour."""
        self._selection.choose(self._selection.segmentation(), self._selection.add_segment(name))

    @log_errors
    def next_structure(self, name: str = "") -> None:
        """Accept the current structure and choose another.

        Args:
            name: Name of a segment, which is created if it does not exist; "" for the first structure of the model
                without a segment.
        """
        self.accept()
        prompts = self._selection.by_name(name or self._selection.next_missing())
        self._selection.choose(prompts.segmentation, prompts.segment_id)

    @log_errors
    def accept(self) -> None:
        """Remove the prompts and keep the voxels."""
        prompts = self._selection.current()
        if prompts is not None:
            self._answering.accept(self._answering.structure_of(prompts))

    @log_errors
    def start_from(self, segment_id: str) -> None:
        """Start the current structure from a segment: itself, or a copy of another."""
        prompts = self._selection.current_or_new()
        structure, geometry = self._answering.structure_of(prompts), bridge.geometry(prompts.volume)
        segmentation, own = prompts.segmentation, prompts.segment_id
        box = bridge.extent(segmentation, segment_id, geometry)
        source = segmentation.GetSegmentation().GetSegment(segment_id).GetName()
        if box is None:
            self._context.log(f"{source} is empty; there is nothing to start from.")
            return
        before = self._answering.state_of(structure)
        edit = SegmentEdit(
            segment_id=own,
            before=segment_conflicts.read_mask(segmentation, own, geometry),
            after=segment_conflicts.read_mask(segmentation, segment_id, geometry),
            policy=self._context.parameters.neighbours,
            sharing=frozenset({segment_id}),
        )
        found = segment_conflicts.resolve(segmentation, geometry, edit, edit.before.differing_box(edit.after))
        segment_conflicts.write(segmentation, geometry, found)
        self._answering.mark_surfaces(segmentation, geometry)
        prompts.clear()
        prompts.set_start(bridge.read_segment(segmentation, own, geometry, box), box)
        structure.reset(prompts.snapshot(), found.taken)
        self._answering.push_step(structure, f"Start {structure.name} from {source}", before, found.changes)

    @log_errors
    def take_suggestion(self) -> None:
        """Give the current structure the name, codes and colour that the model suggests."""
        prompts = self._selection.current()
        structure = self._answering.structure_of(prompts) if prompts is not None else None
        suggestion = structure.details.suggestion if structure is not None else None
        label = self._context.label(suggestion.label) if suggestion else None
        if prompts is None or structure is None or label is None:
            self._context.log("The model has no suggestion for this structure.")
            return
        old = bridge.segment_label(prompts.segmentation, prompts.segment_id)
        bridge.set_label(prompts.segmentation, prompts.segment_id, label)
        before = self._answering.state_of(structure, old)
        self._answering.push_step(structure, f"Rename {old.name} to {structure.name}", before, label=label)

    # -- views and history -------------------------------------------------------------------------------------------

    @log_errors
    def jump_to_worst(self) -> None:
        """Show the slice with the lowest estimated quality."""
        prompts = self._selection.current()
        worst = self._answering.structure_of(prompts).details.worst if prompts is not None else None
        if worst is None:
            self._context.log("There is no answer yet; click on the structure first.")
        else:
            self.jump_to(worst)

    @log_errors
    def jump_to(self, index: int) -> None:
        """Show a slice of the current structure by its index along `Status.quality_axis`."""
        prompts = self._selection.current()
        if prompts is None or self._views is None:
            return
        geometry, axis = bridge.geometry(prompts.volume), self._answering.structure_of(prompts).details.axis
        extent = bridge.extent(prompts.segmentation, prompts.segment_id, geometry) or geometry.box
        middle = np.array([(low + high - 1) / 2 for low, high in zip(extent[::2], extent[1::2], strict=True)])
        middle[axis] = min(max(index, 0), geometry.shape[axis] - 1)
        self._views.jump(bridge.ijk_to_world(prompts.volume, [middle[::-1]])[0])

    @log_errors
    def undo(self) -> None:
        """Undo the last step."""
        self._undo_redo.undo()

    @log_errors
    def redo(self) -> None:
        """Redo the last undone step."""
        self._undo_redo.redo()

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _can_refine(self) -> bool:
        volume, model = self._context.parameters.inputVolume, self._context.model
        return volume is not None and volume.GetImageData() is not None and model is not None and model.card is not None

    def _accepts(self, world: np.ndarray, slice_node: Any) -> bool:
        """Whether these positions, (N, 3) mm RAS, may be prompted (faults.md row 59).

        Logs the reason if not.
        """
        volume, _ = self._context.require_inputs()
        if slice_node is None:
            self._context.log(NO_VIEW)
            return False
        ijk = bridge.world_to_ijk(volume, world)
        size = np.array(bridge.geometry(volume).shape[::-1])
        if (ijk.max(axis=0) >= -0.5).all() and (ijk.min(axis=0) <= size - 0.5).all():
            return True
        self._context.log(f"This position is outside {volume.GetName()}; click inside it.")
        return False

    def _blank(self) -> bool:
        """Whether the current structure is missing, or has no voxels and no prompts."""
        prompts = self._selection.current()
        if prompts is None:
            return True
        geometry = bridge.geometry(prompts.volume)
        return not prompts.snapshot() and bridge.extent(prompts.segmentation, prompts.segment_id, geometry) is None

    def _prepare(self, prompts: PromptList) -> Structure:
        """Prepare a structure for a new prompt.

        Before the first one, the segment's voxels become the start.
        """
        structure = self._answering.structure_of(prompts)
        structure.accepted = False
        if prompts.snapshot():
            return structure
        if structure.applied:  # all prompts were deleted, not answered yet
            prompts.restore(start_of(structure.applied))
            return structure
        geometry = bridge.geometry(prompts.volume)
        box = bridge.extent(prompts.segmentation, prompts.segment_id, geometry)
        if box is not None:
            prompts.set_start(bridge.read_segment(prompts.segmentation, prompts.segment_id, geometry, box), box)
        return structure

    def _on_prompts_added(self, structure: Structure) -> None:
        structure.mark_step()
        self._answering.enqueue(structure)
        self._context.changed()

    def _change_prompts(self, action: Callable[[PromptList], None]) -> None:
        """Change the prompts of the current structure other than by adding some."""
        prompts = self._selection.current()
        if prompts is None:
            return
        structure, before = self._answering.structure_of(prompts), prompts.snapshot()
        action(prompts)
        if prompts.snapshot() != before:
            structure.withdraw()
            self._answering.enqueue(structure)
            self._context.changed()

    def _on_user_change(self, prompts: PromptList, before: Snapshot) -> None:
        """Called when the user dragged, added or removed a prompt in the scene."""
        structure = self._answering.structure_of(prompts, before)
        structure.withdraw()
        self._answering.enqueue(structure)
        self._context.changed()


def _candidate(snapshot: Snapshot) -> int:
    first = snapshot[0] if snapshot else None
    return (first.candidate or 0) if isinstance(first, PointPrompt) else 0
