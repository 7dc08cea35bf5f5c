"""Metrics of a segmentation against its reference: Dice, IoU, NSD and HD95, computed by MONAI.

Conventions, for each case and label:

* absent in both label maps: all four are NaN, and are left out of means;
* present in one only: Dice, IoU and NSD are 0, HD95 is NaN and left out of means; the number of such cases is always
  reported beside it;
* surfaces are border voxels (six neighbours), distances are between voxel centres in mm; a structure that is cut by
  the edge of the scan has its border there;
* NSD (normalised surface Dice, also "surface DSC") is the share of both surfaces that lies within the tolerance,
  1 mm unless stated, of the other; HD95 is the larger of the two directed 95th percentiles.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from MaskSAMCore.errors import GeometryError, InputError, optional_package
from MaskSAMCore.volume import LabelMap, match_grid

TOLERANCE_MM = 1.0
FIGURES = ("dice", "iou", "nsd", "hd95")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Metrics of one structure of one case.

    Attributes:
        dice, iou, nsd: In [0, 1]; NaN if the structure is absent in both label maps.
        hd95: In mm; NaN if the structure is absent in either.
        predicted_ml, reference_ml: Volumes in mL.
    """

    dice: float
    iou: float
    nsd: float
    hd95: float
    predicted_ml: float
    reference_ml: float

    @property
    def one_sided(self) -> bool:
        """Whether the structure is in one of the label maps only."""
        return (self.predicted_ml > 0) != (self.reference_ml > 0)


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Dice of two boolean arrays of one shape; NaN if both are empty. Does not need MONAI."""
    total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(predicted & reference)) / total if total else math.nan


def score(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    *,
    tolerance_mm: float = TOLERANCE_MM,
) -> Scores:
    """All metrics of two boolean arrays (K, J, I).

    Args:
        predicted: The segmentation.
        reference: The truth, of the same shape.
        spacing: Voxel size along the array's axes (k, j, i), mm.
        tolerance_mm: Of the NSD.

    Raises:
        GeometryError: The shapes differ.
        InputError: The tolerance is negative.
    """
    if predicted.shape != reference.shape:
        raise GeometryError("the masks differ in size", why=f"{predicted.shape} and {reference.shape}")
    if not tolerance_mm >= 0:
        raise InputError("the tolerance must not be negative", why=f"found {tolerance_mm} mm")
    volume = float(np.prod(spacing)) / 1000
    sizes = {
        "predicted_ml": int(np.count_nonzero(predicted)) * volume,
        "reference_ml": int(np.count_nonzero(reference)) * volume,
    }
    if not any(sizes.values()):
        return Scores(dice=math.nan, iou=math.nan, nsd=math.nan, hd95=math.nan, **sizes)
    if not all(sizes.values()):
        return Scores(dice=0.0, iou=0.0, nsd=0.0, hd95=math.nan, **sizes)
    return Scores(**_figures(predicted, reference, spacing, tolerance_mm), **sizes)


def _figures(
    predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    import torch

    box = _bounding_box(predicted | reference)
    # one empty voxel around, so that a border on the edge of the scan is a border
    a, b = (torch.from_numpy(np.pad(mask[box], 1)).float()[None, None] for mask in (predicted, reference))
    sides = [float(s) for s in spacing]
    with warnings.catch_warnings():
        # MONAI passes deprecated arguments to its own functions, and warns of them
        warnings.simplefilter("ignore", FutureWarning)
        with optional_package("evaluate", what="measuring accuracy"):
            from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

        found = {
            "dice": compute_dice(a, b),
            "iou": compute_iou(a, b),
            "nsd": compute_surface_dice(a, b, [tolerance_mm], include_background=True, spacing=sides),
            "hd95": compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=sides),
        }
    return {name: float(value) for name, value in found.items()}


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def score_labels(
    predicted: LabelMap,
    reference: LabelMap,
    ids: Iterable[int] | None = None,
    *,
    tolerance_mm: float = TOLERANCE_MM,
) -> dict[int, Scores]:
    """Metrics of every label of a case, by id.

    Args:
        predicted, reference: On the same grid, within the tolerance of `volume.match_grid`.
        ids: Labels to measure; None for all that occur in either.
        tolerance_mm: Of the NSD.

    Raises:
        GeometryError: The grids differ.
    """
    grid = match_grid(predicted.grid, reference.grid, where=predicted.source)
    if ids is None:
        ids = sorted(set(np.unique(predicted.array).tolist() + np.unique(reference.array).tolist()) - {0})
    spacing = grid.spacing[::-1]
    return {int(i): score(predicted.array == i, reference.array == i, spacing, tolerance_mm=tolerance_mm) for i in ids}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean and standard deviation of the metrics over cases, without NaN.

    Attributes:
        cases: Number of cases in which either label map has the structure.
        one_sided: Number of those in which only one has it.
        mean, std: By the names of the fields of `Scores`; NaN if no case has a value.
    """

    cases: int
    one_sided: int
    mean: dict[str, float]
    std: dict[str, float]


def summarize(scores: Iterable[Scores]) -> Summary:
    """Mean and population standard deviation of the metrics of one structure over cases."""
    rows = list(scores)
    mean, std = {}, {}
    for name in (f.name for f in fields(Scores)):
        values = np.array([getattr(row, name) for row in rows], np.float64)
        values = values[~np.isnan(values)]
        mean[name] = float(values.mean()) if values.size else math.nan
        std[name] = float(values.std()) if values.size else math.nan
    present = [row for row in rows if not math.isnan(row.dice)]
    return Summary(cases=len(present), one_sided=sum(row.one_sided for row in present), mean=mean, std=std)
