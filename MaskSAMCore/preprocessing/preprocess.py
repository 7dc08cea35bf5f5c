"""Preprocessing of a scan for the network, and its inverse for scores and labels.

Steps: RAS orientation, depth axis first, crop to the content, normalise, resample (model.md §12.1). The inverse uses
the record of these steps; scores are resampled linearly, one class at a time, before the argmax (§13.1).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.labels import LabelTable
from MaskSAMCore.preprocessing.plan import (
    ANISOTROPIC,
    VIEWS,
    ChannelStats,
    Plan,
    extent,
    fitted,
)
from MaskSAMCore.preprocessing.resample import Depth, resample, resample_labels
from MaskSAMCore.volume import LabelMap, Shape, Triple, Volume, canonical_axes, triple

LOG = logging.getLogger(__name__)
_SMALLEST_STD = 1e-8
SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of red, green and blue (0 to 255) in SAM's training."""


@dataclass(frozen=True, kw_only=True)
class PreprocessingRecord:
    """Steps applied to one scan, as needed for the inverse; stored as JSON.

    Attributes:
        source_shape: (K, J, I) of the scan.
        axes: Array axes of the scan that became depth, height, width.
        flips: Which of depth, height, width were reversed.
        lower, upper: Corners of the crop in (D, H, W), upper exclusive.
        spacing: (d, h, w) of the scan, mm.
        shape: (D, H, W) after resampling.
        nearest_depth: Whether depth was resampled with the nearest slice.
        constant: Whether no channel had any contrast; the segmentation is then empty.
        nonfinite: Number of NaN and Inf voxels that were replaced.
    """

    source_shape: Shape
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    lower: Shape
    upper: Shape
    spacing: Triple
    shape: Shape
    nearest_depth: bool
    constant: bool = False
    nonfinite: int = 0

    @property
    def cropped(self) -> Shape:
        """(D, H, W) of the crop before resampling."""
        return triple(u - v for u, v in zip(self.upper, self.lower, strict=True))

    @property
    def depth_mode(self) -> Depth:
        """Interpolation along depth, for `resample`."""
        return "nearest" if self.nearest_depth else "same"

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Crop and reorient an array (..., K, J, I) on the scan's grid to (..., D, H, W), as a view.

        Raises:
            GeometryError: The array has another size than the scan.
        """
        if tuple(array.shape[-3:]) != self.source_shape:
            raise GeometryError(
                "the array is not on the grid of its scan",
                why=f"its size (k, j, i) is {tuple(array.shape[-3:])}, the scan's {self.source_shape}",
            )
        view = _orient(array, self.axes, self.flips)
        d, h, w = (slice(a, b) for a, b in zip(self.lower, self.upper, strict=True))
        return view[..., d, h, w]


@dataclass
class Prepared:
    """Network input of one scan: `image` (M, D, H, W) float32, and the record of its preprocessing."""

    image: np.ndarray
    record: PreprocessingRecord


def _orient(array: np.ndarray, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> np.ndarray:
    lead = array.ndim - 3
    moved = array.transpose(*range(lead), *(lead + axis for axis in axes))
    d, h, w = (slice(None, None, -1 if f else 1) for f in flips)
    return moved[..., d, h, w]


def check_scan(volume: Volume, plan: Plan) -> None:
    """Refuse a scan that the model cannot take at all.

    Raises:
        InputError: It has another number of channels than the model takes.
        GeometryError: Its grid describes no usable space.
    """
    volume.grid.check(where=volume.source)
    if volume.channels != len(plan.normalisation):
        raise InputError(
            "the scan and the model differ in their channels",
            where=volume.source,
            why=f"found {volume.channels}, the model takes {len(plan.normalisation)}: {', '.join(plan.channels)}",
        )


def preprocess(volume: Volume, plan: Plan) -> Prepared:
    """Reorient, crop, normalise and resample a scan as the plan says.

    NaN and Inf are replaced by the lowest finite value of their channel, with a warning; a channel without contrast
    becomes zero (faults.md rows 27, 28).

    Raises:
        InputError: The scan has another number of channels than the plan, or no finite voxel.
        GeometryError: The scan's grid is not usable.
    """
    check_scan(volume, plan)
    source = volume.as_channels()
    _, reverse = canonical_axes(volume.grid.affine)
    order = [2 - c for c in VIEWS[plan.view]]
    axes = triple(2 - axis for axis in plan.axes_of(volume.grid))
    flips = triple(reverse[a] != (plan.view == "picture" and a != order[0]) for a in order)
    source, nonfinite = _finite(_orient(source, axes, flips), volume)
    lower, upper = extent(source, plan.normalisation)
    spacing = plan.own_spacing(volume.grid)
    cropped = source[(slice(None), *(slice(a, b) for a, b in zip(lower, upper, strict=True)))]
    target = plan.spacing_for(spacing)
    shape = triple(max(1, round(n * s / t)) for n, s, t in zip(cropped.shape[1:], spacing, target, strict=True))
    if plan.longest:
        shape = fitted(cropped.shape[1:], plan.longest)
    nearest = max(spacing[0] / min(spacing[1:]), target[0] / min(target[1:])) > ANISOTROPIC
    image, flat = np.empty((len(source), *shape), np.float32), []
    for index, (channel, kind, stats) in enumerate(zip(cropped, plan.normalisation, plan.stats, strict=True)):
        normal, constant = _normalise(channel, kind, stats, index)
        depth: Depth = "nearest" if nearest else "same"
        image[index] = resample(torch.from_numpy(normal), shape, mode="cubic", depth=depth).numpy()
        flat.append(constant)
    if all(flat):
        LOG.warning("%s: the image is constant; the segmentation will be empty", volume.source or "volume")
    record = PreprocessingRecord(
        source_shape=volume.grid.shape,
        axes=axes,
        flips=flips,
        lower=lower,
        upper=upper,
        spacing=spacing,
        shape=shape,
        nearest_depth=bool(nearest),
        constant=all(flat),
        nonfinite=nonfinite + volume.nonfinite,
    )
    return Prepared(image=image, record=record)


def _finite(channels: np.ndarray, volume: Volume) -> tuple[np.ndarray, int]:
    if not np.issubdtype(channels.dtype, np.floating):
        return channels, 0
    good = np.isfinite(channels)
    count = int(good.size - np.count_nonzero(good))
    if not count:
        return channels, 0
    if count == good.size:
        raise InputError("the image has no finite voxel", where=volume.source, why=f"{count} are NaN or Inf")
    LOG.warning("%s: %d NaN or Inf voxels were set to the lowest finite value", volume.source or "volume", count)
    filled = [
        np.where(ok, channel, channel[ok].min() if ok.any() else 0) for channel, ok in zip(channels, good, strict=True)
    ]
    return np.stack(filled), count


def _normalise(channel: np.ndarray, kind: str, stats: ChannelStats, index: int) -> tuple[np.ndarray, bool]:
    """A normalised float32 copy, and whether the channel was constant."""
    values = np.array(channel, np.float32, order="C")
    constant = bool(values.min() == values.max())
    if kind == "ct":
        np.clip(values, stats.p005, stats.p995, out=values)
        values -= stats.mean
        values /= max(stats.std, _SMALLEST_STD)
    elif kind == "rgb":
        values -= SAM_MEAN[index]
        values /= SAM_STD[index]
    elif constant:
        values[:] = 0
    else:
        mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        values -= mean
        values /= max(std, _SMALLEST_STD)
    return values, constant


def ids_to_classes(array: np.ndarray, labels: LabelTable, *, where: object = "") -> np.ndarray:
    """Map label ids to the network's classes 0 to K-1, as uint8, or uint16 for more than 256 classes.

    Raises:
        InputError: An id is not in the table (faults.md row 41).
    """
    found = np.unique(array)
    table = {0: 0} | {label.id: index for index, label in enumerate(labels.labels, start=1)}
    unknown = [int(v) for v in found if int(v) not in table]
    if unknown:
        raise InputError(
            "the label map has values that were not declared",
            where=where,
            why=f"found {', '.join(map(str, unknown[:10]))}; declared are {', '.join(map(str, sorted(table)))}",
            remedy="Declare them in dataset.json, or remove them from the label map.",
        )
    out = np.zeros(array.shape, _class_type(labels.classes))
    for value in found:
        if value:
            out[array == value] = table[int(value)]
    return out


def classes_to_ids(classes: np.ndarray, labels: LabelTable) -> np.ndarray:
    """Map the network's classes to label ids, as uint8, or uint16 if an id is above 255."""
    ids = [0] + [label.id for label in labels.labels]
    lookup = np.array(ids, np.uint8 if max(ids) < 256 else np.uint16)
    return lookup[classes]


