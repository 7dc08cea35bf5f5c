"""Writes the preprocessed cases of a cache; unchanged cases are kept."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.config.serialize import to_dict
from MaskSAMCore.data.dataset import CASES, FORMAT, case_files
from MaskSAMCore.data.raw import RawCase, RawDataset, read_case
from MaskSAMCore.errors import DatasetError, MaskSAMError
from MaskSAMCore.io.atomic import atomic_path, write_json
from MaskSAMCore.io.hashing import file_sha256
from MaskSAMCore.preprocessing.plan import Plan
from MaskSAMCore.preprocessing.preprocess import preprocess, preprocess_labels
from MaskSAMCore.progress import Progress

LOG = logging.getLogger(__name__)
POINTS_PER_CLASS = 1000


def key_of(*parts: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(kw_only=True)
class CaseWriter:
    """Writes the cases of one data set into one cache.

    Attributes:
        dataset: The raw data set.
        plan: Parameters of the preprocessing.
        target: Folder of the cache.
        sources: SHA-256 of every source file, by case and file name.
        overwrite: Whether to make every case again.
        check: Called before every case; raises an exception to stop.
        built, kept, rebuilt: Cases as in `BuildReport`.
    """

    dataset: RawDataset
    plan: Plan
    target: Path
    sources: dict[str, dict[str, str]]
    overwrite: bool
    check: Callable[[], None]
    built: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    rebuilt: list[tuple[str, str]] = field(default_factory=list)

    def write(self, workers: int, progress: Progress) -> list[dict[str, Any]]:
        """Write all cases with `workers` threads, and return their entries of the manifest.

        Raises:
            DatasetError: A case cannot be prepared; names it.
        """
        entries = []
        with ThreadPoolExecutor(max(1, workers)) as pool:
            futures = [pool.submit(self._one, case) for case in self.dataset.cases]
            try:
                for index, future in enumerate(futures):
                    progress(index, len(futures), "preparing")
                    entries.append(future.result())
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
        progress(len(futures), len(futures), "preparing")
        self._remove_unknown_files()
        return entries

    def _one(self, case: RawCase) -> dict[str, Any]:
        self.check()
        key = self._key(case)
        entry, reason = self._existing(case, key)
        if entry is not None and not self.overwrite:
            self.kept.append(case.id)
            return entry
        if reason:
            LOG.warning("%s will be prepared again: %s", case.id, reason)
            self.rebuilt.append((case.id, reason))
        else:
            self.built.append(case.id)
        try:
            return self._make(case, key)
        except MaskSAMError as error:
            raise DatasetError("a case cannot be prepared", where=case.id, problems=[str(error)]) from error

    def _key(self, case: RawCase) -> str:
        """Hash of everything that the files of the case depend on."""
        how = to_dict(self.plan)
        del how["patch"], how["median_shape"]
        if "ct" not in self.plan.normalisation:
            del how["stats"]  # not used, and every new case would change them
        ids = [label.id for label in self.dataset.labels.labels]
        return key_of(FORMAT, how, ids, self.sources[case.id], case.patient)

    def _existing(self, case: RawCase, key: str) -> tuple[dict[str, Any] | None, str]:
        """The entry of a case that exists and is current, or None and the reason to make it again ("" if it is new)."""
        files = case_files(self.target, case.id)
        if not any(path.exists() for path in files.values()):
            return None, ""
        try:
            side = json.loads(files["record"].read_text(encoding="utf-8"))
            held, entry = side["key"], side["entry"]
            if held != key:
                return None, "its sources or the plan have changed"
            entry["files"]["record"] = file_sha256(files["record"])
            for kind, path in files.items():
                if file_sha256(path) != entry["files"][kind]:
                    return None, f"{path.name} is damaged"
        except FileNotFoundError:
            return None, "it is incomplete, because an earlier run was interrupted"
        except (ValueError, OSError, KeyError, TypeError) as error:
            return None, f"it is damaged ({error})"
        return entry, ""

    def _make(self, case: RawCase, key: str) -> dict[str, Any]:
        volume, labels = read_case(self.dataset, case)
        ready = preprocess(volume, self.plan)
        classes = preprocess_labels(labels, ready.record, self.plan, self.dataset.labels)
        files = case_files(self.target, case.id)
        files["record"].unlink(missing_ok=True)
        arrays = {
            "image": np.clip(ready.image, -6e4, 6e4).astype(np.float16),
            "label": classes,
            "points": _points(classes, self.dataset.labels.classes, zlib.crc32(case.id.encode())),
        }
        entry: dict[str, Any] = {"id": case.id, "patient": case.patient, "sources": self.sources[case.id], "files": {}}
        for kind, array in arrays.items():
            with atomic_path(files[kind], overwrite=True) as part, part.open("wb") as stream:
                np.save(stream, array)
            entry["files"][kind] = file_sha256(files[kind])
        entry["shape"] = list(ready.image.shape)
        entry["voxels"] = np.bincount(classes.ravel(), minlength=self.dataset.labels.classes).tolist()
        side = {"key": key, "entry": entry, "record": to_dict(ready.record)}
        write_json(files["record"], side, overwrite=True)
        return entry | {"files": entry["files"] | {"record": file_sha256(files["record"])}}

    def _remove_unknown_files(self) -> None:
        """Remove the files of cases that are no longer in the data set."""
        keep = {path for case in self.dataset.cases for path in case_files(self.target, case.id).values()}
        for path in (self.target / CASES).iterdir():
            if path not in keep and path.suffix in (".npy", ".json"):
                LOG.warning("%s was removed, because the data set no longer has this case", path)
                path.unlink()


def _points(classes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Class, d, h, w of at most `POINTS_PER_CLASS` voxels of each structure, (n, 4) int32."""
    rng = np.random.default_rng(seed)
    flat, rows = classes.ravel(), []
    for value in range(1, count):
        index = np.flatnonzero(flat == value)
        index = np.sort(rng.choice(index, min(len(index), POINTS_PER_CLASS), replace=False))
        place = np.stack(np.unravel_index(index, classes.shape), axis=1)
        rows.append(np.concatenate([np.full((len(index), 1), value), place], axis=1))
    return np.concatenate(rows).astype(np.int32)
