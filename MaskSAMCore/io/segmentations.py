"""Segmentations with names, codes and colours: Slicer's .seg.nrrd, plain NRRD, and DICOM SEG."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.io.atomic import atomic_path
from MaskSAMCore.io.formats import read_channels, to_labels
from MaskSAMCore.labels import PALETTE, Code, Label, LabelTable
from MaskSAMCore.terminology import lookup
from MaskSAMCore.volume import SKEW_TOLERANCE, Grid, LabelMap, lps_to_ras, match_grid, ras_to_lps

CONTEXT = "Segmentation category and type - DICOM master list"
ANATOMY = "Anatomic codes - DICOM master list"
TISSUE = Code(scheme="SCT", value="85756007", meaning="Tissue")
_NRRD_TYPES = {
    "uint8": "uint8", "int8": "int8", "uint16": "uint16", "int16": "int16", "uint32": "uint32", "int32": "int32",
    "float32": "float", "float64": "double",
}  # fmt: skip
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""DICOM's type 2 attributes, which anonymised files often lack and which may be empty."""
_SEPARATORS = str.maketrans({"~": " ", "^": " ", "|": " ", "\n": " ", "\r": " "})


def _vector(values: Iterable[float]) -> str:
    return "(" + ",".join(repr(float(v)) for v in values) + ")"


def write_nrrd(
    array: np.ndarray, grid: Grid, part: Path, fields: Sequence[tuple[str, str]] = (), *, level: int = 6
) -> None:
    """Write `(K, J, I)` voxels as one gzip-compressed NRRD in LPS; a full disk raises OSError.

    Args:
        array: Voxels; the type is kept.
        grid: Their lattice, RAS mm; stored without rounding.
        part: The file to write.
        fields: Keys and values to store beside the image.
        level: Compression, 1 to 9.
    """
    name = array.dtype.name
    if name not in _NRRD_TYPES:
        raise InputError("NRRD holds no such voxels", where=part, why=name)
    affine = ras_to_lps(grid.affine)
    lines = [
        "NRRD0004",
        f"type: {_NRRD_TYPES[name]}",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: " + " ".join(str(n) for n in grid.shape[::-1]),
        "space directions: " + " ".join(_vector(affine[:3, n]) for n in range(3)),
        "kinds: domain domain domain",
        *(["endian: little"] if array.dtype.itemsize > 1 else []),
        "encoding: gzip",
        "space origin: " + _vector(affine[:3, 3]),
        *(f"{key}:={_escape(value)}" for key, value in fields),
    ]
    little = array.dtype.newbyteorder("<")
    with open(part, "wb") as file:
        file.write(("\n".join(lines) + "\n\n").encode("utf-8"))
        with gzip.GzipFile("", "wb", level, file, mtime=0) as packed:
            for plane in array:
                packed.write(np.ascontiguousarray(plane, dtype=little).tobytes())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\r", " ").replace("\n", "\\n")


def _unescape(value: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in value.split("\\\\"))


def _triple(code: Code | None) -> str:
    if code is None:
        return "^^"
    return "^".join(v.translate(_SEPARATORS) for v in (code.scheme, code.value, code.meaning))


def terminology_entry(label: Label) -> str:
    """The label's codes as Slicer serialises them; an uncoded label is Slicer's own default, Tissue."""
    category, kind = (label.category, label.type) if label.category and label.type else (TISSUE, TISSUE)
    return "~".join((CONTEXT, _triple(category), _triple(kind), _triple(label.modifier), ANATOMY, "^^", "^^"))


def parse_terminology(entry: str) -> tuple[Code | None, Code | None, Code | None]:
    """Category, type and modifier of a serialised entry; None where one is empty or malformed."""
    codes = []
    for part in (entry.split("~") + [""] * 4)[1:4]:
        fields = part.split("^")
        full = len(fields) == 3 and all(fields)
        codes.append(Code(scheme=fields[0], value=fields[1], meaning=fields[2]) if full else None)
    return codes[0], codes[1], codes[2]


def table_for(labelmap: LabelMap) -> LabelTable:
    """The label table, or one made up of "Segment 1", ... where the label map has none; unnamed ids are added."""
    present = [int(v) for v in np.unique(labelmap.array) if v]
    known = labelmap.labels.labels if labelmap.labels else ()
    ids = {label.id for label in known}
    extra = [Label(id=n, name=f"Segment {n}", color=PALETTE[(n - 1) % len(PALETTE)]) for n in present if n not in ids]
    mirrored = bool(labelmap.labels and labelmap.labels.mirrored)
    return LabelTable(labels=(*known, *extra), mirrored=mirrored and not extra)


