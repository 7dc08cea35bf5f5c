"""Largest connected components: kept where that was better on validation cases (model.md §13.1, nnU-Net's rule)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import get_args

import numpy as np
from scipy import ndimage

from MaskSAMCore.config.schema import Largest

ONE_PIECE = 0.99
"""Mean share of a structure's voxels in its largest component that counts as all of them."""
MODES: tuple[Largest, ...] = get_args(Largest)
_TOUCHING: np.ndarray = np.ones((3, 3, 3), bool)


def keep_largest(classes: np.ndarray, mode: Largest) -> np.ndarray:
    """Background for every voxel outside the largest component (26 neighbours).

    Args:
        classes: (Z, Y, X), 0 is background.
        mode: "foreground" takes all structures as one, "each" every structure by itself, "both" first all as one and
            then every structure within, "none" changes nothing.

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
    """The mode with the best mean Dice in which no structure is worse than without.

    Args:
        scores: Mean Dice of every structure by mode; "none" must be there.
    """
    plain = scores["none"]
    # Written so that a structure without a figure, NaN, never counts as worse.
    fair = [m for m, s in scores.items() if not any(a < b for a, b in zip(s, plain, strict=True))]
    return max(fair, key=lambda mode: (float(np.nan_to_num(scores[mode]).mean()), mode == "none"))


def suggest_largest(labels: Iterable[np.ndarray]) -> Largest:
    """The mode that label maps themselves suggest: what is in one piece in them should be so in a result.

    For models of few cases, where validation cases would have to be both judge and teacher. In one piece is what has
    `ONE_PIECE` of its voxels in its largest component on average over the maps: a single map among many that was drawn
    in two says nothing. docs/EXPERIMENTS.md shows what the rule is worth.

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
    """Of the voxels of `mask`, which has some, those in its largest component."""
    parts, _ = ndimage.label(mask, _TOUCHING)
    return float(np.bincount(parts.ravel())[1:].max() / np.count_nonzero(mask))
