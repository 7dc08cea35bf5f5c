"""Images and label maps as files: NIfTI, NRRD, MetaImage, and DICOM by way of `dicom.py`.

What a file is, is decided by its content; every header is checked before anything is allocated.
"""

from __future__ import annotations

import gzip
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
from MaskSAMCore.io.resample import resample_onto, upright_grid
from MaskSAMCore.io.textheader import check_text_header
from MaskSAMCore.volume import SKEW_TOLERANCE, Grid, LabelMap, Volume, lps_to_ras, match_grid, ras_to_lps

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
LABEL_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha")
INTEGER_TOLERANCE = 1e-4
_READ = "It reads NIfTI (.nii, .nii.gz), NRRD, MetaImage (.mha, .mhd) and DICOM folders"
_KINDS = (
    (b"\x89PNG", "a PNG picture"), (b"\xff\xd8\xff", "a JPEG picture"), (b"PK\x03\x04", "a ZIP archive"),
    (b"%PDF", "a PDF"), (b"<", "an HTML or XML page"), (b"version https://git-lfs", "a Git LFS pointer"),
    (b"\x80", "a Python pickle"), (b"{", "JSON text"),
)  # fmt: skip
_log = logging.getLogger(__name__)


def suffix_of(path: str | os.PathLike) -> str:
    """The suffix that names the format, lower case: ".seg.nrrd" and ".nii.gz" are one; "" if it is none of ours."""
    name = Path(path).name.lower()
    return next((s for s in (*LABEL_SUFFIXES, *IMAGE_SUFFIXES) if name.endswith(s)), "")


def _head(path: Path) -> tuple[bytes, bool]:
    """The first 544 bytes, decompressed if need be, and whether they were compressed."""
    with nifti.open_stream(path) as stream:
        return stream.read(544), isinstance(stream, gzip.GzipFile)


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    try:
        path.stat()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError("cannot be read", where=path, why=why, remedy="Check the path and the permissions") from error
    return path


def sniff(path: Path) -> tuple[str, list[str]]:
    """What a file is by its content: "nifti", "nrrd", "meta" or "dicom"; with warnings where its name says otherwise.

    Raises:
        InputError: It is none of them; says what it looks like.
    """
    head, packed = _head(path)
    name = path.name.lower()
    if head[:4] == b"NRRD":
        return "nrrd", []
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
    raise InputError("is no image that can be read", where=path, why=f"it is {kind}", remedy=_READ)


def _pick(count: int, chosen: int | None, what: str, path: Path) -> int:
    if chosen is None:
        if count > 1:
            remedy = f"Choose one with {what}=0 to {count - 1}"
            raise InputError(f"holds {count} {what}s", where=path, why="one is needed", remedy=remedy)
        return 0
    if not 0 <= chosen < count:
        raise InputError(f"has no {what} {chosen}", where=path, why=f"it has {count}, counted from 0")
    return chosen


def _read_nifti(path: Path, frame: int | None, channel: int | None) -> tuple[np.ndarray, Grid, list[str]]:
    header = nifti.read_header(path)
    at = _pick(header.frames, frame, "frame", path)
    array, header = nifti.read_nifti(path, frame=at, channel=_pick(header.channels, channel, "channel", path))
    return array, header.grid, list(header.warnings)


def read_channels(path: str | os.PathLike) -> tuple[list[np.ndarray], Grid]:
    """All channels of an NRRD or MetaImage as float32 `(K, J, I)`; the file is decoded once per channel."""
    import SimpleITK as sitk

    path = _existing(path)
    kind, _ = sniff(path)
    if kind == "nifti":
        raise InputError("is no NRRD", where=path)
    check_text_header(path, kind)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        count = reader.GetNumberOfComponents()
    except RuntimeError as error:
        raise InputError("cannot be read", where=path, why=str(error).strip().splitlines()[-1]) from error
    found = [_read_itk(path, kind, None, c) for c in range(count)]
    grid = found[0][1].check(where=path)
    if grid.skew > SKEW_TOLERANCE:
        raise GeometryError("its axes are not at right angles", where=path, why=f"directions\n{grid.directions}")
    return [array for array, _, _ in found], grid


