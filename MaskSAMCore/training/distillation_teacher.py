"""The teacher of a distillation: a trained model whose output a student learns from (model.md §11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from MaskSAMCore.config.schema import Config
from MaskSAMCore.config.serialize import from_dict
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.errors import InputError, ModelError
from MaskSAMCore.losses.distillation import probabilities
from MaskSAMCore.preprocessing.plan import Plan
from MaskSAMCore.progress import Progress
from MaskSAMCore.training.stored import folder_for
from MaskSAMCore.zoo import installed

Slide = Callable[..., Tensor]
"""Network, patch (M, D, H, W), `step` and `batch` to scores (K, D, H, W), by windows of the network's own size."""
STEP = 0.75
"""Distance of the teacher's windows as a share of their size; 0.5, as for whole scans, takes much longer."""
GPU_BATCH = 8
"""Windows of one forward pass of the teacher on a GPU."""
SPACING_TOLERANCE = 0.1


class DistillationTeacher:
    """Soft labels for a student: a trained model's probabilities on the student's augmented patches.

    They are computed without gradient, patch by patch or for whole cases beforehand. Patches of the teacher's own size
    go through its network as one batch; others are covered by windows of that size, as a scan is.

    Args:
        model: Name or folder of the teacher.
        device: Where it computes.
        slide: The sliding window; injected, since training does not import inference.

    Raises:
        ModelError: The model is missing, damaged, or takes its prompts from the ground truth.
        InputError: It takes clicks and boxes only.
    """

    def __init__(self, model: str, device: torch.device, slide: Slide) -> None:
        self.network, self.card = installed.load_model(model, device, download=True)
        self.card.require_automatic()
        self.slide, self.batch = slide, 1 if device.type == "cpu" else GPU_BATCH
        if self.card.config.model.source.kind == "gt":
            raise ModelError(
                "this model cannot teach",
                where=self.card.name,
                why="it takes its prompts from the ground truth",
                remedy="Name a model that segments by itself.",
            )

    @property
    def title(self) -> str:
        """Name and hash, by which a resumed run recognises its teacher."""
        return f"{self.card.name} {self.card.weights_sha256[:12]}"

    @property
    def provenance(self) -> dict[str, Any]:
        """The teacher's entry in the student's card."""
        steps = self.card.provenance.get("steps")
        return {"name": self.card.name, "weights_sha256": self.card.weights_sha256, "steps": steps}

    def check(self, dataset: PreparedDataset) -> list[str]:
        """Compare the teacher's data with a data set; returns warnings.

        Raises:
            InputError: Its labels, channels, view or normalisation differ from the data set's.
        """
        plan: Plan = from_dict(Plan, self.card.plan, where="model.plan")
        pairs: dict[str, tuple[Any, Any]] = {
            "labels": _both([label.name for label in table.labels] for table in (self.card.labels, dataset.labels)),
            "channels": _both(len(each.channels) for each in (plan, dataset.plan)),
            "view": _both(each.view for each in (plan, dataset.plan)),
            "normalisation": _both(each.normalisation for each in (plan, dataset.plan)),
        }
        for name, (theirs, ours) in pairs.items():
            if theirs != ours:
                raise InputError(
                    f"the teacher has other {name}",
                    where=self.card.name,
                    why=f"{theirs} there, {ours} in the data set",
                    remedy="Choose a teacher that was trained on data like these.",
                )
        doubts = []
        if any(abs(a - b) > SPACING_TOLERANCE * b for a, b in zip(plan.spacing, dataset.plan.spacing, strict=True)):
            doubts.append(f"the teacher knows voxels of {plan.spacing} mm, the student sees {dataset.plan.spacing} mm")
        if "ct" in plan.normalisation and plan.stats != dataset.plan.stats:
            doubts.append("the teacher's intensity window is not the data set's")
        return doubts

    def __call__(self, image: Tensor, valid: Tensor) -> Tensor:
        """Soft labels of patches.

        Args:
            image: Patches (B, M, D, H, W).
            valid: (B, D) bool, slices that are not padding; the values of the others mean nothing.

        Returns:
            Probabilities (B, K, D, H, W) that sum to 1 over the classes.
        """
        with torch.no_grad():
            if tuple(image.shape[2:]) == self.network.cfg.patch:
                return probabilities(self.network.segment_patch(image))
            scores = image.new_zeros((len(image), self.network.cfg.classes, *image.shape[2:]), dtype=torch.float32)
            for patch, used, target in zip(image, valid, scores, strict=True):
                rows = used.nonzero()[:, 0]
                if len(rows):
                    inside = slice(int(rows[0]), int(rows[-1]) + 1)
                    target[:, inside] = self.slide(self.network, patch[:, inside], step=STEP, batch=self.batch)
            return probabilities(scores)

    def store(
        self,
        folder: Path,
        dataset: PreparedDataset,
        cases: Sequence[str],
        *,
        progress: Progress,
        check: Callable[[], None],
    ) -> None:
        """Compute and keep the soft labels of whole cases, as scans are segmented; those that exist are kept.

        Args:
            folder: Where they are kept; those of another teacher, or of other voxels, are replaced.
            dataset: Prepared.
            cases: Their ids.
            progress: Called after every case.
            check: Called before every case; raises to cancel.
        """
        folder = folder_for(folder, {"teacher": self.title, "cases": dataset.hashes(cases)})
        for done, case in enumerate(cases):
            check()
            target = folder / f"{case}.npy"
            if not target.exists():
                image = np.asarray(dataset.case(case).image, np.float32)
                with torch.no_grad():
                    found = probabilities(self.slide(self.network, image, batch=self.batch))
                part = target.with_suffix(".part")
                with part.open("wb") as file:
                    np.save(file, found.half().cpu().numpy())
                part.replace(target)
            progress(done + 1, len(cases), "answers of the teacher")


def read_soft_labels(folder: Path, case: str) -> np.ndarray:
    """Soft labels of a case that `DistillationTeacher.store` kept: (K, Z, Y, X) fp16, memory-mapped."""
    found: np.ndarray = np.load(folder / f"{case}.npy", mmap_mode="r")
    return found


def check_mode(config: Config, teacher: str | None) -> None:
    """Refuse a distillation without a teacher, and a teacher without a distillation.

    Raises:
        InputError: Names the option to change.
    """
    mode = config.train.mode
    if mode == "distill" and teacher is None:
        raise InputError(
            "distillation needs a teacher",
            where="train.mode=distill",
            remedy="Name a trained model with --teacher, or train without one by --mode auto.",
        )
    if mode != "distill" and teacher is not None:
        raise InputError("only a distillation has a teacher", where="--teacher", remedy="Add --mode distill.")


def _both(values: Any) -> tuple[Any, Any]:
    theirs, ours = values
    return theirs, ours
