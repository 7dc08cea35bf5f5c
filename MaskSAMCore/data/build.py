"""Making the prepared cache: verify, plan, preprocess; resumable, every file atomic, the manifest last."""

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
    """What `prepare` did.

    Attributes:
        built: Cases made for the first time.
        kept: Cases that were there, whole and unchanged.
        rebuilt: Cases made again, each with the reason.
        notes: What the readers had to decide, each with the number of files.
    """

    built: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    rebuilt: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, int], ...] = ()


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
    """Preprocess a raw data set once (product.md §2).

    A second call keeps every case whose sources, plan and files are unchanged; a call that was interrupted is
    continued. The data set is verified before anything is written.

    Args:
        source: nnU-Net raw folder (or ACDC's own).
        target: Cache folder; made if it does not exist.
        config: `data` and `model.patch` are used, and `train.folds` for the splits; the number of channels is the data
            set's.
        overwrite: Rebuild everything, also over the cache of another data set.
        workers: Threads; each holds one case in memory.
        progress: Told about every case.
        cancel: Asked between cases.

    Raises:
        DatasetError: The data set has problems; all are listed.
        InputError: The target is no cache, or another data set's.
    """
    source, target = Path(source), Path(target)
    with _ReaderWarnings() as notes:
        ready, report = _prepare(source, target, config, overwrite, workers, progress, cancel)
    return ready, replace(report, notes=notes.counted())


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
    """With the pairs that the configuration declares."""
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
    """Gathers the readers' warnings, which would come three times for every file, and counts them by kind."""

    def __enter__(self) -> _ReaderWarnings:
        self.files: dict[str, set[str]] = {}
        logging.getLogger(_READERS).addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(_READERS).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        where, _, note = record.getMessage().partition(": ")
        self.files.setdefault(_NUMBER.sub("#", note), set()).add(where)
        return False

    def counted(self) -> tuple[tuple[str, int], ...]:
        return tuple(sorted((note, len(files)) for note, files in self.files.items()))


def _check_target(target: Path, source: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError("is a file, not a folder", where=target, remedy="Name a folder for the cache.")
    if target.resolve() == source.resolve():
        raise InputError("the cache cannot be the data set's own folder", where=target)
    names = {p.name for p in target.iterdir() if not p.name.startswith(".")}
    if names and not names & {MANIFEST, CASES, FINGERPRINT}:
        raise InputError(
            "the folder holds something else",
            where=target,
            why=", ".join(sorted(names)[:5]),
            remedy="Name a new folder.",
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
                remedy="Name a new folder, or use --overwrite.",
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
    """The cache, if nothing at all would change; else None, and the reason is logged."""
    try:
        ready = PreparedDataset(target)
        ready.verify()
        ready.check_config(config)
    except DatasetError as error:
        LOG.warning("the cache is rebuilt where needed: %s", error)
        return None
    sources = {entry["id"]: entry["sources"] for entry in ready.manifest["cases"]}
    rule = _split_rule(dataset, config)
    settings = ("view", "spacing", "slices")
    asked = ([to_dict(config.data)[name] for name in settings], tuple(config.model.patch))
    held = ([ready.manifest["data"].get(name) for name in settings], tuple(ready.plan.patch))
    same = sources == hashes and ready.labels == dataset.labels and ready.plan.channels == dataset.channels
    if same and asked == held and ready.manifest["splits_from"] == rule:
        return ready
    LOG.warning("%s: the data set or the settings have changed since the cache was made", target)
    return None


def _split_rule(dataset: RawDataset, config: Config) -> dict[str, Any]:
    """Where the splits come from; another rule makes the manifest again, not the cases."""
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
            LOG.warning("%s is damaged and made again (%s)", path, error)

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
