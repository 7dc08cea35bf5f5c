"""The module's parameter node, which stores its settings in the scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import parameterNodeWrapper

from SlicerMaskSAMLib.values.choices import OverlapPolicy, Region, Scope, Speed

ANY_DEVICE = "auto"


@parameterNodeWrapper
class MaskSAMParameterNode:
    """Settings of the module, saved with the scene.

    Nodes may be None. Every change notifies the node's observers.

    Attributes:
        inputVolume: The volume to segment.
        segmentation: The segmentation that receives the structures; created on first use.
        model: Name of an installed model.
        skippedStructures: Names of the model's structures that are left out.
        region: The part of the volume to segment; `roi` is used with Region.ROI.
        segmentID: The segment that clicks refine.
        scope: How far the next click reaches.
        neighbours: What happens where a structure meets other segments.
        showAutomatic: Whether the automatic prompts are shown as markups.
        trainingFolder: Folder of training cases; empty for the user's default folder.
        device: Device of the engine: "auto", "cpu", "cuda" or "cuda:N".
    """

    inputVolume: vtkMRMLScalarVolumeNode
    segmentation: vtkMRMLSegmentationNode
    model: str
    skippedStructures: list[str]
    region: Region = Region.WHOLE
    roi: vtkMRMLMarkupsROINode
    speed: Speed = Speed.ACCURATE
    segmentID: str
    scope: Scope = Scope.SLAB
    neighbours: OverlapPolicy = OverlapPolicy.PROTECT
    showAutomatic: bool
    trainingFolder: str
    device: str = ANY_DEVICE

    if TYPE_CHECKING:  # added by the wrapper

        def connectGui(self, gui: Any) -> int: ...
        def disconnectGui(self, tag: int) -> None: ...
        def AddObserver(self, event: str, callback: Callable[[Any, str], None]) -> int: ...
        def RemoveObserver(self, tag: int) -> None: ...
