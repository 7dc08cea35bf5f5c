"""What is asked for when Segment is pressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import slicer.util

from MaskSAMCore.errors import InputError
from MaskSAMCore.labels import Label
from SlicerMaskSAMLib import bridge
from SlicerMaskSAMLib.bridge import Geometry
from SlicerMaskSAMLib.choices import Region, Speed
from SlicerMaskSAMLib.context import Context

STEP = {Speed.FAST: 1.0, Speed.ACCURATE: 0.5}
"""By how much of a window the next one is moved on."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for, and how things stood then.

    Attributes:
        volume: The node; `name`, `fingerprint` and `geometry` are its own at that time.
        transform: ID of its parent transform; "" for none.
        labels: The wanted structures by their label.
        regions: Boxes of the engine, mm in the volume's own RAS; empty for the whole volume.
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
    step: float
    segmentation: str
    stamps: dict[str, Any]

    @classmethod
    def of(cls, context: Context, slice_node: Any = None) -> Order:
        """As the parameters say.

        Args:
            slice_node: The slice view whose part of the volume is meant by Region.VIEW.

        Raises:
            InputError: Volume, model, region or structures are missing; says which.
        """
        volume, model = context.need()
        parameters, target = context.parameters, context.parameters.segmentation
        skipped = set(parameters.skippedStructures)
        labels = {label.id: label for label in context.labels if label.name not in skipped}
        if not labels:
            raise InputError("no structure is wanted", remedy="Choose at least one structure.")
        return cls(
            volume=volume,
            name=volume.GetName() or "Volume",
            fingerprint=bridge.fingerprint(volume),
            geometry=bridge.geometry(volume),
            transform=volume.GetTransformNodeID() or "",
            model=model.name,
            labels=labels,
            regions=_regions(volume, parameters.region, parameters.roi, slice_node),
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


def segmentation_of(scene: Any, volume: Any, current: Any) -> Any:
    """The segmentation to work on with a volume: the current one where it was made for it, else the first that was."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    there = [] if volume is None else slicer.util.getNodesByClass("vtkMRMLSegmentationNode", scene)
    fitting = [node for node in there if node.GetNodeReference(role) is volume]
    return current if current in fitting else next(iter(fitting), None)
