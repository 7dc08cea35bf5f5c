"""Automatic prompts: the model's own prompts in the visible slice."""

from __future__ import annotations

from typing import Any

from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.auto_prompts import AutomaticPromptNodes
from SlicerMaskSAMLib.mrml.prompt_values import BoxPrompt, PointPrompt
from SlicerMaskSAMLib.mrml.views import Views
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work.context import Context


class AutomaticPrompts:
    """Requests the model's automatic prompts, shows them, and passes them on.

    Args:
        context: Shared parts of the module.
        views: The slice views; without them the middle slice of the volume is used.

    Attributes:
        has_work: Whether `steps` has anything to do.
    """

    def __init__(self, context: Context, views: Views | None) -> None:
        self._context, self._views = context, views
        self._shown = AutomaticPromptNodes(context.scene)
        self.has_work = False

    def show(self, on: bool) -> None:
        """Request the prompts, which `steps` then shows, or hide them."""
        self._context.parameters.showAutomatic = on
        self.has_work = on
        if not on:
            self._shown.hide()

    def take(self) -> dict[str, list[PointPrompt | BoxPrompt]]:
        """The shown prompts at their present position, by structure; hides them."""
        found = self._shown.prompts(scope=self._context.parameters.scope)
        self.show(False)
        return found

    def steps(self) -> Steps:
        """Request the prompts from the engine and show them.

        Raises:
            MaskSAMError: No volume or model is chosen, the model has no automatic prompts, or the engine failed.
        """
        if not self.has_work:
            return
        self.has_work = False
        context = self._context
        volume, model = context.require_inputs()
        case = yield from context.engine_link.case(volume, model.name)
        index, skipped = self._index(volume, case.axis), set(context.parameters.skippedStructures)
        found = {}
        for label in model.card.labels.labels if model.card is not None else ():
            if label.name not in skipped:
                job = context.engine_link.client.submit("automatic", case=case, label=label.id, slices=[index])
                pairs = (yield job)["prompts"]
                found[label.name] = [prompt for pair in pairs for prompt in pair]
        if not context.parameters.showAutomatic or context.parameters.inputVolume is not volume:
            return
        self._shown.show(volume, found)
        if not any(found.values()):
            context.log("The model found none of its structures in this slice.")

    def _index(self, volume: Any, axis: int) -> int:
        """Index of the visible slice along the model's axis of (K, J, I)."""
        count = bridge.geometry(volume).shape[axis]
        place = self._views.position() if self._views is not None else None
        if place is None:
            return count // 2
        return min(max(round(float(bridge.world_to_ijk(volume, [place])[0][2 - axis])), 0), count - 1)
