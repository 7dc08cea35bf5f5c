"""Training and validation cases: the splits of the data set, or random folds over patients."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.errors import DatasetError

SPLIT_FILES = ("splits.json", "splits_final.json")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Training and validation cases of one fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def folds(
    ids: Sequence[str], n: int = 5, seed: int = 0, *, patient: Callable[[str], str] | Mapping[str, str] | None = None
) -> tuple[Split, ...]:
    """Random folds over patients for cross-validation; independent of the order of the ids.

    Args:
        ids: Cases.
        n: Number of folds, at most the number of patients.
        seed: Seed of the shuffle.
        patient: Patient by case; None if every case is a patient of its own.

    Raises:
        DatasetError: There are fewer than two patients, or an id occurs twice.
    """
    names = sorted(ids)
    if len(set(names)) != len(names):
        twice = sorted({i for i in names if names.count(i) > 1})
        raise DatasetError("case ids occur more than once", problems=twice)
    owner = {case: _patient(case, patient) for case in names}
    patients = sorted(set(owner.values()))
    if len(patients) < 2:
        raise DatasetError(
            "cannot be split",
            problems=[f"{len(names)} case(s) of {len(patients)} patient(s)"],
            remedy="Training needs at least two patients: one to train on, one to validate on.",
        )
    count = max(2, min(n, len(patients)))
    shuffled = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    result = []
    for fold in range(count):
        held = set(shuffled[fold::count])
        result.append(
            Split(
                train=tuple(c for c in names if owner[c] not in held), val=tuple(c for c in names if owner[c] in held)
            )
        )
    return tuple(result)


def leave_out(
    structures: Mapping[str, Collection[int]], count: int, seed: int = 0, *, patient: Mapping[str, str]
) -> Split:
    """Draw cases to hold out for evaluation, by patient; every structure stays in at least one training case.

    Args:
        structures: Structures by case.
        count: Number of cases to hold out. There are fewer if patients or structures do not allow it, and more only if
            the first patient has more cases.
        seed: Seed of the shuffle.
        patient: Patient by case.
    """
    owners: dict[str, list[str]] = {}
    for case in sorted(structures):
        owners.setdefault(patient[case], []).append(case)
    order = [sorted(owners)[i] for i in np.random.default_rng(seed).permutation(len(owners))]
    left: list[str] = []
    for name in order:
        rest = [case for case in structures if case not in left and case not in owners[name]]
        remaining = {number for case in rest for number in structures[case]}
        lost = {number for case in owners[name] for number in structures[case]} - remaining
        fits = len(left) + len(owners[name]) <= count or (not left and count > 0)
        if fits and rest and not lost:
            left += owners[name]
    return Split(train=tuple(sorted(set(structures) - set(left))), val=tuple(sorted(left)))


def load_splits(
    folder: Path, ids: Sequence[str], patient: Callable[[str], str] | Mapping[str, str] | None = None
) -> tuple[Split, ...] | None:
    """Read the splits of a data set; None if it has none.

    `splits.json` or `splits_final.json` holds one object or a list of them, each with `train` and `val` (or
    `validation`): names of cases, or of patients for all their cases. Cases that are not named are not used, so that a
    test set can be kept apart.

    Raises:
        DatasetError: The file is damaged, names an unknown case, or has a patient in both halves.
    """
    path = next((folder / name for name in SPLIT_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError("cannot be read", where=path, problems=[str(error)]) from error
    entries = data if isinstance(data, list) else [data]
    problems: list[str] = []
    result = tuple(_entry(entry, f"fold {i}", ids, patient, problems) for i, entry in enumerate(entries))
    problems += check_splits(result, patient)
    if problems or not result:
        raise DatasetError("the splits cannot be used", where=path, problems=problems or ["the file has no fold"])
    return result


def _entry(
    entry: Any,
    place: str,
    ids: Sequence[str],
    patient: Callable[[str], str] | Mapping[str, str] | None,
    problems: list[str],
) -> Split:
    if not isinstance(entry, dict):
        problems.append(f"{place}: expected an object with train and val")
        return Split(train=(), val=())
    known: dict[str, list[str]] = {}
    for case in ids:
        known.setdefault(_patient(case, patient), []).append(case)
    known |= {case: [case] for case in ids}
    halves = []
    for half, listed in (("train", entry.get("train")), ("val", entry.get("val", entry.get("validation")))):
        if not isinstance(listed, list) or not listed:
            problems.append(f"{place}: {half} is missing or empty")
            listed = []
        problems += [f"{place}: {half}: there is no case {name!r}" for name in listed if name not in known]
        halves.append(tuple(sorted({case for name in listed for case in known.get(name, [])})))
    return Split(train=halves[0], val=halves[1])


def check_splits(splits: Sequence[Split], patient: Callable[[str], str] | Mapping[str, str] | None = None) -> list[str]:
    """One line for every patient (or case) in both halves of a fold (faults.md row 40)."""
    problems = []
    for index, split in enumerate(splits):
        train = {_patient(case, patient) for case in split.train}
        both = sorted(train & {_patient(case, patient) for case in split.val})
        problems += [f"fold {index}: patient {name} is in train and in val" for name in both]
    return problems


def _patient(case: str, patient: Callable[[str], str] | Mapping[str, str] | None) -> str:
    if patient is None:
        return case
    return patient(case) if callable(patient) else patient.get(case, case)
