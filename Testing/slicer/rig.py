"""The module's parts over Slicer's scene, with engines that answer by rule or the real one, driven by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.config.schema import Config
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.terminology import lookup
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.zoo.installed import InstalledModel
from MaskSAMCore.zoo.model_folder import BaseRef, ModelCard
from Testing.fake_engine import WORDS
from Testing.slicer import environment
from Testing.workers import LONG_S, SHAPE, eventually, fake, scan

BRIGHT, CORNER = "Liver", "Spleen"
"""What the fake engine's labels 1, all that is brighter than the mean, and 2, the first voxel, are called here."""


def fake_model(name: str, *, modality: str = "", channels: int = 1, base: str = "") -> InstalledModel:
    """A model of the fake engine; its name says how that behaves."""
    config = Config()
    config = replace(config, model=replace(config.model, channels=channels))
    labels = tuple(lookup(each).label(number) for number, each in enumerate((BRIGHT, CORNER), start=1))
    card = ModelCard(
        name=name,
        config=config,
        labels=LabelTable(labels=labels),
        plan={},
        modality=modality,
        licence="CC0",
        base=BaseRef(name=base, sha256="") if base else None,
    )
    return InstalledModel(name=name, path=Path(name), origin="user", card=card)


def damaged_model(name: str) -> InstalledModel:
    """A model whose card cannot be read."""
    return InstalledModel(name=name, path=Path(name), origin="user", card=None, problem="weights are damaged")


class Library:
    """Models of the fake engine, in place of those of this computer."""

    def __init__(self, *models: InstalledModel) -> None:
        self.models = list(models) or [fake_model(word) for word in WORDS]

    def installed_models(self) -> list[InstalledModel]:
        return list(self.models)


class KeptEngine(EngineClient):
    """The real engine with its models, kept from one test to the next: `close` does not end it, `end` does."""

    def __init__(self) -> None:
        self._listener: Callable[[dict[str, Any]], None] | None = None
        super().__init__(device="cpu", threads=2, on_event=self._pass_on)

    def start(self, listener: Callable[[dict[str, Any]], None]) -> EngineClient:
        """Be the engine of a controller."""
        self._listener = listener
        if self.ready:
            listener({"event": "ready", "hello": self.hello})
        return self

    def close(self) -> None:
        """Listen to its controller no more."""
        self._listener = None

    def end(self) -> None:
        """End the process."""
        super().close()

    def _pass_on(self, event: dict[str, Any]) -> None:
        if self._listener is not None:
            self._listener(event)


class Rig:
    """A controller on the scene, with its timer turned by hand; a context manager that closes it.

    Attributes:
        engines: Those that were started.
        asked: The operations that were submitted to them.
    """

    def __init__(
        self,
        scene: Any,
        *,
        start: Callable[[Callable[[dict[str, Any]], None]], EngineClient] | None = None,
        library: Any = None,
        patience: float = LONG_S,
        **parts: Any,
    ) -> None:
        from SlicerMaskSAMLib.work.controller import Controller

        self._patience = patience
        self._start = start or (lambda on_event: fake(on_event=on_event))
        self.engines: list[EngineClient] = []
        self.asked: list[str] = []
        self.changes = 0
        self.scene, self.parameters = scene, parameters()
        self.controller = Controller(
            scene,
            self.parameters,
            start_engine=self._started,
            library=library or Library(),
            changed=self._count,
            **parts,
        )

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.controller.close()

    def _started(self, on_event: Callable[[dict[str, Any]], None]) -> EngineClient:
        engine = self._start(on_event)
        self.engines.append(engine)
        submit = type(engine).submit
        engine.submit = lambda op, **fields: self.asked.append(op) or submit(engine, op, **fields)  # type: ignore
        return engine

    def _count(self) -> None:
        self.changes += 1

    @property
    def status(self) -> Any:
        """As the panel would show it now."""
        return self.controller.status()

    @property
    def worker(self) -> int:
        """Process ID of the engine."""
        return self.engines[-1].hello["pid"]

    def has_message(self, text: str) -> bool:
        """Whether a message contains this text."""
        return any(text in line for line in self.status.messages)

    def until(self, what: Callable[[], Any]) -> bool:
        """Turn the timer until it is so; whether it is in the end."""

        def turned() -> Any:
            self.controller.tick()
            return what()

        return eventually(turned, self._patience)

    def idle(self) -> bool:
        """Turn the timer until nothing is going on that the user waits for; whether that came."""
        return self.until(lambda: not self.status.task)

    def choose(self, node: Any, model: str = "plain") -> Any:
        """Choose volume and model; the volume."""
        self.controller.choose_volume(node)
        self.controller.choose_model(model)
        return node

    def working(self) -> bool:
        """Press Segment and wait until the engine tells that it is at it."""
        self.controller.segment()
        return self.until(lambda: self.status.progress is not None and self.status.progress.text == "Slices")

    def segment(self) -> Any:
        """Press Segment and wait for the end; the segmentation that is chosen then."""
        self.controller.segment()
        assert self.idle()
        return self.parameters.segmentation


def volume(shape: Sequence[int] = SHAPE, *, name: str = "Scan", seed: int = 0, affine: np.ndarray | None = None) -> Any:
    """A volume node of noise."""
    return environment.add_volume(scan(tuple(shape), seed), affine, name)


def bright(node: Any) -> np.ndarray:
    """What the fake engine finds in a volume: bool (K, J, I)."""
    import slicer.util

    voxels = slicer.util.arrayFromVolume(node).astype(np.float32)
    return voxels > voxels.mean()


def edit_volume(node: Any) -> None:
    """Change voxels the way scripts and modules do."""
    import slicer.util

    slicer.util.arrayFromVolume(node)[0] += 1
    slicer.util.arrayFromVolumeModified(node)


def segments(segmentation: Any) -> dict[str, str]:
    """IDs by name."""
    inside = segmentation.GetSegmentation()
    return {inside.GetSegment(each).GetName(): each for each in inside.GetSegmentIDs()}


def voxels(segmentation: Any, name: str, node: Any) -> np.ndarray:
    """A segment by its name on the grid of a volume, by Slicer's own means: bool (K, J, I)."""
    import slicer.util

    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segments(segmentation)[name], node) != 0


def segmentations() -> list[Any]:
    """All segmentation nodes of the scene."""
    return environment.nodes("vtkMRMLSegmentationNode")


def parameters() -> Any:
    """The module's parameter node, wrapped."""
    from SlicerMaskSAMLib.mrml.parameters import MaskSAMParameterNode

    return MaskSAMParameterNode(environment.parameter_node())
