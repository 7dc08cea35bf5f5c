"""What is asked for when Segment is pressed."""

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
"""By how much of a window the next one is moved on."""


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """What was asked for, and how things stood then.

    Attributes:
        volume: The node; `name`, `fingerprint` and `geometry` are its own at that time.
        transform: ID of its parent transform; "" for none.
        labels: The wanted structures by their label.
        regions: Boxes of the engine, mm in the volume's own RAS; empty for the whole volume.
        reach: The voxels that the engine looks at; what lies beyond stays as it is.
        segmentation: ID of the node that the structures go to; "" for a new one.
        stamps: State of its segments by their ID.
    """

    volume: Any
    name: str
    fingerprint: str
    geometry: Geometry
    transform: str
    model: str
    labels: dict[int, Label]
    regions: tuple[bridge.Region, ...]
    reach: VoxelBox
    step: float
    segmentation: str
    stamps: dict[str, Any]

    @classmethod
    def of(cls, context: Context, slice_node: Any = None) -> SegmentRequest:
        """As the parameters say.

        Args:
            slice_node: The slice view whose part of the volume is meant by Region.VIEW.

        Raises:
            InputError: Volume, model, region or structures are missing, or the region misses the volume; says which.
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
    """IDs of all segments of a node, in its order; none for None."""
    return list(segmentation.GetSegmentation().GetSegmentIDs()) if segmentation is not None else []


def _regions(volume: Any, region: Region, roi: Any, slice_node: Any) -> tuple[bridge.Region, ...]:
    if region is Region.ROI:
        if roi is None:
            raise InputError("no region of interest is chosen", remedy="Choose an ROI node, or the whole volume.")
        return (bridge.roi_region(volume, roi),)
    if region is Region.VIEW:
        if slice_node is None:
            raise InputError("no slice view is shown", remedy="Show one, or choose the whole volume.")
        return (bridge.view_region(volume, slice_node),)
    return ()


def _reach(regions: tuple[bridge.Region, ...], geometry: Geometry) -> VoxelBox:
    """The voxels of the regions, as the engine counts them; all of them where there is no region."""
    boxes: list[VoxelBox] = []
    for region in regions:
        k, j, i = Roi(center=region["center"], size=region["size"]).slices(geometry)
        boxes.append((k.start, k.stop, j.start, j.stop, i.start, i.stop))
    return union(*boxes) or geometry.box


def segmentation_of(scene: Any, volume: Any, current: Any) -> Any:
    """The segmentation for a volume: the current one unless it was made for another one, else the first that was."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    if volume is None:
        return None
    if current is not None and current.GetNodeReference(role) in (volume, None):
        return current
    there = slicer.util.getNodesByClass("vtkMRMLSegmentationNode", scene)
    return next((node for node in there if node.GetNodeReference(role) is volume), None)


def adopt(segmentation: Any, volume: Any) -> None:
    """Give an empty segmentation that belongs to no volume, as the node selector makes it, the volume's place."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    if segmentation is not None and not segment_ids(segmentation) and segmentation.GetNodeReference(role) is None:
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segmentation.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
