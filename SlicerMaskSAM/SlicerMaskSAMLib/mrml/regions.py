"""Creation of an ROI node that the user can see and drag."""

from __future__ import annotations

from typing import Any

SHARE = 0.5
"""Size of the box relative to the volume."""


def new_region(scene: Any, volume: Any) -> Any:
    """An ROI node in the middle of a volume, half its size, along the world axes."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    low, high = bounds[::2], bounds[1::2]
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", scene.GenerateUniqueName("Region"))
    roi.SetCenterWorld(*((a + b) / 2 for a, b in zip(low, high, strict=True)))
    roi.SetSizeWorld(*((b - a) * SHARE for a, b in zip(low, high, strict=True)))
    roi.CreateDefaultDisplayNodes()
    roi.GetDisplayNode().SetFillVisibility(False)
    return roi
