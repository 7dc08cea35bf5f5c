"""Boxes of voxels, and masks of a volume that store only their bounding box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

VoxelBox = tuple[int, int, int, int, int, int]
"""(k0, k1, j0, j1, i0, i1) of a volume's array (K, J, I), upper ends exclusive."""
Slices = tuple[slice, slice, slice]


def box_shape(box: VoxelBox) -> tuple[int, int, int]:
    """Shape (k, j, i) of an array on the box."""
    return box[1] - box[0], box[3] - box[2], box[5] - box[4]


def union(*boxes: VoxelBox | None) -> VoxelBox | None:
    """The smallest box around all these boxes; None stands for an empty box."""
    there = [box for box in boxes if box is not None]
    if not there:
        return None
    k0, k1, j0, j1, i0, i1 = (pick(box[n] for box in there) for n, pick in enumerate((min, max, min, max, min, max)))
    return k0, k1, j0, j1, i0, i1


def intersection(first: VoxelBox | None, second: VoxelBox | None) -> VoxelBox | None:
    """The box that two boxes have in common; None if they do not meet."""
    if first is None or second is None:
        return None
    k0, k1, j0, j1, i0, i1 = (pick(first[n], second[n]) for n, pick in enumerate((max, min, max, min, max, min)))
    return (k0, k1, j0, j1, i0, i1) if k0 < k1 and j0 < j1 and i0 < i1 else None


def slices_in(box: VoxelBox, whole: VoxelBox) -> Slices:
    """The slices of a box in an array on the box `whole`, which contains it."""
    k, j, i = (slice(box[n] - whole[n], box[n + 1] - whole[n]) for n in (0, 2, 4))
    return k, j, i


def voxel_box(voxel: Sequence[int]) -> VoxelBox:
    """The box of a single voxel (k, j, i)."""
    k, j, i = voxel
    return k, k + 1, j, j + 1, i, i + 1


def bounding_slices(mask: np.ndarray) -> Slices | None:
    """Slices of the smallest box around the True voxels (k, j, i); None if none."""
    plane: np.ndarray = np.any(mask, axis=0)
    hits = [np.flatnonzero(line) for line in (np.any(mask, axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))]
    if not len(hits[0]):
        return None
    k, j, i = (slice(int(line[0]), int(line[-1]) + 1) for line in hits)
    return k, j, i


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseMask:
    """An immutable mask of a volume.

    Attributes:
        box: Box that contains all True voxels; None for an empty mask.
        bits: The voxels of the box in the order (k, j, i), packed to bits.
    """

    box: VoxelBox | None = None
    bits: bytes = b""

    @classmethod
    def of(cls, box: VoxelBox | None, mask: np.ndarray) -> SparseMask:
        """A mask from an array (k, j, i) on a box, nonzero inside."""
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
        """A copy with new values in one box.

        Args:
            box: The box to set; None changes nothing.
            mask: Array (k, j, i) on the box, nonzero inside.
            reach: Box that is known to contain the whole result; None for the union of both boxes.
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
        """The smallest box around the voxels in which two masks differ, or None."""
        whole = union(self.box, other.box)
        if self is other or whole is None:
            return None
        if self.box == other.box:  # compare only slices whose bytes differ
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
        """Slices of the stored box, bool (k, j, i); `first` to `last` in the volume."""
        if self.box is None:
            return np.zeros((0, 0, 0), bool)
        _, height, width = box_shape(self.box)
        start, stop = (height * width * (k - self.box[0]) for k in (first, last))
        data = np.frombuffer(self.bits, np.uint8)[start // 8 : -(-stop // 8)]
        bits = np.unpackbits(data)[start % 8 : start % 8 + stop - start]
        return bits.reshape(last - first, height, width).view(bool)
