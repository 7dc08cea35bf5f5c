"""Automatic segmentation of scans: preprocess, run windows, resample to the scan's grid (model.md §13.1)."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from MaskSAMCore import device as devices
from MaskSAMCore.config.serialize import from_dict
from MaskSAMCore.errors import InputError, PromptError
from MaskSAMCore.inference.cache import SlabCache, cache_writer, model_key
from MaskSAMCore.inference.checks import require_memory, scan_warnings
from MaskSAMCore.inference.sliding_window import Network, Placement, keeping_network, patch_network, slide, window_count
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.preprocessing.plan import Plan, Shape, mirror_rule
from MaskSAMCore.preprocessing.postprocess import keep_largest
from MaskSAMCore.preprocessing.preprocess import (
    Prepared,
    PreprocessingRecord,
    check_scan,
    classes_to_ids,
    preprocess,
    preprocess_labels,
    restore_labels,
    restore_probabilities,
)
from MaskSAMCore.progress import CancelToken, Progress, no_progress
from MaskSAMCore.volume import Grid, LabelMap, Roi, Slices, Volume

if TYPE_CHECKING:
    from MaskSAMCore.zoo.model_folder import ModelCard

LOG = logging.getLogger(__name__)
GPU_BATCH = 4
"""Windows of one forward pass on a GPU, as long as its memory has room for them."""


@dataclass(kw_only=True)
class Result:
    """A segmentation with its warnings.

    Attributes:
        labels: On the grid of the scan; ids as in the model's label table.
        warnings: One line each; all were logged when they arose.
        device: Where the network ran in the end, as `str(torch.device)`.
        windows: Number of windows that were run, mirrored copies included.
        seconds: Time from the scan in memory to the label map in memory.
        probabilities: (C, K, J, I) float16 on the grid of the scan, where they were asked for: the background, then the
            structures in the order of the label table; they add up to 1. Outside of the regions the background has 1.
            Keeping largest components changes the labels only.
    """

    labels: LabelMap
    warnings: tuple[str, ...] = ()
    device: str = "cpu"
    windows: int = 0
    seconds: float = 0.0
    probabilities: np.ndarray | None = None


class Predictor:
    """A loaded model that segments scans automatically.

    Args:
        model: Name of an installed model, or its folder.
        device: "auto", "cpu", "cuda" or "cuda:N".
        progress: Called while base weights are downloaded, on first use.

    Raises:
        ModelError: The model is missing or damaged, or its base weights cannot be had.
        InputError: The device does not exist.
    """

    def __init__(self, model: str | Path, device: str = "auto", *, progress: Progress = no_progress) -> None:
        from MaskSAMCore.zoo.installed import load_model

        chosen = devices.choose_device(device)
        network, card = load_model(model, chosen, download=True, progress=progress)
        self._start(network, card, chosen)

    @classmethod
    def of(
        cls, network: Segmenter, card: ModelCard, device: torch.device | str = "cpu", *, cache: SlabCache | None = None
    ) -> Predictor:
        """A predictor of a network that is in memory already.

        Args:
            network: As `zoo.installed.load_model` returns it.
            card: Of the model.
            device: Where it computes.
            cache: Keeps the encoded windows, without mirroring. A session whose windows hold the same numbers, as
                those of a scan that was segmented whole and is no larger than in training, need not encode them again.
        """
        self = cls.__new__(cls)
        self._start(network, card, torch.device(device), cache)
        return self

    def _start(self, network: Segmenter, card: ModelCard, device: torch.device, cache: SlabCache | None = None) -> None:
        self.card, self.device, self.cache = card, device, cache
        self.network = network.to(device).eval()

    @cached_property
    def plan(self) -> Plan:
        """How scans are prepared for the model."""
        plan = self.card.plan
        return plan if isinstance(plan, Plan) else from_dict(Plan, plan, where="model.plan")

    def segment(
        self,
        volume: Volume,
        *,
        roi: Roi | Sequence[Roi] | None = None,
        tta: bool = False,
        step: float = 0.5,
        batch: int | None = None,
        probabilities: bool = False,
        progress: Progress = no_progress,
        cancel: CancelToken | None = None,
    ) -> Result:
        """Segment a scan, or only one or several boxes of it.

        Args:
            volume: The scan (K, J, I) or (C, K, J, I), with as many channels as the model takes.
            roi: Boxes in RAS mm, each segmented by itself; elsewhere is background. Where boxes overlap, a structure
                that an earlier box found stays.
            tta: Test-time augmentation: average over the mirrorings under which the labels stay true.
            step: Distance of two windows as a share of the patch, above 0 and at most 1.
            batch: Windows of one forward pass; None for 1 on the CPU and `GPU_BATCH` on a GPU.
            probabilities: Whether the result holds the probabilities of the classes, too.
            progress: Called after every window.
            cancel: Checked before every batch of windows.

        Raises:
            InputError: The channels do not fit, no voxel is finite, the step is not in its range, or the model only
                takes prompts.
            PromptError: A box misses the scan; names its number.
            ResourceError: The scan needs more memory than is free.
            Cancelled: `cancel` was set.
        """
        begin = time.monotonic()
        self.card.require_automatic()
        check_scan(volume, self.plan)
        boxes = [roi] if isinstance(roi, Roi) else list(roi or ())
        targets = _targets(boxes, volume.grid)
        warnings = self._warnings(volume, bool(boxes))
        placement = self._placement(batch, tta)
        chances = _background(volume, self.card.labels.classes) if probabilities else None
        run = _ScanRun(self, placement)
        classes: np.ndarray = np.zeros(volume.grid.shape, np.uint8 if self.card.labels.classes <= 256 else np.uint16)
        for index, target in enumerate(targets):
            part = f"region {index + 1} of {len(targets)}: segmenting" if len(targets) > 1 else "segmenting"
            place = classes[target]
            into = None if chances is None else (chances[(slice(None), *target)], place == 0)
            found = run.solve(volume, target, tta, step, _named(progress, part), cancel, into)
            np.copyto(place, found, where=place == 0)
        return Result(
            labels=LabelMap(
                array=classes_to_ids(classes, self.card.labels),
                grid=volume.grid,
                labels=self.card.labels,
                source=volume.source,
            ),
            warnings=tuple(dict.fromkeys((*volume.warnings, *warnings, *run.warnings, *placement.messages))),
            device=str(placement.device),
            windows=run.windows,
            seconds=time.monotonic() - begin,
            probabilities=chances,
        )

    def _warnings(self, volume: Volume, region: bool) -> list[str]:
        name = volume.source or "the scan"
        found = [f"{name}: {text}" for text in scan_warnings(volume, self.card, self.plan, region)]
        for warning in found:
            LOG.warning(warning)
        return found

    def _placement(self, batch: int | None, tta: bool) -> Placement:
        usual = 1 if self.device.type == "cpu" else GPU_BATCH
        on_cpu = partial(self._to_cpu, keep=not tta)
        return Placement(device=self.device, batch=batch or usual, on_cpu=on_cpu, cache=self.cache)

    def _network(self, device: torch.device, *, keep: bool) -> Network:
        precision = self.card.config.train.precision
        if not keep or self.cache is None or not self.card.config.model.takes_prompts:
            return patch_network(self.network, device, precision)
        return keeping_network(
            self.network, device, precision, cache_writer(self.cache, model_key(self.network, self.card))
        )

    def _to_cpu(self, *, keep: bool) -> Network:
        self.device = torch.device("cpu")
        self.network.to(self.device)
        return self._network(self.device, keep=keep)


def _targets(boxes: Sequence[Roi], grid: Grid) -> list[Slices]:
    """The boxes as slices (k, j, i) of the grid, or the whole grid without boxes (faults.md row 31)."""
    targets: list[Slices] = []
    for index, box in enumerate(boxes):
        try:
            targets.append(box.slices(grid))
        except InputError as error:
            where = f"region {index + 1} of {len(boxes)}: {error.where}"
            raise PromptError(error.what, where=where, why=error.why, remedy=error.remedy) from error
    return targets or [_whole(grid.shape)]


def _whole(shape: Shape) -> Slices:
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])


class _ScanRun:
    """The segmentation of one scan, region by region.

    Attributes:
        warnings: Of all regions so far.
        windows: Number of windows of all regions so far.
    """

    def __init__(self, predictor: Predictor, placement: Placement) -> None:
        self.predictor, self.placement = predictor, placement
        self.warnings: list[str] = []
        self.windows = 0

    def solve(
        self,
        volume: Volume,
        target: Slices,
        tta: bool,
        step: float,
        progress: Progress,
        cancel: CancelToken | None,
        probabilities: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Classes (k, j, i) of the voxels in `target`.

        `probabilities` are an array (C, k, j, i) of the target to fill, and the voxels (k, j, i) to fill it in.
        """
        card, plan = self.predictor.card, self.predictor.plan
        around = context(target, volume.grid, plan)
        crop = volume.crop(around)
        require_memory(crop.grid, plan, card.labels.classes, crop.channels, volume.source)
        k, j, i = (slice(t.start - a.start, t.stop - a.start) for t, a in zip(target, around, strict=True))
        inner = (k, j, i)
        if constant(crop):
            text = f"{volume.source or 'the scan'}: the image is constant; the result is empty"
            LOG.warning(text)
            self.warnings.append(text)
            return np.zeros(crop.grid.shape, np.uint8)[inner]
        prepared = preprocess(crop, plan)
        if prepared.record.nonfinite:
            self.warnings.append(f"{volume.source or 'the scan'}: {prepared.record.nonfinite} voxels were NaN or Inf")
        focus = _focus(inner, crop.grid, prepared, plan)
        image = np.ascontiguousarray(prepared.image[(slice(None), *focus)])
        rule = mirror_rule(plan, card.labels, card.config.data) if tta else None
        self.windows += window_count(image.shape[1:], plan.patch, step=step) * (2 ** len(rule.axes) if rule else 1)
        scores = slide(
            self.predictor._network(self.placement.device, keep=not tta),
            image,
            plan.patch,
            card.labels.classes,
            step=step,
            mirror=rule,
            placement=self.placement,
            progress=progress,
            cancel=cancel,
        )
        scores = _on_whole_grid(scores, focus, prepared.record)
        if probabilities is not None:
            for into, chance in zip(probabilities[0], restore_probabilities(scores, prepared.record), strict=True):
                np.copyto(into, chance[inner], where=probabilities[1])
        return keep_largest(restore_labels(scores, prepared.record)[inner], card.largest_component)


