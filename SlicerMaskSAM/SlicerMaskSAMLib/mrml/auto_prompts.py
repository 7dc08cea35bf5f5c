"""Automatic prompts in the scene: a box and a point for each structure in a slice.

They are markups to drag. They are not saved with the scene, since the model can produce them again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from SlicerMaskSAMLib.mrml import markups
from SlicerMaskSAMLib.mrml.prompt_values import BoxPrompt, PointPrompt
from SlicerMaskSAMLib.mrml.volumes import geometry
from SlicerMaskSAMLib.values.choices import Scope

AUTOMATIC = "automatic"
STRUCTURE = "MaskSAM.structure"
"""Attribute: the structure's name."""


class AutomaticPromptNodes:
    """The markups of the automatic prompts."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene

    def show(self, volume: Any, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Show these prompts instead of those shown before.

        Args:
            volume: The volume node that they belong to.
            found: Points and boxes of each structure, by its name, in voxels (i, j, k), as the engine returns them.
        """
        self.hide()
        for name, prompts in found.items():
            for prompt in prompts:
                if prompt["kind"] == "box":
                    low, high = np.array(prompt["corners"], np.float64)
                    markups.set_box(self._new(markups.BOX, name, volume), *markups.box_along(volume, low, high))
                else:
                    node = self._new(markups.POINTS, name, volume)
                    node.AddControlPoint(markups.triple(geometry(volume).to_ras(prompt["position"])), name)

    def hide(self) -> None:
        """Remove the markups."""
        for node in self.nodes():
            self._scene.RemoveNode(node)

    def prompts(self, *, scope: Scope) -> dict[str, list[PointPrompt | BoxPrompt]]:
        """The prompts at their present position, by structure name, boxes first."""
        found: dict[str, list[PointPrompt | BoxPrompt]] = {}
        for node in self.nodes():
            volume = node.GetNodeReference(markups.VOLUME)
            if volume is None:
                continue
            markups.follow_transform(node, volume)
            mine = found.setdefault(node.GetAttribute(STRUCTURE), [])
            if node.IsA(markups.BOX):
                matrix, size = markups.get_box(node)
                mine.insert(0, BoxPrompt(order=0, matrix=matrix, size=size, scope=scope))
            for index in markups.defined_points(node) if node.IsA(markups.POINTS) else ():
                position = markups.triple(node.GetNthControlPointPosition(index))
                mine.append(PointPrompt(order=0, position=position, positive=True, scope=scope))
        return found

    def _new(self, kind: str, name: str, volume: Any) -> Any:
        attributes = {markups.KIND: AUTOMATIC, STRUCTURE: name}
        node = markups.add(
            self._scene, kind, name=f"{name} automatic", volume=volume, attributes=attributes, references={}
        )
        markups.apply_style(node, markups.AUTOMATIC_STYLE, labels=True)
        markups.follow_transform(node, volume)
        node.SetSaveWithScene(False)
        node.GetDisplayNode().SetSaveWithScene(False)
        return node

    def nodes(self) -> list[Any]:
        found = markups.nodes(self._scene, "vtkMRMLMarkupsNode")
        return [node for node in found if node.GetAttribute(markups.KIND) == AUTOMATIC]
