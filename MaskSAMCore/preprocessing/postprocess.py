"""Keeping the largest connected components, and the choice of the rule (model.md §13.1, as in nnU-Net)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import get_args

import numpy as np
from scipy import ndimage

from MaskSAMCore.config.schema import Largest

ONE_PIECE = 0.99
"""A structure is connected if at least this share of its voxels is in its largest component, on average."""
MODES: tuple[Largest, ...] = get_args(Largest)
_TOUCHING: np.ndarray = np.ones((3, 3, 3), bool)


def keep_largest(classes: np.ndarray, mode: Largest) -> np.ndarray:
    """Set every voxel outside the largest component (26 neighbours) to background.

    Args:
        classes: (Z, Y, X), 0 is background.
        mode: "foreground" for all structures together, "each" for every structure, "both" for all together and then
            every structure, "none" for no change.

    Returns:
        A new array, or `classes` itself for "none".
    """
    if mode == "none":
        return classes
    if mode == "both":
        return keep_largest(keep_largest(classes, "foreground"), "each")
    kept = np.zeros_like(classes)
    masks = [classes > 0] if mode == "foreground" else [classes == c for c in np.unique(classes[classes > 0])]
    for mask in masks:
        parts, count = ndimage.label(mask, _TOUCHING)
        if count:
            largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
            np.copyto(kept, classes, where=parts == largest)
    return kept


def choose_largest(scores: dict[Largest, list[float]]) -> Largest:
    """The mode with the best mean Dice among those in which no structure is worse than with "none".

    Args:
        scores: Mean Dice of every structure by mode; includes "none".
    """
    plain = scores["none"]
    # A NaN (a structure without a Dice) compares false, and so never counts as worse.
    fair = [m for m, s in scores.items() if not any(a < b for a, b in zip(s, plain, strict=True))]
    return max(fair, key=lambda mode: (float(np.nan_to_num(scores[mode]).mean()), mode == "none"))


def suggest_largest(labels: Iterable[np.ndarray]) -> Largest:
    """The mode that suits the given label maps: a structure that is connected in them should be so in a result.

    For models trained on few cases, where no validation cases are left for `choose_largest`. A structure is connected
    if on average `ONE_PIECE` of its voxels are in its largest component. See docs/EXPERIMENTS.md for an evaluation.

    Args:
        labels: Classes (Z, Y, X), 0 is background.
    """
    each: dict[int, list[float]] = defaultdict(list)
    whole: list[float] = []
    for classes in labels:
        boxes = ndimage.find_objects(np.asarray(classes, np.int32))
        for number, box in enumerate(boxes, start=1):
            if box is not None:
                each[number].append(_share(classes[box] == number))
        if boxes:
            whole.append(_share(classes > 0))
    in_one = not whole or np.mean(whole) >= ONE_PIECE
    if all(np.mean(shares) >= ONE_PIECE for shares in each.values()):
        return "both" if in_one else "each"
    return "foreground" if in_one else "none"


def _share(mask: np.ndarray) -> float:
    """Share of the voxels of a non-empty mask that are in its largest component."""
    parts, _ = ndimage.label(mask, _TOUCHING)
    return float(np.bincount(parts.ravel())[1:].max() / np.count_nonzero(mask))
