"""Request for an automatic segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import slicer.util

from MaskSAMCore.errors import InputError
from MaskSAMCore.labels import Label
from MaskSAMCore.volume import Roi
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.bridge import Geometry
from SlicerMaskSAMLib.values.choices import Region, Speed
from SlicerMaskSAMLib.values.sparse import VoxelBox, union
from SlicerMaskSAMLib.work.context import Context

STEP = {Speed.FAST: 1.0, Speed.ACCURATE: 0.5}
"""Step of the sliding window, as a share of the window."""


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """What is to be segmented, and the state of the scene when it was requested.

    Attributes:
        volume: Volume node; `name`, `fingerprint` and `geometry` are its own at the time of the request.
        transform: ID of its parent transform; "" for none.
        labels: The wanted structures by label value.
        regions: Regions of the engine, mm in the volume's own RAS; empty for the whole volume.
        reach: Box of the voxels that the engine segments; voxels outside stay as they are.
        step: Step of the sliding window, as a share of the window.
        segmentation: ID of the node that receives the structures; "" for a new one.
        stamps: Stamps of its segments by ID.
    """

    volume: Any
    name: str
    fingerprint: str
    geometry: Geometry
    transform: str
    model: str
    labels: dict[int, Label]
    regions: tuple[bridge.RoiMessage, ...]
    reach: VoxelBox
    step: float
    segmentation: str
    stamps: dict[str, int]

    @classmethod
    def of(cls, context: Context, slice_node: Any = None) -> SegmentRequest:
        """A request as the parameters specify it.

        Args:
            slice_node: The slice view used for Region.VIEW.

        Raises:
            InputError: Volume, model, region or structures are missing, or the region misses the volume.
        """
        volume, model = context.require_inputs()
        parameters, target = context.parameters, context.parameters.segmentation
        skipped = set(parameters.skippedStructures)
        labels = {label.id: label for label in context.labels if label.name not in skipped}
        if not labels:
            raise InputError("no structure is wanted", remedy="Choose at least one structure.")
        geometry = bridge.geometry(volume)
        regions = _regions(volume, parameters.region, parameters.roi, slice_node)
        return cls(
            volume=volume,
            name=volume.GetName() or "Volume",
            fingerprint=bridge.fingerprint(volume),
            geometry=geometry,
            transform=volume.GetTransformNodeID() or "",
            model=model.name,
            labels=labels,
            regions=regions,
            reach=_reach(regions, geometry),
            step=STEP[parameters.speed],
            segmentation=target.GetID() if target is not None else "",
            stamps={each: bridge.stamp(target, each) for each in segment_ids(target)},
        )


def segment_ids(segmentation: Any) -> list[str]:
    """IDs of all segments of a node, in its order; empty for None."""
    return list(segmentation.GetSegmentation().GetSegmentIDs()) if segmentation is not None else []


def _regions(volume: Any, region: Region, roi: Any, slice_node: Any) -> tuple[bridge.RoiMessage, ...]:
    if region is Region.ROI:
        if roi is None:
            raise InputError("no region of interest is chosen", remedy="Choose an ROI node, or the whole volume.")
        return (bridge.roi_region(volume, roi),)
    if region is Region.VIEW:
        if slice_node is None:
            raise InputError("no slice view is shown", remedy="Show one, or choose the whole volume.")
        return (bridge.view_region(volume, slice_node),)
    return ()


def _reach(regions: tuple[bridge.RoiMessage, ...], geometry: Geometry) -> VoxelBox:
    """Box of the voxels in the regions; the whole grid without regions."""
    boxes: list[VoxelBox] = []
    for region in regions:
        k, j, i = Roi(center=region["center"], size=region["size"]).slices(geometry)
        boxes.append((k.start, k.stop, j.start, j.stop, i.start, i.stop))
    return union(*boxes) or geometry.box


def segmentation_of(scene: Any, volume: Any, current: Any) -> Any:
    """The segmentation of a volume.

    The current one unless it belongs to another volume, else the first that belongs to this one.
    """
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    if volume is None:
        return None
    if current is not None and current.GetNodeReference(role) in (volume, None):
        return current
    there = slicer.util.getNodesByClass("vtkMRMLSegmentationNode", scene)
    return next((node for node in there if node.GetNodeReference(role) is volume), None)


def adopt(segmentation: Any, volume: Any) -> None:
    """Assign an empty segmentation without a volume to this volume.

    The node selector creates such segmentations.
    """
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    if segmentation is not None and not segment_ids(segmentation) and segmentation.GetNodeReference(role) is None:
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segmentation.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
