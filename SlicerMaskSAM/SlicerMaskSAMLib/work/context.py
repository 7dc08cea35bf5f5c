"""What the parts of the controller share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from MaskSAMCore.errors import InputError
from MaskSAMCore.labels import Label
from MaskSAMCore.zoo.installed import InstalledModel

if TYPE_CHECKING:
    from SlicerMaskSAMLib.engine.engine_link import EngineLink
    from SlicerMaskSAMLib.mrml.bridge import Geometry
    from SlicerMaskSAMLib.mrml.parameters import MaskSAMParameterNode
    from SlicerMaskSAMLib.mrml.prompts import PromptNodes
    from SlicerMaskSAMLib.values.history import History
    from SlicerMaskSAMLib.work.structures import StructureState


@dataclass(kw_only=True)
class Context:
    """Scene, parameters, engine, history and log, shared by all parts.

    Read the fields when they are needed, since a new scene replaces some of them.

    Attributes:
        scene: The MRML scene.
        parameters: The module's parameter node; replaced after a scene was closed or loaded.
        history: Undo history of all parts.
        prompts: The prompts in the scene.
        engine_link: Connection to the engine, and the scans open in it.
        models: Returns the installed models; cached, so that it may be called at any time.
        log: Shows one line of text to the user.
        changed: Notifies the panel that the status changed.
    """

    scene: Any
    parameters: MaskSAMParameterNode
    history: History[StructureState, Geometry]
    prompts: PromptNodes
    engine_link: EngineLink
    models: Callable[[], tuple[InstalledModel, ...]]
    log: Callable[[str], None]
    changed: Callable[[], None]

    @property
    def model(self) -> InstalledModel | None:
        """The chosen model; None if none is chosen or it is not installed."""
        return next((model for model in self.models() if model.name == self.parameters.model), None)

    def require_inputs(self) -> tuple[Any, InstalledModel]:
        """The chosen volume and model.

        Raises:
            InputError: One of them is missing.
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
        """The structures of the chosen model; empty without one."""
        model = self.model
        return model.card.labels.labels if model is not None and model.card is not None else ()

    def label(self, number: int) -> Label | None:
        """The structure of the chosen model with this label value."""
        return next((label for label in self.labels if label.id == number), None)
