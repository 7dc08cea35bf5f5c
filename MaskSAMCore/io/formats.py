"""Detects file formats by content, and reads their arrays; used by `images` and `segmentations`."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.io import nifti
from MaskSAMCore.io.pictures import is_picture
from MaskSAMCore.io.textheader import check_text_header
from MaskSAMCore.volume import SKEW_TOLERANCE, Grid, lps_to_ras

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
LABEL_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha")
INTEGER_TOLERANCE = 1e-4
_READ = "Give NIfTI (.nii, .nii.gz), NRRD, MetaImage (.mha, .mhd), a DICOM folder, or a PNG, JPEG or TIFF picture"
_KINDS = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"%PDF", "a PDF"), (b"<", "an HTML or XML page"), (b"version https://git-lfs", "a Git LFS pointer"),
    (b"\x80", "a Python pickle"), (b"{", "JSON text"),
)  # fmt: skip


def suffix_of(path: str | os.PathLike) -> str:
    """The known suffix of a path in lower case, such as ".seg.nrrd" or ".nii.gz"; "" if it has none."""
    name = Path(path).name.lower()
    return next((s for s in (*LABEL_SUFFIXES, *IMAGE_SUFFIXES) if name.endswith(s)), "")


def _head(path: Path) -> tuple[bytes, bool]:
    """The first 544 bytes, decompressed, and whether the file is compressed."""
    with nifti.open_stream(path) as stream:
        return stream.read(544), isinstance(stream, gzip.GzipFile)


def existing_path(path: str | os.PathLike) -> Path:
    """The path, if it can be accessed.

    Raises:
        InputError: It does not exist or cannot be accessed.
    """
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError("cannot be read", where=path, why=why, remedy="Check the path and the permissions") from error
    return path


def sniff(path: Path) -> tuple[str, list[str]]:
    """Detect the format by content, "nifti", "nrrd", "meta", "dicom" or "picture", and warnings about the name.

    Raises:
        InputError: The format is not known; says what the file seems to be.
    """
    head, packed = _head(path)
    name = path.name.lower()
    if head[:4] == b"NRRD":
        return "nrrd", []
    if is_picture(head):
        return "picture", []
    if head[128:132] == b"DICM":
        return "dicom", []
    if len(head) >= 348 and nifti.looks_like_nifti(head):
        if name.endswith(".gz") and not packed:
            return "nifti", ["is named .gz but is not compressed: it was read as plain NIfTI"]
        if packed and not name.endswith(".gz"):
            return "nifti", ["is compressed although its name does not end in .gz"]
        return "nifti", []
    if name.endswith((".mha", ".mhd")) and b"=" in head:
        return "meta", []
    kind = next((k for magic, k in _KINDS if head.lstrip().startswith(magic)), "not an image of a known format")
    if not head:
        kind = "empty"
    elif name.endswith(".gz") and not packed:
        kind = f"not gzip but {kind}"
    elif name.endswith((".nii", ".nii.gz")) and len(head) < 348:
        kind = "too short for a NIfTI header: truncated"
    raise InputError("is not an image that can be read", where=path, why=f"it is {kind}", remedy=_READ)


def choose_index(count: int, chosen: int | None, what: str, path: Path) -> int:
    """Index of the chosen frame or channel, or 0 if there is only one.

    Raises:
        InputError: There are several and none was chosen, or the index does not exist.
    """
    if chosen is None:
        if count > 1:
            remedy = f"Choose one with {what}=0 to {count - 1}"
            raise InputError(f"has {count} {what}s", where=path, why="one is needed", remedy=remedy)
        return 0
    if not 0 <= chosen < count:
        raise InputError(f"has no {what} {chosen}", where=path, why=f"it has {count}, counted from 0")
    return chosen


def read_nifti(path: Path, frame: int | None, channel: int | None) -> tuple[np.ndarray, Grid, list[str]]:
    """Read one frame and channel of a NIfTI as float32 `(K, J, I)`, with its grid and warnings."""
    header = nifti.read_header(path)
    at = choose_index(header.frames, frame, "frame", path)
    array, header = nifti.read_nifti(path, frame=at, channel=choose_index(header.channels, channel, "channel", path))
    return array, header.grid, list(header.warnings)


def read_channels(path: str | os.PathLike) -> tuple[list[np.ndarray], Grid]:
    """Read all channels of an NRRD or MetaImage, each float32 `(K, J, I)`; the file is decoded once per channel."""
    import SimpleITK as sitk

    path = existing_path(path)
    kind, _ = sniff(path)
    if kind in ("nifti", "picture"):
        raise InputError("is not an NRRD or MetaImage file", where=path)
    check_text_header(path, kind)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        count = reader.GetNumberOfComponents()
    except RuntimeError as error:
        raise InputError("cannot be read", where=path, why=str(error).strip().splitlines()[-1]) from error
    found = [read_itk(path, kind, None, c) for c in range(count)]
    grid = found[0][1].check(where=path)
    if grid.skew > SKEW_TOLERANCE:
        raise GeometryError("its axes are not at right angles", where=path, why=f"directions\n{grid.directions}")
    return [array for array, _, _ in found], grid


def grid_of(image: Any) -> Grid:
    """The grid of a SimpleITK image, RAS mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Grid(shape=image.GetSize()[::-1], affine=lps_to_ras(affine))


