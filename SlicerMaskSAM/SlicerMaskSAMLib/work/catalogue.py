"""Installed models and their structures, as listed by the panel."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

from MaskSAMCore.labels import Label
from MaskSAMCore.zoo.installed import InstalledModel
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.modality import modality
from SlicerMaskSAMLib.values.status import ModelRow, StructureRow


class Library(Protocol):
    """Source of models; the module `MaskSAMCore.zoo.installed` is one."""

    def installed_models(self) -> list[InstalledModel]:
        """All models, damaged ones included."""
        ...


class Catalogue:
    """Caches the models' cards and the modality of a volume.

    Args:
        library: Source of models.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._models: tuple[InstalledModel, ...] | None = None
        self._looked_at: tuple[str, str] = ("", "")

    def models(self) -> tuple[InstalledModel, ...]:
        """The installed models, as last read."""
        if self._models is None:
            self._models = tuple(self._library.installed_models())
        return self._models

    def refresh(self) -> None:
        """Discard the cache, so that the models are read again."""
        self._models = None

    def mismatch(self, model: InstalledModel, volume: Any) -> str:
        """Why a model cannot be used on a volume; "" if it can, or nothing is known."""
        if model.card is None:
            return model.problem
        channels = model.card.config.model.channels
        if channels != 1:
            return f"It needs {channels} images of the same anatomy; this volume has one."
        found, made_for = self._modality(volume), model.card.modality
        if found and made_for and found != made_for:
            return f"It was made for {made_for}; this volume is {found}."
        return ""

    def model_rows(self, volume: Any) -> tuple[ModelRow, ...]:
        """A row for every model; `volume` may be None."""
        return tuple(self._row(model, volume) for model in self.models())

    def _row(self, model: InstalledModel, volume: Any) -> ModelRow:
        reason, card = self.mismatch(model, volume), model.card
        return ModelRow(
            name=model.name,
            modality=card.modality if card is not None else "",
            licence=card.licence if card is not None else "",
            structures=tuple(label.name for label in card.labels.labels) if card is not None else (),
            usable=not reason,
            reason=reason,
        )

    def _modality(self, volume: Any) -> str:
        """Modality of a volume in its present state; its voxels are examined once."""
        if volume is None or volume.GetImageData() is None:
            return ""
        state = bridge.fingerprint(volume)
        if self._looked_at[0] != state:
            self._looked_at = state, modality(volume)
        return self._looked_at[1]


def structure_rows(labels: Iterable[Label], skipped: Collection[str]) -> tuple[StructureRow, ...]:
    """A row for every structure of a model."""
    return tuple(
        StructureRow(label=label.id, name=label.name, color=label.color, wanted=label.name not in skipped)
        for label in labels
    )
