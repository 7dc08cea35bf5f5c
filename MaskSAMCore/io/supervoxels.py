"""Supervoxels of an image, by SimpleITK's SLIC."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from MaskSAMCore.volume import Triple

SIDE = 9.0
"""Side of a supervoxel, as a multiple of the finest voxel side."""


def supervoxels(image: np.ndarray, spacing: Triple, size: float = SIDE) -> np.ndarray:
    """SLIC's supervoxels of an image (K, J, I) with values from 0 to 1, int32 from 0.

    Args:
        image: Of one channel.
        spacing: Along (k, j, i), mm.
        size: Side of a supervoxel, as a multiple of the finest voxel side.
    """
    finest = min(spacing)
    sides = [int(max(2, min(round(size * finest / s), n))) for s, n in zip(spacing, image.shape, strict=True)]
    picture = sitk.GetImageFromArray((image * 255).astype(np.float32))
    picture.SetSpacing([float(s) for s in spacing[::-1]])
    picture = sitk.CurvatureFlow(picture, timeStep=0.02, numberOfIterations=3) if min(image.shape) > 4 else picture
    found = sitk.SLIC(picture, maximumNumberOfIterations=5, superGridSize=sides[::-1], spatialProximityWeight=8.0)
    return sitk.GetArrayFromImage(found).astype(np.int32)