def grid_of(image: Any) -> Grid:
    """The lattice of a SimpleITK image, in RAS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Grid(shape=image.GetSize()[::-1], affine=lps_to_ras(affine))


def _read_itk(path: Path, kind: str, frame: int | None, channel: int | None) -> tuple[np.ndarray, Grid, list[str]]:
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
        at = _pick(size[3] if len(size) == 4 else 1, frame, "frame", path)
        part = _pick(reader.GetNumberOfComponents(), channel, "channel", path)
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
        raise InputError("complex voxels are not supported", where=path)
    array = np.empty(view.shape[:3], dtype=np.float32)
    nifti.to_real(view if view.ndim == 3 else view[..., part], 1.0, 0.0, array)
    return array, grid_of(image), []


def replace_nonfinite(array: np.ndarray, *, where: object = "") -> int:
    """Replace NaN and -Inf by the smallest finite value and +Inf by the largest, in place; returns how many there were.

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
        raise InputError("holds no finite voxel", where=where, why=f"all {count} are NaN or Inf")
    if count:
        for plane in array:
            np.nan_to_num(plane, copy=False, nan=low, posinf=high, neginf=low)
    return count


def _straighten(volume: Volume, allowed: bool) -> Volume:
    if volume.grid.skew <= SKEW_TOLERANCE:
        return volume
    matrix = np.array2string(volume.grid.directions, precision=5, suppress_small=True)
    if not allowed:
        remedy = "Ask for resampling (resample=True, --resample) to bring it onto a grid at right angles"
        raise GeometryError(
            "its axes are not at right angles", where=volume.source, why=f"directions\n{matrix}\n", remedy=remedy
        )
    target = upright_grid(volume.grid).check(where=volume.source)
    array = resample_onto(volume.array, volume.grid, target)
    note = f"was resampled from skewed axes to right angles: size (k, j, i) {volume.grid.shape} to {target.shape}"
    return replace(volume, array=array, grid=target, warnings=(*volume.warnings, note))


def _read_one(path: Path, frame: int | None, channel: int | None, resampled: bool, series: str | None) -> Volume:
    path = _existing(path)
    if path.is_dir() or (path.name.upper() == "DICOMDIR"):
        return _read_dicom(path, series, resampled)
    kind, notes = sniff(path)
    if kind == "dicom":
        return _read_dicom(path, series, resampled)
    read = _read_nifti(path, frame, channel) if kind == "nifti" else _read_itk(path, kind, frame, channel)
    array, grid, more = read
    bad = replace_nonfinite(array, where=path)
    if bad:
        rule = "NaN and -Inf became the smallest, +Inf the largest finite value"
        more = [*more, f"{bad} voxels are NaN or Inf: {rule}"]
    grid.check(where=path)
    volume = Volume(array=array, grid=grid, source=str(path), nonfinite=bad, warnings=(*notes, *more))
    volume = _straighten(volume, resampled)
    for note in volume.warnings:
        _log.warning("%s: %s", path, note)
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
        paths: A NIfTI, NRRD or MetaImage file, a DICOM folder or file; or a list of them, one per channel.
        frame: Which frame of a 4-D file, from 0; needed where there are several.
        channel: Which channel of a colour or vector file, from 0; needed where there are several.
        resample: Whether skewed axes (gantry tilt, shear) and irregular slices may be resampled; else refused.
        series: Which DICOM series, as `dicom.list_series` names it.

    Returns:
        `(K, J, I)`, or `(C, K, J, I)` for a list of more than one, on the first one's grid.

    Raises:
        InputError: Missing, truncated, damaged or unknown file; a choice that is needed; a value out of range.
        GeometryError: A singular, NaN or skewed affine, or channels on different grids.
    """
    if isinstance(paths, (str, os.PathLike)):
        return _read_one(Path(paths), frame, channel, resample, series)
    if not paths:
        raise InputError("no scan was given")
    parts = [_read_one(Path(p), frame, channel, resample, series) for p in paths]
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
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


def to_labels(array: np.ndarray, *, where: object = "") -> np.ndarray:
    """Whole numbers 0 to 65535 as uint8, or uint16 where an id is above 255.

    Raises:
        InputError: A fraction, a NaN or an id out of range; names the first voxel (i, j, k).
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
            raise InputError("is no label map: ids are whole numbers from 0 to 65535", where=where, why=why)
        top = max(top, int(np.rint(plane.max())))
    out = np.empty(array.shape, dtype=np.uint8 if top < 256 else np.uint16)
    for k, plane in enumerate(array):
        out[k] = np.rint(plane)
    return out