def _class_type(classes: int) -> type[np.unsignedinteger]:
    return np.uint8 if classes <= 256 else np.uint16


def preprocess_labels(
    labelmap: LabelMap, record: PreprocessingRecord, plan: Plan, labels: LabelTable | None = None
) -> np.ndarray:
    """Preprocess a label map: classes (D, H, W) on the network's grid.

    Args:
        labelmap: On the grid of the scan that `record` belongs to.
        record: From `preprocess` of that scan.
        plan: The plan of that call.
        labels: Table of ids and classes; None for `labelmap.labels`. Without both, ids are classes.

    Raises:
        InputError: A label id was not declared.
        GeometryError: The label map has another size than the scan.
    """
    cut = record.apply(labelmap.array)
    table = labels or labelmap.labels
    classes = cut if table is None else ids_to_classes(cut, table, where=labelmap.source)
    return np.ascontiguousarray(resample_labels(classes, record.shape, depth=record.depth_mode))


def restore_probabilities(scores: Tensor, record: PreprocessingRecord) -> Iterator[np.ndarray]:
    """Class by class, scores as probabilities (Z, Y, X) float32 on the scan's grid; they sum to 1.

    Scores that are no distribution are divided by their sum. Where all of them are 0, and outside the crop, the
    background has 1.

    Args:
        scores: (K, D, H, W), not negative; any device.
        record: From `preprocess`.
    """
    total = _restored(scores.sum(dim=0, dtype=torch.float32), record)
    nowhere = total <= 0
    total = total.masked_fill(nowhere, 1.0)
    for index in range(len(scores)):
        out: np.ndarray = np.full(record.source_shape, float(index == 0), np.float32)
        found = _restored(scores[index], record) / total
        record.apply(out)[...] = found.masked_fill_(nowhere, float(index == 0)).numpy()
        yield out


def restore_labels(scores: Tensor | np.ndarray, record: PreprocessingRecord) -> np.ndarray:
    """The class with the highest score, (Z, Y, X), on the scan's grid; two classes in memory at a time.

    Args:
        scores: (K, D, H, W), any floating type and device.
        record: From `preprocess`.

    Raises:
        GeometryError: The scores are not on the grid that `record` describes.
    """
    out: np.ndarray = np.zeros(record.source_shape, _class_type(len(scores)))
    inside = record.apply(out)
    best = None
    for index in range(len(scores)):
        score = _restored(scores[index], record)
        if best is None:
            best = score.clone()
            continue
        np.copyto(inside, np.array(index, out.dtype), where=(score > best).numpy())
        torch.maximum(best, score, out=best)
    return out


def _restored(score: Tensor | np.ndarray, record: PreprocessingRecord) -> Tensor:
    tensor = torch.as_tensor(score).detach().to("cpu", torch.float32)
    if tuple(tensor.shape) != record.shape:
        raise GeometryError(
            "the scores are not on the network's grid", why=f"{tuple(tensor.shape)} instead of {record.shape}"
        )
    return resample(tensor, record.cropped, mode="linear")
