"""A user at work: a volume, a model and `Refinement` over Slicer's scene, with an engine whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.labels import Label
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.zoo.installed import InstalledModel
from SlicerMaskSAMLib.engine.engine_link import EngineLink
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.prompts import PromptNodes
from SlicerMaskSAMLib.mrml.views import Views
from SlicerMaskSAMLib.values.history import History
from SlicerMaskSAMLib.values.status import Status
from SlicerMaskSAMLib.values.tasks import Task
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.refine import Refinement
from Testing.slicer import environment, rig
from Testing.slicer.toy_engine import ToyEngine
from Testing.workers import eventually

SHAPE = (20, 30, 40)
BLOCK = np.s_[4:9, 5:12, 6:14]
"""Where a segment lies that was there before."""
MODELS = rig.fake_model("plain"), rig.fake_model("slow")


class Desk:
    """What a test of refining works with.

    Args:
        scene: Slicer's.
        volume: What is refined on; one of noise where it is None.
        models: Those of this computer; the first is chosen.
        engine: The engine; None for a `ToyEngine`.

    Attributes:
        messages: Messages to the user.
        view: An axial slice node.
    """

    def __init__(
        self,
        scene: Any,
        *,
        volume: Any = None,
        models: Sequence[InstalledModel] = MODELS,
        engine: EngineClient | None = None,
    ) -> None:
        self.scene, self.models = scene, tuple(models)
        self.volume = volume or rig.volume(SHAPE)
        self.parameters = rig.parameters()
        self.parameters.inputVolume, self.parameters.model = self.volume, self.models[0].name
        self.sit_down(engine)

    @classmethod
    def reopened(cls, path: Path, **options: Any) -> Desk:
        """The desk as it is left in a saved scene."""
        scene = environment.open_scene(path)
        parameters = rig.parameters()
        volume, model = parameters.inputVolume, parameters.model
        desk = cls(scene, volume=volume, **options)
        assert desk.parameters.model == model
        return desk

    def sit_down(self, engine: EngineClient | None = None) -> None:
        """The module's parts, made anew over the scene as it is; the engine is another one."""
        if hasattr(self, "context"):
            self.context.prompts.close()
        self.messages: list[str] = []
        self.engine: Any = engine or ToyEngine()
        self.context = Context(
            scene=self.scene,
            parameters=self.parameters,
            history=History(),
            prompts=PromptNodes(self.scene),
            engine_link=EngineLink(lambda on_event: self.engine),
            models=lambda: self.models,
            log=self.messages.append,
            changed=lambda: None,
        )
        self.view = self.scene.AddNewNodeByClass("vtkMRMLSliceNode")
        self.view.SetOrientationToAxial()
        self.refinement = Refinement(self.context, Views(self.scene))
        self.task: Task | None = None

    # -- what the user does ------------------------------------------------------------------------------------------

    def click(self, i: float, j: float, k: float, *, positive: bool = True) -> None:
        """Click on a voxel, and wait until it is answered."""
        self.press(i, j, k, positive=positive)
        self.settle()

    def press(self, i: float, j: float, k: float, *, positive: bool = True) -> None:
        """Click on a voxel, without waiting."""
        self.refinement.click(self.world(i, j, k), positive, self.view)

    def world(self, i: float, j: float, k: float) -> np.ndarray:
        """Where a voxel is, mm RAS."""
        return bridge.ijk_to_world(self.volume, [(i, j, k)])[0]

    def paint(self, name: str, place: tuple[slice, ...], value: int = 1) -> None:
        """Draw in a segment, as the Segment Editor would."""
        import slicer.util

        segment_id = rig.segments(self.segmentation)[name]
        array = self.voxels(name).astype(np.uint8)
        array[place] = value
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, self.segmentation, segment_id, self.volume)

    # -- time --------------------------------------------------------------------------------------------------------

    def tick(self, count: int = 1) -> None:
        """Let the module go on, as its timer does."""
        for _ in range(count):
            if self.task is None and self.refinement.has_work:
                self.task = Task("refine", self.refinement.steps(), on_error=self._failed)
            if self.task is not None:
                self.task.tick()
                self.task = None if self.task.ended else self.task

    def settle(self) -> None:
        """Go on until nothing waits."""
        assert eventually(self._rests), "it never ends"

    def _rests(self) -> bool:
        for _ in range(100):  # the engine in this process needs no waiting
            self.tick()
        return self.task is None and not self.refinement.has_work

    def _failed(self, error: MaskSAMError) -> None:
        self.messages.append(str(error))

    # -- what is there -----------------------------------------------------------------------------------------------

    @property
    def segmentation(self) -> Any:
        return self.parameters.segmentation

    @property
    def name(self) -> str:
        """Of the current structure."""
        return self.segmentation.GetSegmentation().GetSegment(self.parameters.segmentID).GetName()

    def voxels(self, name: str = "") -> np.ndarray:
        """A segment's, the current one's by default: bool (K, J, I)."""
        return rig.voxels(self.segmentation, name or self.name, self.volume)

    @property
    def shown(self) -> Status:
        """What the panel shows of the current structure."""
        return self.refinement.status()

    @property
    def rows(self) -> list[str]:
        """The list of prompts."""
        return [row.text for row in self.shown.prompts]


def cube(i: int, j: int, k: int, half: int = 3, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """What the engine answers to a single click."""
    from Testing.slicer.toy_engine import HALVES, answer

    prompt = {
        "kind": "point",
        "position": (i, j, k),
        "positive": True,
        "scope": "slab",
        "candidate": HALVES.index(half),
    }
    return answer(shape, [prompt])


def point(i: int, j: int, k: int, **more: Any) -> dict[str, Any]:
    """A click as the engine gets it."""
    return {"kind": "point", "position": (i, j, k), "positive": True, "scope": "slab", **more}


def block(*places: tuple[slice, ...]) -> np.ndarray:
    """bool (K, J, I), set in these places."""
    out = np.zeros(SHAPE, bool)
    for place in places:
        out[place] = True
    return out


@pytest.fixture
def desk(scene: Any) -> Desk:
    """A desk with a volume of noise and an engine whose answers are known."""
    return Desk(scene)


@pytest.fixture
def liver(desk: Desk) -> Desk:
    """A desk with a segment that was there before, and is chosen."""
    segmentation = bridge.new_segmentation(desk.scene, "before", volume=desk.volume)
    segment_id = bridge.add_segment(segmentation, Label(id=1, name="Liver", color=(200, 100, 0)))
    desk.parameters.segmentation = segmentation
    desk.paint("Liver", BLOCK)
    desk.refinement.choose_segment(segment_id)
    return desk
