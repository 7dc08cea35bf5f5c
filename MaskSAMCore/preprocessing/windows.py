"""Positions of the sliding windows of a volume, for training, automatic and interactive segmentation."""

from __future__ import annotations

import math


def starts(size: int, patch: int, *, step: float = 0.5) -> list[int]:
    """First indices of the windows along one axis (model.md §13.1).

    Args:
        size: Voxels along the axis.
        patch: Voxels of a window; a shorter axis has one window, which the caller pads.
        step: Largest distance between two windows, as a share of `patch`.
    """
    if size <= patch:
        return [0]
    count = math.ceil((size - patch) / (step * patch)) + 1
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]
