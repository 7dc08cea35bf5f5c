"""Images in memory: numpy arrays, nibabel and SimpleITK images, to and from volumes.

Arrays of the outside are (I, J, K), as nibabel indexes them, with channels last; those of the inside are (K, J, I).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.formats import grid_of
from MaskSAMCore.io.images import finish_volume, image_of, stack_channels
from MaskSAMCore.io.nifti import header_grid
from MaskSAMCore.volume import Grid, LabelMap, Volume

_log = logging.getLogger(__name__)


def volume_of(image: Any, *, resample: bool = False) -> Volume:
    """The volume of an image in memory.

    Args:
        image: A nibabel image, a SimpleITK image, or a pair (array, affine): an array (I, J, K), or (I, J, K, C) with
            several channels, and the 4x4 affine from voxel (i, j, k, 1) to RAS mm.
        resample: Whether skewed axes may be resampled to right angles; they are refused otherwise.

    Raises:
        InputError: It is none of these, no voxel is finite, or the voxels are no numbers.
        GeometryError: The affine is singular, not finite or skewed, or does not fit the array.
    """
    if isinstance(image, Volume):
        return image
    if isinstance(image, np.ndarray):
        raise InputError(
            "an array alone has no place in space",
            why=f"its shape is {image.shape}, its voxel size is unknown",
            remedy="Give (array, affine): the array (I, J, K) and the 4x4 affine from voxels to RAS mm, such as "
            "numpy.diag([dx, dy, dz, 1]) for voxels of dx x dy x dz mm.",
        )
    if isinstance(image, tuple) and len(image) == 2:
        return _from_array(np.asanyarray(image[0]), np.asarray(image[1]), "", resample)
    if hasattr(image, "dataobj") and hasattr(image, "affine"):
        return _from_nibabel(image, resample)
    if hasattr(image, "GetDirection") and hasattr(image, "GetNumberOfComponentsPerPixel"):
        return _from_sitk(image, resample)
    raise InputError(
        "this is no scan",
        where=type(image).__name__,
        remedy="Give a path, a list of paths (one per channel), a nibabel image, a SimpleITK image, "
        "or (array, affine).",
    )


def to_nibabel(labels: LabelMap) -> Any:
    """The label map as a `nibabel.Nifti1Image`, (I, J, K), on exactly the scan's grid.

    Raises:
        InputError: nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise InputError("nibabel is not installed", remedy="Run `pip install nibabel`.") from error
    image = nibabel.Nifti1Image(np.ascontiguousarray(labels.array.T), labels.grid.affine)
    image.header.set_xyzt_units("mm")
    return image


def to_sitk(labels: LabelMap) -> Any:
    """The label map as a `SimpleITK.Image` on exactly the scan's grid."""
    return image_of(labels.array, labels.grid)


def _from_nibabel(image: Any, resample: bool) -> Volume:
    file = getattr(image, "get_filename", lambda: None)() or ""
    array = np.asanyarray(image.dataobj)
    if (
        array.ndim in (3, 4)
        and hasattr(image.header, "get_xyzt_units")
        and image.header["magic"].item()[:3] in (b"n+1", b"n+2")
    ):
        # nibabel prefers the sform, whose voxel sizes may be wrong where pixdim is right; files are read by one rule.
        i, j, k = array.shape[:3]
        grid, warnings = header_grid(image.header.binaryblock, (k, j, i))
        return _finished(array.T if array.ndim == 3 else array.transpose(3, 2, 1, 0), grid, file, resample, warnings)
    return _from_array(array, np.array(image.affine, dtype=np.float64), file, resample)


def _from_sitk(image: Any, resample: bool) -> Volume:
    import SimpleITK as sitk

    if image.GetDimension() != 3:
        raise InputError(
            "the image has not three dimensions", why=f"it has {image.GetDimension()}", remedy="Give one frame of it."
        )
    array = sitk.GetArrayFromImage(image)
    channels = array if array.ndim == 3 else np.moveaxis(array, -1, 0)
    return _finished(channels, grid_of(image), "", resample)


def _from_array(array: np.ndarray, affine: np.ndarray, source: str, resample: bool) -> Volume:
    if array.ndim not in (3, 4):
        raise InputError(
            "an array (I, J, K) or (I, J, K, C) is needed", where=source, why=f"its shape is {array.shape}"
        )
    i, j, k = array.shape[:3]
    channels = array.T if array.ndim == 3 else array.transpose(3, 2, 1, 0)
    return _finished(channels, Grid(shape=(k, j, i), affine=affine), source, resample)


def _finished(array: np.ndarray, grid: Grid, source: str, resample: bool, warnings: Sequence[str] = ()) -> Volume:
    """The volume of an array (K, J, I) or (C, K, J, I), checked like one from a file."""
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise InputError("voxels must be real numbers", where=source, why=f"their type is {array.dtype}")
    channels = [np.array(c, dtype=np.float32, order="C") for c in (array if array.ndim == 4 else array[None])]
    volume = stack_channels([finish_volume(c, grid, source, warnings, resample) for c in channels])
    for warning in volume.warnings:
        _log.warning("%s: %s", source or "the scan", warning)
    return volume
