"""Checks a data set before training and reports all its problems (faults.md rows 26, 27, 33, 40, 41)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MaskSAMCore.data.raw import RawCase, RawDataset, patient_of, read_case, read_dataset
from MaskSAMCore.data.splits import load_splits
from MaskSAMCore.errors import DatasetError, MaskSAMError
from MaskSAMCore.io.hashing import file_sha256
from MaskSAMCore.progress import CancelToken, Progress, no_progress


def verify_dataset(
    folder: str | Path, *, progress: Progress = no_progress, cancel: CancelToken | None = None
) -> RawDataset:
    """Open and check every file of a data set.

    Problems are: missing and unreadable files, images and labels on different grids, NaN or Inf, constant images, label
    values that are not declared, cases without structures (unless `allow_empty`), a scan that occurs twice, structures
    that are in no case, splits with a patient in both halves, fewer than two patients.

    Raises:
        InputError: The folder does not exist.
        DatasetError: There are problems; one line for each, with its case or file.
    """
    dataset = read_dataset(folder)
    problems = list(dataset.problems)
    complete = [c for c in dataset.cases if c.label is not None and len(c.images) == dataset.files]
    seen: dict[str, str] = {}
    present: set[int] = set()
    read = 0
    for index, case in enumerate(complete):
        if cancel is not None:
            cancel.check()
        progress(index, len(complete), "checking the data set")
        found, ids = _check_case(dataset, case)
        problems += [f"{case.id}: {text}" for text in found]
        present |= ids
        read += not found
        twin = seen.setdefault(file_sha256(case.images[0]), case.id) if not found else case.id
        if twin != case.id:
            problems.append(f"{case.id}: {case.images[0].name} is the same scan as in case {twin}")
    progress(len(complete), len(complete), "checking the data set")
    if read and read == len(complete):
        unused = [label.name for label in dataset.labels.labels if label.id not in present]
        problems += [f"no case holds the structure {name!r}" for name in unused]
    problems += _check_patients(dataset)
    if problems:
        raise DatasetError(
            "cannot be trained on", where=dataset.folder, problems=problems, remedy="Correct the cases or remove them."
        )
    return dataset


def _check_case(dataset: RawDataset, case: RawCase) -> tuple[list[str], set[int]]:
    """Problems of one case, and the ids of its structures."""
    try:
        volume, labels = read_case(dataset, case)
    except MaskSAMError as error:
        return [str(error)], set()
    problems = []
    if volume.nonfinite:
        problems.append(f"{volume.nonfinite} voxels are NaN or Inf")
    flat = [channel.min() == channel.max() for channel in volume.as_channels()]
    if dataset.pictures and not all(flat):  # one constant colour is not an error in a picture
        flat = [False] * len(flat)
    for index, (channel, name) in enumerate(zip(volume.as_channels(), dataset.channels, strict=True)):
        path = case.images[min(index, dataset.files - 1)]
        if flat[index]:
            problems.append(f"{path.name} ({name}) is constant: every voxel is {float(channel.flat[0]):g}")
    values, counts = np.unique(labels.array, return_counts=True)
    declared = {label.id for label in dataset.labels.labels}
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value and value not in declared:
            problems.append(f"label value {value} ({count} voxels) is not declared in dataset.json")
    ids = {int(v) for v in values} & declared
    if not ids and not dataset.allow_empty:
        problems.append(
            'the label map is empty; remove the case, or set "allow_empty": true in dataset.json if that is intended'
        )
    return problems, ids


def _check_patients(dataset: RawDataset) -> list[str]:
    problems = []
    owner = {case.id: case.patient for case in dataset.cases}
    if dataset.cases and len(set(owner.values())) < 2:
        names = ", ".join(owner)
        problems.append(
            f"a single patient ({names}) cannot be split into training and validation; at least two are needed"
        )
    try:
        load_splits(dataset.folder, list(owner), owner or patient_of)
    except DatasetError as error:
        problems += [f"{Path(error.where).name}: {line}" for line in error.problems]
    return problems
