"""What the scene remembers of the module: its parameter node."""

from __future__ import annotations

from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import parameterNodeWrapper

from SlicerMaskSAMLib.values.choices import OverlapPolicy, Region, Scope, Speed

ANY_DEVICE = "auto"


@parameterNodeWrapper
class MaskSAMParameterNode:
    """The module's settings, saved with the scene. A node may be None; setting anything tells the node's observers.

    Attributes:
        inputVolume: What is segmented.
        segmentation: Where the structures go; made on first use.
        model: Name of an installed model.
        skippedStructures: Names of the model's structures that are not wanted.
        region: The part of the volume that is segmented; `roi` is used where it is Region.ROI.
        segmentID: The structure that clicks refine.
        scope: How far the next click reaches.
        neighbours: What happens where it meets other segments.
        showAutomatic: Whether the model's own boxes and points are shown as markups.
        trainingFolder: Where training cases are saved; empty for the user's own folder.
        device: Where the engine computes: "auto", "cpu", "cuda" or "cuda:N".
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
