"""A scan with a segment whose prompts are tested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from SlicerMaskSAMLib.mrml import markups, prompt_values
from SlicerMaskSAMLib.mrml.bridge import ijk_to_world
from SlicerMaskSAMLib.mrml.prompt_values import Snapshot
from SlicerMaskSAMLib.mrml.prompts import SEGMENT, SEGMENTATION, PromptList, PromptNodes
from SlicerMaskSAMLib.values.choices import Scope
from Testing.slicer import environment

SHAPE = (12, 20, 24)
OBLIQUE = environment.affine(spacing=(0.8, 0.9, 2.5), angles=(20, -12, 35), origin=(-40, 17, 333))
FIRST, SECOND, THIRD = (4.25, 7.5, 3.0), (10.0, 12.75, 6.0), (15.5, 3.0, 8.0)
"""Places in voxels (i, j, k)."""


@dataclass(kw_only=True)
class Heart:
    """A scan with a segment whose prompts are tested; `news` holds the calls of `on_user_change`."""

    scene: Any
    volume: Any
    segmentation: Any
    nodes: PromptNodes
    prompts: PromptList
    news: list[tuple[Snapshot, Snapshot]] = field(default_factory=list)

    def click(self, ijk: tuple[float, ...], *, positive: bool = True, scope: Scope = Scope.SLAB) -> None:
        self.prompts.add_point(self.world(ijk), positive=positive, scope=scope)

    def box(self, low: tuple[float, ...], high: tuple[float, ...], axis: int | None = 0) -> None:
        self.prompts.add_box(self.world(low), self.world(high), scope=Scope.SLAB, axis=axis)

    def some_of_each(self) -> None:
        """Two clicks that include, one that excludes, a box and a start, in an order of their own."""
        self.click(FIRST)
        self.click(SECOND, positive=False, scope=Scope.SLICE)
        self.box((2, 3, 5), (9, 11, 5))
        self.click(THIRD, scope=Scope.VOLUME)
        self.prompts.set_start(np.eye(3, 5, dtype=np.uint8)[None], (2, 3, 4, 7, 6, 11))

    def world(self, ijk: tuple[float, ...]) -> np.ndarray:
        return ijk_to_world(self.volume, [ijk])[0]

    def node(self, kind: str) -> Any:
        """The only node of a kind."""
        (node,) = (node for node in self.nodes.all() if node.GetAttribute(markups.KIND) == kind)
        return node

    def places(self) -> list[Any]:
        """Positions and corners as the engine is told them."""
        return [
            each.get("position") or each.get("corners") for each in messages(self.prompts) if each["kind"] != "mask"
        ]

    def position(self, index: int) -> np.ndarray:
        """Where a click that includes lies in the world, mm RAS."""
        place = [0.0, 0.0, 0.0]
        self.node("include").GetNthControlPointPositionWorld(index, place)
        return np.array(place)

    def assert_notified(self, before: Snapshot, after: Snapshot) -> None:
        assert self.news == [(before, after)]


def messages(prompts: PromptList) -> list[dict[str, Any]]:
    """The prompts of a list as the engine gets them."""
    return prompt_values.to_messages(prompts.volume, prompts.snapshot())


def prompt_lists(nodes: PromptNodes) -> tuple[PromptList, ...]:
    """All lists of the scene that have prompts."""
    owners = {
        (node.GetNodeReference(SEGMENTATION), node.GetAttribute(SEGMENT), node.GetNodeReference(markups.VOLUME)): None
        for node in nodes.all()
    }
    lists = (nodes.of(*owner) for owner in owners if owner[0] and owner[2])
    return tuple(prompts for prompts in lists if prompts.snapshot())


@pytest.fixture
def heart(scene: Any) -> Iterator[Heart]:
    """A volume that is oblique and anisotropic, two segments, and the first one's list of prompts, empty yet."""
    volume = environment.add_volume(np.zeros(SHAPE, np.int16), OBLIQUE)
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Organs")
    segmentation.GetSegmentation().AddEmptySegment("heart", "Heart")
    segmentation.GetSegmentation().AddEmptySegment("lung", "Lung")
    nodes = PromptNodes(scene)
    prompts = nodes.of(segmentation, "heart", volume)
    heart = Heart(scene=scene, volume=volume, segmentation=segmentation, nodes=nodes, prompts=prompts)
    nodes.on_user_change = lambda moved, before: heart.news.append((before, moved.snapshot()))
    yield heart
    nodes.close()