def read_itk(path: Path, kind: str, frame: int | None, channel: int | None) -> tuple[np.ndarray, Grid, list[str]]:
    """Read one frame and channel of an NRRD or MetaImage as float32 `(K, J, I)`, with its grid and warnings."""
    import SimpleITK as sitk

    check_text_header(path, kind)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if kind == "nrrd" else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = list(reader.GetSize())
        if len(size) > 4:
            raise InputError("has more than four dimensions", where=path, why=f"size {size}")
        at = choose_index(size[3] if len(size) == 4 else 1, frame, "frame", path)
        part = choose_index(reader.GetNumberOfComponents(), channel, "channel", path)
        if len(size) == 4:
            reader.SetExtractSize([*size[:3], 0])
            reader.SetExtractIndex([0, 0, 0, at])
        image = reader.Execute()
    except RuntimeError as error:
        why = str(error).strip().splitlines()[-1]
        geometry = any(w in str(error).lower() for w in ("spacing", "direction", "determinant"))
        raise (GeometryError if geometry else InputError)("cannot be read", where=path, why=why) from error
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    view = sitk.GetArrayViewFromImage(image)
    if np.iscomplexobj(view):
        raise InputError("complex voxels are not supported", where=path, remedy="Save it as real numbers")
    array = np.empty(view.shape[:3], dtype=np.float32)
    nifti.to_real(view if view.ndim == 3 else view[..., part], 1.0, 0.0, array)
    return array, grid_of(image), []


def to_labels(array: np.ndarray, *, where: object = "") -> np.ndarray:
    """Convert whole numbers from 0 to 65535 to uint8, or to uint16 if one is above 255.

    Raises:
        InputError: A value is a fraction, NaN or out of range; names the first such voxel (i, j, k).
    """
    if np.issubdtype(array.dtype, np.integer) and int(array.min()) >= 0 and int(array.max()) <= 65535:
        return array.astype(np.uint8 if int(array.max()) < 256 else np.uint16, copy=False)
    top = 0
    for k, plane in enumerate(array):
        with np.errstate(invalid="ignore"):
            good = (np.abs(plane - np.rint(plane)) <= INTEGER_TOLERANCE) & (plane >= -0.5) & (plane < 65535.5)
        if not good.all():
            j, i = (int(v[0]) for v in np.nonzero(~good))
            why = f"voxel (i, j, k) = ({i}, {j}, {k}) holds {plane[j, i]}"
            raise InputError("is not a label map: ids are whole numbers from 0 to 65535", where=where, why=why)
        top = max(top, int(np.rint(plane.max())))
    out = np.empty(array.shape, dtype=np.uint8 if top < 256 else np.uint16)
    for k, plane in enumerate(array):
        out[k] = np.rint(plane)
    return out
