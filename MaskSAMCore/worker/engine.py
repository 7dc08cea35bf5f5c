"""The engine of the worker: passes requests to sessions and predictors, and returns their answers as plain values.

torch is imported when the engine is made, not before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from MaskSAMCore.errors import InputError, ResourceError
from MaskSAMCore.progress import CancelToken, Progress
from MaskSAMCore.worker import exports

if TYPE_CHECKING:
    import torch

    from MaskSAMCore.inference.cache import SlabCache
    from MaskSAMCore.inference.prompts import Prompt
    from MaskSAMCore.inference.results import Update
    from MaskSAMCore.inference.sessions import AnySession
    from MaskSAMCore.network.segmenter import Segmenter
    from MaskSAMCore.volume import Grid, LabelMap, Volume
    from MaskSAMCore.zoo.model_folder import ModelCard

LOG = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Model:
    """A loaded model.

    Attributes:
        key: Folder and hash of the weights; differs once the folder holds another model.
        warnings: From its loading, for the user.
    """

    key: tuple[str, str]
    network: Segmenter
    card: ModelCard
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpenCase:
    """A scan that is open with a model."""

    session: AnySession
    volume: Volume
    model: Model


class Engine:
    """All open scans, the loaded models and their encoded slabs.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Threads on the CPU; None for PyTorch's choice.

    Raises:
        InputError: The device does not exist.
        ResourceError: torch is missing.
    """

    def __init__(self, device: str = "auto", threads: int | None = None) -> None:
        try:
            import torch
        except ImportError as error:
            remedy = "Install PyTorch into the interpreter that runs the engine."
            raise ResourceError("PyTorch cannot be imported", why=str(error), remedy=remedy) from error
        from MaskSAMCore.device import choose_device
        from MaskSAMCore.inference.cache import SlabCache

        if threads:
            torch.set_num_threads(threads)
        self._device: torch.device = choose_device(device)
        self._cache: SlabCache = SlabCache()
        self._cases: dict[int, OpenCase] = {}
        self._model: Model | None = None

    def hello(self) -> dict[str, Any]:
        """Description of the device, torch's version, and the installed models."""
        import torch

        from MaskSAMCore.device import describe
        from MaskSAMCore.zoo.installed import installed_models

        models = [
            {
                "name": model.name,
                "path": str(model.path),
                "origin": model.origin,
                "modality": model.card.modality if model.card else "",
                "licence": model.card.licence if model.card else "",
                "labels": [label.name for label in model.card.labels.labels] if model.card else [],
                "problem": model.problem,
            }
            for model in installed_models()
        ]
        return {"device": describe(self._device), "torch": torch.__version__, "models": models}

    def handle(self, op: str, fields: dict[str, Any], *, progress: Progress, cancel: CancelToken) -> dict[str, Any]:
        """Do one request; see `protocol.REQUESTS`.

        Raises:
            MaskSAMError: It cannot be done; nothing is changed.
        """
        if op in exports.OPERATIONS:
            return exports.export(op, fields, progress=progress, cancel=cancel)
        from MaskSAMCore.inference.memory import MemoryLadder, clear

        ladder = MemoryLadder([clear(self._cache)])
        result = ladder.run(lambda: self._do(op, fields, progress, cancel))
        for name in {"messages", "warnings"} & result.keys():
            result[name] = [*result[name], *ladder.messages]
        return result

    def _do(self, op: str, fields: dict[str, Any], progress: Progress, cancel: CancelToken) -> dict[str, Any]:
        if op == "open":
            return self._open(fields, progress)
        case = self._cases.get(fields["case"])
        if case is None:
            raise InputError("no such case", where=f"case {fields['case']}", remedy="Open it first.")
        if op == "encode":
            runs = case.session.encode(fields["position"], slabs=fields["slabs"], cancel=cancel, progress=progress)
            return {"encoded": runs}
        if op in ("prompt", "propagate", "drop"):
            return _plain_update(self._answer(case, op, fields, progress, cancel))
        if op == "automatic":
            pairs = case.session.automatic(fields["label"], fields["slices"], cancel=cancel, progress=progress)
            return {"prompts": [[_plain_prompt(box), _plain_prompt(point)] for box, point in pairs]}
        if op == "segment":
            return self._segment(case, fields, progress, cancel)
        self._release(fields["case"])
        return {}

    def undelivered(self, op: str, fields: dict[str, Any]) -> None:
        """Take back an answer that did not reach the client, so that the next changed box fits what the client has."""
        case = self._cases.get(fields.get("case", -1))
        if case is not None and op in ("prompt", "propagate", "drop"):
            case.session.take_back(fields["structure"])

    # -- scans -------------------------------------------------------------------------------------------------------

    def _open(self, fields: dict[str, Any], progress: Progress) -> dict[str, Any]:
        from MaskSAMCore.inference.sessions import open_session
        from MaskSAMCore.volume import Grid, Volume

        number = fields["case"]
        if number in self._cases:
            raise InputError("the case is open already", where=f"case {number}")
        array = fields["volume"]
        grid = Grid(shape=array.shape[-3:], affine=np.array(fields["affine"])).check(where=fields["source"])
        volume = Volume(array=array, grid=grid, source=fields["source"], modality=fields["modality"])
        model = self._load(fields["model"])
        session = open_session(
            model.network, model.card, volume, device=self._place(model), cache=self._cache, progress=progress
        )
        self._cases[number] = OpenCase(session=session, volume=volume, model=model)
        labels = [{"id": each.id, "name": each.name, "color": each.color} for each in model.card.labels.labels]
        return {
            "id": number,
            "model": model.card.name,
            "shape": grid.shape,
            "axis": session.axis,
            "labels": labels,
            "warnings": list(dict.fromkeys((*model.warnings, *session.warnings))),
        }

    def _load(self, name: str) -> Model:
        """A model by name or folder; loaded once, as long as its folder does not change."""
        from MaskSAMCore.inference.memory import CPU, MemoryLadder, clear, spill, to_cpu
        from MaskSAMCore.zoo.installed import find_model, load_model
        from MaskSAMCore.zoo.model_folder import load_card

        path = find_model(name)
        key = str(path.resolve()), load_card(path).weights_sha256
        for known in (self._model, *(case.model for case in self._cases.values())):
            if known is not None and known.key == key:
                self._model = known
                return known
        self._model = None
        device = self._device

        def on_gpu() -> bool:
            return device.type != "cpu"

        def on_cpu() -> None:
            nonlocal device
            device = CPU

        ladder = MemoryLadder([spill(self._cache, on_gpu), to_cpu(on_cpu, on_gpu), clear(self._cache)])
        network, card = ladder.run(lambda: load_model(path, device))
        self._model = Model(key=key, network=network.eval(), card=card, warnings=tuple(ladder.messages))
        return self._model

    @staticmethod
    def _place(model: Model) -> torch.device:
        """The device of the network; the CPU after a GPU's memory was full."""
        return next(model.network.parameters()).device

    def _release(self, number: int) -> None:
        self._cases.pop(number).session.release()
        if not self._cases:
            self._cache.clear()

    # -- structures --------------------------------------------------------------------------------------------------

    @staticmethod
    def _answer(case: OpenCase, op: str, fields: dict[str, Any], progress: Progress, cancel: CancelToken) -> Update:
        session, structure = case.session, fields["structure"]
        if op == "drop":
            return session.drop(structure)
        if op == "propagate":
            return session.propagate(structure, fields["scope"], cancel=cancel, progress=progress)
        prompts = [_prompt(each, case.volume.grid) for each in fields["prompts"]]
        return session.prompt(structure, prompts, multimask=fields["multimask"], cancel=cancel, progress=progress)

    def _segment(
        self, case: OpenCase, fields: dict[str, Any], progress: Progress, cancel: CancelToken
    ) -> dict[str, Any]:
        from MaskSAMCore.inference.predictor import Predictor
        from MaskSAMCore.volume import Roi

        predictor = Predictor.of(case.model.network, case.model.card, self._place(case.model), cache=self._cache)
        found = predictor.segment(
            case.volume,
            roi=[Roi(center=each["center"], size=each["size"]) for each in fields["roi"]],
            tta=fields["tta"],
            step=fields["step"],
            progress=progress,
            cancel=cancel,
        )
        return {
            "blocks": _blocks(found.labels),
            "warnings": found.warnings,
            "device": found.device,
            "windows": found.windows,
            "seconds": found.seconds,
        }


