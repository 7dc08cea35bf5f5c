"""Builds the cache of preprocessed cases: verify, plan, preprocess.

An interrupted build is continued. Every file is written atomically, the manifest last.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import from_dict, to_dict
from MaskSAMCore.data.cases import CaseWriter, key_of
from MaskSAMCore.data.dataset import (
    CASES,
    FORMAT,
    MANIFEST,
    PreparedDataset,
    is_prepared,
)
from MaskSAMCore.data.raw import RawDataset, read_case, read_dataset
from MaskSAMCore.data.splits import SPLIT_FILES, Split, folds, load_splits
from MaskSAMCore.data.verify import verify_dataset
from MaskSAMCore.errors import DatasetError, InputError
from MaskSAMCore.io.atomic import FolderLock, sweep_parts, write_json
from MaskSAMCore.io.hashing import file_sha256
from MaskSAMCore.preprocessing.plan import Fingerprint, Plan, fingerprint, make_plan
from MaskSAMCore.progress import CancelToken, Progress, no_progress
from MaskSAMCore.volume import LabelMap, Volume

LOG = logging.getLogger(__name__)
FINGERPRINT = "fingerprint.json"
_READERS = "MaskSAMCore.io.images"
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Result of `prepare`.

    Attributes:
        built: Cases that were made for the first time.
        kept: Cases that were complete and unchanged.
        rebuilt: Cases that were made again, each with the reason.
        warnings: Warnings of the readers, each with the number of files.
    """

    built: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    rebuilt: tuple[tuple[str, str], ...] = ()
    warnings: tuple[tuple[str, int], ...] = ()


def prepare(
    source: str | Path,
    target: str | Path,
    config: Config,
    *,
    overwrite: bool = False,
    workers: int = 2,
    progress: Progress = no_progress,
    cancel: CancelToken | None = None,
) -> tuple[PreparedDataset, BuildReport]:
    """Preprocess a raw data set into a cache (product.md §2).

    Cases whose sources, plan and files are unchanged are kept, and an interrupted call is continued. The data set is
    verified before anything is written.

    Args:
        source: Folder in nnU-Net's raw format, or of the ACDC challenge.
        target: Cache folder; created if it does not exist.
        config: `data`, `model.patch` and, for the splits, `train.folds` are used; the number of channels is that of the
            data set.
        overwrite: Whether to rebuild everything, and to replace the cache of another data set.
        workers: Number of threads; each has one case in memory.
        progress: Called for every case.
        cancel: Checked between cases.

    Raises:
        DatasetError: The data set has problems; lists all of them.
        InputError: The target is not a cache, or that of another data set.
    """
    source, target = Path(source), Path(target)
    with _ReaderWarnings() as collected:
        ready, report = _prepare(source, target, config, overwrite, workers, progress, cancel)
    return ready, replace(report, warnings=collected.counted())


def _prepare(
    source: Path,
    target: Path,
    config: Config,
    overwrite: bool,
    workers: int,
    progress: Progress,
    cancel: CancelToken | None,
) -> tuple[PreparedDataset, BuildReport]:
    _check_target(target, source, overwrite)
    dataset = _paired(read_dataset(source), config)
    hashes = _hash_sources(dataset, progress, cancel)
    if is_prepared(target) and not overwrite:
        done = _unchanged(target, dataset, config, hashes)
        if done is not None:
            return done, BuildReport(kept=done.ids)
    dataset = _paired(verify_dataset(source, progress=progress, cancel=cancel), config)
    splits = load_splits(source, [c.id for c in dataset.cases], {c.id: c.patient for c in dataset.cases})
    if splits is None:
        owner = {case.id: case.patient for case in dataset.cases}
        splits = folds(list(owner), config.train.folds, config.data.split_seed, patient=owner)
    target.mkdir(parents=True, exist_ok=True)
    with FolderLock(target):
        (target / CASES).mkdir(exist_ok=True)
        sweep_parts(target / CASES, older_than_s=0)
        finger = _fingerprint(dataset, config, target, hashes, progress, cancel)
        plan = make_plan(finger, replace(config, model=replace(config.model, channels=len(dataset.channels))))
        (target / MANIFEST).unlink(missing_ok=True)
        writer = CaseWriter(
            dataset=dataset,
            plan=plan,
            target=target,
            sources=hashes,
            overwrite=overwrite,
            check=(cancel or CancelToken()).check,
        )
        entries = writer.write(workers, progress)
        manifest = _manifest(dataset, config, plan, splits, entries)
        write_json(target / MANIFEST, manifest, overwrite=True)
    report = BuildReport(
        built=tuple(sorted(writer.built)), kept=tuple(sorted(writer.kept)), rebuilt=tuple(sorted(writer.rebuilt))
    )
    return PreparedDataset(target), report


def _paired(dataset: RawDataset, config: Config) -> RawDataset:
    """The data set with the left-right pairs of `data.left_right_pairs`, if that is set."""
    pairs = config.data.left_right_pairs
    return dataset if pairs is None else replace(dataset, labels=dataset.labels.paired(pairs))