def _background(volume: Volume, classes: int) -> np.ndarray:
    """Probabilities (C, K, J, I) float16 of a scan in which nothing was found yet.

    Raises:
        ResourceError: They do not fit into the computer's memory, beside three volumes that restoring takes.
    """
    shape = (classes, *volume.grid.shape)
    needed = devices.array_bytes(*shape, itemsize=2) + 3 * devices.array_bytes(*volume.grid.shape)
    devices.require_ram(
        needed,
        what=f"{volume.source or 'the scan'}: probabilities of {classes} classes",
        remedy="Close other programs, or leave the probabilities out (--save-probabilities).",
    )
    out: np.ndarray = np.zeros(shape, np.float16)
    out[0] = 1
    return out


def context(target: Slices, grid: Grid, plan: Plan) -> Slices:
    """A region (k, j, i), enlarged to as much of the scan as the network saw in training.

    The region grows to at least one patch, and by a quarter of a patch on either side as long as it is smaller than
    the median training scan. Where intensities are normalised by the scan itself it grows to that median, so that
    mean and deviation are taken over as much tissue as in training.
    """
    if plan.longest:  # pictures are resized by their longer side, which a part does not know
        return _whole(grid.shape)
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
    return out[0], out[1], out[2]


def constant(volume: Volume) -> bool:
    """Whether every channel holds only one value; NaN and Inf do not count."""
    for channel in volume.as_channels():
        finite = channel[np.isfinite(channel)] if np.issubdtype(channel.dtype, np.floating) else channel
        if not finite.size or finite.min() != finite.max():
            return False
    return True


def _focus(inner: Slices, grid: Grid, prepared: Prepared, plan: Plan) -> Slices:
    """The part of the prepared image (D, H, W) that windows must cover for the voxels `inner` (k, j, i).

    It includes a margin of a quarter of a patch, as a window is least reliable at its border.
    """
    shape: Shape = prepared.record.shape
    if all(s.start == 0 and s.stop == n for s, n in zip(inner, grid.shape, strict=True)):
        return _whole(shape)
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
    return out[0], out[1], out[2]


def _on_whole_grid(scores: Tensor, focus: Slices, record: PreprocessingRecord) -> Tensor:
    """Scores of the part `focus` as scores of the whole prepared image; zeros, so background, elsewhere."""
    if tuple(scores.shape[1:]) == record.shape:
        return scores
    whole = scores.new_zeros((len(scores), *record.shape))
    whole[(slice(None), *focus)] = scores
    return whole


def _named(progress: Progress, name: str) -> Progress:
    def report(done: int, total: int, text: str) -> None:
        progress(done, total, name)

    return report