def _prompt(fields: Mapping[str, Any], grid: Grid) -> Prompt:
    from MaskSAMCore.inference.prompts import Prompt

    given = {name: value for name, value in fields.items() if name != "space"}
    if "points" in given:
        points = fields["points"] if fields["space"] == "ijk" else grid.to_ijk(np.array(fields["points"])).tolist()
        return Prompt(**given | {"points": tuple(tuple(point) for point in points)})
    if fields["space"] == "ijk" or fields["kind"] == "mask":
        return Prompt(**given)
    if fields["kind"] == "box":
        first, second = fields["corners"]
        return replace(Prompt.box_ras(first, second, grid, scope=fields["scope"]), positive=fields["positive"])
    placed = Prompt.point_ras(fields["position"], grid, positive=fields["positive"], scope=fields["scope"])
    return replace(placed, candidate=fields["candidate"])


def _plain_prompt(prompt: Prompt) -> dict[str, Any]:
    plain: dict[str, Any] = {"kind": prompt.kind, "scope": prompt.scope}
    if prompt.kind == "box":
        return plain | {"corners": prompt.corners}
    return plain | {"position": prompt.position, "positive": prompt.positive}


def _plain_update(update: Update) -> dict[str, Any]:
    suggestion = update.suggestion
    return {
        "structure": update.structure,
        **_plain_mask(update.box, update.mask),
        "extent": update.extent,
        "voxels": update.voxels,
        "axis": update.axis,
        "quality": [[int(index), float(value)] for index, value in update.quality.items()],
        "worst": update.worst,
        "candidates": [{**_plain_mask(c.box, c.mask), "quality": float(c.quality)} for c in update.candidates],
        "suggestion": suggestion
        and {"label": suggestion.label, "name": suggestion.name, "probability": float(suggestion.probability)},
        "encoded": update.encoded,
        "seconds": update.seconds,
        "messages": update.messages,
    }


def _plain_mask(box: Sequence[int] | None, mask: np.ndarray) -> dict[str, Any]:
    return {"box": box and [int(v) for v in box], "mask": np.asarray(mask, np.uint8) if box else None}


def _blocks(labels: LabelMap) -> list[dict[str, Any]]:
    """A label map as one block for each structure of its table."""
    from scipy.ndimage import find_objects

    places = find_objects(labels.array)
    out = []
    for label in labels.labels.labels if labels.labels else ():
        place = places[label.id - 1] if label.id <= len(places) else None
        box = None if place is None else [edge for each in place for edge in (each.start, each.stop)]
        mask = np.zeros((0, 0, 0), np.uint8) if place is None else (labels.array[place] == label.id).view(np.uint8)
        out.append({"label": label.id, "name": label.name, **_plain_mask(box, mask)})
    return out
