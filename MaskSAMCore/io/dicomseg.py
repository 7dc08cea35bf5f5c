"""Writes DICOM SEG: a segmentation that refers to the series it was made on, for PACS."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.io.atomic import atomic_path
from MaskSAMCore.io.dicom import stack_geometry
from MaskSAMCore.io.dicomseries import Series, Slice, choose_series, list_series
from MaskSAMCore.io.segmentations import table_for
from MaskSAMCore.labels import Code, Label
from MaskSAMCore.terminology import TISSUE, has_codes, lookup
from MaskSAMCore.volume import Grid, LabelMap, lps_to_ras, match_grid, reorient

_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Type 2 attributes of DICOM, which may be empty; anonymised files often lack them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stack:
    """Planes of a series, ascending along their normal, their grid (RAS mm), and label ids (K, J, I) on the grid."""

    planes: list[Slice]
    grid: Grid
    array: np.ndarray


def write_dicom_seg(
    labelmap: LabelMap,
    source: str | os.PathLike | Sequence[str | os.PathLike],
    path: str | os.PathLike,
    *,
    series: str | None = None,
    model: str = "MaskSAM",
    version: str = "0",
    allow_uncoded: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a DICOM SEG atomically, which refers to the series that was segmented.

    Args:
        labelmap: On the grid of the series, with axes in any order and direction, and its label table.
        source: Folder of the scan, or its files.
        path: The .dcm file to write.
        series: Series of the folder, as for `dicom.choose_series`; None for the one with the grid of the label map.
        model, version: Name and version of the model, for the header.
        allow_uncoded: Whether structures without codes are written as Tissue.
        overwrite: Whether an existing file may be replaced.

    Raises:
        InputError: There is no segment, a structure has no codes, or the source cannot be read.
        GeometryError: The label map is on another grid, for example because the series was resampled.
    """
    where = source if isinstance(source, (str, os.PathLike)) else Path(source[0]).parent
    stack = _stack(labelmap, source, series, where)
    present = set(np.unique(labelmap.array).tolist())
    labels = _coded([label for label in table_for(labelmap).labels if label.id in present], allow_uncoded)
    if not labels:
        raise InputError("nothing is segmented", where=path, remedy="A DICOM SEG needs at least one structure")
    files = list(dict.fromkeys(p.path for p in stack.planes))
    if len(files) > 1 and len(files) != len(stack.planes):
        raise InputError("a DICOM SEG of several multi-frame files is not supported", where=where)
    try:
        made = _segmentation(stack, labels, files, model, version)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError("a DICOM SEG cannot be made for the series", where=where, why=why) from error
    with atomic_path(path, overwrite=overwrite, inputs=files) as part:
        made.save_as(part)


def _stack(labelmap: LabelMap, source: Any, series: str | None, where: object) -> _Stack:
    """The series that the label map belongs to, with the label map on its grid."""
    offered = [each for each in list_series(source) if not each.problem] if series is None else []
    if len(offered) < 2:
        return _place(labelmap, offered[0] if offered else choose_series(source, series), where)
    for each in offered:
        with contextlib.suppress(GeometryError):
            return _place(labelmap, each, where)
    lines = "\n  ".join(each.line() for each in offered)
    raise GeometryError("no volume has the grid of the segmentation", where=where, why=f"found\n  {lines}\n")


def _place(labelmap: LabelMap, series: Series, where: object) -> _Stack:
    planes, _, affine, irregular = stack_geometry(series, where=where)
    if irregular:
        raise GeometryError("slice spacing is irregular", where=where, why=irregular)
    grid = Grid(shape=(len(planes), *planes[0].size), affine=lps_to_ras(affine)).check(where=where)
    array, found, _ = reorient(labelmap.array, labelmap.grid)
    _, wanted, way = reorient(np.broadcast_to(np.uint8(0), grid.shape), grid)
    match_grid(found, wanted, where=f"the segmentation and {where}")
    return _Stack(planes=planes, grid=grid, array=way.undo(array))


def _coded(labels: Sequence[Label], allow_uncoded: bool) -> list[Label]:
    """Complete missing codes of labels by their names; others become Tissue, or are an error."""
    out, missing = [], []
    for label in labels:
        if not has_codes(label):
            term = lookup(label.name)
            if term is None:
                missing.append(label.name)
                label = replace(label, category=TISSUE, type=TISSUE)
            else:
                label = replace(label, category=term.category, type=term.type, modifier=term.modifier)
        out.append(label)
    if missing and not allow_uncoded:
        remedy = "Give them a category and type, or allow the general code Tissue"
        raise InputError(
            "DICOM SEG needs a code for every structure", why="none for " + ", ".join(missing), remedy=remedy
        )
    return out


def _segmentation(stack: _Stack, labels: Sequence[Label], files: Sequence[Path], model: str, version: str) -> Any:
    """Build the DICOM data set in memory."""
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes

    images = [pydicom.dcmread(f, stop_before_pixels=True) for f in files]
    for image in images:
        _complete(image, stack.grid.spacing[2])
    algorithm = hd.AlgorithmIdentificationSequence(
        name=model, version=version, family=codes.cid7162.ArtificialIntelligence
    )
    return hd.seg.Segmentation(
        source_images=images,
        pixel_array=_frames(stack, labels, files),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(n, label, algorithm) for n, label in enumerate(labels, start=1)],
        series_instance_uid=hd.UID(),
        series_number=int(images[0].get("SeriesNumber") or 0) + 900,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="SlicerMaskSAM",
        manufacturer_model_name=model,
        software_versions=version,
        device_serial_number="0",
        series_description=f"{model} segmentation"[:64],
    )


def _frames(stack: _Stack, labels: Sequence[Label], files: Sequence[Path]) -> np.ndarray:
    """Segment numbers (frames, J, I), in the order of the files."""
    kind = np.uint8 if len(labels) < 256 else np.uint16
    numbers: np.ndarray = np.zeros(int(stack.array.max()) + 1, dtype=kind)
    for number, label in enumerate(labels, start=1):
        numbers[label.id] = number
    place = {path: index for index, path in enumerate(files)}
    count = max(p.frame for p in stack.planes) + 1 if len(files) == 1 else len(files)
    pixels: np.ndarray = np.zeros((count, *stack.grid.shape[1:]), kind)
    for plane, ids in zip(stack.planes, stack.array, strict=True):
        pixels[plane.frame if len(files) == 1 else place[plane.path]] = numbers[ids]
    return pixels


def _description(number: int, label: Label, algorithm: Any) -> Any:
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

    def concept(code: Code | None) -> CodedConcept:
        code = code or TISSUE
        return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning[:64])

    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name[:64],
        segmented_property_category=concept(label.category),
        segmented_property_type=concept(label.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=hd.UID(),
        tracking_id=label.name[:64],
        display_color=hd.color.CIELabColor.from_rgb(*label.color),
    )
    if label.modifier is not None:
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            concept(label.modifier)
        ]
    return description


def _complete(image: Any, step_mm: float) -> None:
    """Add attributes that highdicom requires to a header in memory; the file is unchanged.

    Anonymised files lack type 2 attributes. Multi-frame files may have the geometry in each frame instead of once.
    """
    for name in _MAY_BE_EMPTY:
        if name not in image:
            setattr(image, name, "")
    if "PerFrameFunctionalGroupsSequence" not in image:
        if not image.get("SliceThickness"):
            image.SliceThickness = step_mm
        return
    shared, first = image.SharedFunctionalGroupsSequence[0], image.PerFrameFunctionalGroupsSequence[0]
    for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if name not in shared and name in first:
            setattr(shared, name, first[name].value)
