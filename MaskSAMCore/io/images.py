"""Reads and writes images and label maps: NIfTI, NRRD, MetaImage, pictures, and DICOM through `dicom`.

The format is detected by content, and every header is checked before memory is allocated.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.io import nifti
from MaskSAMCore.io.atomic import atomic_path
from MaskSAMCore.io.formats import (
    choose_index,
    existing_path,
    read_itk,
    read_nifti,
    sniff,
    suffix_of,
    to_labels,
)
from MaskSAMCore.io.pictures import read_label_picture, read_picture
from MaskSAMCore.io.reslice import resample_onto, upright_grid
from MaskSAMCore.volume import SKEW_TOLERANCE, Grid, LabelMap, Volume, match_grid, ras_to_lps

_log = logging.getLogger(__name__)


def replace_nonfinite(array: np.ndarray, *, where: object = "") -> int:
    """Replace NaN and -Inf by the smallest finite value and +Inf by the largest, in place; returns their number.

    Raises:
        InputError: No voxel is finite.
    """
    count = 0
    low, high = math.inf, -math.inf
    for plane in array:
        finite = np.isfinite(plane)
        bad = plane.size - int(np.count_nonzero(finite))
        count += bad
        good = plane[finite] if bad else plane
        if good.size:
            low, high = min(low, float(good.min())), max(high, float(good.max()))
    if count and not math.isfinite(low):
        raise InputError("has no finite voxel", where=where, why=f"all {count} are NaN or Inf")
    if count:
        for plane in array:
            np.nan_to_num(plane, copy=False, nan=low, posinf=high, neginf=low)
    return count


def _straighten(volume: Volume, allowed: bool) -> Volume:
    if volume.grid.skew <= SKEW_TOLERANCE:
        return volume
    matrix = np.array2string(volume.grid.directions, precision=5, suppress_small=True)
    if not allowed:
        remedy = "Use --resample (resample=True) to resample it to a grid with axes at right angles"
        raise GeometryError(
            "its axes are not at right angles", where=volume.source, why=f"directions\n{matrix}\n", remedy=remedy
        )
    target = upright_grid(volume.grid).check(where=volume.source)
    array = resample_onto(volume.array, volume.grid, target)
    message = f"was resampled from skewed axes to right angles: size (k, j, i) {volume.grid.shape} to {target.shape}"
    return replace(volume, array=array, grid=target, warnings=(*volume.warnings, message))


def finish_volume(array: np.ndarray, grid: Grid, source: str, warnings: Sequence[str], resample: bool) -> Volume:
    """The volume of float32 voxels `(K, J, I)` after the checks that every scan gets.

    Voxels that are not finite are replaced in place; a skewed grid is straightened if `resample` allows it.

    Raises:
        InputError: No voxel is finite.
        GeometryError: The grid is no usable space, or skewed and `resample` is false.
    """
    grid.check(where=source)
    bad = replace_nonfinite(array, where=source)
    if bad:
        rule = "NaN and -Inf became the smallest, +Inf the largest finite value"
        warnings = [*warnings, f"{bad} voxels are NaN or Inf: {rule}"]
    return _straighten(Volume(array=array, grid=grid, source=source, nonfinite=bad, warnings=tuple(warnings)), resample)


def _read_one(path: Path, frame: int | None, channel: int | None, resampled: bool, series: str | None) -> Volume:
    path = existing_path(path)
    if path.is_dir() or (path.name.upper() == "DICOMDIR"):
        return _read_dicom(path, series, resampled)
    kind, warnings = sniff(path)
    if kind == "dicom":
        return _read_dicom(path, series, resampled)
    if kind == "picture":
        array, grid, more = read_picture(path)
        array = array if channel is None else array[choose_index(len(array), channel, "channel", path)]
    elif kind == "nifti":
        array, grid, more = read_nifti(path, frame, channel)
    else:
        array, grid, more = read_itk(path, kind, frame, channel)
    volume = finish_volume(array, grid, str(path), [*warnings, *more], resampled)
    for message in volume.warnings:
        _log.warning("%s: %s", path, message)
    return volume


def _read_dicom(path: Path, series: str | None, resampled: bool) -> Volume:
    from MaskSAMCore.io.dicom import read_series

    return read_series(path, series=series, resample=resampled)


def read_volume(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    frame: int | None = None,
    channel: int | None = None,
    resample: bool = False,
    series: str | None = None,
) -> Volume:
    """Read a scan as float32 with its rescale applied.

    Args:
        paths: A NIfTI, NRRD or MetaImage file, a DICOM folder or file, or a PNG, JPEG or TIFF picture; or a list of
            scans, one per channel.
        frame: Index of the frame of a 4-D file, from 0; required if there are several.
        channel: Index of the channel of a colour or vector file, from 0; required if there are several.
        resample: Whether skewed axes (gantry tilt, shear) and irregular slices may be resampled; else they are an
            error.
        series: DICOM series, as for `dicom.choose_series`.

    Returns:
        `(K, J, I)`, or `(C, K, J, I)` for a list of more than one, on the grid of the first; `(3, 1, J, I)` from 0 to
        255 for a picture, unless a channel was chosen.

    Raises:
        InputError: A file is missing, truncated, damaged or of an unknown format, or a choice is missing or invalid.
        GeometryError: The affine is singular, NaN or skewed, or the channels have different grids.
    """
    if isinstance(paths, (str, os.PathLike)):
        return _read_one(Path(paths), frame, channel, resample, series)
    if not paths:
        raise InputError("no scan was given", remedy="Give at least one file")
    return stack_channels([_read_one(Path(p), frame, channel, resample, series) for p in paths])


def stack_channels(parts: Sequence[Volume]) -> Volume:
    """Volumes of one channel each as one volume `(C, K, J, I)` on the first one's grid; a single one as it is.

    Raises:
        InputError: One of several holds more than one channel.
        GeometryError: The grids differ.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    colour = next((p for p in parts if p.channels > 1), None)
    if colour is not None:
        raise InputError("has several channels already", where=colour.source, remedy="Give it alone.")
    for other in parts[1:]:
        match_grid(other.grid, first.grid, where=f"{other.source} and {first.source}")
    array: np.ndarray = np.empty((len(parts), *first.grid.shape), dtype=np.float32)
    for c, part in enumerate(parts):
        array[c] = part.array
        part.array = array[c]
    return Volume(
        array=array,
        grid=first.grid,
        source=first.source,
        modality=first.modality,
        nonfinite=sum(p.nonfinite for p in parts),
        warnings=tuple(dict.fromkeys(w for p in parts for w in p.warnings)),
    )


