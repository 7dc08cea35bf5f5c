"""Reads the cache of preprocessed cases, which training maps into memory.

manifest.json            format, plan, labels, cases with their hashes, splits; written last
cases/ID.image.npy       (M, D, H, W) float16, normalised
cases/ID.label.npy       (D, H, W) classes, uint8 or uint16
cases/ID.points.npy      (n, 4) int32: class, d, h, w of some voxels of every class
cases/ID.json            record of the preprocessing, patient, sources, hashes
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import from_dict
from MaskSAMCore.data.splits import Split
from MaskSAMCore.errors import DatasetError, InputError
from MaskSAMCore.io.hashing import file_sha256
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.preprocessing.plan import Plan, keeps_slices, normalisation_of, windowed
from MaskSAMCore.preprocessing.preprocess import PreprocessingRecord
from MaskSAMCore.progress import Progress, no_progress

FORMAT = 1
MANIFEST = "manifest.json"
CASES = "cases"
ARRAYS = ("image", "label", "points")
_OPEN_CASES = 128
_REMEDY = "Run prepare on the data set again; it rebuilds what is outdated or damaged and keeps the rest."


@dataclass(frozen=True)
class PreparedCase:
    """One case of the cache, mapped into memory.

    Attributes:
        id, patient: Names in the data set.
        image: (M, D, H, W) float16.
        label: (D, H, W) classes.
        points: (n, 4), class, d, h, w of some voxels.
        record: Record of the preprocessing, for the inverse.
    """

    id: str
    patient: str
    image: np.ndarray
    label: np.ndarray
    points: np.ndarray
    record: PreprocessingRecord


def is_prepared(folder: str | Path) -> bool:
    """Whether a folder holds a complete cache, not a raw data set."""
    return (Path(folder) / MANIFEST).is_file()


class PreparedDataset:
    """A complete cache; the hashes of a case are checked when it is first opened, all of them by `verify`.

    Args:
        folder: Folder with `manifest.json`.

    Attributes:
        manifest: The manifest as read.
        name, licence, description, modality: Properties of the data set.
        plan, labels, splits: Parts of the manifest.
        ids: Cases, sorted.
        patients: Patient by case.

    Raises:
        InputError: The folder does not exist.
        DatasetError: The cache is incomplete, has another format, or files are missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        try:
            self.name = str(self.manifest["name"])
            self.licence = str(self.manifest["licence"])
            self.description = str(self.manifest["description"])
            self.plan = from_dict(Plan, self.manifest["plan"], where="plan")
            self.labels = from_dict(LabelTable, self.manifest["labels"], where="labels")
            self.splits = tuple(from_dict(Split, entry, where="splits") for entry in self.manifest["splits"])
            self._entries: dict[str, dict[str, Any]] = {str(entry["id"]): entry for entry in self.manifest["cases"]}
            self.patients = {case: str(entry["patient"]) for case, entry in self._entries.items()}
        except (KeyError, TypeError, InputError) as error:
            raise DatasetError(
                "is damaged",
                where=self.folder / MANIFEST,
                problems=[f"{type(error).__name__}: {error}"],
                remedy=_REMEDY,
            ) from error
        self.modality = self.plan.modality
        self.ids = tuple(sorted(self._entries))
        self._open: OrderedDict[str, PreparedCase] = OrderedDict()
        self._checked: set[str] = set()
        missing = [f"{CASES}/{path.name} is missing" for case in self.ids for path in self._files(case).values()
                   if not path.is_file()]  # fmt: skip
        if missing:
            raise DatasetError("is damaged", where=self.folder, problems=missing, remedy=_REMEDY)

    def __len__(self) -> int:
        return len(self.ids)

    def fold(self, index: int) -> Split:
        """The cases of one fold.

        Raises:
            InputError: There is no such fold.
        """
        if not 0 <= index < len(self.splits):
            raise InputError(
                "there is no such fold",
                where=f"--fold {index}",
                why=f"{self.name} has {len(self.splits)} folds, counted from 0",
            )
        return self.splits[index]

    def case(self, case: str) -> PreparedCase:
        """One case; its arrays are read-only.

        Raises:
            DatasetError: The case is not in the cache, or a file has changed.
        """
        ready = self._open.get(case)
        if ready is not None:
            return ready
        if case not in self._entries:
            raise DatasetError("the cache has no such case", where=self.folder, problems=[case], remedy=_REMEDY)
        if case not in self._checked:
            problems = self.problems(case)
            if problems:
                raise DatasetError("is outdated or damaged", where=self.folder, problems=problems, remedy=_REMEDY)
            self._checked.add(case)
        files = self._files(case)
        side = json.loads(files["record"].read_text(encoding="utf-8"))
        ready = PreparedCase(
            id=case,
            patient=self.patients[case],
            image=np.load(files["image"], mmap_mode="r"),
            label=np.load(files["label"], mmap_mode="r"),
            points=np.load(files["points"]),
            record=from_dict(PreprocessingRecord, side["record"], where=f"{case}.json"),
        )
        self._open[case] = ready
        while len(self._open) > _OPEN_CASES:
            self._open.popitem(last=False)
        return ready

    def hashes(self, cases: Sequence[str]) -> dict[str, dict[str, str]]:
        """SHA-256 of the files of some cases, by case and kind, from the manifest."""
        return {case: dict(self._entries[case]["files"]) for case in cases}

    def problems(self, case: str) -> list[str]:
        """Differences between the files of a case and the manifest, one line each."""
        found = []
        for kind, path in self._files(case).items():
            expected = self._entries[case]["files"][kind]
            actual = file_sha256(path) if path.is_file() else "missing"
            if actual != expected:
                found.append(f"{CASES}/{path.name}: sha256 {actual[:12]}, the manifest has {expected[:12]}")
        return found

    def verify(self, *, progress: Progress = no_progress) -> None:
        """Check every hash (faults.md row 43).

        Raises:
            DatasetError: Files have changed; lists all of them.
        """
        problems = []
        for index, case in enumerate(self.ids):
            progress(index, len(self.ids), "checking the cache")
            found = [] if case in self._checked else self.problems(case)
            if not found:
                self._checked.add(case)
            problems += found
        progress(len(self.ids), len(self.ids), "checking the cache")
        if problems:
            raise DatasetError("is outdated or damaged", where=self.folder, problems=problems, remedy=_REMEDY)

    def check_config(self, config: Config) -> None:
        """Check that a configuration has the preprocessing of this cache.

        Patch, sampling and augmentation may differ, because they are applied to the cached arrays.

        Raises:
            DatasetError: Settings differ; lists all of them.
        """
        data, plan = config.data, self.plan
        problems = []
        if data.view not in ("auto", plan.view):
            problems.append(f"data.view: asked for {data.view}, prepared as {plan.view}")
        if data.spacing is not None and not np.allclose(data.spacing, plan.spacing, rtol=1e-4):
            problems.append(f"data.spacing: asked for {data.spacing} mm, prepared at {plan.spacing} mm")
        if keeps_slices(data, plan.spacing) != plan.keep_slices:
            found = "kept" if plan.keep_slices else "resampled"
            problems.append(f"data.slices: asked for {data.slices}, prepared with slices {found}")
        if plan.longest not in (0, data.longest):
            problems.append(f"data.longest: asked for {data.longest} pixels, prepared at {plan.longest}")
        wanted = normalisation_of(plan.channels, data.normalisation)
        if wanted != plan.normalisation:
            problems.append(f"data.normalisation: asked for {wanted}, prepared with {plan.normalisation}")
        if plan.stats != tuple(
            windowed(stats, data) if kind == "ct" else stats
            for stats, kind in zip(plan.stats, plan.normalisation, strict=True)
        ):
            problems.append(f"data.window: asked for {data.window}, prepared with another one")
        pairs = data.left_right_pairs
        if pairs is not None and self.labels.paired(pairs) != self.labels:
            problems.append(f"data.left_right_pairs: asked for {[*map(list, pairs)]}, prepared with others")
        if problems:
            raise DatasetError("was prepared with other settings", where=self.folder, problems=problems, remedy=_REMEDY)

    def _files(self, case: str) -> dict[str, Path]:
        return case_files(self.folder, case)


def case_files(folder: Path, case: str) -> dict[str, Path]:
    """Paths of the files of a case, by kind."""
    files = {kind: folder / CASES / f"{case}.{kind}.npy" for kind in ARRAYS}
    return files | {"record": folder / CASES / f"{case}.json"}


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError("the cache does not exist", where=folder, remedy="Run prepare on the data set.")
    path = folder / MANIFEST
    if not path.is_file():
        raise DatasetError("holds no finished cache", where=folder, problems=[f"{MANIFEST} is missing"], remedy=_REMEDY)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError("is damaged", where=path, problems=[str(error)], remedy=_REMEDY) from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DatasetError(
            "the cache has another format",
            where=path,
            problems=[f"found {found}, this version reads {FORMAT}"],
            remedy=_REMEDY,
        )
    return manifest
