"""Modality of a volume, as far as it can be determined."""

from __future__ import annotations

from typing import Any

import numpy as np

from SlicerMaskSAMLib.mrml import bridge

AIR_HU = (-1050.0, -900.0)
AIR_SHARE = 0.05
"""A volume is a CT if at least this share of its voxels is air in Hounsfield units. MR phase images, the only others
with such low values, spread over thousands of values."""
LOWEST_HU = -3100.0
"""Scanners pad the corners of a CT with values above this."""
SAMPLE = 50_000
"""Number of voxels that are examined."""
WITHOUT_MODALITY = ("", "OT", "SEG", "SC")
"""DICOM modalities that do not describe the voxels."""


def modality(volume: Any) -> str:
    """DICOM modality of a volume ("CT", "MR", "PT", ...); "" if not certain.

    Taken from the series that the DICOM module loaded, else from the unit of the voxels, else, for CT, from the voxels.
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
