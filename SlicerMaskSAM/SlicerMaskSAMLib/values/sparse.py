"""Masks of a whole volume of which only the box that holds them is kept, a bit for each voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

VoxelBox = tuple[int, int, int, int, int, int]
"""(k0, k1, j0, j1, i0, i1) of the volume's array, each upper one exclusive."""
Slices = tuple[slice, slice, slice]


def box_shape(box: VoxelBox) -> tuple[int, int, int]:
    """(k, j, i) of an array on the box."""
    return box[1] - box[0], box[3] - box[2], box[5] - box[4]


def union(*boxes: VoxelBox | None) -> VoxelBox | None:
    """The smallest box that holds all of these; None is an empty one."""
    there = [box for box in boxes if box is not None]
    if not there:
        return None
    k0, k1, j0, j1, i0, i1 = (pick(box[n] for box in there) for n, pick in enumerate((min, max, min, max, min, max)))
    return k0, k1, j0, j1, i0, i1


def intersection(first: VoxelBox | None, second: VoxelBox | None) -> VoxelBox | None:
    """What two boxes share; None for nothing."""
    if first is None or second is None:
        return None
    k0, k1, j0, j1, i0, i1 = (pick(first[n], second[n]) for n, pick in enumerate((max, min, max, min, max, min)))
    return (k0, k1, j0, j1, i0, i1) if k0 < k1 and j0 < j1 and i0 < i1 else None


def slices_in(box: VoxelBox, whole: VoxelBox) -> Slices:
    """Where a box lies in an array on another one, which holds it."""
    k, j, i = (slice(box[n] - whole[n], box[n + 1] - whole[n]) for n in (0, 2, 4))
    return k, j, i


def voxel_box(voxel: Sequence[int]) -> VoxelBox:
    """The box of one voxel (k, j, i)."""
    k, j, i = voxel
    return k, k + 1, j, j + 1, i, i + 1


def bounding_slices(mask: np.ndarray) -> Slices | None:
    """The smallest box, as slices, around what is set in a bool (k, j, i); None where nothing is."""
    plane: np.ndarray = np.any(mask, axis=0)
    hits = [np.flatnonzero(line) for line in (np.any(mask, axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))]
    if not len(hits[0]):
        return None
    k, j, i = (slice(int(line[0]), int(line[-1]) + 1) for line in hits)
    return k, j, i


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseMask:
    """A mask of a volume. It does not change; `put` makes another one.

    Attributes:
        box: What holds all that is set; None where nothing is.
        bits: Of that box, in the order (k, j, i), packed.
    """

    box: VoxelBox | None = None
    bits: bytes = b""

    @classmethod
    def of(cls, box: VoxelBox | None, mask: np.ndarray) -> SparseMask:
        """From (k, j, i) voxels of a box, anything but 0 inside."""
        return cls() if box is None else cls(box=box, bits=np.packbits(mask != 0).tobytes())

    def read(self, box: VoxelBox) -> np.ndarray:
        """The voxels of any box: bool (k, j, i)."""
        shared = intersection(self.box, box)
        out: np.ndarray = np.zeros(box_shape(box), bool)
        if shared is not None:
            _, rows, columns = slices_in(shared, self.box or shared)
            out[slices_in(shared, box)] = self._slices(shared[0], shared[1])[:, rows, columns]
        return out

    def put(self, box: VoxelBox | None, mask: np.ndarray, *, reach: VoxelBox | None = None) -> SparseMask:
        """With these voxels of a box.

        Args:
            box: None for no voxels, and so no change.
            mask: (k, j, i) of the box, anything but 0 inside.
            reach: What is known to hold all that is set then; None for as much as there may be.
        """
        if box is None:
            return self
        whole = reach or union(self.box, box)
        if whole is None:
            return self
        out = self.read(whole)
        shared = intersection(box, whole)
        if shared is not None:
            out[slices_in(shared, whole)] = mask[slices_in(shared, box)] != 0
        return SparseMask.of(whole, out)

    def differing_box(self, other: SparseMask) -> VoxelBox | None:
        """The smallest box around the voxels in which two masks differ; None where they are the same."""
        whole = union(self.box, other.box)
        if self is other or whole is None:
            return None
        if self.box == other.box:  # most bytes are equal then; only the slices of the others are looked at
            unequal = np.flatnonzero(np.frombuffer(self.bits, np.uint8) != np.frombuffer(other.bits, np.uint8))
            if not len(unequal):
                return None
            plane = box_shape(whole)[1] * box_shape(whole)[2]
            first, last = int(unequal[0]) * 8 // plane, (int(unequal[-1]) * 8 + 7) // plane
            whole = (whole[0] + first, min(whole[0] + last + 1, whole[1]), *whole[2:])
        found = bounding_slices(self.read(whole) ^ other.read(whole))
        if found is None:
            return None
        k, j, i = (slice(low + each.start, low + each.stop) for low, each in zip(whole[::2], found, strict=True))
        return k.start, k.stop, j.start, j.stop, i.start, i.stop

    def _slices(self, first: int, last: int) -> np.ndarray:
        """The box's slices from `first` to before `last`, counted in the volume: bool (k, j, i)."""
        if self.box is None:
            return np.zeros((0, 0, 0), bool)
        _, height, width = box_shape(self.box)
        start, stop = (height * width * (k - self.box[0]) for k in (first, last))
        data = np.frombuffer(self.bits, np.uint8)[start // 8 : -(-stop // 8)]
        bits = np.unpackbits(data)[start % 8 : start % 8 + stop - start]
        return bits.reshape(last - first, height, width).view(bool)
