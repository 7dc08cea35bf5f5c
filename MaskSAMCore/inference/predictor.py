"""A trained model on a whole scan: preprocess, windows, back to exactly the scan's grid (model.md §13.1)."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from MaskSAMCore import device as devices
from MaskSAMCore.config.serialize import from_dict
from MaskSAMCore.errors import InputError, PromptError
from MaskSAMCore.inference.cache import SlabCache, keeper, model_key
from MaskSAMCore.inference.checks import doubts
from MaskSAMCore.inference.sliding_window import Memory, Network, patch_network, slide, window_count
from MaskSAMCore.preprocessing.plan import Plan, Shape, mirror_rule
from MaskSAMCore.preprocessing.postprocess import keep_largest
from MaskSAMCore.preprocessing.preprocess import (
    Prepared,
    PreprocessingRecord,
    classes_to_ids,
    preprocess,
    preprocess_labels,
    restore_labels,
)
from MaskSAMCore.progress import CancelToken, Progress, no_progress
from MaskSAMCore.volume import Grid, LabelMap, Roi, Slices, Volume

if TYPE_CHECKING:
    from MaskSAMCore.zoo.model_folder import ModelCard

LOG = logging.getLogger(__name__)
GPU_BATCH = 4
"""Windows of one forward pass on a GPU; the ladder of `Memory` goes down from here."""


@dataclass(kw_only=True)
class Result:
    """A segmentation and what has to be said about it.

    Attributes:
        labels: On exactly the grid of the scan, ids of the model's label table.
        warnings: One line each; all were logged when they arose, doubts about the scan before the network ran.
        device: Where the network ran at the end, as `str(torch.device)`.
        windows: Forward passes, mirrorings included.
        seconds: From the scan in memory to the label map in memory.
    """

    labels: LabelMap
    warnings: tuple[str, ...] = ()
    device: str = "cpu"
    windows: int = 0
    seconds: float = 0.0


class Predictor:
    """A loaded model that segments scans.

    Args:
        model: Name of an installed model, or its folder.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ModelError: The model is missing, damaged, or its base weights are.
        InputError: The device does not exist.
    """

    def __init__(self, model: str | Path, device: str = "auto") -> None:
        from MaskSAMCore.zoo.installed import load_model

        chosen = devices.choose_device(device)
        network, card = load_model(model, chosen)
        self._start(network, card, chosen)

    @classmethod
    def of(
        cls, network: nn.Module, card: ModelCard, device: torch.device | str = "cpu", *, cache: SlabCache | None = None
    ) -> Predictor:
        """A predictor of a network that is in memory already; `network.segment_patch` is what is called.

        Args:
            network: As `zoo.load_model` gives it.
            card: Of the model.
            device: Where it computes.
            cache: Is left the encoded windows. A session whose windows hold the same numbers, as those of a scan that
                was segmented whole and is no larger than in training, needs no encoder for them.
        """
        self = cls.__new__(cls)
        self._start(network, card, torch.device(device), cache)
        return self

    def _start(self, network: nn.Module, card: ModelCard, device: torch.device, cache: SlabCache | None = None) -> None:
        self.card, self.device, self.cache = card, device, cache
        self.network = network.to(device).eval()
        self.plan: Plan = card.plan if isinstance(card.plan, Plan) else from_dict(Plan, card.plan, where="model.plan")

    def segment(
        self,
        volume: Volume,
        *,
        roi: Roi | Sequence[Roi] | None = None,
        tta: bool = False,
        step: float = 0.5,
        batch: int | None = None,
        progress: Progress = no_progress,
        cancel: CancelToken | None = None,
    ) -> Result:
        """Segment a scan, or only one or several boxes of it.

        Args:
            volume: The scan, with as many channels as the model takes.
            roi: Boxes in RAS mm, each solved on its own; background elsewhere. Where boxes overlap, a structure
                that an earlier box found stays.
            tta: Average over the mirrorings that keep the labels true.
            step: Distance of two windows as a share of the patch.
            batch: Windows of one forward pass; None for 1 on the CPU and `GPU_BATCH` on a GPU.
            progress: Told after every window.
            cancel: Asked before every window.

        Raises:
            InputError: The channels do not fit, a box misses the scan, no voxel is finite, or the model takes prompts
                only.
            ResourceError: The scan needs more memory than is free.
            Cancelled: `cancel` was set.
        """
        begin = time.monotonic()
        self.card.require_automatic()
        volume.grid.check(where=volume.source)
        boxes = [roi] if isinstance(roi, Roi) else list(roi or ())
        targets = _targets(boxes, volume.grid)
        notes = [f"{volume.source or 'the scan'}: {text}" for text in doubts(volume, self.card, self.plan, bool(boxes))]
        for note in notes:
            LOG.warning(note)
        run = _Case(self, Memory(device=self.device, batch=batch or self._batch(), on_cpu=self._to_cpu))
        classes: np.ndarray = np.zeros(volume.grid.shape, np.uint8 if self.card.labels.classes <= 256 else np.uint16)
        for index, target in enumerate(targets):
            part = f"region {index + 1} of {len(targets)}: segmenting" if len(targets) > 1 else "segmenting"
            found = run.solve(volume, target, tta, step, _named(progress, part), cancel)
            place = classes[target]
            np.copyto(place, found, where=place == 0)
        return Result(
            labels=LabelMap(
                array=classes_to_ids(classes, self.card.labels),
                grid=volume.grid,
                labels=self.card.labels,
                source=volume.source,
            ),
            warnings=tuple(dict.fromkeys((*volume.warnings, *notes, *run.notes, *run.memory.announced))),
            device=str(run.memory.device),
            windows=run.windows,
            seconds=time.monotonic() - begin,
        )

    def _batch(self) -> int:
        return 1 if self.device.type == "cpu" else GPU_BATCH

    def _runner(self, device: torch.device) -> Network:
        keep = None
        if self.cache is not None and self.card.config.model.takes_prompts:
            keep = keeper(self.cache, model_key(self.network, self.card))
        return patch_network(self.network, device, self.card.config.train.precision, keep=keep)

    def _to_cpu(self) -> Network:
        self.device = torch.device("cpu")
        self.network.to(self.device)
        return self._runner(self.device)


def _targets(boxes: Sequence[Roi], grid: Grid) -> list[Slices]:
    """The boxes as slices of the grid, or the whole grid where there are none (faults.md row 31)."""
    targets: list[Slices] = []
    for index, box in enumerate(boxes):
        try:
            targets.append(box.slices(grid))
        except InputError as error:
            where = f"region {index + 1} of {len(boxes)}: {error.where}"
            raise PromptError(error.what, where=where, why=error.why, remedy=error.remedy) from error
    depth, height, width = grid.shape
    return targets or [(slice(0, depth), slice(0, height), slice(0, width))]


class _Case:
    """What the regions of one scan share: the memory ladder and the things to say."""

    def __init__(self, predictor: Predictor, memory: Memory) -> None:
        self.predictor, self.memory = predictor, memory
        self.notes: list[str] = []
        self.windows = 0

    def solve(
        self, volume: Volume, target: Slices, tta: bool, step: float, progress: Progress, cancel: CancelToken | None
    ) -> np.ndarray:
        """Classes of the voxels in `target` (kji)."""
        card, plan = self.predictor.card, self.predictor.plan
        around = context(target, volume.grid, plan)
        crop = volume.crop(around)
        check_memory(crop.grid, plan, card.labels.classes, crop.channels, volume.source)
        inner = tuple(slice(t.start - a.start, t.stop - a.start) for t, a in zip(target, around, strict=True))
        if constant(crop):
            text = f"{volume.source or 'the scan'}: the image is constant; the result is empty"
            LOG.warning(text)
            self.notes.append(text)
            return np.zeros(crop.grid.shape, np.uint8)[inner]
        prepared = preprocess(crop, plan)
        if prepared.record.nonfinite:
            self.notes.append(f"{volume.source or 'the scan'}: {prepared.record.nonfinite} voxels were NaN or Inf")
        focus = _focus(inner, crop.grid, prepared, plan)  # type: ignore[arg-type]
        image = np.ascontiguousarray(prepared.image[(slice(None), *focus)])
        rule = mirror_rule(plan, card.labels, card.config.data) if tta else None
        self.windows += window_count(image.shape[1:], plan.patch, step=step) * (2 ** len(rule.axes) if rule else 1)
        scores = slide(
            self.predictor._runner(self.memory.device),
            image,
            plan.patch,
            card.labels.classes,
            step=step,
            mirror=rule,
            memory=self.memory,
            progress=progress,
            cancel=cancel,
        )
        found = restore_labels(_spread(scores, focus, prepared.record), prepared.record)[inner]
        return keep_largest(found, card.largest_component)


def context(target: Slices, grid: Grid, plan: Plan) -> Slices:
    """A region (kji) with the surroundings that training saw, kept inside the volume where it fits.

    The region grows to a patch at least, and by a quarter of one on either side as long as it is smaller than the
    median training scan. Where intensities are normalised by the scan itself it grows to that median, since its mean
    and deviation must be taken over as much tissue.
    """
    if plan.longest:  # a part of a picture would be enlarged like the whole
        return tuple(slice(0, n) for n in grid.shape)  # type: ignore[return-value]
    by_scan = any(kind == "zscore" for kind in plan.normalisation)
    out = list(target)
    planned = plan.spacing_for(plan.own_spacing(grid))
    for axis, ijk in enumerate(plan.axes_of(grid)):
        have, size = target[2 - ijk], grid.shape[2 - ijk]
        voxel = planned[axis] / grid.spacing[ijk]
        patch, median = round(plan.patch[axis] * voxel), round(plan.median_shape[axis] * voxel)
        wanted = max(patch, median if by_scan else min(have.stop - have.start + patch // 2, median))
        length = min(max(have.stop - have.start, wanted), size)
        start = min(max((have.start + have.stop - length) // 2, 0), size - length)
        out[2 - ijk] = slice(start, start + length)
    return tuple(out)  # type: ignore[return-value]


def constant(volume: Volume) -> bool:
    """Whether every channel holds one value throughout; a channel of NaN alone is for `preprocess` to refuse."""
    for channel in volume.as_channels():
        finite = channel[np.isfinite(channel)] if np.issubdtype(channel.dtype, np.floating) else channel
        if not finite.size or finite.min() != finite.max():
            return False
    return True


def check_memory(grid: Grid, plan: Plan, classes: int, channels: int, source: str = "") -> None:
    """Refuse a scan that does not fit into the computer's memory, before anything is allocated (faults.md row 48).

    Raises:
        ResourceError: With the numbers of what is needed and what is free.
    """
    voxels = float(np.prod(grid.shape))
    planned = max(plan.voxels(grid), float(np.prod(plan.patch)))
    # sums and weights in float32, the image twice; on the scan's grid the float copy and three scores at a time
    needed = 4 * planned * (classes + 1 + 2 * channels) + 4 * voxels * (channels + 3)
    devices.require_ram(
        int(needed), what=source or "the scan", remedy="Close other programs, or segment a region of it (--roi)."
    )


def _focus(inner: Slices, grid: Grid, prepared: Prepared, plan: Plan) -> Slices:
    """The part of the prepared image (D, H, W) that windows must cover to answer the voxels `inner` (kji).

    A quarter of a patch is added around it, since a window knows least at its border.
    """
    shape: Shape = prepared.record.shape
    if all(s.start == 0 and s.stop == n for s, n in zip(inner, grid.shape, strict=True)):
        return tuple(slice(0, n) for n in shape)  # type: ignore[return-value]
    box: np.ndarray = np.zeros(grid.shape, np.uint8)
    box[inner] = 1
    asked = preprocess_labels(LabelMap(array=box, grid=grid), prepared.record, plan) > 0
    out = []
    for axis, (size, length) in enumerate(zip(shape, plan.patch, strict=True)):
        used = np.flatnonzero(asked.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        low, high = max(low - length // 4, 0), min(high + length // 4, size)
        wide = min(max(high - low, length), size)
        low = min(max((low + high - wide) // 2, 0), size - wide)
        out.append(slice(low, low + wide))
    return tuple(out)  # type: ignore[return-value]


def _spread(scores: Tensor, focus: Slices, record: PreprocessingRecord) -> Tensor:
    """Scores of a part as scores of the whole prepared image; zeros, which are background, elsewhere."""
    if tuple(scores.shape[1:]) == record.shape:
        return scores
    whole = scores.new_zeros((len(scores), *record.shape))
    whole[(slice(None), *focus)] = scores
    return whole


def _named(progress: Progress, name: str) -> Progress:
    def report(done: int, total: int, text: str) -> None:
        progress(done, total, name)

    return report
