"""Reads raw training data: nnU-Net's raw format, and the folders of the ACDC challenge.

`dataset.json` is that of nnU-Net version 2 (`channel_names`, `labels`, `file_ending`), with optional keys:

    name, description, licence (or license)
    left_right_pairs   pairs of label names; an empty list states that no label has a side
    patients           case to patient, for patients with several cases
    allow_empty        whether cases without any structure are allowed
    terminology        label name to `category`, `type`, `modifier`, each [scheme, value, meaning]
    colors             label name to [r, g, b], 0 to 255
    structures         case to the names of its labels; written by `save.save_case`

With a `file_ending` of .png, .jpg or .tif the cases are colour pictures: one file per case, whatever channels are
declared. Their label maps are pictures whose pixel values are the labels; those of .jpg pictures end in .png.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from MaskSAMCore.errors import DatasetError, InputError
from MaskSAMCore.io.images import read_labels, read_volume
from MaskSAMCore.io.pictures import PICTURE_SUFFIXES
from MaskSAMCore.labels import PALETTE, Code, Label, LabelTable
from MaskSAMCore.preprocessing.plan import COLOURS
from MaskSAMCore.terminology import describe
from MaskSAMCore.volume import LabelMap, Volume, match_grid

_SAME_PATIENT = re.compile(r"[_-](?:frame|ed|es|ses|session|visit|time|tp|scan|phase)[_-]?\d*$", re.IGNORECASE)
_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True, kw_only=True)
class RawCase:
    """Files of one case: `images` (one per channel, or a picture), and the label map or None if it is missing."""

    id: str
    patient: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """Description and files of a data set; the files have not been opened.

    Attributes:
        folder: Folder of the data set.
        name, licence, description: From dataset.json.
        channels: Names of the channels.
        labels: Structures, sorted by id; class c of the network is `labels.labels[c - 1]`.
        cases: Cases, sorted by id.
        allow_empty: Whether cases without any structure are allowed.
        pictures: Whether the cases are colour pictures.
        problems: Problems with the list of files, which `verify_dataset` reports with all others.
    """

    folder: Path
    name: str
    licence: str
    description: str
    channels: tuple[str, ...]
    labels: LabelTable
    cases: tuple[RawCase, ...]
    allow_empty: bool = False
    pictures: bool = False
    problems: tuple[str, ...] = ()

    @property
    def files(self) -> int:
        """Number of image files of a case."""
        return 1 if self.pictures else len(self.channels)


def read_dataset(folder: str | Path) -> RawDataset:
    """Read the description of a data set and list its cases, without opening images.

    Raises:
        InputError: The folder does not exist.
        DatasetError: It is not a data set, or dataset.json has problems; lists all of them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("the data set does not exist", where=folder, remedy="Check the path.")
    if (folder / "dataset.json").is_file():
        return _read_nnunet(folder)
    if any(folder.glob("patient*/Info.cfg")):
        return _read_acdc(folder)
    raise DatasetError(
        "is not a data set",
        where=folder,
        problems=["dataset.json is missing"],
        remedy="Give a folder in nnU-Net's raw format: dataset.json, imagesTr, labelsTr.",
    )


def read_case(dataset: RawDataset, case: RawCase) -> tuple[Volume, LabelMap]:
    """Read scan and labels of a case on the grid of the scan, within a tolerance (faults.md row 26).

    Raises:
        InputError: A file is missing or unreadable, or the grids differ.
    """
    if case.label is None or len(case.images) != dataset.files:
        raise InputError("an image or the label map of the case is missing", where=case.id)
    volume = read_volume(case.images[0] if len(case.images) == 1 else list(case.images))
    labels = read_labels(case.label)
    grid = match_grid(labels.grid, volume.grid, where=f"{case.label.name} and {case.images[0].name}")
    return volume, LabelMap(array=labels.array, grid=grid, labels=dataset.labels, source=str(case.label))


def patient_of(case: str, patients: Mapping[str, str] | None = None) -> str:
    """The patient of a case: as declared, or the case's name without a trailing frame, phase or visit."""
    return (patients or {}).get(case) or _SAME_PATIENT.sub("", case)


