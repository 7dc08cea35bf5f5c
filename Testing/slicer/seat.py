"""A user's seat before the whole module without its panel: real MRML, the real engine, the bundled model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from MaskSAMCore.worker.client import EngineClient
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.views import Views
from SlicerMaskSAMLib.values.status import Status
from SlicerMaskSAMLib.work.controller import Controller
from Testing.slicer import environment, rig

MODEL = "hippocampus-mr"
PATIENCE_S = 300.0


class Seat:
    """The controller over the scene as it is, and what a user does with it. A context manager."""

    def __init__(self, *, threads: int = 1) -> None:
        self.scene = environment.start()
        self.view = self.scene.AddNewNodeByClass("vtkMRMLSliceNode")
        self.view.SetOrientationToAxial()
        self.parameters = rig.parameters()
        self.controller = Controller(
            self.scene,
            self.parameters,
            start_engine=lambda on_event: EngineClient(device="cpu", threads=threads, on_event=on_event),
            views=Views(self.scene),
        )
        self.controller.enter()

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *_: object) -> None:
        self.controller.close()

    @property
    def status(self) -> Status:
        """What the panel would show."""
        return self.controller.status()

    @property
    def volume(self) -> Any:
        """The chosen volume."""
        return self.parameters.inputVolume

    def until(self, reached: Callable[[], bool]) -> None:
        """Let the timer run until something is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert time.monotonic() < deadline, self.status
            self.controller.tick()
            time.sleep(0.01)

    def settle(self) -> None:
        """Let the timer run until nothing is going on that a user would wait for."""
        self.controller.tick()
        self.until(lambda: not self.status.task)

    def choose(self, volume: Any, model: str = MODEL) -> None:
        """Choose what is worked on."""
        self.controller.choose_volume(volume)
        self.controller.choose_model(model)

    def segment(self) -> None:
        """Press Segment, and wait."""
        self.controller.segment()
        self.settle()

    def click(self, ijk: Sequence[float], *, positive: bool = True) -> None:
        """Click on a voxel (i, j, k), and wait for the answer."""
        self.controller.click(bridge.ijk_to_world(self.volume, [ijk])[0], positive, self.view)
        self.settle()

    def voxels(self) -> dict[str, np.ndarray]:
        """All segments by name, bool (K, J, I), read by Slicer's own means."""
        segmentation = self.parameters.segmentation
        return {name: rig.voxels(segmentation, name, self.volume) for name in rig.segments(segmentation)}