def read_labels(path: str | os.PathLike) -> LabelMap:
    """Read a label map; `.seg.nrrd` brings its label table, other formats have none.

    Raises:
        InputError: As for `read_volume`, or a voxel that is no id.
        GeometryError: As for `read_volume`; a skewed label map is never resampled.
    """
    path = _existing(path)
    if path.is_dir():
        raise InputError("a label map is one file", where=path)
    kind, notes = sniff(path)
    if kind == "dicom":
        raise InputError("a DICOM file is no label map that is read here", where=path, remedy="Convert it to .nii.gz")
    if kind == "nrrd" and suffix_of(path) == ".seg.nrrd":
        from MaskSAMCore.io.segmentations import read_seg_nrrd

        return read_seg_nrrd(path)
    array, grid, more = _read_nifti(path, None, None) if kind == "nifti" else _read_itk(path, kind, None, None)
    for note in (*notes, *more):
        _log.warning("%s: %s", path, note)
    grid.check(where=path)
    if grid.skew > SKEW_TOLERANCE:
        raise GeometryError("its axes are not at right angles", where=path, why=f"directions\n{grid.directions}")
    return LabelMap(array=to_labels(array, where=path), grid=grid, source=str(path))


def _to_itk(array: np.ndarray, grid: Grid) -> Any:
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
    """Write `(K, J, I)` voxels to .nii, .nii.gz, .nrrd or .mha (compressed but for .nii); complete or absent.

    Raises:
        InputError: Unknown suffix, or the target may not be written.
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
            raise InputError("the format is not known by this suffix", where=path, remedy="Use .nii.gz, .nrrd or .mha")


def _write_mha(array: np.ndarray, grid: Grid, part: Path) -> None:
    import SimpleITK as sitk

    try:
        sitk.WriteImage(_to_itk(array, grid), str(part), useCompression=True, imageIO="MetaImageIO")
    except RuntimeError as error:
        raise OSError(str(error).strip().splitlines()[-1]) from error


def write_volume(
    volume: Volume, path: str | os.PathLike, *, overwrite: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Write a volume of one channel; see `write_array`."""
    if volume.channels > 1:
        raise InputError("one channel per file", where=path, why=f"the volume has {volume.channels}")
    write_array(volume.as_channels()[0], volume.grid, path, overwrite=overwrite, inputs=inputs)


def write_labels(
    labelmap: LabelMap, path: str | os.PathLike, overwrite: bool = False, *, inputs: Iterable[Path] = ()
) -> None:
    """Write a label map as uint8 or uint16; `.seg.nrrd` goes to `segmentations.write_seg_nrrd`. See `write_array`."""
    if suffix_of(path) == ".seg.nrrd":
        from MaskSAMCore.io.segmentations import write_seg_nrrd

        write_seg_nrrd(labelmap, path, overwrite=overwrite, inputs=inputs)
        return
    write_array(to_labels(labelmap.array, where=path), labelmap.grid, path, overwrite=overwrite, inputs=inputs)
