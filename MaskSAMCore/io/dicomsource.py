"""The series that a DICOM segmentation refers to, with the label map brought onto its slices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.io.dicom import stack_geometry
from MaskSAMCore.io.dicomseries import Series, Slice, choose_series, list_series
from MaskSAMCore.volume import Grid, LabelMap, lps_to_ras, match_grid, reorient

_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""DICOM's type 2 attributes, which anonymised files often lack and which may be empty."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceStack:
    """The slices of a series and what is segmented on them.

    Attributes:
        planes: In ascending order along their normal.
        grid: Of the slices, `(K, J, I)`, RAS mm.
        array: Label ids on `grid`.
        where: The folder or file, for messages.
    """

    planes: list[Slice]
    grid: Grid
    array: np.ndarray
    where: object

    @property
    def files(self) -> list[Path]:
        """The files of the slices, each once; a multi-frame file holds several."""
        return list(dict.fromkeys(plane.path for plane in self.planes))


def find_source(
    labelmap: LabelMap, source: str | os.PathLike | Sequence[str | os.PathLike], series: str | None = None
) -> SourceStack:
    """The series that was segmented, with the label map on its grid.

    Args:
        labelmap: On exactly the grid of the series, its axes in any order and sense.
        source: Folder of the scan, or its files.
        series: As for `dicom.read_series`; without it, of several series the one that has the label map's grid.

    Raises:
        InputError: No such series, or a file that cannot be read.
        GeometryError: The label map lies on another grid (a series that was resampled cannot be referred to).
    """
    where = source if isinstance(source, (str, os.PathLike)) else Path(source[0]).parent
    offered = [each for each in list_series(source) if not each.problem] if series is None else []
    if len(offered) < 2:
        return _place(labelmap, offered[0] if offered else choose_series(source, series), where)
    for each in offered:
        with contextlib.suppress(GeometryError):
            return _place(labelmap, each, where)
    lines = "\n  ".join(each.line() for each in offered)
    raise GeometryError("no volume has the grid of the segmentation", where=where, why=f"found\n  {lines}\n")


def _place(labelmap: LabelMap, series: Series, where: object) -> SourceStack:
    planes, _, affine, irregular = stack_geometry(series, where=where)
    if irregular:
        raise GeometryError("slice spacing is irregular", where=where, why=irregular)
    grid = Grid(shape=(len(planes), *planes[0].size), affine=lps_to_ras(affine)).check(where=where)
    array, found, _ = reorient(labelmap.array, labelmap.grid)
    _, wanted, way = reorient(np.broadcast_to(np.uint8(0), grid.shape), grid)
    match_grid(found, wanted, where=f"the segmentation and {where}")
    return SourceStack(planes=planes, grid=grid, array=way.undo(array), where=where)


def complete_header(image: Any, step_mm: float) -> Any:
    """A pydicom data set with what writers take for granted added in memory; the file is not touched.

    Anonymised files lack type 2 attributes; multi-frame files may hold the geometry, equal in all frames of one stack,
    in each frame instead of once.

    Args:
        image: The header, which is changed.
        step_mm: Distance of the slices, for a header without a slice thickness.
    """
    for name in _MAY_BE_EMPTY:
        if name not in image:
            setattr(image, name, "")
    if "PerFrameFunctionalGroupsSequence" not in image:
        if not image.get("SliceThickness"):
            image.SliceThickness = step_mm
        return image
    shared, first = image.SharedFunctionalGroupsSequence[0], image.PerFrameFunctionalGroupsSequence[0]
    for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if name not in shared and name in first:
            setattr(shared, name, first[name].value)
    return image
