"""Reads DICOM series as volumes, with the geometry of each slice's own header.

Series with missing slices, gantry tilt or irregular spacing are refused, or resampled on request.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.io.dicomseries import (
    MALFORMED,
    SAME_PLACE_MM,
    Series,
    Slice,
    choose_series,
    find_attribute,
    list_series,
    plane_heights,
    plane_normal,
    stacked_twice,
)
from MaskSAMCore.io.nifti import to_real
from MaskSAMCore.io.reslice import regular_planes, resample_onto, upright_grid
from MaskSAMCore.volume import SKEW_TOLERANCE, Grid, Volume, lps_to_ras

__all__ = ["Series", "choose_series", "list_series", "read_series", "stack_geometry"]

SPACING_TOLERANCE = 0.01
"""The distances of slices may differ by this share of the smallest one."""
WANDER_MM = 0.1
"""Slices may deviate this far from the straight line from the first to the last."""
_log = logging.getLogger(__name__)


def _gap_problem(heights: np.ndarray, where: object) -> str:
    """Description of irregular distances of ascending positions, "" if there are none.

    Raises:
        GeometryError: Slices are missing.
    """
    gaps = np.diff(heights)
    base = float(gaps.min()) if gaps.size else 0.0
    if gaps.size == 0 or float(gaps.max()) - base <= SPACING_TOLERANCE * base:
        return ""
    ratio = gaps / base
    steps = np.rint(ratio)
    if (np.abs(ratio - steps) <= 0.02 * steps).all() and (steps - 1).sum() <= len(heights):
        absent = [float(heights[n] + base * m) for n, s in enumerate(steps) for m in range(1, int(s))]
        text = ", ".join(f"{a:.2f}" for a in absent[:12]) + (", ..." if len(absent) > 12 else "")
        why = (
            f"{len(absent)} of {len(heights) + len(absent)}, at {text} mm along the slice normal; spacing {base:.4g} mm"
        )
        raise GeometryError("slices are missing", where=where, why=why, remedy="Export the complete series again")
    worst = int(np.argmax(gaps))
    return f"gaps run from {base:.4g} to {gaps[worst]:.4g} mm (the widest after {heights[worst]:.2f} mm)"


def stack_geometry(chosen: Series, *, where: object = "") -> tuple[list[Slice], np.ndarray, np.ndarray, str]:
    """Sort the planes of a series along their normal.

    Returns:
        The planes, ascending; their heights (K,), mm; the LPS affine `(4, 4)` with the mean step as k; and what is
        irregular about the spacing ("" if it is regular).

    Raises:
        GeometryError: Positions occur twice, slices are missing or not in a line, or directions are singular.
    """
    heights = plane_heights(chosen.slices)
    order = np.argsort(heights, kind="stable")
    planes, heights = [chosen.slices[n] for n in order], heights[order]
    if stacked_twice(planes):
        at = float(heights[int(np.argmin(np.diff(heights)))])
        names = ", ".join(p.path.name for p, h in zip(planes, heights, strict=True) if abs(h - at) < SAME_PLACE_MM)
        raise GeometryError("several slices lie at one position", where=where, why=f"at {at:.2f} mm: {names}")
    irregular = _gap_problem(heights, where)
    places = np.array([p.position for p in planes])
    if len(planes) > 1:
        share = (heights - heights[0]) / (heights[-1] - heights[0])
        wander = np.linalg.norm(places - (places[0] + share[:, None] * (places[-1] - places[0])), axis=1)
        if wander.max() > WANDER_MM:
            name = planes[int(wander.argmax())].path.name
            raise GeometryError("slices are not in a line", where=where, why=f"{name} is {wander.max():.3g} mm off")
        step = (places[-1] - places[0]) / (len(planes) - 1)
    else:
        step = plane_normal(planes[0]) * (planes[0].thickness or 1.0)
    affine = np.eye(4)
    affine[:3, 0] = np.array(planes[0].orientation[:3]) * planes[0].spacing[1]
    affine[:3, 1] = np.array(planes[0].orientation[3:]) * planes[0].spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = places[0]
    return planes, heights, affine, irregular


def _native(syntax: Any) -> bool:
    from pydicom.uid import RLELossless

    return not syntax.is_compressed or syntax == RLELossless


def _rescale(data: Any, index: int, path: Path) -> tuple[float, float]:
    shared = (data.get("SharedFunctionalGroupsSequence") or [None])[0]
    frames = data.get("PerFrameFunctionalGroupsSequence") or []
    groups = [frames[index] if index < len(frames) else None, shared, data]
    slope, inter = find_attribute("RescaleSlope", groups), find_attribute("RescaleIntercept", groups)
    slope = 1.0 if slope is None else float(slope)
    inter = 0.0 if inter is None else float(inter)
    if not np.isfinite([slope, inter]).all() or slope == 0:
        raise InputError("its rescale values are not usable", where=path, why=f"slope {slope}, intercept {inter}")
    return slope, inter


def _decode(path: Path) -> Iterator[np.ndarray]:
    """Frames of a file as rescaled values `(J, I)` float32, in the order of the file."""
    import pydicom
    from pydicom.pixels import apply_modality_lut, iter_pixels
    from pydicom.uid import UID, RLELossless

    data = pydicom.dcmread(path, force=True)
    syntax = UID(str(data.file_meta.get("TransferSyntaxUID") or "1.2.840.10008.1.2"))
    if not syntax.is_transfer_syntax:
        remedy = "Export it uncompressed"
        raise InputError("its transfer syntax is not known", where=path, why=str(syntax), remedy=remedy)
    if syntax.is_compressed and syntax != RLELossless:
        yield from _decode_by_gdcm(path, data, syntax)
        return
    data.file_meta.TransferSyntaxUID = syntax
    for index, raw in enumerate(iter_pixels(data, raw=True)):
        out = np.empty(raw.shape, dtype=np.float32)
        if "ModalityLUTSequence" in data:
            out[...] = apply_modality_lut(raw, data)
        else:
            to_real(raw, *_rescale(data, index, path), out)
        yield out


def _decode_by_gdcm(path: Path, data: Any, syntax: Any) -> Iterator[np.ndarray]:
    """Decode JPEG, JPEG-LS and JPEG 2000 with SimpleITK's GDCM, which applies the rescale itself."""
    import SimpleITK as sitk

    frames = int(data.get("NumberOfFrames") or 1)
    if len({_rescale(data, n, path) for n in range(frames)}) > 1:
        why = "its compressed frames have different rescale values"
        raise InputError("cannot be decoded", where=path, why=why, remedy="Export it uncompressed")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        why = f"{syntax.name}: {str(error).strip().splitlines()[-1]}"
        raise InputError(
            "its pixels cannot be decoded", where=path, why=why, remedy="Export it uncompressed"
        ) from error
    view = sitk.GetArrayViewFromImage(image)
    if view.ndim > 3:
        raise InputError("colour pixels are not supported", where=path, why=f"decoded to {view.shape}")
    for raw in view.reshape(-1, *view.shape[-2:]):
        yield np.array(raw, dtype=np.float32)


