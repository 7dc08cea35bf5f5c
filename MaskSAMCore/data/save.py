"""Adds segmented scans to a training data set in nnU-Net's raw format, and removes them.

A structure has the same id in all cases: structures are matched by name with those in dataset.json, and new ones get
the lowest free id. If the data set already has the scan, its labels are replaced.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.data.raw import RawCase, RawDataset, label_ids, read_dataset
from MaskSAMCore.errors import InputError, ResourceError
from MaskSAMCore.io.atomic import SCRATCH, FolderLock, atomic_files, write_json
from MaskSAMCore.io.formats import to_labels
from MaskSAMCore.io.hashing import file_sha256
from MaskSAMCore.io.images import replace_nonfinite, write_array
from MaskSAMCore.labels import Label
from MaskSAMCore.preprocessing.plan import modality_of
from MaskSAMCore.progress import CancelToken, Progress, no_progress
from MaskSAMCore.terminology import has_codes
from MaskSAMCore.volume import LabelMap, Volume, match_grid

DESCRIPTION = "dataset.json"
IMAGES, LABELS = "imagesTr", "labelsTr"
BACKGROUND = "background"
UNKNOWN_CHANNEL = "image"
MOST_CHARACTERS = 60
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
"""Names that are reserved on Windows, with any suffix."""


@dataclass(frozen=True, kw_only=True)
class SavedCase:
    """Result of `save_case`.

    Attributes:
        name: Name of the case; its files are imagesTr/NAME_0000 and labelsTr/NAME.
        labels: Ids of its structures, by name in dataset.json.
        replaced: Whether the data set already had the scan, and its labels were replaced.
        warnings: Messages for the user.
    """

    name: str
    labels: Mapping[str, int]
    replaced: bool
    warnings: tuple[str, ...]


def save_case(
    folder: str | Path,
    volume: Volume,
    labels: LabelMap,
    *,
    name: str = "",
    progress: Progress = no_progress,
    cancel: CancelToken | None = None,
) -> SavedCase:
    """Add a scan with its labels to a data set; the files are complete or unchanged.

    Args:
        folder: Folder of the data set; created if it does not exist.
        volume: The scan, one channel `(K, J, I)`; saved on its grid, as int16 if that is lossless.
        labels: Labels on the same grid, with a label table; structures are matched by name.
        name: Name for the case; changed if it is not a valid or unique file name.
        progress: Called with the steps.
        cancel: Checked between the steps.

    Raises:
        InputError: There is no structure, the scan is constant, two structures have one name, or the folder holds
            another modality or is not a data set.
        DatasetError: dataset.json has problems.
        ResourceError: Another process uses the folder; the disk is full; or another program has a file open that must
            be replaced: the new files are kept, and the message says where (faults.md row 60).
    """
    folder, token = Path(folder), cancel or CancelToken()
    match_grid(labels.grid, volume.grid, where=volume.source)
    array, warnings = _usable(volume)
    _make(folder)
    with FolderLock(folder):
        for left in folder.glob(f"{SCRATCH}*"):  # of a process that was killed; the lock excludes others
            shutil.rmtree(left, ignore_errors=True)
        description = _Description(folder, volume.modality)
        for part in (IMAGES, LABELS):
            _make(folder / part)
        targets: list[Path] = []
        with atomic_files(targets, home=folder, kept=folder / f"{safe_name(name)}-new") as scratch:
            progress(0, 3, "saving the scan")
            image = scratch / f"image{description.ending}"
            write_array(array, volume.grid, image)
            token.check()
            known = description.case_of(image)
            case = known.id if known else description.unused(safe_name(name))
            progress(1, 3, "saving the labels")
            numbers = description.add(case, labels)
            label = folder / LABELS / f"{case}{description.ending}"
            write_array(to_labels(numbers[labels.array]), volume.grid, scratch / label.name)
            write_json(scratch / DESCRIPTION, description.data)
            token.check()
            progress(2, 3, "saving the case")
            image = image.rename(scratch / f"{case}_0000{description.ending}")
            targets += [] if known else [folder / IMAGES / image.name]
            targets += [label, folder / DESCRIPTION]
    progress(3, 3, "saved")
    replaced = known is not None and known.label is not None
    if replaced:
        warnings.append(f"the data set already had this scan, as case {case}: its labels were replaced")
    return SavedCase(
        name=case,
        labels=description.structure_ids(case),
        replaced=replaced,
        warnings=(*warnings, *description.warnings),
    )


def remove_case(folder: str | Path, name: str) -> None:
    """Remove a case from a data set, with the structures that no other case has.

    With the last case dataset.json is removed too.

    Raises:
        InputError: There is no such case.
        DatasetError: dataset.json has problems.
        ResourceError: Another process uses the folder, or another program has a file open.
    """
    folder = Path(folder)
    known = {case.id: case for case in read_dataset(folder).cases}
    if name not in known:
        raise InputError("there is no such case", where=name, why=f"{folder.name} has {', '.join(known) or 'none'}")
    with FolderLock(folder):
        description = _Description(folder, None)
        description.remove(name)
        files = [path for path in (*known[name].images, known[name].label) if path is not None and path.exists()]
        try:
            for path in files:
                path.unlink()
        except PermissionError as error:
            why, remedy = "another program has it open", "Close that program and remove the case again."
            raise ResourceError("cannot be deleted", where=path, why=why, remedy=remedy) from error
        if len(known) > 1:
            write_json(folder / DESCRIPTION, description.data, overwrite=True)
        else:
            (folder / DESCRIPTION).unlink()


def safe_name(text: str) -> str:
    """A valid file name of ASCII letters, digits, - and _ made from `text`; "case" if nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9-]+", "_", plain)[:MOST_CHARACTERS].strip("_-").removesuffix("_0000") or "case"
    return f"{name}_" if _DEVICES.fullmatch(name) else name


