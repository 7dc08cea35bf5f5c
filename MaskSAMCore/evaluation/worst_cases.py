"""The cases with the lowest Dice, and pictures of them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MaskSAMCore.labels import LabelTable
from MaskSAMCore.volume import LabelMap, Volume, reorient

COUNT = 3
MARGIN_MM = 15.0
"""Margin around the structures."""


class WorstCases:
    """Keeps the cases with the lowest mean score.

    Args:
        count: Number of cases to keep.
    """

    def __init__(self, count: int = COUNT) -> None:
        self.count = count
        self._kept: list[tuple[float, int, str, Volume, LabelMap, LabelMap]] = []
        self._seen = 0

    def add(self, case: str, scores: Sequence[float], volume: Volume, predicted: LabelMap, reference: LabelMap) -> None:
        """Add a case; it is ignored if no structure has a score.

        Args:
            case: Its name.
            scores: Of its structures; NaN is left out of the mean.
            volume, predicted, reference: On one grid.
        """
        known = [score for score in scores if not math.isnan(score)]
        if not known:
            return
        self._seen += 1
        # The number of arrival decides between equal means; volumes cannot be compared.
        item = (-float(np.mean(known)), -self._seen, case, volume, predicted, reference)
        if len(self._kept) < self.count:
            heapq.heappush(self._kept, item)
        else:
            heapq.heappushpop(self._kept, item)

    def draw(self, folder: Path, table: LabelTable, *, picture: bool = False) -> list[tuple[str, float, Path]]:
        """Draw reference and prediction of every kept case into `folder/CASE.png`.

        Args:
            folder: Made if it does not exist; existing pictures are replaced.
            table: Names and colours of the structures.
            picture: Whether the cases are photographs, which are not turned.

        Returns:
            (case, mean score, path of the picture), the worst first.
        """
        from MaskSAMCore.training.report import save_overlay

        drawn = []
        for badness, _, case, volume, predicted, reference in sorted(self._kept, reverse=True):
            arrays = [volume.as_channels()[0], *(_classes(labels.array, table) for labels in (reference, predicted))]
            grid = volume.grid
            if not picture:
                _, grid, turn = reorient(arrays[0], grid)
                arrays = [turn.apply(array) for array in arrays]
            spacing = grid.spacing[::-1]
            across = int(np.argmax(spacing))
            plane = height, width = [size for axis, size in enumerate(spacing) if axis != across]
            image, right, found = (np.moveaxis(array, across, 0) for array in arrays)
            near = slice(None), *_around((right + found > 0).any(axis=0), plane)
            path = folder / f"{case}.png"
            save_overlay(image[near], right[near], found[near], table, path, picture=picture, aspect=height / width)
            drawn.append((case, -badness, path))
        return drawn


def _classes(ids: np.ndarray, table: LabelTable) -> np.ndarray:
    """Label ids as class numbers, 1 for the first label of the table."""
    classes = np.zeros(ids.shape, np.int16)
    for number, label in enumerate(table.labels, start=1):
        classes[ids == label.id] = number
    return classes


def _around(mask: np.ndarray, spacing: Sequence[float]) -> tuple[slice, ...]:
    """The part of a plane around a mask, with a margin of `MARGIN_MM`; the whole plane if the mask is empty."""
    if not mask.any():
        return (slice(None),) * mask.ndim
    near = []
    for axis, size in enumerate(spacing):
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        margin = round(MARGIN_MM / size)
        near.append(slice(max(0, int(used[0]) - margin), int(used[-1]) + margin + 1))
    return tuple(near)
