"""Volumes, label maps and their grids; all conversions between LPS and RAS, and ijk and kji.

Arrays are `(K, J, I)` = `(Z, Y, X)`, with channels before them. Affines are 4x4 and map `(i, j, k, 1)` to RAS mm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from types import EllipsisType
from typing import TypeVar

import numpy as np

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.labels import LabelTable

SAME_GRID_MM = 1e-3
"""Grids whose voxels are at most this far apart are the same grid."""
SNAP_FRACTION = 0.05
"""`match_grid` accepts a deviation of up to this share of the smallest spacing."""
SKEW_TOLERANCE = 1e-3
"""Directions are orthonormal if no entry of `D^T D - I` exceeds this."""

_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])

Shape = tuple[int, int, int]
Slices = tuple[slice, slice, slice]
Triple = tuple[float, float, float]
T = TypeVar("T")


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Three values, one per axis, as a tuple.

    Raises:
        ValueError: There are more or fewer than three.
    """
    first, second, third = values
    return first, second, third


def lps_to_ras(affine: np.ndarray) -> np.ndarray:
    """Convert an affine (4x4) or points `(..., 3)` from LPS mm (ITK, DICOM) to RAS mm (Slicer, NIfTI)."""
    values = np.asarray(affine, dtype=np.float64)
    return _FLIP @ values if values.shape == (4, 4) else values * (-1.0, -1.0, 1.0)


def ras_to_lps(affine: np.ndarray) -> np.ndarray:
    """Convert an affine (4x4) or points `(..., 3)` from RAS mm to LPS mm; the inverse of `lps_to_ras`."""
    return lps_to_ras(affine)


