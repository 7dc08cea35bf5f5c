"""Grey-scale reconstruction by erosion, by SimpleITK."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk


def reconstructed(marker: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The marker lowered until no voxel is above its lowest way in; float32 of the same shape.

    Args:
        marker: (D, H, W) float32, nowhere below the mask.
        mask: (D, H, W) float32.
    """
    return sitk.GetArrayFromImage(
        sitk.ReconstructionByErosion(sitk.GetImageFromArray(marker), sitk.GetImageFromArray(mask))
    )
