"""DICOM RTSTRUCT: the structures as contours on the slices of the series, for radiotherapy planning.

rt-utils (extra `rtstruct`) traces the contours and builds the data set. It is given masks and slices in voxel
coordinates only; the way to millimetres is this project's own, so that pixels which are not square, the order of the
slices and series of several frames come out right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import InputError, optional_package
from MaskSAMCore.io.atomic import atomic_path
from MaskSAMCore.io.dicomsource import SourceStack, complete_header, find_source
from MaskSAMCore.io.segmentations import table_for
from MaskSAMCore.labels import Label
from MaskSAMCore.volume import LabelMap, Slices, ras_to_lps

_CONTOUR_DATA = 0x30060050


def require_rt_utils() -> None:
    """Check that RTSTRUCT can be written here.

    Raises:
        PackageError: rt-utils, or what it needs, is not installed.
    """
    with optional_package("rtstruct", what="writing RTSTRUCT"):
        import rt_utils  # noqa: F401


def write_rtstruct(
    labelmap: LabelMap,
    source: str | os.PathLike | Sequence[str | os.PathLike],
    path: str | os.PathLike,
    *,
    series: str | None = None,
    model: str = "MaskSAM",
    version: str = "0",
    overwrite: bool = False,
) -> None:
    """Write an RTSTRUCT that refers to the series it was made on; complete or absent.

    Contours are closed, planar, in LPS mm, and run along the edges of the voxels, so that their area is exactly that
    of the voxels. A hole is a contour of its own inside another one. Structures without voxels are left out.

    Args:
        labelmap: On exactly the grid of the series, its axes in any order and sense, with its label table.
        source: Folder of the scan, or its files.
        path: The .dcm to write.
        series: Which series of the folder, as for `dicom.read_series`; without it, of several the one that has the
            label map's grid.
        model, version: What segmented it, for the record.
        overwrite: Whether an existing file may be replaced.

    Raises:
        PackageError: rt-utils is not installed.
        InputError: No structure has voxels, or the series has no frame of reference or cannot be read.
        GeometryError: The label map lies on another grid (a series that was resampled cannot be referred to).
    """
    require_rt_utils()
    stack = find_source(labelmap, source, series)
    boxes = _boxes(stack.array)
    labels = [label for label in table_for(labelmap).labels if label.id in boxes]
    if not labels:
        raise InputError("nothing is segmented", where=path, remedy="An RTSTRUCT needs at least one structure.")
    try:
        made = _structure_set(stack, labels, boxes, model, version)
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError("the series cannot carry an RTSTRUCT", where=stack.where, why=why) from error
    with atomic_path(path, overwrite=overwrite, inputs=stack.files) as part:
        made.save_as(part, enforce_file_format=True)


def _boxes(array: np.ndarray) -> dict[int, Slices]:
    from scipy.ndimage import find_objects

    return {number: box for number, box in enumerate(find_objects(array), start=1) if box is not None}


def _structure_set(
    stack: SourceStack, labels: Sequence[Label], boxes: dict[int, Slices], model: str, version: str
) -> Any:
    """The data set, in memory; raises what pydicom and rt-utils raise."""
    import pydicom
    from rt_utils import RTStruct
    from rt_utils.ds_helper import create_rtstruct_dataset

    headers = {file: pydicom.dcmread(file, stop_before_pixels=True) for file in stack.files}
    for header in headers.values():
        complete_header(header, stack.grid.spacing[2])
        header.decode()
        if not header.get("FrameOfReferenceUID"):
            raise InputError(
                "the series cannot carry an RTSTRUCT",
                where=stack.where,
                why="it has no Frame of Reference UID, which says where contours lie",
                remedy="Write .nii.gz or .seg.nrrd instead.",
            )
    data = create_rtstruct_dataset(list(headers.values()))
    _describe(data, next(iter(headers.values())), model, version)
    lattice = _lattice(stack, headers)
    for label in labels:
        k, j, i = boxes[label.id]
        mask = np.moveaxis(_edges(stack.array[k, j, i] == label.id), 0, 2)
        name = label.name.replace("\\", "/")  # a backslash would part it into two values
        RTStruct(lattice[k], data).add_roi(mask=mask, color=list(label.color), name=name[:64])
        _to_patient(data.ROIContourSequence[-1], stack, headers, (j.start, i.start))
        observation = data.RTROIObservationsSequence[-1]
        observation.ROIObservationLabel, observation.ROIObservationDescription = name[:16], ""
    return data


def _describe(data: Any, header: Any, model: str, version: str) -> None:
    """Say who made the data set, complete its study, and let it hold text in any language."""
    data.SpecificCharacterSet = "ISO_IR 192"
    data.StructureSetLabel = "MaskSAM"
    data.StructureSetName = model[:64]
    data.SeriesDescription = f"{model} segmentation"[:64]
    data.SeriesNumber = "900"
    data.SeriesDate, data.SeriesTime = data.StructureSetDate, data.StructureSetTime
    data.Manufacturer, data.ManufacturerModelName, data.SoftwareVersions = "SlicerMaskSAM", model[:64], version
    data.DeviceSerialNumber = "0"
    data.OperatorsName = ""
    data.AccessionNumber, data.ReferringPhysicianName = header.AccessionNumber, header.ReferringPhysicianName
    del data.InstitutionName
    for name in ("PatientAge", "PatientSize", "PatientWeight"):
        if name not in header:
            del data[name]


def _lattice(stack: SourceStack, headers: dict[Path, Any]) -> list[Any]:
    """Stand-ins for the slices in voxel coordinates, ascending: rt-utils then traces contours as (x, y, k)."""
    from pydicom.dataset import Dataset

    out = []
    for k, plane in enumerate(stack.planes):
        stand_in = Dataset()
        stand_in.SOPClassUID = headers[plane.path].SOPClassUID
        stand_in.SOPInstanceUID = headers[plane.path].SOPInstanceUID
        stand_in.ImagePositionPatient = [0, 0, k]
        stand_in.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        stand_in.PixelSpacing = [1, 1]
        out.append(stand_in)
    return out


def _edges(mask: np.ndarray) -> np.ndarray:
    """A mask `(K, J, I)` on a lattice of half voxels, `(K, 2J + 1, 2I + 1)`: corners are even, centres odd.

    A lattice point belongs to the mask where one of the voxels that it touches does, so that contours through the
    outermost points run along the edges of the voxels.
    """
    depth, height, width = mask.shape
    fine = np.zeros((depth, 2 * height + 1, 2 * width + 1), bool)
    for y in range(3):
        for x in range(3):
            fine[:, y : y + 2 * height : 2, x : x + 2 * width : 2] |= mask
    return fine


def _corners(points: np.ndarray) -> np.ndarray:
    """The voxel corners `(N, 2)` that a traced contour `(M, 2)` turns at, in lattice points (x, y).

    Tracing cuts across the corners that point into the structure, by a diagonal step; they are put back.
    """
    following = np.roll(points, -1, axis=0)
    even = points % 2 == 0
    diagonal = (points != following).all(axis=1)
    both = np.stack([points, np.where(even, points, following)], axis=1).reshape(-1, 2)
    return both[np.stack([even.all(axis=1), diagonal], axis=1).ravel()]


def _to_patient(roi: Any, stack: SourceStack, headers: dict[Path, Any], corner: tuple[int, int]) -> None:
    """Bring the contours of one structure from the lattice to LPS mm, and refer to frames where there are several.

    Args:
        roi: The item of the ROI Contour Sequence.
        stack: The series.
        headers: Of its files.
        corner: (j, i) of the box that was traced.
    """
    from pydicom.dataelem import DataElement

    for contour in roi.ContourSequence:
        traced = np.rint(np.array(contour.ContourData, np.float64)).astype(int).reshape(-1, 3)
        plane = int(traced[0, 2])
        points = _corners(traced[:, :2]) / 2 + (corner[1] - 0.5, corner[0] - 0.5)
        lps = ras_to_lps(stack.grid.to_ras(np.column_stack([points, np.full(len(points), plane)])))
        texts = [f"{value:.4f}" for value in lps.ravel()]
        contour["ContourData"] = DataElement(_CONTOUR_DATA, "DS", texts, already_converted=True)
        contour.NumberOfContourPoints = len(points)
        if "NumberOfFrames" in headers[stack.planes[plane].path]:
            contour.ContourImageSequence[0].ReferencedFrameNumber = stack.planes[plane].frame + 1
