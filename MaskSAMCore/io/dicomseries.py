"""Lists the volumes in DICOM folders, and chooses one; never silently if there are several."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import GeometryError, InputError

SAME_PLACE_MM = 1e-3
MALFORMED = (
    ValueError, KeyError, AttributeError, TypeError, IndexError, NotImplementedError, RecursionError, OverflowError,
    EOFError, OSError, RuntimeError, struct.error,
)  # fmt: skip
_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType",
    "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "InstanceNumber", "EchoTime", "EchoNumbers",
    "TemporalPositionIdentifier", "TriggerTime", "DiffusionBValue", "AcquisitionNumber", "AcquisitionTime",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelData", "FloatPixelData",
    "DoubleFloatPixelData", "RescaleSlope", "RescaleIntercept",
]  # fmt: skip
_SPLIT_BY = (
    "EchoTime", "EchoNumbers", "EffectiveEchoTime", "TemporalPositionIdentifier", "TemporalPositionIndex", "StackID",
    "DiffusionBValue", "ImageType", "FrameType", "TriggerTime", "AcquisitionNumber", "AcquisitionTime",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One plane of a file, with DICOM's positions and directions in LPS mm."""

    path: Path
    frame: int
    position: tuple[float, float, float]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    thickness: float
    size: tuple[int, int]
    marks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One volume of a DICOM folder.

    Attributes:
        key: Identifier for `read_series(series=...)`: the UID of the series, with "#2", "#3", ... for further volumes.
        description, modality, number: Attributes of the series.
        files: Files of the volume.
        slices: Planes in the order of the files; empty if they have no position.
        problem: Why it cannot be segmented (localiser, no pixel data, no position, colour); "" if it can.
        part: Attributes in which it differs from the other volumes of its series.
        warnings: Messages about the files.
    """

    key: str
    description: str
    modality: str
    number: int
    files: tuple[Path, ...]
    slices: tuple[Slice, ...]
    problem: str = ""
    part: str = ""
    warnings: tuple[str, ...] = ()

    def line(self) -> str:
        """Description of the volume in one line."""
        size = f"{self.slices[0].size[1]}x{self.slices[0].size[0]}x{len(self.slices)}" if self.slices else "-"
        text = f"{self.key}  {self.modality or '?'}  {size}  {self.description or '(no description)'}"
        return text + (f" [{self.part}]" if self.part else "") + (f" - {self.problem}" if self.problem else "")


def _check_dicomdir(path: Path) -> None:
    """Raise InputError if a DICOMDIR refers to files outside its folder."""
    import pydicom

    folder = path.parent.resolve()
    try:
        index = pydicom.dcmread(path)
        records = index.get("DirectoryRecordSequence") or []
        names = [r.ReferencedFileID for r in records if r.get("ReferencedFileID")]
    except MALFORMED as error:
        raise InputError("the DICOMDIR cannot be read", where=path, why=str(error)) from error
    for name in names:
        parts = [name] if isinstance(name, str) else [str(n) for n in name]
        text = "/".join(parts).replace("\\", "/")
        target = (folder / text).resolve()
        if text.startswith("/") or ":" in text or not target.is_relative_to(folder):
            raise InputError("the DICOMDIR refers to a file outside its folder", where=path, why=text)


def _is_dicom(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(132)
    return head[128:132] == b"DICM" or (head[:2] == b"\x08\x00" and head[4:6].isalpha())


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError("does not exist", where=path, remedy="Check the path")
    if path.is_file() and path.name.upper() != "DICOMDIR":
        return [path]
    folder = path if path.is_dir() else path.parent
    found = []
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            file = Path(root) / name
            if name.upper() == "DICOMDIR":
                _check_dicomdir(file)
                continue
            try:
                if file.is_file() and _is_dicom(file):
                    found.append(file)
            except OSError as error:
                raise InputError("cannot be read", where=file, why=str(error)) from error
    if not found:
        raise InputError("contains no DICOM file", where=folder, remedy="Check the path")
    return sorted(found)


def _read_header(path: Path) -> Any:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        header = pydicom.dcmread(path, defer_size=1024, specific_tags=_TAGS, force=True)
        if not header or ("SOPClassUID" not in header and "Rows" not in header):
            raise InputError("is not a DICOM image", where=path, why="it has no known element")
        for tag in _TAGS:
            if "Pixel" not in tag or tag == "PixelSpacing":
                header.get(tag)
        return header
    except (InvalidDicomError, *MALFORMED) as error:
        remedy = "Remove the file from the folder, or export the series again"
        raise InputError(
            "is a malformed DICOM file", where=path, why=f"{type(error).__name__}: {error}", remedy=remedy
        ) from error


def find_attribute(name: str, groups: list[Any]) -> Any:
    """Value of an attribute from the first of `groups` that has it, directly or in a sequence; None if none has."""
    for group in groups:
        if group is None:
            continue
        if name in group:
            return group[name].value
        for element in group:
            if element.VR == "SQ" and element.value and name in element.value[0]:
                return element.value[0][name].value
    return None


def _numbers(value: Any, count: int) -> Any:
    """The value as a tuple of `count` finite numbers; None if it is not one."""
    if value is None or len(value) != count:
        return None
    numbers = tuple(float(v) for v in value)
    return numbers if np.isfinite(numbers).all() else None


def _slices(header: Any, path: Path) -> list[Slice]:
    """The planes of a file; empty if they have no position."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    frames = header.get("PerFrameFunctionalGroupsSequence") or [None]
    count = int(header.get("NumberOfFrames") or 1)
    if len(frames) != count:
        return []
    planes = []
    for index, own in enumerate(frames):
        groups = [own, shared, header]
        position = _numbers(find_attribute("ImagePositionPatient", groups), 3)
        orientation = _numbers(find_attribute("ImageOrientationPatient", groups), 6)
        spacing = _numbers(find_attribute("PixelSpacing", groups), 2)
        if position is None or orientation is None or spacing is None:
            return []
        thickness = find_attribute("SpacingBetweenSlices", groups) or find_attribute("SliceThickness", groups) or 0.0
        planes.append(
            Slice(
                path=path,
                frame=index,
                position=position,
                orientation=orientation,
                spacing=spacing,
                thickness=abs(float(thickness)),
                size=(int(header.Rows), int(header.Columns)),
                marks=tuple(str(find_attribute(name, groups)) for name in _SPLIT_BY),
            )
        )
    return planes


