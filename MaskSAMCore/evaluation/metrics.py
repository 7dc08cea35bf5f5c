"""How close a segmentation is to its reference: Dice, IoU, NSD and HD95, through MONAI.

Conventions, per case and label:

* absent in both: nothing to measure, all four are NaN and left out of every mean;
* present in one only: Dice, IoU and NSD are 0; HD95 has no value (NaN) and is left out, which is why the number
  of such cases is always reported beside it;
* surfaces are border voxels (six neighbours), distances between voxel centres in mm; a structure that is cut by the
  edge of the scan has its border there;
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
    """One structure of one case.

    Attributes:
        dice, iou, nsd: In [0, 1], NaN where the structure is absent in both.
        hd95: mm, NaN where the structure is absent in either.
        predicted_ml, reference_ml: Volumes, mL.
    """

    dice: float
    iou: float
    nsd: float
    hd95: float
    predicted_ml: float
    reference_ml: float

    @property
    def one_sided(self) -> bool:
        """Found where there is nothing, or missed altogether."""
        return (self.predicted_ml > 0) != (self.reference_ml > 0)


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Dice of two boolean arrays of one shape; NaN where both are empty. For quick checks, without MONAI."""
    total = int(np.count_nonzero(predicted)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(predicted & reference)) / total if total else math.nan


def score(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    *,
    tolerance_mm: float = TOLERANCE_MM,
) -> Scores:
    """Compare two boolean arrays (K, J, I).

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
        raise GeometryError("two masks of different size", why=f"{predicted.shape} and {reference.shape}")
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
        # MONAI warns of its own deprecated arguments, which it passes to itself
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
    """Scores of every label of a case, by id.

    Args:
        predicted, reference: On one grid, within the tolerance of `volume.match_grid`.
        ids: Labels to judge; None for all that occur in either.
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
    """Means over cases, NaN left out.

    Attributes:
        cases: Cases in which the structure occurs in either map.
        one_sided: Those of them in which it occurs in one only.
        mean, std: By the names of `FIGURES`; NaN where no case has a value.
    """

    cases: int
    one_sided: int
    mean: dict[str, float]
    std: dict[str, float]


def summarize(scores: Iterable[Scores]) -> Summary:
    """Mean and standard deviation (of the population) of several cases' scores of one structure."""
    rows = list(scores)
    mean, std = {}, {}
    for name in (f.name for f in fields(Scores)):
        values = np.array([getattr(row, name) for row in rows], np.float64)
        values = values[~np.isnan(values)]
        mean[name] = float(values.mean()) if values.size else math.nan
        std[name] = float(values.std()) if values.size else math.nan
    present = [row for row in rows if not math.isnan(row.dice)]
    return Summary(cases=len(present), one_sided=sum(row.one_sided for row in present), mean=mean, std=std)
