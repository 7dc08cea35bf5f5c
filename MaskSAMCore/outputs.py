"""What `segment` and the demo write for a case: which files, complete or absent, never over an input."""

from __future__ import annotations

import csv
import io
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from MaskSAMCore import __version__
from MaskSAMCore.errors import InputError
from MaskSAMCore.io.pictures import PICTURE_SUFFIXES
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.volume import LabelMap, Volume

SET = (".nii.gz", ".seg.nrrd", ".csv", ".png")
"""What a folder receives for every case."""
SINGLE = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".dcm")
_SCANS = (".nii.gz", ".seg.nrrd", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", *PICTURE_SUFFIXES)
_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan and where its results go.

    Attributes:
        name: Of the case, from the name of its scan.
        scans: One file or folder per channel.
        targets: Files that will be written.
        whole: The targets are one set that exists completely or not at all (a folder was named).
    """

    name: str
    scans: tuple[Path, ...]
    targets: tuple[Path, ...] = ()
    whole: bool = False


def case_name(scan: Path) -> str:
    """Name of a scan's case: without its suffix, and without nnU-Net's channel number."""
    name = scan.resolve().name if scan.name in ("", ".", "..") else scan.name
    lower = name.lower()
    ending = "" if scan.is_dir() else next((s for s in _SCANS if lower.endswith(s)), "")
    return _CHANNEL.sub("", name[: len(name) - len(ending)]) or name


def group(scans: Sequence[Path], channels: int) -> list[Case]:
    """Scans as cases of a model with that many channels.

    Raises:
        InputError: A path is missing, a channel is missing or too many, or two cases would have one name.
    """
    for scan in scans:
        if not scan.exists():
            raise InputError("cannot be read", where=scan, why="no such file or folder", remedy="Check the path.")
    if channels == 1 or all(scan.name.lower().endswith(PICTURE_SUFFIXES) for scan in scans):
        cases = [Case(name=case_name(scan), scans=(scan,)) for scan in scans]
    else:
        cases = _group_channels(scans, channels)
    names = [case.name for case in cases]
    for case in cases:
        if names.count(case.name) > 1:
            raise InputError(
                f"two scans would both be called {case.name}",
                where=case.scans[0],
                remedy="Segment them one by one, into different folders.",
            )
    return cases


def _group_channels(scans: Sequence[Path], channels: int) -> list[Case]:
    numbers = [_CHANNEL.search(re.sub(r"(\.nii)?\.\w+$", "", scan.name)) for scan in scans]
    if not all(numbers):
        if len(scans) != channels:
            raise InputError(
                f"the model takes {channels} channels per case",
                where=", ".join(map(str, scans)),
                why=f"{len(scans)} scans were given",
                remedy="Give one file per channel, or files called CASE_0000, CASE_0001, ...",
            )
        return [Case(name=case_name(scans[0]), scans=tuple(scans))]
    found: dict[Path, dict[int, Path]] = {}
    for scan, number in zip(scans, numbers, strict=True):
        found.setdefault(scan.with_name(case_name(scan)), {})[int(number.group(1))] = scan  # type: ignore[union-attr]
    for path, have in found.items():
        if sorted(have) != list(range(channels)):
            raise InputError(
                f"the model takes {channels} channels per case, numbered from 0000",
                where=path,
                why=f"found {', '.join(f'{n:04d}' for n in sorted(have))}",
            )
    return [Case(name=path.name, scans=tuple(have[c] for c in range(channels))) for path, have in sorted(found.items())]


def place(cases: Sequence[Case], output: Path, *, preview: bool = False) -> list[Case]:
    """Cases with their targets: a file by its suffix, else a folder, which is made.

    Raises:
        InputError: Several cases for one file, an unknown suffix, or DICOM SEG of something else than DICOM.
    """
    lower = output.name.lower()
    ending = "" if output.is_dir() else next((s for s in SINGLE if lower.endswith(s)), "")
    if not ending:
        if output.suffix and not output.is_dir() and re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{1,4}", output.suffix):
            raise InputError(
                "no output format has this suffix", where=output, remedy=f"Use {', '.join(SINGLE)}, or a folder."
            )
        return [_with(case, tuple(output / f"{case.name}{suffix}" for suffix in SET), whole=True) for case in cases]
    if len(cases) > 1:
        raise InputError("several scans need a folder", where=output, why=f"{len(cases)} scans were given")
    if ending == ".dcm" and not cases[0].scans[0].is_dir():
        raise InputError(
            "DICOM SEG needs the DICOM series it belongs to",
            where=cases[0].scans[0],
            remedy="Give the DICOM folder as SCAN, or write .seg.nrrd.",
        )
    picture = (output.with_name(output.name[: -len(ending)] + ".png"),) if preview else ()
    return [_with(cases[0], (output, *picture), whole=False)]


def _with(case: Case, targets: tuple[Path, ...], *, whole: bool) -> Case:
    return Case(name=case.name, scans=case.scans, targets=targets, whole=whole)


def ready(case: Case, *, overwrite: bool = False) -> bool:
    """Whether the case is complete already; else its targets were checked and may be written.

    Raises:
        InputError: A target exists and `overwrite` is false (faults.md row 6), is an input or read-only, or its folder
            cannot be made.
    """
    from MaskSAMCore.io.atomic import check_target

    folder = case.targets[0].parent
    if case.whole:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("the output folder cannot be made", where=folder, why=error.strerror or "") from error
        for target in case.targets:
            check_target(target, overwrite=True, inputs=case.scans)
        if not overwrite and all(target.exists() for target in case.targets):
            return True
    for target in case.targets:
        check_target(target, overwrite=overwrite, inputs=case.scans)
        inside = next((s for s in case.scans if s.is_dir() and s.resolve() in target.resolve().parents), None)
        if inside is not None:
            raise InputError(
                "the output would lie among the input files", where=target, remedy="Choose another output."
            )
    return False


def write(
    case: Case,
    volume: Volume,
    labels: LabelMap,
    *,
    subtitle: str = "",
    overwrite: bool = False,
    series: str | None = None,
    allow_uncoded: bool = False,
) -> list[Path]:
    """Write all targets of a case, or none: they are made in a folder of their own and then moved into place.

    Args:
        case: From `place`; `ready` was asked.
        volume: The scan, for the picture.
        labels: The result.
        subtitle: Name of the model, for the picture and for DICOM SEG.
        overwrite: Replace existing files.
        series: Which series of a DICOM folder the scan was.
        allow_uncoded: Write structures without a DICOM code as Tissue.

    Raises:
        InputError, ResourceError: A target may not or cannot be written; what was there is there still. A result that
            could not be moved into place, as another program holds a target, is kept (faults.md row 60).
    """
    from MaskSAMCore.io.atomic import atomic_files, check_target

    folder = case.targets[0].parent
    with atomic_files(case.targets, home=folder, kept=folder / f"{case.name}-new") as scratch:
        for target in case.targets:
            path = scratch / target.name
            if target.suffix.lower() == ".dcm":
                _write_dicom(case, labels, path, subtitle, series, allow_uncoded)
            else:
                _write_one(case, volume, labels, path, subtitle)
        for target in case.targets:
            check_target(target, overwrite=overwrite, inputs=case.scans)
    return list(case.targets)


def _write_one(case: Case, volume: Volume, labels: LabelMap, path: Path, subtitle: str) -> None:
    from MaskSAMCore.io.atomic import write_text
    from MaskSAMCore.io.images import write_labels

    name = path.name.lower()
    if name.endswith(".png"):
        from MaskSAMCore.inference.montage import save_montage

        save_montage(volume, labels, path, title=case.name, subtitle=subtitle)
    elif name.endswith(".csv"):
        write_text(path, volume_table(labels))
    else:
        write_labels(labels, path)


def _write_dicom(case: Case, labels: LabelMap, path: Path, model: str, series: str | None, allow_uncoded: bool) -> None:
    from MaskSAMCore.io.dicomseg import write_dicom_seg

    write_dicom_seg(
        labels,
        case.scans[0],
        path,
        series=series,
        model=model or "MaskSAM",
        version=__version__,
        allow_uncoded=allow_uncoded,
    )


def check_codes(case: Case, labels: LabelTable) -> None:
    """Refuse a DICOM SEG of structures without codes before anything is segmented.

    Raises:
        InputError: Naming the structures.
    """
    from MaskSAMCore.terminology import lookup

    if case.targets[0].suffix.lower() != ".dcm":
        return
    bare = [label.name for label in labels.labels if not (label.category and label.type) and lookup(label.name) is None]
    if bare:
        raise InputError(
            "DICOM SEG needs a code for every structure",
            where=case.targets[0],
            why=f"none for {', '.join(bare)}",
            remedy="Use --allow-uncoded to write them as Tissue, or write .seg.nrrd.",
        )


def rehearse(
    case: Case, volume: Volume, labels: LabelTable, *, series: str | None = None, allow_uncoded: bool = False
) -> None:
    """Write a DICOM SEG of one voxel and throw it away: not every series can carry one, and that is said first.

    Raises:
        InputError, GeometryError: Why the series cannot.
    """
    if case.targets[0].suffix.lower() != ".dcm":
        return
    array: np.ndarray = np.zeros(volume.grid.shape, np.uint16)
    array[0, 0, 0] = labels.labels[0].id
    with tempfile.TemporaryDirectory(prefix=".masksam-", dir=case.targets[0].parent) as scratch:
        one = LabelMap(array=array, grid=volume.grid, labels=labels, source=volume.source)
        _write_dicom(case, one, Path(scratch) / "rehearsal.dcm", "", series, allow_uncoded)


def only(labels: LabelMap, wanted: LabelTable) -> LabelMap:
    """A label map with the structures of a table alone; the rest is background."""
    kept = np.isin(labels.array, [label.id for label in wanted.labels])
    return replace(labels, array=np.where(kept, labels.array, 0), labels=wanted)


def volume_rows(labels: LabelMap) -> list[tuple[int, str, int, float]]:
    """(id, name, voxels, mL) of every structure of the label table, found or not, and of ids without a name."""
    found = dict(zip(*(v.tolist() for v in np.unique(labels.array, return_counts=True)), strict=True))
    names = {label.id: label.name for label in labels.labels.labels} if labels.labels else {}
    ids = [*names, *(i for i in found if i and i not in names)]
    unit = labels.grid.voxel_volume_ml
    return [(i, names.get(i, f"label {i}"), found.get(i, 0), found.get(i, 0) * unit) for i in ids]


def volume_table(labels: LabelMap) -> str:
    """`volume_rows` as CSV text."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "structure", "voxels", "volume_ml"])
    writer.writerows([i, name, voxels, f"{millilitres:.4f}"] for i, name, voxels, millilitres in volume_rows(labels))
    return text.getvalue()
