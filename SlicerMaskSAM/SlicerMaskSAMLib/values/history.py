"""Undo and redo: what the steps changed, voxel by voxel, in little memory. Needs neither slicer nor Qt."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from MaskSAMCore.labels import Label
from SlicerMaskSAMLib.values.sparse import VoxelBox, bounding_slices

FAST = 1
"""Level of zlib: masks shrink by hundreds at once, and more effort gains little."""


@dataclass(frozen=True, kw_only=True)
class SegmentChange:
    """The voxels of one segment that a step flipped. Only these are touched by undo and redo, so that what was edited
    elsewhere in the meantime, in the Segment Editor for instance, stays.

    Attributes:
        box: The smallest one around them.
        flipped: Which voxels of the box, as packed and compressed bits.
        before: What those were before, a bit for each, packed and compressed.
    """

    segment_id: str
    box: VoxelBox
    flipped: bytes
    before: bytes

    @classmethod
    def between(cls, segment_id: str, box: VoxelBox, before: np.ndarray, after: np.ndarray) -> SegmentChange | None:
        """From two states of a box, (k, j, i) with anything but 0 inside; None where they are the same."""
        old = before != 0
        flipped = old ^ (after != 0)
        place = bounding_slices(flipped)
        if place is None:
            return None
        k, j, i = (slice(low + each.start, low + each.stop) for low, each in zip(box[::2], place, strict=True))
        flipped = flipped[place]
        return cls(
            segment_id=segment_id,
            box=(k.start, k.stop, j.start, j.stop, i.start, i.stop),
            flipped=_packed(flipped),
            before=_packed(old[place][flipped]),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(k, j, i) of the box."""
        k0, k1, j0, j1, i0, i1 = self.box
        return k1 - k0, j1 - j0, i1 - i0

    @property
    def nbytes(self) -> int:
        """Memory that it keeps."""
        return len(self.flipped) + len(self.before)

    def undone(self, current: np.ndarray) -> np.ndarray:
        """The box as it is now, (k, j, i), with the flipped voxels as they were before; uint8 0/1."""
        return self._with(current, 0)

    def redone(self, current: np.ndarray) -> np.ndarray:
        """The box as it is now, (k, j, i), with the flipped voxels as the step left them; uint8 0/1."""
        return self._with(current, 1)

    def _with(self, current: np.ndarray, turned: int) -> np.ndarray:
        shape = self.shape
        flipped: np.ndarray = _bits(self.flipped, shape[0] * shape[1] * shape[2]).reshape(shape).view(bool)
        out = (current != 0).view(np.uint8)
        out[flipped] = _bits(self.before, int(np.count_nonzero(flipped))) ^ turned
        return out


@dataclass(frozen=True, kw_only=True)
class UndoStep:
    """One thing that the user did.

    Attributes:
        text: As undo and redo name it: "Click in Anterior hippocampus".
        changes: Of its segments. Where one comes twice, redo goes from the first to the last and undo backwards.
        created: Segments that it made, with what is needed to make them again.
        before, after: The prompts at either end, for the caller alone to read.
        segmentation: ID of the segmentation node that the segments are in.
        geometry: Grid that the boxes of the changes are on, for the caller alone to read.
    """

    text: str
    changes: tuple[SegmentChange, ...] = ()
    created: tuple[tuple[str, Label], ...] = ()
    before: Any = None
    after: Any = None
    segmentation: str = ""
    geometry: Any = None

    @property
    def nbytes(self) -> int:
        """Memory that its voxels keep."""
        return sum(change.nbytes for change in self.changes)


class History:
    """What can be undone and redone. The caller applies the steps that it hands out.

    Args:
        limit: Steps that are kept.
        budget: Bytes that their voxels may take together; beyond it the oldest go, but never the last `least`.
        least: Steps that are kept whatever they take.
    """

    def __init__(self, *, limit: int = 50, budget: int = 256 << 20, least: int = 20) -> None:
        self._limit, self._budget, self._least = limit, budget, least
        self._done: list[UndoStep] = []
        self._undone: list[UndoStep] = []

    @property
    def undo_text(self) -> str:
        """What undo would take back; "" for nothing."""
        return self._done[-1].text if self._done else ""

    @property
    def redo_text(self) -> str:
        """What redo would bring back; "" for nothing."""
        return self._undone[-1].text if self._undone else ""

    def push(self, step: UndoStep) -> None:
        """Note what was done. What had been undone before is forgotten."""
        self._undone.clear()
        self._done.append(step)
        memory = sum(each.nbytes for each in self._done)
        while len(self._done) > self._limit or (memory > self._budget and len(self._done) > self._least):
            memory -= self._done.pop(0).nbytes

    def undo(self) -> UndoStep | None:
        """The step that the caller shall take back; None if there is none."""
        return self._move(self._done, self._undone)

    def redo(self) -> UndoStep | None:
        """The step that the caller shall do again; None if there is none."""
        return self._move(self._undone, self._done)

    def clear(self) -> None:
        """Forget everything."""
        self._done.clear()
        self._undone.clear()

    @staticmethod
    def _move(source: list[UndoStep], target: list[UndoStep]) -> UndoStep | None:
        if not source:
            return None
        target.append(source.pop())
        return target[-1]


def _packed(bits: np.ndarray) -> bytes:
    return zlib.compress(np.packbits(bits).tobytes(), FAST)


def _bits(packed: bytes, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=count)