def _extents(array: np.ndarray) -> dict[int, tuple[int, ...]]:
    """First and last voxel of every id along i, j and k."""
    from scipy.ndimage import find_objects

    found = {}
    for number, box in enumerate(find_objects(array), start=1):
        if box is not None:
            found[number] = tuple(v for s in box[::-1] for v in (s.start, s.stop - 1))
    return found


def _segment_fields(labelmap: LabelMap, array: np.ndarray) -> list[tuple[str, str]]:
    extents = _extents(array)
    fields = [
        ("Segmentation_ContainedRepresentationNames", "Binary labelmap|"),
        ("Segmentation_MasterRepresentation", "Binary labelmap"),
        ("Segmentation_SourceRepresentation", "Binary labelmap"),
        ("Segmentation_ReferenceImageExtentOffset", "0 0 0"),
    ]
    for n, label in enumerate(table_for(labelmap).labels):
        color = " ".join(f"{c / 255:.6f}" for c in label.color)
        extent = extents.get(label.id, (0, -1, 0, -1, 0, -1))
        fields += [
            (f"Segment{n}_ID", f"Segment_{label.id}"),
            (f"Segment{n}_Name", label.name),
            (f"Segment{n}_NameAutoGenerated", "0"),
            (f"Segment{n}_Color", color),
            (f"Segment{n}_ColorAutoGenerated", "0"),
            (f"Segment{n}_LabelValue", str(label.id)),
            (f"Segment{n}_Layer", "0"),
            (f"Segment{n}_Extent", " ".join(str(v) for v in extent)),
            (f"Segment{n}_Tags", f"Segmentation.Status:completed|TerminologyEntry:{terminology_entry(label)}|"),
        ]
    return fields