def read_labels(path: str | os.PathLike) -> LabelMap:
    """Read a label map, with its label table from `.seg.nrrd`; other formats have none.

    Raises:
        InputError: As for `read_volume`, or a voxel is not an id.
        GeometryError: As for `read_volume`; skewed label maps are not resampled.
    """
    path = existing_path(path)
    if path.is_dir():
        raise InputError("is a folder; a label map is one file", where=path, remedy="Give the file")
    kind, warnings = sniff(path)
    if kind == "dicom":
        raise InputError("label maps are not read from DICOM", where=path, remedy="Convert it to .nii.gz")
    if kind == "nrrd" and suffix_of(path) == ".seg.nrrd":
        from MaskSAMCore.io.segmentations import read_seg_nrrd

        return read_seg_nrrd(path)
    if kind == "picture":
        labels, grid = read_label_picture(path)
        return LabelMap(array=labels, grid=grid, source=str(path))
    array, grid, more = read_nifti(path, None, None) if kind == "nifti" else read_itk(path, kind, None, None)
    for message in (*warnings, *more):
        _log.warning("%s: %s", path, message)
    grid.check(where=path)
    if grid.skew > SKEW_TOLERANCE:
        raise GeometryError("its axes are not at right angles", where=path, why=f"directions\n{grid.directions}")
    return LabelMap(array=to_labels(array, where=path), grid=grid, source=str(path))


def image_of(array: np.ndarray, grid: Grid) -> Any:
    """The SimpleITK image of an array `(K, J, I)` on a grid."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    affine = ras_to_lps(grid.affine)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / grid.spacing).ravel().tolist())
    return image


def write_array(
    array: np.ndarray, grid: Grid, path: str | os.PathLike, *, overwrite: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Write `(K, J, I)` voxels atomically to .nii, .nii.gz, .nrrd or .mha; compressed except for .nii.

    Raises:
        InputError: The suffix is not known, or the target may not be written.
        GeometryError: The grid cannot be stored exactly.
        ResourceError: The disk is full.
    """
    path = Path(path)
    suffix = suffix_of(path)
    grid.check(where=path)
    if grid.skew > SKEW_TOLERANCE:
        raise GeometryError("a skewed grid cannot be written", where=path, why=f"directions\n{grid.directions}")
    with atomic_path(path, overwrite=overwrite, inputs=inputs) as part:
        if suffix in (".nii", ".nii.gz"):
            nifti.write_nifti(array, grid, part, packed=suffix == ".nii.gz")
        elif suffix == ".nrrd":
            from MaskSAMCore.io.segmentations import write_nrrd

            write_nrrd(array, grid, part)
        elif suffix == ".mha":
            _write_mha(array, grid, part)
        else:
            raise InputError("the suffix is not known", where=path, remedy="Use .nii.gz, .nii, .nrrd or .mha")


def _write_mha(array: np.ndarray, grid: Grid, part: Path) -> None:
    import SimpleITK as sitk

    try:
        sitk.WriteImage(image_of(array, grid), str(part), useCompression=True, imageIO="MetaImageIO")
    except RuntimeError as error:
        raise OSError(str(error).strip().splitlines()[-1]) from error


def write_volume(
    volume: Volume, path: str | os.PathLike, *, overwrite: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Write a volume of one channel; see `write_array`."""
    if volume.channels > 1:
        why, remedy = f"the volume has {volume.channels}", "Write each channel to a file of its own"
        raise InputError("a file has one channel", where=path, why=why, remedy=remedy)
    write_array(volume.as_channels()[0], volume.grid, path, overwrite=overwrite, inputs=inputs)


def write_labels(
    labelmap: LabelMap, path: str | os.PathLike, overwrite: bool = False, *, inputs: Iterable[Path] = ()
) -> None:
    """Write a label map as uint8 or uint16, with its label table for `.seg.nrrd`; see `write_array`."""
    if suffix_of(path) == ".seg.nrrd":
        from MaskSAMCore.io.segmentations import write_seg_nrrd

        write_seg_nrrd(labelmap, path, overwrite=overwrite, inputs=inputs)
        return
    write_array(to_labels(labelmap.array, where=path), labelmap.grid, path, overwrite=overwrite, inputs=inputs)