def _usable(volume: Volume) -> tuple[np.ndarray, list[str]]:
    """The voxels in the type in which they are saved, and messages about changes."""
    array = volume.array
    if array.ndim != 3:
        raise InputError("a training case must have one channel", where=volume.source, why=f"found {volume.channels}")
    warnings = []
    if not np.isfinite(array).all():
        array = np.array(array, np.float32)
        bad = replace_nonfinite(array, where=volume.source)
        warnings.append(f"{bad} voxels were NaN or Inf: they were saved as the smallest or the largest finite value")
    if array.min() == array.max():
        raise InputError("the scan is constant", where=volume.source, why=f"every voxel is {float(array.flat[0]):g}")
    low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    if all(low <= plane.min() and plane.max() <= high and (plane == np.rint(plane)).all() for plane in array):
        return array.astype(np.int16), warnings
    return array.astype(np.float32, copy=False), warnings


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why, remedy = error.strerror or "", "Check the permissions, or choose another folder."
        raise ResourceError("the training folder cannot be created", where=folder, why=why, remedy=remedy) from error


def _key(name: str) -> str:
    """Normalised name of a structure: lower case, words separated by one space."""
    return " ".join(re.findall(r"[^\W_]+", name.casefold())) or name


class _Description:
    """The content of dataset.json, updated when a case is added or removed.

    Attributes:
        data: The JSON object.
        ending: Ending of the data set's files.
        warnings: Messages for the user.

    Raises:
        InputError: The folder holds another modality, several channels, or is not a data set.
        DatasetError: dataset.json has problems.
    """

    def __init__(self, folder: Path, modality: str | None) -> None:
        self.warnings: list[str] = []
        self._folder = folder
        self._dataset: RawDataset | None = None
        path = folder / DESCRIPTION
        if path.exists():
            self._dataset = read_dataset(folder)
            self.data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self._check(self._dataset, modality)
        elif any(any(folder.glob(kind)) for kind in (f"{IMAGES}/*", f"{LABELS}/*", "patient*/Info.cfg")):
            why, remedy = f"it has files, but no {DESCRIPTION}", "Choose an empty folder."
            raise InputError("the folder holds something else", where=folder, why=why, remedy=remedy)
        else:
            self.data = {"name": folder.resolve().name, "channel_names": {"0": modality or UNKNOWN_CHANNEL}}
        self.ending = str(self.data.setdefault("file_ending", ".nii.gz"))
        self._ids: dict[str, int] = label_ids(self.data.get("labels", {})) or {BACKGROUND: 0}
        for key in ("terminology", "colors", "structures"):
            if not isinstance(self.data.get(key), dict):
                self.data[key] = {}

    @staticmethod
    def _check(dataset: RawDataset, modality: str | None) -> None:
        remedy = "Choose another training folder."
        if len(dataset.channels) != 1:
            why = f"it takes {len(dataset.channels)} channels per case"
            raise InputError("the folder holds another kind of data set", where=dataset.folder, why=why, remedy=remedy)
        there = modality_of(dataset.channels)
        if modality and there and modality != there:
            why = f"the folder holds {there}, this scan is {modality}"
            raise InputError("a data set has one modality", where=dataset.folder, why=why, remedy=remedy)

    @property
    def _cases(self) -> tuple[RawCase, ...]:
        return self._dataset.cases if self._dataset else ()

    def case_of(self, image: Path) -> RawCase | None:
        """The case with the same image file; None if there is none."""
        size = image.stat().st_size
        same = (case for case in self._cases if case.images and case.images[0].stat().st_size == size)
        wanted = file_sha256(image)
        return next((case for case in same if file_sha256(case.images[0]) == wanted), None)

    def unused(self, name: str) -> str:
        """The name, with a number if another case has it (ignoring case)."""
        taken = {case.id.casefold() for case in self._cases}
        tries = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
        return next(each for each in tries if each.casefold() not in taken)

    def add(self, case: str, labels: LabelMap) -> np.ndarray:
        """Add a case and its structures; returns the data set's id for every id of the label map.

        Raises:
            InputError: The case has no structure, or two with one name.
        """
        found = self._matched(labels)
        before = self.data["structures"].get(case, [])
        self.data["structures"][case] = list(found)
        self._drop(before, case)
        for name, label in found.items():
            if name not in self._ids:
                self._ids[name] = min(set(range(1, len(self._ids) + 2)) - set(self._ids.values()))
                self._describe(name, label)
        absent = [name for name, number in self._ids.items() if number and name not in found]
        if absent:
            self.warnings.append(f"{', '.join(absent)}: not in this case, whose other voxels count as background")
        self.data["labels"] = self._ids
        self.data["numTraining"] = len({case, *(each.id for each in self._cases)})
        numbers: np.ndarray = np.zeros(max(int(labels.array.max()), 0) + 1, np.uint16)
        for name, label in found.items():
            numbers[label.id] = self._ids[name]
        return numbers

    def remove(self, case: str) -> None:
        """Remove a case, and the structures that no other case has."""
        before = self.data["structures"].pop(case, [])
        if self._dataset:
            self._dataset = replace(self._dataset, cases=tuple(each for each in self._cases if each.id != case))
        self._drop(before, case)
        self.data["labels"] = self._ids
        self.data["numTraining"] = len(self._cases)

    def structure_ids(self, case: str) -> dict[str, int]:
        """Ids of the structures of a case, by name."""
        return {name: self._ids[name] for name in self.data["structures"][case]}

    def _matched(self, labels: LabelMap) -> dict[str, Label]:
        """The structures with voxels, by their names in the data set."""
        known: dict[str, str] = {}
        described = {label.id: label.name for label in self._dataset.labels.labels} if self._dataset else {}
        for name, number in self._ids.items():
            known.setdefault(_key(name), name)
            known.setdefault(_key(described.get(number, name)), name)
        present = set(np.unique(labels.array).tolist())
        found: dict[str, Label] = {}
        for label in labels.labels.labels if labels.labels else ():
            name = known.setdefault(_key(label.name), label.name)
            if label.id not in present:
                continue
            if self._ids.get(name) == 0:
                self.warnings.append(f"{label.name}: counts as background because of its name")
            elif name in found:
                why = f"{found[name].name!r} and {label.name!r}"
                raise InputError("two structures have the same name", where=why, remedy="Rename one of them.")
            else:
                found[name] = label
        if not found:
            raise InputError("nothing is segmented", remedy="Segment at least one structure first.")
        return found

    def _drop(self, names: list[str], case: str) -> None:
        """Remove those of the former structures of a case that no case has any more; training refuses such labels."""
        held = self.data["structures"]
        if any(each.id not in held for each in self._cases):
            return
        there = {case, *(each.id for each in self._cases)}
        kept = {name for other, structures in held.items() if other in there for name in structures}
        gone = [name for name in names if name in self._ids and name not in kept]
        for name in gone:
            del self._ids[name]
            self.data["terminology"].pop(name, None)
            self.data["colors"].pop(name, None)
        pairs = self.data.get("left_right_pairs")
        if gone and pairs:
            self.data["left_right_pairs"] = [pair for pair in pairs if not set(pair) & set(gone)]

    def _describe(self, name: str, label: Label) -> None:
        self.data["colors"][name] = list(label.color)
        if has_codes(label):
            codes = {"category": label.category, "type": label.type, "modifier": label.modifier}
            self.data["terminology"][name] = {
                key: [code.scheme, code.value, code.meaning] for key, code in codes.items() if code
            }
