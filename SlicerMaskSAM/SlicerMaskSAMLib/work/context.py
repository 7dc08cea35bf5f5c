"""What the parts of the controller share: the scene, the parameters, the engine, the history and a voice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from MaskSAMCore.errors import InputError
from MaskSAMCore.labels import Label
from MaskSAMCore.zoo.installed import InstalledModel

if TYPE_CHECKING:
    from SlicerMaskSAMLib.engine.engine_link import EngineLink
    from SlicerMaskSAMLib.mrml.prompts import PromptNodes
    from SlicerMaskSAMLib.values.history import History


@dataclass(kw_only=True)
class Context:
    """Handed to every part at its making. Read its fields when they are needed: a new scene brings new ones.

    Attributes:
        scene: The MRML scene.
        parameters: The module's parameter node (`parameters.MaskSAMParameterNode`); another one after the scene was
            closed or loaded.
        history: Undo and redo, of all parts together.
        prompts: The markups of the scene that are prompts.
        link: The engine's process and the scans that are open in it.
        models: Models of this computer; remembered, so it may be asked at any time.
        log: Tells the user one line.
        changed: Asks the panel to show the status anew.
    """

    scene: Any
    parameters: Any
    history: History
    prompts: PromptNodes
    engine_link: EngineLink
    models: Callable[[], tuple[InstalledModel, ...]]
    log: Callable[[str], None]
    changed: Callable[[], None]

    @property
    def model(self) -> InstalledModel | None:
        """The chosen model; None where none is chosen, or it is not on this computer."""
        return next((model for model in self.models() if model.name == self.parameters.model), None)

    def require_inputs(self) -> tuple[Any, InstalledModel]:
        """The chosen volume and model.

        Raises:
            InputError: One of them is missing; says which.
        """
        volume = self.parameters.inputVolume
        if volume is None or volume.GetImageData() is None:
            raise InputError("no volume is chosen", remedy="Choose a volume first.")
        model = self.model
        if model is None or model.card is None:
            why = model.problem if model is not None else ""
            raise InputError("no model is chosen", why=why, remedy="Choose a model first.")
        return volume, model

    @property
    def labels(self) -> tuple[Label, ...]:
        """The structures of the chosen model; none without one."""
        model = self.model
        return model.card.labels.labels if model is not None and model.card is not None else ()

    def label(self, number: int) -> Label | None:
        """A structure of the chosen model by its label."""
        return next((label for label in self.labels if label.id == number), None)
