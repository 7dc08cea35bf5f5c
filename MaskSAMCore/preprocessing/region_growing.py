"""What region growing from the prompts would find, at every tolerance at once, as channels `GROWN_MAPS` of a patch.

A convolutional network sees that there is a click, but not what grey value it has on the other side of the patch. These
channels say so: how far each voxel's value is from the one at the nearest prompt, and which tolerance a region that
grows from the prompts needs to reach the voxel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from MaskSAMCore.config.network_schema import GROWN_MAPS, PROMPT_MAPS

SEED = 0.75
"""Ink from which a voxel is a seed: a click's own and its neighbours'."""
INNER = 0.7
"""Of a box or lasso the voxels are seeds that lie so deep, as a share of the deepest one's depth."""
TOLERANCE = 0.4
"""Difference at which a channel has fallen to 1/e, in deviations of the patch."""


def grown_maps(image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The channels `GROWN_MAPS` from 0 to 1, (4, D, H, W) float32; 0 without prompts of that sign.

    Those of negative prompts are 0 too where the positive ones are 1.

    Args:
        image: (D, H, W) float32, normalised; H and W are even.
        maps: (5, D, H, W), the channels `PROMPT_MAPS`.
    """
    found: np.ndarray = np.zeros((len(GROWN_MAPS), *image.shape), np.float32)
    coarse = _halved(image, F.avg_pool3d)
    for first, (ink, region) in enumerate((("ink", "region"), ("negative_ink", "negative_region"))):
        seeds = _halved(maps[PROMPT_MAPS.index(ink)], F.max_pool3d) > SEED
        seeds |= _inner(_halved(maps[PROMPT_MAPS.index(region)], F.avg_pool3d) > 0.5)
        if not seeds.any():
            continue
        nearest = ndimage.distance_transform_edt(~seeds, return_distances=False, return_indices=True)
        wanted = coarse[tuple(nearest)]
        reached = _doubled(_barrier(np.abs(coarse - wanted), seeds), image.shape)
        alike = np.abs(image - _doubled(wanted, image.shape))
        found[2 * first], found[2 * first + 1] = np.exp(-alike / TOLERANCE), np.exp(-reached / TOLERANCE)
    # Where the structure is as bright as what lies beside it, a negative prompt must not speak against all of it.
    found[2:] *= 1 - found[:2]
    return found


def _barrier(difference: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The least of all paths' greatest differences from the seeds to each voxel."""
    from MaskSAMCore.io.grey_reconstruction import reconstructed  # only the click model needs SimpleITK to train

    return reconstructed(np.where(seeds, difference, difference.max()).astype(np.float32), difference)


def _inner(region: np.ndarray) -> np.ndarray:
    if not region.any():
        return region
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1, 1:-1]
    return np.asarray(depth >= INNER * depth.max())


def _halved(x: np.ndarray, pool: Callable[..., torch.Tensor]) -> np.ndarray:
    return pool(torch.from_numpy(x)[None, None], (1, 2, 2))[0, 0].numpy()


def _doubled(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return F.interpolate(torch.from_numpy(x)[None, None], size=size, mode="trilinear")[0, 0].numpy()
