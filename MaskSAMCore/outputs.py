"""Output files of a case: which there are, whether they may be written, and writing all of them or none."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from MaskSAMCore import __version__
from MaskSAMCore.errors import InputError, did_you_mean
from MaskSAMCore.io.pictures import PICTURE_SUFFIXES
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.volume import LabelMap, Volume
from MaskSAMCore.volumes_table import CENTROID, volumes_table

FORMATS = {
    "nii": ".nii.gz",
    "seg.nrrd": ".seg.nrrd",
    "nrrd": ".nrrd",
    "mha": ".mha",
    "dcm": ".dcm",
    "rtstruct": ".rtstruct.dcm",
}
"""Names of the formats of a segmentation, and the suffixes that their files get in a folder."""
DEFAULT_FORMATS = ("nii", "seg.nrrd")
TABLE, PICTURE, PROBABILITIES = ".csv", ".png", ".probabilities.npz"
SINGLE = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".rtstruct.dcm", ".dcm")
"""Suffixes by which one output file says its format; a longer one comes before the one that it ends with."""
_DICOM = {".dcm": "DICOM SEG", ".rtstruct.dcm": "RTSTRUCT"}
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
        statistics: The table holds centroids and intensities, too.
    """

    name: str
    scans: tuple[Path, ...]
    targets: tuple[Path, ...] = ()
    whole: bool = False
    statistics: bool = False


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


def parse_formats(text: str) -> tuple[str, ...]:
    """Names of formats from a list with commas, each once, in the order given; capitals and a leading dot are allowed.

    Raises:
        InputError: A name is unknown, or there is none.
    """
    names = []
    for word in text.split(","):
        name = word.strip().lower().removeprefix(".")
        name = "nii" if name == "nii.gz" else name
        if name and name not in FORMATS:
            remedy = f"{did_you_mean(name, FORMATS)} There are {', '.join(FORMATS)}.".strip()
            raise InputError("no such format", where=word.strip(), remedy=remedy)
        names += [name] if name else []
    if not names:
        raise InputError("no format was named", where="--formats", remedy=f"There are {', '.join(FORMATS)}.")
    return tuple(dict.fromkeys(names))


def place(
    cases: Sequence[Case],
    output: Path,
    *,
    formats: Sequence[str] | None = None,
    preview: bool = False,
    statistics: bool = False,
    probabilities: bool = False,
) -> list[Case]:
    """Cases with their targets: one file by its suffix, else files in a folder.

    Args:
        cases: From `group`.
        output: The file or folder.
        formats: Names in `FORMATS`, for a folder; None for `DEFAULT_FORMATS`. Table and picture are added.
        preview: Whether a single file gets a picture beside it.
        statistics: Whether the table holds statistics; a single file gets a table beside it.
        probabilities: Whether there is a file of probabilities.

    Raises:
        InputError: Several cases for one file, an unknown suffix, formats for a single file, or a DICOM format for a
            scan that is no DICOM folder.
    """
    lower = output.name.lower()
    ending = "" if output.is_dir() else next((s for s in SINGLE if lower.endswith(s)), "")
    if not ending and not output.is_dir() and re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{1,4}", output.suffix):
        remedy = f"{did_you_mean(output.suffix, SINGLE)} Use {', '.join(SINGLE)}, or a folder.".strip()
        raise InputError("no output format has this suffix", where=output, remedy=remedy)
    more = (PROBABILITIES,) if probabilities else ()
    if not ending:
        suffixes = [*(FORMATS[name] for name in formats or DEFAULT_FORMATS), TABLE, PICTURE, *more]
        for case in cases:
            _check_dicom_folder(case, suffixes)
        return [
            replace(
                case, targets=tuple(output / f"{case.name}{s}" for s in suffixes), whole=True, statistics=statistics
            )
            for case in cases
        ]
    if formats is not None:
        remedy = f"Name a folder, or leave out --formats: {output.name} is one file."
        raise InputError("--formats needs a folder as output", where=output, remedy=remedy)
    if len(cases) > 1:
        raise InputError("several scans need a folder", where=output, why=f"{len(cases)} scans were given")
    _check_dicom_folder(cases[0], [ending])
    beside = (*([TABLE] if statistics else []), *([PICTURE] if preview else []), *more)
    stem = output.name[: -len(ending)]
    targets = (output, *(output.with_name(stem + suffix) for suffix in beside))
    return [replace(cases[0], targets=targets, statistics=statistics)]


