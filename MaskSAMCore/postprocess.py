"""Largest connected components: kept where that was better on validation cases (MODEL.md §13.1, nnU-Net's rule)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

import numpy as np
from scipy import ndimage

from MaskSAMCore.config import Largest

ONE_PIECE = 0.99
"""Share of a structure's voxels in its largest component that counts as all of them."""
MODES: tuple[Largest, ...] = get_args(Largest)
_TOUCHING: np.ndarray = np.ones((3, 3, 3), bool)


def keep_largest(classes: np.ndarray, mode: Largest) -> np.ndarray:
    """Background for every voxel outside the largest component (26 neighbours).

    Args:
        classes: (Z, Y, X), 0 is background.
        mode: "foreground" takes all structures as one, "each" every structure by itself, "none" changes nothing.

    Returns:
        A new array, or `classes` itself for "none".
    """
    if mode == "none":
        return classes
    kept = np.zeros_like(classes)
    masks = [classes > 0] if mode == "foreground" else [classes == c for c in np.unique(classes[classes > 0])]
    for mask in masks:
        parts, count = ndimage.label(mask, _TOUCHING)
        if count:
            largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
            np.copyto(kept, classes, where=parts == largest)
    return kept


def choose_largest(scores: dict[Largest, list[float]]) -> Largest:
    """The mode with the best mean Dice in which no structure is worse than without.

    Args:
        scores: Mean Dice of every structure by mode; "none" must be there.
    """
    plain = scores["none"]
    # Written so that a structure without a figure, NaN, never counts as worse.
    fair = [m for m, s in scores.items() if not any(a < b for a, b in zip(s, plain, strict=True))]
    return max(fair, key=lambda mode: (float(np.nan_to_num(scores[mode]).mean()), mode == "none"))


def largest_of(labels: Iterable[np.ndarray]) -> Largest:
    """The mode that label maps themselves suggest: what is in one piece in all of them should be so in a result.

    For models of few cases, where validation cases would have to be both judge and teacher.

    Args:
        labels: Classes (Z, Y, X), 0 is background.
    """
    each = whole = True
    for classes in labels:
        each = each and all(_in_one_piece(classes[box] == c) for c, box in _boxes(classes))
        found = ndimage.find_objects((classes > 0).astype(np.uint8))
        whole = whole and (not found or _in_one_piece(classes[found[0]] > 0))
        if not (each or whole):
            return "none"
    return "each" if each else "foreground"


def _boxes(classes: np.ndarray) -> Iterator[tuple[int, tuple[slice, ...]]]:
    boxes = ndimage.find_objects(np.asarray(classes, np.int32))
    return ((number, box) for number, box in enumerate(boxes, start=1) if box is not None)


def _in_one_piece(mask: np.ndarray) -> bool:
    parts, count = ndimage.label(mask, _TOUCHING)
    return count < 2 or np.bincount(parts.ravel())[1:].max() >= ONE_PIECE * np.count_nonzero(mask)
