"""Where a run's batches come from: patches, features of the frozen encoder, and soft labels of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import to_dict
from MaskSAMCore.data.augment import augment_case, for_fixed_copies, generator
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.data.sampling import PatchSampler
from MaskSAMCore.data.splits import Split
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.preprocessing.plan import MirrorRule, mirror_rule
from MaskSAMCore.progress import CancelToken, Progress
from MaskSAMCore.training import features
from MaskSAMCore.training.batches import Batch
from MaskSAMCore.training.distillation_teacher import DistillationTeacher, read_soft_labels
from MaskSAMCore.training.distributed import Processes
from MaskSAMCore.training.loop import Sources

FEATURES, SOFT_LABELS = "features", "answers"
"""Folders of a run that hold what can be computed again; gone when the run is done."""


class BatchSources:
    """Makes the sources of a run's batches; the first process computes what is kept on the disk.

    Args:
        dataset: Prepared.
        split: Its training cases are used.
        config: Of the run.
        folder: Folder of the run.
        processes: Of the run.
        progress: Called after every case.
        cancel: Checked before every case.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        split: Split,
        config: Config,
        *,
        folder: Path,
        processes: Processes,
        progress: Progress,
        cancel: CancelToken,
    ) -> None:
        self.dataset, self.cases, self.config, self.folder = dataset, split.train, config, folder
        self.processes, self.progress, self.cancel = processes, progress, cancel
        self.rule = mirror_rule(dataset.plan, dataset.labels, config.data)

    def build(self, model: Segmenter, base: dict[str, str], teacher: DistillationTeacher | None) -> Sources:
        """The sources of a training run.

        Args:
            model: On its device; computes the features of the frozen phase.
            base: Name and hash of its base weights.
            teacher: Gives soft labels, if they are computed beforehand.
        """
        soft_labels = None
        if teacher is not None and self.config.train.answers == "stored":
            soft_labels = self._soft_labels(teacher)
        frozen = None
        train = self.config.train
        if train.frozen_epochs and train.frozen_copies and isinstance(model, MaskSAM):
            frozen = self._features(model, base).batch
        return Sources(frozen=frozen, full=self._patches(soft_labels))

    def build_trial(self, teacher: DistillationTeacher | None) -> Sources:
        """Sources of a few steps that write nothing: soft labels are zeros of the right size."""
        soft_labels = None
        if teacher is not None and self.config.train.answers == "stored":
            classes = self.config.model.classes

            def soft_labels(case: str) -> np.ndarray:
                return np.zeros((classes, *self.dataset.case(case).label.shape), np.float16)

        return Sources(full=self._patches(soft_labels))

    def _patches(self, soft_labels: Callable[[str], np.ndarray] | None) -> Callable[[int, int], Batch]:
        config = self.config
        sampler = PatchSampler(
            self.dataset,
            self.cases,
            patch=config.model.patch,
            batch=config.train.batch,
            foreground=config.data.foreground,
            seed=config.train.seed,
            augment=config.data.augment,
            mirror=self.rule,
            scores=soft_labels,
        )

        def draw(step: int, rank: int) -> Batch:
            drawn = sampler.batch(step, rank=rank, world=self.processes.world)
            return Batch(drawn.image, drawn.label, drawn.valid, soft_labels=drawn.scores)

        return draw

    def _soft_labels(self, teacher: DistillationTeacher) -> Callable[[str], np.ndarray]:
        folder = self.folder / SOFT_LABELS
        if self.processes.first:
            teacher.store(folder, self.dataset, self.cases, progress=self.progress, check=self.cancel.check)
        self.processes.wait()
        return partial(read_soft_labels, folder)

    def _features(self, model: MaskSAM, base: dict[str, str]) -> features.FrozenBatches:
        config, folder = self.config, self.folder / FEATURES
        copies = config.train.frozen_copies
        if self.processes.first:
            key: dict[str, Any] = {
                "base": base,
                "input": [config.model.channels, config.model.patch, config.model.stem.upsample],
                "backbone": to_dict(config.model.backbone),
                "data": to_dict(config.data),
                "cases": self.dataset.hashes(self.cases),
                "copies": copies,
                "seed": config.train.seed,
            }
            model.eval()
            features.build_cache(
                folder,
                self.cases,
                copy_cases(self.dataset, config, self.rule),
                model,
                count=copies,
                key=key,
                progress=self.progress,
                check=self.cancel.check,
            )
        self.processes.wait()
        return features.FrozenBatches(
            folder,
            [f"{case}.{copy}" for case in self.cases for copy in range(copies)],
            patch=config.model.patch,
            batch=config.train.batch,
            foreground=config.data.foreground,
            seed=config.train.seed,
        )


def copy_cases(dataset: PreparedDataset, config: Config, rule: MirrorRule) -> features.Copies:
    """A function that gives the fixed augmented copies of a case; copy 0 is the case itself."""
    augment = for_fixed_copies(config.data.augment)

    def copy(case_id: str, number: int) -> tuple[np.ndarray, np.ndarray]:
        case = dataset.case(case_id)
        image: np.ndarray = np.asarray(case.image, np.float32)
        label = np.asarray(case.label)
        if number == 0:
            return image, label
        drawn = generator(config.train.seed, 4, dataset.ids.index(case_id), number)
        return augment_case(image, label, augment, drawn, plan=dataset.plan, mirror=rule)

    return copy