def _fill(planes: list[Slice], out: np.ndarray) -> None:
    """Decode every file once, and copy its frames into their planes of `out` (K, J, I)."""
    wanted: dict[Path, dict[int, int]] = {}
    for k, plane in enumerate(planes):
        wanted.setdefault(plane.path, {})[plane.frame] = k
    for path, frames in wanted.items():
        done = 0
        try:
            for index, pixels in enumerate(_decode(path)):
                if index in frames:
                    out[frames[index]] = pixels
                    done += 1
        except MALFORMED as error:
            why = f"{type(error).__name__}: {error}"
            raise InputError(
                "its pixels cannot be decoded", where=path, why=why, remedy="Export the series again"
            ) from error
        if done < len(frames):
            why, remedy = f"{done} of {len(frames)} were found", "Export the series again"
            raise InputError("has fewer frames than its header says", where=path, why=why, remedy=remedy)


def read_series(path: str | os.PathLike, *, series: str | None = None, resample: bool = False) -> Volume:
    """Read one DICOM volume as float32 with the rescale applied.

    Args:
        path: A folder (with its subfolders), a file, or a DICOMDIR.
        series: The volume, as for `choose_series`; required if there are several.
        resample: Whether gantry tilt and irregular spacing may be resampled; else they are an error.

    Raises:
        InputError: There is no or more than one volume, a file is malformed, or pixels cannot be decoded.
        GeometryError: Slices are missing or occur twice, or gantry tilt or irregular spacing needs `resample`.
    """
    chosen = choose_series(path, series)
    where = f"{path}, series {chosen.key}"
    planes, heights, affine, irregular = stack_geometry(chosen, where=where)
    grid = Grid(shape=(len(planes), *planes[0].size), affine=lps_to_ras(affine)).check(where=where)
    step = grid.affine[:3, 2]
    tilt = float(np.degrees(np.arccos(min(1.0, abs(grid.directions[:, 2] @ lps_to_ras(plane_normal(planes[0])))))))
    remedy = "Use --resample (resample=True) for resampling, or export a regular series without tilt"
    if irregular and not resample:
        raise GeometryError("slice spacing is irregular", where=where, why=irregular, remedy=remedy)
    if grid.skew > SKEW_TOLERANCE and not resample:
        matrix = np.array2string(grid.directions, precision=5, suppress_small=True)
        why = f"slices are shifted sideways, gantry tilt {tilt:.2f} degrees; directions\n{matrix}\n"
        raise GeometryError("its axes are not at right angles", where=where, why=why, remedy=remedy)
    warnings = list(chosen.warnings)
    if len(planes) == 1:
        warnings.append(f"has one slice: its thickness is taken as {np.linalg.norm(step):.4g} mm")
    array: np.ndarray = np.empty(grid.shape, dtype=np.float32)
    _fill(planes, array)
    modality = chosen.modality if chosen.modality in ("CT", "MR") else None
    if irregular:
        gap = float(np.diff(heights).min())
        array, count = regular_planes(array, heights, gap)
        changed = grid.affine.copy()
        changed[:3, 2] = step * (gap * (len(planes) - 1) / (heights[-1] - heights[0]))
        grid = Grid(shape=(count, *grid.shape[1:]), affine=changed)
        warnings.append(f"irregular slices were resampled to {gap:.4g} mm: {irregular}")
    if grid.skew > SKEW_TOLERANCE:
        target = upright_grid(grid).check(where=where)
        array, grid = resample_onto(array, grid, target), target
        warnings.append(f"a gantry tilt of {tilt:.2f} degrees was removed by resampling")
    for message in warnings:
        _log.warning("%s: %s", where, message)
    return Volume(array=array, grid=grid, source=str(path), modality=modality, warnings=tuple(warnings))