def _check_dicom_folder(case: Case, suffixes: Sequence[str]) -> None:
    for suffix in suffixes:
        if suffix in _DICOM and not case.scans[0].is_dir():
            raise InputError(
                f"{_DICOM[suffix]} needs the DICOM series that it belongs to",
                where=case.scans[0],
                why="it is no DICOM folder",
                remedy="Give the DICOM folder as SCAN, or choose another format, such as seg.nrrd.",
            )


def ready(case: Case, *, overwrite: bool = False) -> bool:
    """Whether the case is complete already; else its targets were checked and may be written.

    Raises:
        InputError: A target exists and `overwrite` is false (faults.md row 6), is an input or read-only, or its folder
            cannot be made; or the case is complete but for statistics, which were asked for.
    """
    from MaskSAMCore.io.atomic import check_target

    folder = case.targets[0].parent
    for target in case.targets:
        if any(scan.is_dir() and scan.resolve() in target.resolve().parents for scan in case.scans):
            raise InputError(
                "the output would lie among the input files", where=target, remedy="Choose another output."
            )
    if case.whole:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("the output folder cannot be made", where=folder, why=error.strerror or "") from error
        for target in case.targets:
            check_target(target, overwrite=True, inputs=case.scans)
        if not overwrite and all(target.exists() for target in case.targets):
            _check_statistics(case)
            return True
    for target in case.targets:
        check_target(target, overwrite=overwrite, inputs=case.scans)
    return False


def _check_statistics(case: Case) -> None:
    table = next((target for target in case.targets if target.name.endswith(TABLE)), None)
    if not case.statistics or table is None:
        return
    with table.open(encoding="utf-8", errors="replace") as file:
        if CENTROID[0] not in file.readline():
            raise InputError("exists already, without statistics", where=table, remedy="Use --overwrite to add them.")


def write(
    case: Case,
    volume: Volume,
    labels: LabelMap,
    *,
    subtitle: str = "",
    channels: Sequence[str] = (),
    probabilities: np.ndarray | None = None,
    classes: LabelTable | None = None,
    overwrite: bool = False,
    series: str | None = None,
    allow_uncoded: bool = False,
) -> list[Path]:
    """Write all targets of a case, or none: they are made in a folder of their own and then moved into place.

    Args:
        case: From `place`; `ready` was asked.
        volume: The scan, for the picture and the statistics.
        labels: The result.
        subtitle: Name of the model, for the picture and for DICOM.
        channels: Names of the scan's channels, for the statistics of several.
        probabilities: As `Result.probabilities`, where the case has a file for them.
        classes: What the probabilities are of; the label map's table without it.
        overwrite: Replace existing files.
        series: Which series of a DICOM folder the scan was.
        allow_uncoded: Write structures without a DICOM code as Tissue.

    Raises:
        InputError, ResourceError: A target may not or cannot be written; existing files are as they were. A result that
            could not be moved into place, as another program holds a target, is kept (faults.md row 60).
    """
    from MaskSAMCore.io.atomic import atomic_files, check_target

    folder = case.targets[0].parent
    with atomic_files(case.targets, home=folder, kept=folder / f"{case.name}-new") as scratch:
        for target in case.targets:
            path, name = scratch / target.name, target.name.lower()
            if name.endswith(".dcm"):
                _write_dicom(case, labels, path, subtitle, series, allow_uncoded)
            elif name.endswith(TABLE):
                _write_table(case, volume, labels, path, channels)
            elif name.endswith(PROBABILITIES):
                _write_probabilities(path, probabilities, labels, classes)
            else:
                _write_one(case, volume, labels, path, subtitle)
        for target in case.targets:
            check_target(target, overwrite=overwrite, inputs=case.scans)
    return list(case.targets)


def _write_one(case: Case, volume: Volume, labels: LabelMap, path: Path, subtitle: str) -> None:
    from MaskSAMCore.io.images import write_labels

    if path.name.lower().endswith(PICTURE):
        from MaskSAMCore.inference.montage import save_montage

        save_montage(volume, labels, path, title=case.name, subtitle=subtitle)
    else:
        write_labels(labels, path)


