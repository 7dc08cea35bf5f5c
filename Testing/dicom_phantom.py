"""Small DICOM series with known voxels and places, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def dicom_slice(
    path: Path,
    pixels: np.ndarray,
    *,
    series: str,
    position: tuple[float, float, float],
    orientation: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float] = (1.0, 1.0),
    modality: str = "CT",
    instance: int = 1,
    **tags: object,
) -> FileDataset:
    """Write one slice `(J, I)` of int16 or uint16; position and orientation in LPS mm, spacing (row, column)."""
    sop = CTImageStorage if modality == "CT" else MRImageStorage
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID = series, series + ".1"
    data.FrameOfReferenceUID = series + ".2"
    data.PatientID, data.PatientName, data.Modality = "P", "Phantom^A", modality
    data.PatientBirthDate = data.PatientSex = data.StudyDate = data.StudyTime = data.AccessionNumber = data.StudyID = ""
    data.ReferringPhysicianName = ""
    data.InstanceNumber, data.SeriesNumber = instance, 1
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImagePositionPatient = [f"{v:.6f}" for v in position]
    data.ImageOrientationPatient = [f"{v:.8f}" for v in orientation]
    data.PixelSpacing = [str(v) for v in spacing]
    data.SliceThickness = "1"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            del data[name]
        else:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return data


def dicom_series(
    folder: Path,
    array: np.ndarray,
    *,
    heights: list[float] | None = None,
    shift: tuple[float, float] = (0.0, 0.0),
    orientation: tuple[float, ...] = AXIAL,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    name: str = "s",
    series: str | None = None,
    **tags: object,
) -> str:
    """Write `(K, J, I)` as one file per slice; `shift` mm along row and column per mm of height; returns the UID."""
    folder.mkdir(parents=True, exist_ok=True)
    series = series or generate_uid()[:60]
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    for k, plane in enumerate(array):
        height = float(k) if heights is None else heights[k]
        position = np.array(origin) + height * (normal + shift[0] * row + shift[1] * column)
        file = folder / f"{name}{len(array) - k:03}.dcm"
        dicom_slice(
            file, plane, series=series, position=tuple(position), orientation=orientation, instance=k + 1, **tags
        )
    return series


def ramp(shape: tuple[int, int, int] = (5, 6, 7), dtype: type = np.int16) -> np.ndarray:
    """Every voxel its own number."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def edit(path: Path, **tags: object) -> None:
    """Change tags of a file on disk; None deletes."""
    data = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            del data[name]
        else:
            setattr(data, name, value)
    data.save_as(path)