def _problem(header: Any, planes: list[Slice]) -> str:
    pixels = any(t in header for t in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    if not pixels or not header.get("Rows") or not header.get("Columns"):
        return "no pixel data"
    if int(header.get("SamplesPerPixel") or 1) > 1:
        return "colour picture (secondary capture)"
    if not planes:
        return "no position in space (secondary capture or projection)"
    kinds = [str(v).upper() for v in header.get("ImageType") or []]
    return "localiser" if "LOCALIZER" in kinds else ""


def plane_normal(plane: Slice) -> np.ndarray:
    """Unit normal (3,) of a plane, LPS.

    Raises:
        GeometryError: The orientation is singular.
    """
    normal = np.cross(plane.orientation[:3], plane.orientation[3:])
    length = float(np.linalg.norm(normal))
    if length < 1e-3:
        text = str(plane.orientation)
        raise GeometryError("the image orientation is singular", where=plane.path, why=text)
    return normal / length


def plane_heights(planes: list[Slice] | tuple[Slice, ...]) -> np.ndarray:
    """Distance of each plane along the normal of the first, mm."""
    return np.array([p.position for p in planes]) @ plane_normal(planes[0])


def stacked_twice(planes: list[Slice]) -> bool:
    """Whether two planes have the same position."""
    return len(planes) > 1 and bool(np.diff(np.sort(plane_heights(planes))).min() < SAME_PLACE_MM)


def _split(planes: list[Slice]) -> list[tuple[str, list[Slice]]]:
    """Split planes into volumes with one plane per position, by the first attribute (or all) that allows it."""
    if not stacked_twice(planes):
        return [("", planes)]
    varying = [n for n in range(len(_SPLIT_BY)) if len({p.marks[n] for p in planes}) > 1]
    for choice in [*([n] for n in varying), varying]:
        parts: dict[tuple[str, ...], list[Slice]] = {}
        for plane in planes:
            parts.setdefault(tuple(plane.marks[n] for n in choice), []).append(plane)
        if len(parts) > 1 and not any(stacked_twice(part) for part in parts.values()):
            named = [
                (", ".join(f"{_SPLIT_BY[n]} {v}" for n, v in zip(choice, key, strict=True)), part)
                for key, part in parts.items()
            ]
            return named
    return [("", planes)]


def _stacks(planes: list[Slice]) -> Iterator[tuple[str, list[Slice]]]:
    """Split the planes of one series by size, spacing and orientation, then by `_split`."""
    kinds: dict[tuple, list[Slice]] = {}
    for plane in planes:
        key = (plane.size, np.round(plane.spacing, 4).tobytes(), (np.round(plane.orientation, 3) + 0.0).tobytes())
        kinds.setdefault(key, []).append(plane)
    for number, same in enumerate(kinds.values(), start=1):
        for name, part in _split(same):
            yield (f"orientation {number}, {name}".rstrip(", ") if len(kinds) > 1 else name), part


def list_series(path: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Series]:
    """List the volumes of a DICOM folder (with its subfolders), file or DICOMDIR, or of a list of them.

    Files that are not volumes are listed too, with their problem.

    Raises:
        InputError: There is no DICOM file, a file is malformed, or a DICOMDIR refers to files outside its folder.
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else path
    headers = [(file, _read_header(file)) for each in paths for file in _files(Path(each))]
    headers.sort(key=lambda h: (int(h[1].get("SeriesNumber") or 0), str(h[1].get("SeriesInstanceUID", ""))))
    found: list[Series] = []
    for uid, group in groupby(headers, key=lambda h: str(h[1].get("SeriesInstanceUID", ""))):
        found += _series(uid or "none", list(group))
    return found


def _series(uid: str, group: list[tuple[Path, Any]]) -> list[Series]:
    planes: dict[str, list[Slice]] = {}
    files: dict[str, list[Path]] = {}
    seen: dict[str, Path] = {}
    warnings = []
    for file, header in group:
        instance = str(header.get("SOPInstanceUID", file))
        if instance in seen:
            warnings.append(f"{file.name} is a duplicate of {seen[instance].name} and was ignored")
            continue
        seen[instance] = file
        try:
            own = _slices(header, file)
            problem = _problem(header, own)
        except MALFORMED as error:
            raise InputError("is a malformed DICOM file", where=file, why=str(error)) from error
        planes.setdefault(problem, []).extend(own)
        files.setdefault(problem, []).append(file)
    first = group[0][1]
    out: list[Series] = []
    for problem, members in sorted(files.items()):
        usable = planes[problem] if problem in ("", "localiser") else []
        for part, stack in list(_stacks(usable)) or [("", [])]:
            paths = tuple(dict.fromkeys(p.path for p in stack)) if stack else tuple(members)
            out.append(
                Series(
                    key=uid if not out else f"{uid}#{len(out) + 1}",
                    description=str(first.get("SeriesDescription") or ""),
                    modality=str(first.get("Modality") or ""),
                    number=int(first.get("SeriesNumber") or 0),
                    files=paths,
                    slices=tuple(stack),
                    problem=problem,
                    part=part,
                    warnings=tuple(warnings),
                )
            )
    return out


def _holding(offered: list[Series], path: Any, name: str) -> list[Series]:
    """The series with a file of this name; none if the name is a number."""
    if not isinstance(path, (str, os.PathLike)) or name.isdigit():
        return []
    return [series for series in offered if Path(path) / name in series.files]


def choose_series(path: str | os.PathLike | Sequence[str | os.PathLike], series: str | None = None) -> Series:
    """Choose one volume; without `series`, the only one.

    Args:
        path: As for `list_series`.
        series: Key of the volume, or a unique end of it; or one of its files, relative to the folder `path` ("./1" if
            the name is a number); or its number in the list, from 1.

    Raises:
        InputError: No or more than one volume matches; lists all volumes.
    """
    offered = list_series(path)
    lines = "\n  ".join(f"{n}: {s.line()}" for n, s in enumerate(offered, start=1))
    if series is None:
        wanted = [s for s in offered if not s.problem]
    else:
        wanted = [s for s in offered if s.key == series] or _holding(offered, path, series)
        wanted = wanted or [s for s in offered if s.key.endswith(series)]
        if not wanted or (len(wanted) > 1 and series.isdigit()):
            wanted = [s for n, s in enumerate(offered, start=1) if str(n) == series] or wanted
    if len(wanted) == 1 and wanted[0].slices:
        return wanted[0]
    if len(wanted) == 1 or not wanted:
        what = "offers no volume" if series is None else f"has no volume that is named {series}"
    else:
        what = f"offers {len(wanted)} volumes"
    where = path if isinstance(path, (str, os.PathLike)) else Path(path[0]).parent
    raise InputError(what, where=where, why=f"found\n  {lines}\n", remedy="Pick one with --series KEY")
