"""What made a volume, where it can be known."""

from __future__ import annotations

from typing import Any

import numpy as np

from SlicerMaskSAMLib.mrml import bridge

AIR_HU = (-1050.0, -900.0)
AIR_SHARE = 0.05
"""A volume is a CT where at least this share of its voxels is air in Hounsfield units. Phase images of MR, the only
ones that reach so low, spread over thousands of values."""
LOWEST_HU = -3100.0
"""What scanners pad a CT's corners with lies above."""
SAMPLE = 50_000
"""Voxels that are looked at."""
WITHOUT_MODALITY = ("", "OT", "SEG", "SC")
"""DICOM modalities that say nothing about the voxels."""


def modality(volume: Any) -> str:
    """DICOM's word for what made a volume ("CT", "MR", "PT", ...); "" where nothing tells it for sure.

    Looked for in the series that the DICOM module loaded, in the unit of the voxels, and for CT in the voxels.
    """
    found = _of_series(volume)
    if found:
        return found
    unit = volume.GetVoxelValueUnits()
    if unit is not None and unit.GetCodeValue() == "[hnsf'U]":
        return "CT"
    return "CT" if _holds_air(volume) else ""


def _of_series(volume: Any) -> str:
    import slicer

    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume.GetScene())
    if tree is None:
        return ""
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    item = tree.GetItemByDataNode(volume)
    while item and item != tree.GetSceneItemID():
        found = tree.GetItemAttribute(item, name)
        if found not in WITHOUT_MODALITY:
            return found
        item = tree.GetItemParent(item)
    return ""


def _holds_air(volume: Any) -> bool:
    if volume.GetImageData().GetNumberOfScalarComponents() != 1:
        return False
    flat = bridge.scalars(volume).reshape(-1)
    sample = flat[:: max(1, flat.size // SAMPLE)]
    low, high = AIR_HU
    air = np.count_nonzero((sample >= low) & (sample <= high))
    return bool(air >= AIR_SHARE * sample.size and sample.min() >= LOWEST_HU)
