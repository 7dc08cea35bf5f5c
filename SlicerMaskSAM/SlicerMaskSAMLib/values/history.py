"""Undo history: voxel changes, compressed, with the prompts that belong to them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from MaskSAMCore.labels import Label
from SlicerMaskSAMLib.values.sparse import VoxelBox, bounding_slices

StateT = TypeVar("StateT")
GeometryT = TypeVar("GeometryT")
FAST = 1
"""zlib level. Masks shrink by hundreds of times at once; a higher level gains little."""


@dataclass(frozen=True, kw_only=True)
class SegmentChange:
    """The voxels of one segment that a step flipped.

    Undo and redo touch these voxels only, so that edits made elsewhere in the meantime, for instance in the Segment
    Editor, are kept.

    Attributes:
        box: Smallest box around the flipped voxels.
        flipped: Which voxels of the box changed, as packed and compressed bits.
        before: Values of the flipped voxels before the change, one bit each, packed and compressed.
    """

    segment_id: str
    box: VoxelBox
    flipped: bytes
    before: bytes

    @classmethod
    def between(cls, segment_id: str, box: VoxelBox, before: np.ndarray, after: np.ndarray) -> SegmentChange | None:
        """The change between two states of a box; None if they are equal.

        Args:
            before, after: Arrays (k, j, i) on the box, nonzero inside.
        """
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
        """Size of the box, (k, j, i)."""
        k0, k1, j0, j1, i0, i1 = self.box
        return k1 - k0, j1 - j0, i1 - i0

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the change uses."""
        return len(self.flipped) + len(self.before)

    def undone(self, current: np.ndarray) -> np.ndarray:
        """The present box (k, j, i) with the flipped voxels as before; uint8 0/1."""
        return self._with(current, 0)

    def redone(self, current: np.ndarray) -> np.ndarray:
        """The present box (k, j, i) with the flipped voxels as after; uint8 0/1."""
        return self._with(current, 1)

    def _with(self, current: np.ndarray, turned: int) -> np.ndarray:
        shape = self.shape
        flipped: np.ndarray = _bits(self.flipped, shape[0] * shape[1] * shape[2]).reshape(shape).view(bool)
        out = (current != 0).view(np.uint8)
        out[flipped] = _bits(self.before, int(np.count_nonzero(flipped))) ^ turned
        return out


@dataclass(frozen=True, kw_only=True)
class UndoStep(Generic[StateT, GeometryT]):
    """One user action that can be undone.

    Attributes:
        text: Name shown for undo and redo: "Click in Anterior hippocampus".
        changes: Voxel changes. A segment may occur twice: redo applies them in order, undo in reverse.
        created: Segments that the action created, with the label needed to create them again.
        before, after: State of the prompts before and after the action.
        segmentation: ID of the segmentation node.
        geometry: Grid that the boxes of the changes refer to.
    """

    text: str
    changes: tuple[SegmentChange, ...] = ()
    created: tuple[tuple[str, Label], ...] = ()
    before: StateT | None = None
    after: StateT | None = None
    segmentation: str = ""
    geometry: GeometryT

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the voxel changes use."""
        return sum(change.nbytes for change in self.changes)


class History(Generic[StateT, GeometryT]):
    """Stack of steps to undo and redo. The caller applies the steps that it returns.

    Args:
        limit: Number of steps that are kept.
        budget: Bytes that the voxel changes may use together; the oldest steps are dropped beyond it.
        least: Number of steps that are kept whatever they use.
    """

    def __init__(self, *, limit: int = 50, budget: int = 256 << 20, least: int = 20) -> None:
        self._limit, self._budget, self._least = limit, budget, least
        self._done: list[UndoStep[StateT, GeometryT]] = []
        self._undone: list[UndoStep[StateT, GeometryT]] = []

    @property
    def undo_text(self) -> str:
        """Name of the step that undo would revert; "" if there is none."""
        return self._done[-1].text if self._done else ""

    @property
    def redo_text(self) -> str:
        """Name of the step that redo would apply; "" if there is none."""
        return self._undone[-1].text if self._undone else ""

    def push(self, step: UndoStep[StateT, GeometryT]) -> None:
        """Add a step. Steps that were undone before can no longer be redone."""
        self._undone.clear()
        self._done.append(step)
        memory = sum(each.nbytes for each in self._done)
        while len(self._done) > self._limit or (memory > self._budget and len(self._done) > self._least):
            memory -= self._done.pop(0).nbytes

    def undo(self) -> UndoStep[StateT, GeometryT] | None:
        """The step that the caller has to revert; None if there is none."""
        return self._move(self._done, self._undone)

    def redo(self) -> UndoStep[StateT, GeometryT] | None:
        """The step that the caller has to apply again; None if there is none."""
        return self._move(self._undone, self._done)

    def clear(self) -> None:
        """Remove all steps."""
        self._done.clear()
        self._undone.clear()

    @staticmethod
    def _move(
        source: list[UndoStep[StateT, GeometryT]], target: list[UndoStep[StateT, GeometryT]]
    ) -> UndoStep[StateT, GeometryT] | None:
        if not source:
            return None
        target.append(source.pop())
        return target[-1]


def _packed(bits: np.ndarray) -> bytes:
    return zlib.compress(np.packbits(bits).tobytes(), FAST)


def _bits(packed: bytes, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=count)