def _read_nnunet(folder: Path) -> RawDataset:
    path = folder / "dataset.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_object)
    except (ValueError, OSError) as error:
        raise DatasetError("cannot be read", where=path, problems=[str(error)]) from error
    if not isinstance(data, dict):
        raise DatasetError("cannot be used", where=path, problems=["it holds no object"])
    problems: list[str] = []
    channels = _channels(data, problems)
    labels = _labels(data, problems)
    ending = data.get("file_ending", ".nii.gz")
    patients = data.get("patients", {})
    if not isinstance(ending, str) or not ending.startswith("."):
        problems.append(f'file_ending must be text like ".nii.gz", found {ending!r}')
    if not isinstance(patients, dict):
        problems.append("patients must be an object with the patient of each case")
    if problems or labels is None:
        raise DatasetError("cannot be used", where=path, problems=problems, remedy="Correct the file.")
    pictures = ending.lower() in PICTURE_SUFFIXES
    if pictures:
        channels = COLOURS
    cases, missing = _list_cases(folder, ending, 1 if pictures else len(channels), patients)
    return RawDataset(
        folder=folder,
        name=str(data.get("name") or folder.resolve().name),
        licence=str(data.get("licence") or data.get("license") or ""),
        description=str(data.get("description") or ""),
        channels=channels,
        labels=labels,
        cases=cases,
        allow_empty=bool(data.get("allow_empty", False)),
        pictures=pictures,
        problems=tuple(missing),
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that occurs twice is an error (json would keep the last one)."""
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice))} is defined twice")
    return dict(pairs)


def _channels(data: dict[str, Any], problems: list[str]) -> tuple[str, ...]:
    names = data.get("channel_names", data.get("modality"))
    if not isinstance(names, dict) or not names:
        problems.append('channel_names is missing; write for example {"0": "CT"}')
        return ()
    if sorted(names) != sorted(map(str, range(len(names)))):
        problems.append(f"channel_names must be numbered 0 to {len(names) - 1}, found {', '.join(map(str, names))}")
        return ()
    return tuple(str(names[str(i)]) for i in range(len(names)))


def _labels(data: dict[str, Any], problems: list[str]) -> LabelTable | None:
    raw = data.get("labels")
    if not isinstance(raw, dict) or not raw:
        problems.append('labels is missing; write for example {"background": 0, "liver": 1}')
        return None
    raw = label_ids(raw)
    wrong = [name for name, i in raw.items() if not isinstance(i, int) or isinstance(i, bool)]
    if wrong:
        problems.append(f"labels: {', '.join(wrong)}: expected one integer each (regions are not supported)")
        return None
    ids = {name: i for name, i in raw.items() if i != 0}
    if not ids:
        problems.append("labels: there is no structure except the background")
        return None
    pairs = _pairs(data.get("left_right_pairs"), set(ids), problems)
    mirror = {a: b for pair in pairs or [] for a, b in (pair, pair[::-1])}
    codes, colors = (held if isinstance(held := data.get(key), dict) else {} for key in ("terminology", "colors"))
    labels = tuple(
        _label(name, number, position, mirror.get(name, ""), codes.get(name), colors.get(name))
        for position, (name, number) in enumerate(sorted(ids.items(), key=lambda item: item[1]))
    )
    table = LabelTable(labels=labels, mirrored=pairs is not None)
    try:
        table.check()
    except InputError as error:
        problems.append(f"labels: {error}")
    return describe(table, about=str(data.get("name", "")))


def label_ids(raw: dict[str, Any]) -> dict[str, Any]:
    """`labels` as id by name; nnU-Net version 1 wrote names by id."""
    if all(isinstance(v, str) for v in raw.values()) and all(str(k).isdigit() for k in raw):
        return {name: int(number) for number, name in raw.items()}
    return raw


def _pairs(raw: Any, names: set[str], problems: list[str]) -> list[tuple[str, str]] | None:
    if raw is None:
        return None
    if not isinstance(raw, list) or any(not isinstance(p, list) or len(p) != 2 for p in raw):
        problems.append("left_right_pairs must be a list of pairs of label names")
        return []
    pairs = []
    for first, second in raw:
        unknown = [str(n) for n in (first, second) if n not in names]
        if unknown:
            problems.append(f"left_right_pairs: {', '.join(unknown)} is not a label")
        else:
            pairs.append((first, second))
    flat = [n for pair in pairs for n in pair]
    twice = sorted({n for n in flat if flat.count(n) > 1})
    if twice:
        problems.append(f"left_right_pairs: {', '.join(twice)} is in more than one pair")
    return pairs


def _label(name: str, number: int, position: int, mirror: str, codes: Any = None, color: Any = None) -> Label:
    known = isinstance(color, list) and len(color) == 3 and all(isinstance(v, int) and 0 <= v < 256 for v in color)
    label = Label(id=number, name=name, color=PALETTE[position % len(PALETTE)], mirror=mirror)
    if known:
        label = replace(label, color=tuple(color))
    if isinstance(codes, dict):
        category, kind, modifier = (_code(codes.get(key)) for key in ("category", "type", "modifier"))
        label = replace(label, category=category, type=kind, modifier=modifier)
    return label


def _code(parts: object) -> Code | None:
    if not isinstance(parts, list) or len(parts) != 3:
        return None
    scheme, value, meaning = map(str, parts)
    return Code(scheme=scheme, value=value, meaning=meaning)


def _list_cases(
    folder: Path, ending: str, channels: int, patients: dict[str, str]
) -> tuple[tuple[RawCase, ...], list[str]]:
    images, labels = folder / "imagesTr", folder / "labelsTr"
    problems = [f"the folder {part.name} is missing" for part in (images, labels) if not part.is_dir()]
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(images.glob(f"*{ending}")):
        stem = path.name[: -len(ending)]
        match = _CHANNEL.search(stem)
        if path.name.startswith("."):
            continue
        if match is None:
            problems.append(f"imagesTr/{path.name}: the name must end in a channel, such as _0000{ending}")
            continue
        found.setdefault(stem[: match.start()], {})[int(match.group(1))] = path
    # JPEG compression changes values, so label maps are PNG
    kept = ".png" if ending.lower() in (".jpg", ".jpeg") else ending
    masks = {p.name[: -len(kept)]: p for p in sorted(labels.glob(f"*{kept}")) if not p.name.startswith(".")}
    cases = []
    for case in sorted(set(found) | set(masks)):
        have = found.get(case, {})
        for channel in range(channels):
            if channel not in have:
                problems.append(f"{case}: imagesTr/{case}_{channel:04d}{ending} is missing")
        for channel in sorted(set(have) - set(range(channels))):
            problems.append(f"{case}: {have[channel].name} is a channel that is not in dataset.json")
        if case not in masks:
            problems.append(f"{case}: labelsTr/{case}{kept} is missing")
        paths = tuple(have[c] for c in range(channels) if c in have)
        cases.append(RawCase(id=case, patient=patient_of(case, patients), images=paths, label=masks.get(case)))
    if not cases:
        problems.append(f"there is no case with the ending {ending}")
    return tuple(cases), problems


def _read_acdc(folder: Path) -> RawDataset:
    """Read the folders of the ACDC challenge: patientXXX/patientXXX_frameYY.nii.gz and ..._gt.nii.gz (ED and ES)."""
    names = ("right ventricle", "myocardium", "left ventricle")
    labels = tuple(_label(name, i, i - 1, "") for i, name in enumerate(names, start=1))
    cases, problems = [], []
    for image in sorted(folder.glob("patient*/patient*_frame[0-9][0-9].nii.gz")):
        case = image.name.removesuffix(".nii.gz")
        label = image.with_name(f"{case}_gt.nii.gz")
        if not label.is_file():
            problems.append(f"{case}: {label.parent.name}/{label.name} is missing")
        cases.append(
            RawCase(id=case, patient=image.parent.name, images=(image,), label=label if label.is_file() else None)
        )
    return RawDataset(
        folder=folder,
        name="ACDC",
        licence="CC BY-NC-SA 4.0",
        description="Automated Cardiac Diagnosis Challenge; O. Bernard et al., IEEE TMI 37(11), 2018",
        channels=("cine MRI",),
        # Ventricles differ in their walls, not only in their side; the papers mirror them too.
        labels=describe(LabelTable(labels=labels, mirrored=True)),
        cases=tuple(cases),
        problems=tuple(problems),
    )