def write_seg_nrrd(
    labelmap: LabelMap, path: str | os.PathLike, *, overwrite: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Write a segmentation that Slicer opens with its names, colours and codes; complete or absent.

    Raises:
        InputError: The target may not be written, or an id is out of range.
        GeometryError: The grid is unusable or skewed.
        ResourceError: The disk is full.
    """
    grid = labelmap.grid.check(where=path)
    if grid.skew > SKEW_TOLERANCE:
        raise GeometryError("a skewed grid cannot be written", where=path, why=f"directions\n{grid.directions}")
    array = to_labels(labelmap.array, where=path)
    fields = _segment_fields(labelmap, array)
    with atomic_path(path, overwrite=overwrite, inputs=inputs) as part:
        write_nrrd(array, grid, part, fields)


def _key_values(path: Path) -> dict[str, str]:
    """The key:=value lines of an NRRD header, which ends with an empty line."""
    pairs = {}
    with open(path, "rb") as file:
        for raw in iter(lambda: file.readline(1 << 20), b""):
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if not line:
                break
            key, mark, value = line.partition(":=")
            if mark:
                pairs[key] = _unescape(value)
    return pairs


def _segment(pairs: dict[str, str], n: int, path: Path) -> tuple[Label, int]:
    def get(name: str, default: str) -> str:
        return pairs.get(f"Segment{n}_{name}", default)

    try:
        color = tuple(min(255, max(0, round(float(v) * 255))) for v in get("Color", "0.5 0.68 0.5").split())
        value, layer = int(get("LabelValue", str(n + 1))), int(get("Layer", "0"))
    except ValueError as error:
        raise InputError("a segment's description is damaged", where=path, why=f"segment {n}: {error}") from error
    if len(color) != 3:
        raise InputError("a segment's description is damaged", where=path, why=f"segment {n}: colour {color}")
    tags = dict(t.partition(":")[::2] for t in get("Tags", "").split("|") if t)
    category, kind, modifier = parse_terminology(tags.get("TerminologyEntry", ""))
    name = get("Name", get("ID", f"Segment {n + 1}"))
    label = Label(id=value, name=name, color=color, category=category, type=kind, modifier=modifier)
    return label, layer


def read_seg_nrrd(path: str | os.PathLike) -> LabelMap:
    """Read a .seg.nrrd; the layers of overlapping segments are joined where they do not touch.

    Raises:
        InputError: Damaged, or segments overlap, which a label map cannot hold.
        GeometryError: An unusable affine.
    """
    path = Path(path)
    channels, grid = read_channels(path)
    pairs = _key_values(path)
    count = 0
    while f"Segment{count}_ID" in pairs or f"Segment{count}_Name" in pairs:
        count += 1
    segments = [_segment(pairs, n, path) for n in range(count)]
    if len(channels) == 1:
        table = LabelTable(labels=tuple(label for label, _ in segments)) if segments else None
        if table:
            table.check(where=path)
        return LabelMap(array=to_labels(channels[0], where=path), grid=grid, labels=table, source=str(path))
    array: np.ndarray = np.zeros(grid.shape, dtype=np.uint8 if count < 256 else np.uint16)
    labels = []
    for number, (label, layer) in enumerate(segments, start=1):
        if not 0 <= layer < len(channels):
            raise InputError("a segment lies in a layer that is not there", where=path, why=f"{label.name}: {layer}")
        mask = channels[layer] == label.id
        if (array[mask] > 0).any():
            remedy = "Export the segments one by one"
            raise InputError(
                "segments overlap, a label map cannot hold them", where=path, why=label.name, remedy=remedy
            )
        array[mask] = number
        labels.append(replace(label, id=number))
    table = LabelTable(labels=tuple(labels))
    table.check(where=path)
    return LabelMap(array=array, grid=grid, labels=table, source=str(path))


def _coded(labels: Sequence[Label], allow_uncoded: bool) -> list[Label]:
    """Labels with category and type: their own, else by their name; the rest as Tissue, or refused."""
    out, missing = [], []
    for label in labels:
        term = None if label.category and label.type else lookup(label.name)
        if term is not None:
            label = replace(label, category=term.category, type=term.type, modifier=term.modifier)
        if not (label.category and label.type):
            missing.append(label.name)
            label = replace(label, category=TISSUE, type=TISSUE)
        out.append(label)
    if missing and not allow_uncoded:
        remedy = "Give them a category and type, or allow the general code Tissue"
        raise InputError(
            "DICOM SEG needs a code for every structure", why="none for " + ", ".join(missing), remedy=remedy
        )
    return out


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
    """Add to a header in memory what highdicom takes for granted; the file is not touched.

    Anonymised files lack type 2 attributes; multi-frame files may hold the geometry, equal in all frames of one stack,
    in each frame instead of once.
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


def write_dicom_seg(
    labelmap: LabelMap,
    source: str | os.PathLike,
    path: str | os.PathLike,
    *,
    series: str | None = None,
    model: str = "MaskSAM",
    version: str = "0",
    allow_uncoded: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a DICOM SEG that refers to the series it was made on; complete or absent.

    Args:
        labelmap: On exactly the grid of the series, with its label table.
        source: Folder (or file) of the scan.
        path: The .dcm to write.
        series: Which series of the folder, as for `dicom.read_series`.
        model, version: What segmented it, for the record.
        allow_uncoded: Whether a structure without codes may go out as Tissue.
        overwrite: Whether an existing file may be replaced.

    Raises:
        InputError: No segment, a structure without codes, or a source that cannot be read.
        GeometryError: The label map lies on another grid (a series that was resampled cannot be referred to).
    """
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes

    from MaskSAMCore.io.dicom import choose_series, stack_geometry

    chosen = choose_series(source, series)
    planes, _, affine, irregular = stack_geometry(chosen, where=source)
    if irregular:
        raise GeometryError("slice spacing is irregular", where=source, why=irregular)
    grid = Grid(shape=(len(planes), *planes[0].size), affine=lps_to_ras(affine))
    match_grid(labelmap.grid, grid, where=f"{path} and {source}")
    present = set(np.unique(labelmap.array).tolist())
    labels = _coded([label for label in table_for(labelmap).labels if label.id in present], allow_uncoded)
    if not labels:
        raise InputError("nothing is segmented", where=path, remedy="A DICOM SEG needs at least one structure")
    numbers: np.ndarray = np.zeros(int(max(present)) + 1, dtype=np.uint8 if len(labels) < 256 else np.uint16)
    for number, label in enumerate(labels, start=1):
        numbers[label.id] = number
    files = list(dict.fromkeys(p.path for p in planes))
    images = [pydicom.dcmread(f, stop_before_pixels=True) for f in files]
    for image in images:
        _complete(image, grid.spacing[2])
    pixels = np.zeros(
        (max(p.frame for p in planes) + 1 if len(files) == 1 else len(files), *grid.shape[1:]), numbers.dtype
    )
    for k, plane in enumerate(planes):
        pixels[plane.frame if len(files) == 1 else files.index(plane.path)] = numbers[labelmap.array[k]]
    if len(files) > 1 and len(files) != len(planes):
        raise InputError("several multi-frame files cannot be referred to at once", where=source)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=model, version=version, family=codes.cid7162.ArtificialIntelligence
    )
    try:
        made = hd.seg.Segmentation(
            source_images=images,
            pixel_array=pixels,
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
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError("the series cannot carry a DICOM SEG", where=source, why=why) from error
    with atomic_path(path, overwrite=overwrite, inputs=files) as part:
        made.save_as(part)