def _manifest(
    dataset: RawDataset, config: Config, plan: Plan, splits: tuple[Split, ...], entries: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": dataset.name,
        "licence": dataset.licence,
        "description": dataset.description,
        "modality": plan.modality,
        "preset": config.preset,
        "data": to_dict(config.data),
        "plan": to_dict(plan),
        "labels": to_dict(dataset.labels),
        "splits": [to_dict(split) for split in splits],
        "splits_from": _split_rule(dataset, config),
        "cases": entries,
    }


class _ReaderWarnings(logging.Filter):
    """Collects the warnings of the readers, which would be logged three times per file, and counts the files."""

    def __enter__(self) -> _ReaderWarnings:
        self.files: dict[str, set[str]] = {}
        logging.getLogger(_READERS).addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(_READERS).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        where, _, message = record.getMessage().partition(": ")
        self.files.setdefault(_NUMBER.sub("#", message), set()).add(where)
        return False

    def counted(self) -> tuple[tuple[str, int], ...]:
        return tuple(sorted((message, len(files)) for message, files in self.files.items()))


def _check_target(target: Path, source: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError("is a file, not a folder", where=target, remedy="Choose a folder for the cache.")
    if target.resolve() == source.resolve():
        remedy = "Choose another folder."
        raise InputError("the cache cannot be the data set's own folder", where=target, remedy=remedy)
    names = {p.name for p in target.iterdir() if not p.name.startswith(".")}
    if names and not names & {MANIFEST, CASES, FINGERPRINT}:
        raise InputError(
            "the folder holds something else than a cache",
            where=target,
            why=", ".join(sorted(names)[:5]),
            remedy="Choose a new folder.",
        )
    if MANIFEST in names and not overwrite:
        try:
            held = json.loads((target / MANIFEST).read_text(encoding="utf-8")).get("name")
        except (ValueError, OSError, AttributeError):
            return
        wanted = read_dataset(source).name
        if held != wanted:
            raise InputError(
                "the folder holds the cache of another data set",
                where=target,
                why=f"{held}, not {wanted}",
                remedy="Choose a new folder, or use --overwrite.",
            )


def _hash_sources(dataset: RawDataset, progress: Progress, cancel: CancelToken | None) -> dict[str, dict[str, str]]:
    """SHA-256 of every file of every case, by case and file name."""
    hashes = {}
    for index, case in enumerate(dataset.cases):
        if cancel is not None:
            cancel.check()
        progress(index, len(dataset.cases), "hashing the data set")
        files = [*case.images, *([case.label] if case.label else [])]
        hashes[case.id] = {f"{p.parent.name}/{p.name}": file_sha256(p) for p in files}
    progress(len(dataset.cases), len(dataset.cases), "hashing the data set")
    return hashes


def _unchanged(
    target: Path, dataset: RawDataset, config: Config, hashes: dict[str, dict[str, str]]
) -> PreparedDataset | None:
    """The cache, if nothing would change; else None, with the reason as a warning."""
    try:
        ready = PreparedDataset(target)
        ready.verify()
        ready.check_config(config)
    except DatasetError as error:
        LOG.warning("the cache will be rebuilt where needed: %s", error)
        return None
    sources = {entry["id"]: entry["sources"] for entry in ready.manifest["cases"]}
    rule = _split_rule(dataset, config)
    settings = ("view", "spacing", "slices")
    asked = ([to_dict(config.data)[name] for name in settings], tuple(config.model.patch))
    held = ([ready.manifest["data"].get(name) for name in settings], tuple(ready.plan.patch))
    same = sources == hashes and ready.labels == dataset.labels and ready.plan.channels == dataset.channels
    if same and asked == held and ready.manifest["splits_from"] == rule:
        return ready
    LOG.warning("%s: data set or settings have changed since the cache was made; it will be updated", target)
    return None


def _split_rule(dataset: RawDataset, config: Config) -> dict[str, Any]:
    """Origin of the splits; if it changes, the manifest is written again, but not the cases."""
    path = next((dataset.folder / name for name in SPLIT_FILES if (dataset.folder / name).is_file()), None)
    owners = key_of({case.id: case.patient for case in dataset.cases})
    return {
        "folds": config.train.folds,
        "seed": config.data.split_seed,
        "file": file_sha256(path) if path else "",
        "patients": owners,
    }


def _fingerprint(
    dataset: RawDataset,
    config: Config,
    target: Path,
    hashes: dict[str, dict[str, str]],
    progress: Progress,
    cancel: CancelToken | None,
) -> Fingerprint:
    key = key_of(FORMAT, hashes, dataset.channels, config.data.normalisation)
    path = target / FINGERPRINT
    if path.is_file():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["key"] == key:
                return from_dict(Fingerprint, held["fingerprint"])
        except (ValueError, KeyError, TypeError, InputError) as error:
            LOG.warning("%s is damaged and will be made again (%s)", path, error)

    def cases() -> Iterator[tuple[Volume, LabelMap]]:
        for index, case in enumerate(dataset.cases):
            if cancel is not None:
                cancel.check()
            progress(index, len(dataset.cases), "measuring the data set")
            yield read_case(dataset, case)

    result = fingerprint(cases(), channels=dataset.channels, normalisation=config.data.normalisation)
    progress(len(dataset.cases), len(dataset.cases), "measuring the data set")
    write_json(path, {"key": key, "fingerprint": to_dict(result)}, overwrite=True)
    return result
