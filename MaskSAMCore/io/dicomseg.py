"""Writes DICOM SEG: a segmentation that refers to the series it was made on, for PACS."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import InputError, optional_package
from MaskSAMCore.io.atomic import atomic_path
from MaskSAMCore.io.dicomsource import SourceStack, complete_header, find_source
from MaskSAMCore.io.segmentations import table_for
from MaskSAMCore.labels import Code, Label
from MaskSAMCore.terminology import TISSUE, has_codes, lookup
from MaskSAMCore.volume import LabelMap


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
    stack = find_source(labelmap, source, series)
    present = set(np.unique(labelmap.array).tolist())
    labels = _coded([label for label in table_for(labelmap).labels if label.id in present], allow_uncoded)
    if not labels:
        raise InputError("nothing is segmented", where=path, remedy="A DICOM SEG needs at least one structure")
    files = stack.files
    if len(files) > 1 and len(files) != len(stack.planes):
        raise InputError("a DICOM SEG of several multi-frame files is not supported", where=stack.where)
    try:
        made = _segmentation(stack, labels, files, model, version)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError("a DICOM SEG cannot be made for the series", where=stack.where, why=why) from error
    with atomic_path(path, overwrite=overwrite, inputs=files) as part:
        made.save_as(part)


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


def require_highdicom() -> None:
    """Check that DICOM SEG can be written here.

    Raises:
        PackageError: highdicom is not installed.
    """
    with optional_package("dicom", what="writing DICOM SEG"):
        import highdicom  # noqa: F401


def _segmentation(stack: SourceStack, labels: Sequence[Label], files: Sequence[Path], model: str, version: str) -> Any:
    """Build the DICOM data set in memory."""
    require_highdicom()
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes

    images = [complete_header(pydicom.dcmread(f, stop_before_pixels=True), stack.grid.spacing[2]) for f in files]
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


def _frames(stack: SourceStack, labels: Sequence[Label], files: Sequence[Path]) -> np.ndarray:
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