def _write_table(case: Case, volume: Volume, labels: LabelMap, path: Path, channels: Sequence[str]) -> None:
    from MaskSAMCore.io.atomic import write_text

    write_text(path, volumes_table(labels, volume if case.statistics else None, channels))


def _write_probabilities(
    path: Path, probabilities: np.ndarray | None, labels: LabelMap, classes: LabelTable | None
) -> None:
    table = classes or labels.labels
    if probabilities is None or table is None or len(probabilities) != table.classes:
        raise InputError("the probabilities of the classes are not there", where=path)
    np.savez_compressed(
        path,
        probabilities=probabilities,
        classes=np.array(["background", *(label.name for label in table.labels)]),
        labels=np.array([0, *(label.id for label in table.labels)], np.uint16),
        affine=labels.grid.affine,
    )


def _write_dicom(case: Case, labels: LabelMap, path: Path, model: str, series: str | None, allow_uncoded: bool) -> None:
    from MaskSAMCore.io.dicomseg import write_dicom_seg
    from MaskSAMCore.io.rtstruct import write_rtstruct

    name = model or "MaskSAM"
    if path.name.lower().endswith(".rtstruct.dcm"):
        write_rtstruct(labels, case.scans[0], path, series=series, model=name, version=__version__)
        return
    write_dicom_seg(
        labels, case.scans[0], path, series=series, model=name, version=__version__, allow_uncoded=allow_uncoded
    )


def _dicom_targets(case: Case) -> dict[str, Path]:
    """The targets that are DICOM, by suffix."""
    found = {}
    for target in case.targets:
        name = target.name.lower()
        if name.endswith(".dcm"):
            found[".rtstruct.dcm" if name.endswith(".rtstruct.dcm") else ".dcm"] = target
    return found


def check_dicom(case: Case, labels: LabelTable, *, allow_uncoded: bool = False) -> None:
    """Refuse DICOM that could not be written, before anything is read or segmented.

    Raises:
        InputError: DICOM SEG of structures without codes; names them.
        PackageError: The package that writes them is not installed.
    """
    from MaskSAMCore.io.dicomseg import require_highdicom
    from MaskSAMCore.io.rtstruct import require_rt_utils
    from MaskSAMCore.terminology import lookup

    targets = _dicom_targets(case)
    if ".rtstruct.dcm" in targets:
        require_rt_utils()
    if ".dcm" in targets:
        require_highdicom()
    if ".dcm" not in targets or allow_uncoded:
        return
    bare = [label.name for label in labels.labels if not (label.category and label.type) and lookup(label.name) is None]
    if bare:
        raise InputError(
            "DICOM SEG needs a code for every structure",
            where=targets[".dcm"],
            why=f"none for {', '.join(bare)}",
            remedy="Use --allow-uncoded to write them as Tissue, or choose another format, such as seg.nrrd.",
        )


def rehearse(
    case: Case, volume: Volume, labels: LabelTable, *, series: str | None = None, allow_uncoded: bool = False
) -> None:
    """Write the DICOM files with one voxel and discard them, so that a series that cannot carry them is refused early.

    Raises:
        InputError, GeometryError: Why the series cannot.
    """
    targets = _dicom_targets(case)
    if not targets:
        return
    array: np.ndarray = np.zeros(volume.grid.shape, np.uint16)
    array[0, 0, 0] = labels.labels[0].id
    one = LabelMap(array=array, grid=volume.grid, labels=labels, source=volume.source)
    with tempfile.TemporaryDirectory(prefix=".masksam-", dir=case.targets[0].parent) as scratch:
        for suffix in targets:
            _write_dicom(case, one, Path(scratch) / f"rehearsal{suffix}", "", series, allow_uncoded)


def only(labels: LabelMap, wanted: LabelTable) -> LabelMap:
    """A label map with the structures of a table alone; the rest is background."""
    kept = np.isin(labels.array, [label.id for label in wanted.labels])
    return replace(labels, array=np.where(kept, labels.array, 0), labels=wanted)