def flip_order(values: Sequence) -> tuple:
    """Reverse three values from ijk to kji order or back."""
    if len(values) != 3:
        raise InputError("three values are needed to swap ijk and kji", why=f"got {len(values)}")
    return tuple(values)[::-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """A regular grid of voxels in space.

    Attributes:
        shape: `(K, J, I)`.
        affine: `(4, 4)` float64, maps `(i, j, k, 1)` to RAS mm, voxel centres at integers; read-only.
    """

    shape: Shape
    affine: np.ndarray

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4):
            raise GeometryError("an affine must be 4x4", why=f"its shape is {affine.shape}")
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) != 3:
            raise GeometryError("a grid has three axes", why=f"its shape is {self.shape}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @cached_property
    def spacing(self) -> Triple:
        """Voxel size along i, j, k, mm."""
        return triple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())

    @cached_property
    def directions(self) -> np.ndarray:
        """Unit vectors of i, j, k in RAS, as the columns of a `(3, 3)` matrix."""
        return self.affine[:3, :3] / np.asarray(self.spacing)

    @property
    def origin(self) -> Triple:
        """Centre of voxel (0, 0, 0), RAS mm."""
        return triple(self.affine[:3, 3].tolist())

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel, mL."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def center(self) -> Triple:
        """Centre of the volume, RAS mm."""
        return triple(self.to_ras((np.array(self.shape[::-1]) - 1) / 2).tolist())

    @property
    def skew(self) -> float:
        """Largest entry of `|D^T D - I|`: 0 if the axes are at right angles."""
        return float(np.abs(self.directions.T @ self.directions - np.eye(3)).max())

    @cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.inv(self.affine)

    def to_ras(self, points_ijk: np.ndarray | Sequence) -> np.ndarray:
        """Convert points `(..., 3)` in ijk voxels (fractions allowed) to RAS mm."""
        return np.asarray(points_ijk, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_ijk(self, points_ras: np.ndarray | Sequence) -> np.ndarray:
        """Convert points `(..., 3)` in RAS mm to ijk voxels, as floats."""
        return np.asarray(points_ras, dtype=np.float64) @ self._inverse[:3, :3].T + self._inverse[:3, 3]

    def contains(self, points_ras: np.ndarray | Sequence) -> np.ndarray:
        """Whether points `(..., 3)` in RAS mm lie inside a voxel (up to half a voxel beyond the outer centres)."""
        ijk = self.to_ijk(points_ras)
        return np.all((ijk >= -0.5) & (ijk <= np.array(self.shape[::-1]) - 0.5), axis=-1)

    def check(self, *, where: object = "") -> Grid:
        """Return the grid if it is usable.

        Raises:
            GeometryError: It has no voxels, or its affine is not finite, projective or singular.
        """
        if min(self.shape) < 1:
            raise GeometryError("the volume has no voxels", where=where, why=f"its size (k, j, i) is {self.shape}")
        text = np.array2string(self.affine, precision=6, suppress_small=True)
        remedy = "Correct the geometry in the header, or export the scan again"
        if not np.isfinite(self.affine).all():
            raise GeometryError("the affine contains NaN or Inf", where=where, why=text, remedy=remedy)
        if not np.array_equal(self.affine[3], (0, 0, 0, 1)):
            raise GeometryError("the affine is projective", where=where, why=text, remedy=remedy)
        if min(self.spacing) < 1e-6:
            raise GeometryError("the voxel spacing is zero", where=where, why=text, remedy=remedy)
        if abs(np.linalg.det(self.directions)) < 1e-3:
            raise GeometryError("the affine is singular", where=where, why=text, remedy=remedy)
        return self

    def distance_mm(self, other: Grid) -> float:
        """Largest distance of two voxels with the same index, mm; infinite if the sizes differ."""
        if self.shape != other.shape:
            return float("inf")
        corners = np.array(list(product(*((0, n - 1) for n in self.shape[::-1]))), dtype=np.float64)
        return float(np.linalg.norm(self.to_ras(corners) - other.to_ras(corners), axis=1).max())

    def same_as(self, other: Grid, tolerance_mm: float = SAME_GRID_MM) -> bool:
        """Whether the sizes agree and every voxel lies within `tolerance_mm` of its counterpart."""
        return self.distance_mm(other) <= tolerance_mm

    def crop(self, slices: Slices) -> Grid:
        """The grid of `array[slices]`, for slices in kji with step 1."""
        bounds = [s.indices(n) for s, n in zip(slices, self.shape, strict=True)]
        affine = self.affine.copy()
        affine[:3, 3] = self.to_ras([b[0] for b in bounds][::-1])
        k, j, i = (max(b[1] - b[0], 0) for b in bounds)
        return Grid(shape=(k, j, i), affine=affine)


def match_grid(found: Grid, expected: Grid, *, where: object = "") -> Grid:
    """Return `expected` if `found` agrees with it within `SNAP_FRACTION` of a voxel.

    Raises:
        GeometryError: The sizes differ, or voxels are farther apart than the tolerance.
    """
    limit = max(SNAP_FRACTION * min(expected.spacing), SAME_GRID_MM)
    if found.shape != expected.shape:
        why = f"size (k, j, i) {found.shape}, expected {expected.shape}"
    elif (apart := found.distance_mm(expected)) > limit:
        why = f"voxels lie up to {apart:.4g} mm apart, allowed are {limit:.4g} mm"
    else:
        return expected
    raise GeometryError("the grids differ", where=where, why=why, remedy="Resample one to the other")


def _check_array(array: np.ndarray, grid: Grid, ndims: tuple[int, ...], where: str) -> None:
    if array.ndim not in ndims or tuple(array.shape[-3:]) != grid.shape:
        why = f"the array is {tuple(array.shape)}, the grid (k, j, i) is {grid.shape}"
        raise GeometryError("the array does not have the size of the grid", where=where, why=why)


@dataclass(kw_only=True, eq=False)
class Volume:
    """An image with its grid.

    Attributes:
        array: `(K, J, I)`, or `(C, K, J, I)` with several channels; the readers return float32.
        grid: Grid of the voxels, RAS mm.
        source: The file or folder, for messages.
        modality: "CT", "MR", or None if not known.
        nonfinite: Number of NaN and Inf voxels that the reader replaced.
        warnings: Messages of the reader, which were logged too.
    """

    array: np.ndarray
    grid: Grid
    source: str = ""
    modality: str | None = None
    nonfinite: int = 0
    warnings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        _check_array(self.array, self.grid, (3, 4), self.source)

    @property
    def channels(self) -> int:
        """Number of channels; 1 for a `(K, J, I)` array."""
        return 1 if self.array.ndim == 3 else self.array.shape[0]

    def as_channels(self) -> np.ndarray:
        """The array as `(C, K, J, I)`, as a view."""
        return self.array[None] if self.array.ndim == 3 else self.array

    def crop(self, slices: Slices) -> Volume:
        """The part of the volume inside kji slices, as a view."""
        view = self.array[(..., *slices)]
        return Volume(
            array=view,
            grid=self.grid.crop(slices),
            source=self.source,
            modality=self.modality,
            nonfinite=self.nonfinite,
            warnings=self.warnings,
        )


@dataclass(kw_only=True, eq=False)
class LabelMap:
    """A segmentation: integers `(K, J, I)` on a grid, 0 for background, with the table of their meanings."""

    array: np.ndarray
    grid: Grid
    labels: LabelTable | None = None
    source: str = ""

    def __post_init__(self) -> None:
        _check_array(self.array, self.grid, (3,), self.source)
        if not np.issubdtype(self.array.dtype, np.integer):
            raise InputError("a label map must hold integers", where=self.source, why=f"its type is {self.array.dtype}")

    def volumes_ml(self) -> dict[int, float]:
        """Volume in mL of every label that occurs, by id."""
        ids, counts = np.unique(self.array, return_counts=True)
        return {int(i): int(n) * self.grid.voxel_volume_ml for i, n in zip(ids, counts, strict=True) if i}


@dataclass(frozen=True, kw_only=True)
class Roi:
    """A box parallel to the RAS axes, given by `center` and full `size`, mm."""

    center: Triple
    size: Triple

    def slices(self, grid: Grid) -> Slices:
        """kji slices of the smallest block with every voxel whose centre is inside the box.

        Raises:
            InputError: A size is not positive, a number is not finite, or the box misses the volume.
        """
        center, size = np.asarray(self.center, np.float64), np.asarray(self.size, np.float64)
        place = f"region of interest, centre {tuple(self.center)}, size {tuple(self.size)} mm RAS"
        if center.shape != (3,) or size.shape != (3,) or not np.isfinite([center, size]).all() or (size <= 0).any():
            remedy = "Give three finite numbers each, and sizes above 0"
            raise InputError("the region is not usable", where=place, remedy=remedy)
        corners = center + 0.5 * size * np.array(list(product((-1, 1), repeat=3)))
        ijk = grid.to_ijk(corners)
        low = np.maximum(np.ceil(ijk.min(axis=0) - 1e-6), 0).astype(int)
        high = np.minimum(np.floor(ijk.max(axis=0) + 1e-6), np.array(grid.shape[::-1]) - 1).astype(int)
        if (high < low).any():
            box = grid.to_ras(np.array(list(product(*((0, n - 1) for n in grid.shape[::-1])))))
            span = ", ".join(f"{a:.1f} to {b:.1f}" for a, b in zip(box.min(axis=0), box.max(axis=0), strict=True))
            why = f"the volume spans {span} mm RAS"
            raise InputError("holds no voxel of the volume", where=place, why=why, remedy="Move the region")
        i, j, k = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
        return k, j, i


def crop_roi(grid: Grid, center_ras: Sequence[float], size_mm: Sequence[float]) -> Slices:
    """kji slices of a box given by centre and full size, RAS mm; see `Roi.slices`."""
    return Roi(center=triple(map(float, center_ras)), size=triple(map(float, size_mm))).slices(grid)


def canonical_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """The source axes closest to R, A and S, and whether they run in the opposite direction.

    Returns:
        `perm`, `flips`: new ijk axis `a` is source ijk axis `perm[a]`, reversed if `flips[a]`.
    """
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    cosines = matrix / np.linalg.norm(matrix, axis=0)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    perm = max(orders, key=lambda p: sum(abs(cosines[axis, p[axis]]) for axis in range(3)))
    r, a, s = (bool(cosines[axis, perm[axis]] < 0) for axis in range(3))
    return perm, (r, a, s)


@dataclass(frozen=True, kw_only=True)
class Reorientation:
    """Reorientation of an array to RAS order, and its exact inverse.

    Attributes:
        perm, flips: As returned by `canonical_axes`, in ijk.
        source: Grid before the reorientation.
        target: Grid after the reorientation.
    """

    perm: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    source: Grid
    target: Grid

    def _turns(self) -> tuple[EllipsisType | slice, ...]:
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips[::-1]))

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Reorient an array `(..., K, J, I)` on the source grid to the target grid, as a view."""
        _check_array(array, self.source, tuple(range(3, array.ndim + 1)), "reorientation")
        lead = array.ndim - 3
        order = [lead + 2 - self.perm[2 - axis] for axis in range(3)]
        moved = array.transpose(*range(lead), *order)
        return moved[self._turns()]

    def undo(self, array: np.ndarray) -> np.ndarray:
        """Reorient an array `(..., K, J, I)` on the target grid back to the source grid, as a view.

        Raises:
            GeometryError: The array does not have the size of the target grid.
        """
        _check_array(array, self.target, tuple(range(3, array.ndim + 1)), "reorientation")
        lead = array.ndim - 3
        straight = array[self._turns()]
        order = [lead + 2 - self.perm.index(2 - axis) for axis in range(3)]
        return straight.transpose(*range(lead), *order)


def _reoriented_grid(grid: Grid, perm: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> Grid:
    sizes = grid.shape[::-1]
    back = np.zeros((4, 4))
    back[3, 3] = 1.0
    for axis in range(3):
        back[perm[axis], axis] = -1.0 if flips[axis] else 1.0
        back[perm[axis], 3] = sizes[perm[axis]] - 1 if flips[axis] else 0.0
    i, j, k = (sizes[p] for p in perm)
    return Grid(shape=(k, j, i), affine=grid.affine @ back)


def reorient(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid, Reorientation]:
    """Permute and flip the axes of an array to the order closest to RAS; voxels keep their value and position.

    Args:
        array: `(..., K, J, I)` on `grid`.
        grid: Grid of the array, possibly oblique; only the order and direction of its axes change.

    Returns:
        The array as a view, its new grid, and the reorientation, whose `undo` is exact: `record.source` is the old grid
        itself, so that the affine is restored bit for bit.
    """
    grid.check(where="reorientation")
    perm, flips = canonical_axes(grid.affine)
    record = Reorientation(perm=perm, flips=flips, source=grid, target=_reoriented_grid(grid, perm, flips))
    return record.apply(array), record.target, record
