"""Choice of the structure that is refined, and creation of new ones."""

from __future__ import annotations

from typing import Any

from MaskSAMCore.errors import InputError
from MaskSAMCore.labels import PALETTE, Label
from MaskSAMCore.terminology import lookup
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.prompts import PromptList
from SlicerMaskSAMLib.values.history import UndoStep
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.segment_request import segment_ids
from SlicerMaskSAMLib.work.structures import has_segment


class Selection:
    """The structure that is refined: a segment, with its prompts on a volume."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def current(self) -> PromptList | None:
        """Prompts of the chosen structure on the chosen volume; None if there is none."""
        parameters = self._context.parameters
        volume, segmentation, segment_id = parameters.inputVolume, parameters.segmentation, parameters.segmentID
        if volume is None or volume.GetImageData() is None or not has_segment(segmentation, segment_id):
            return None
        return self._context.prompts.of(segmentation, segment_id, volume)

    def segmentation(self) -> Any:
        """The chosen segmentation; a new one if none is chosen.

        Raises:
            InputError: It has another parent transform than the volume.
        """
        parameters, (volume, _) = self._context.parameters, self._context.require_inputs()
        if parameters.segmentation is None:
            name = f"{volume.GetName()} segmentation"
            parameters.segmentation = bridge.new_segmentation(self._context.scene, name, volume=volume)
        elif not bridge.same_frame(volume, parameters.segmentation):
            raise InputError(
                "has another parent transform than the volume",
                where=parameters.segmentation.GetName(),
                remedy="Put both under the same transform (module Transforms).",
            )
        return parameters.segmentation

    def current_or_new(self) -> PromptList:
        """Prompts of the chosen structure; of a new one if none is chosen."""
        segmentation = self.segmentation()
        prompts = self.current()
        if prompts is None:
            self.choose(segmentation, self.add_segment(""))
            prompts = self.of(segmentation, self._context.parameters.segmentID)
        return prompts

    def of(self, segmentation: Any, segment_id: str) -> PromptList:
        """Prompts of a segment on the chosen volume."""
        return self._context.prompts.of(segmentation, segment_id, self._context.parameters.inputVolume)

    def choose(self, segmentation: Any, segment_id: str) -> None:
        """Choose a segment, and show its prompts only."""
        parameters = self._context.parameters
        parameters.segmentation, parameters.segmentID = segmentation, segment_id
        self._context.prompts.show_only(self.current())
        self._context.changed()

    def by_name(self, name: str) -> PromptList:
        """Prompts of the segment with a name, which is created if needed."""
        segmentation = self.segmentation()
        wanted = self._label(name).name
        found = [each for each in segment_ids(segmentation) if bridge.segment_label(segmentation, each).name == wanted]
        return self.of(segmentation, found[0] if found and name else self.add_segment(name))

    def add_segment(self, name: str) -> str:
        """Add a segment; returns its ID."""
        segmentation = self.segmentation()
        segment_id = bridge.add_segment(segmentation, self._label(name))
        label = bridge.segment_label(segmentation, segment_id)
        geometry = bridge.geometry(self._context.parameters.inputVolume)
        self._context.history.push(
            UndoStep(
                text=f"New structure {label.name}",
                created=((segment_id, label),),
                segmentation=segmentation.GetID(),
                geometry=geometry,
            )
        )
        return segment_id

    def next_missing(self) -> str:
        """Name of the first wanted structure of the model without a segment, or ""."""
        segmentation, skipped = self.segmentation(), self._context.parameters.skippedStructures
        there = {bridge.segment_label(segmentation, each).name for each in segment_ids(segmentation)}
        names = [label.name for label in self._known()]
        return next((name for name in names if name not in there and name not in skipped), "")

    def _known(self) -> tuple[Label, ...]:
        """The structures of the model."""
        _, model = self._context.require_inputs()
        return model.card.labels.labels if model.card is not None else ()

    def _label(self, name: str) -> Label:
        """Label of a name: from the model, the table of structures, or a new one."""
        known = next((label for label in self._known() if label.name.casefold() == name.casefold()), None)
        term, number = lookup(name), len(segment_ids(self._context.parameters.segmentation)) + 1
        if known is not None or term is None:
            return known or Label(id=number, name=name or f"Structure {number}", color=PALETTE[number % len(PALETTE)])
        return term.label(number)
