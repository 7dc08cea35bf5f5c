"""The grid, regions of interest, and the exact way to RAS order and back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.volume import (
    Grid,
    LabelMap,
    Roi,
    Volume,
    canonical_axes,
    crop_roi,
    flip_order,
    lps_to_ras,
    match_grid,
    ras_to_lps,
    reorient,
)

SIGNED_AXES = [(p, f) for p in itertools.permutations(range(3)) for f in itertools.product((1, -1), repeat=3)]


def oblique(shape=(4, 5, 6), spacing=(0.7, 1.1, 2.5), angle=0.3) -> Grid:
    c, s = np.cos(angle), np.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = (-20, 30, 5)
    return Grid(shape=shape, affine=affine)


def test_points_go_to_ras_and_back():
    grid = oblique()
    points = np.random.default_rng(0).uniform(-5, 9, (7, 3))
    assert np.allclose(grid.to_ijk(grid.to_ras(points)), points)
    assert np.allclose(grid.to_ras([0, 0, 0]), grid.origin)
    assert np.allclose(grid.spacing, (0.7, 1.1, 2.5))
    assert grid.voxel_volume_ml == pytest.approx(0.7 * 1.1 * 2.5 / 1000)
    assert grid.skew < 1e-12


def test_contains_counts_half_a_voxel_beyond_the_centres():
    grid = Grid(shape=(2, 3, 4), affine=np.eye(4))
    inside = grid.contains([[-0.5, 0, 0], [3.5, 2.5, 1.5], [3.51, 0, 0], [0, -0.51, 0]])
    assert inside.tolist() == [True, True, False, False]


def test_lps_and_ras_are_each_others_inverse():
    grid = oblique()
    assert np.array_equal(lps_to_ras(ras_to_lps(grid.affine)), grid.affine)
    assert lps_to_ras(np.array([1.0, 2.0, 3.0])).tolist() == [-1, -2, 3]
    assert flip_order((1, 2, 3)) == (3, 2, 1)


def test_a_grid_is_read_only_and_comparable():
    grid = oblique()
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 5
    assert grid == oblique()
    assert hash(grid) == hash(oblique())
    assert grid != oblique(angle=0.31)


def test_same_as_measures_the_farthest_corner():
    grid = oblique()
    moved = grid.affine.copy()
    moved[0, 3] += 0.01
    other = Grid(shape=grid.shape, affine=moved)
    assert grid.distance_mm(other) == pytest.approx(0.01)
    assert not grid.same_as(other)
    assert grid.same_as(other, tolerance_mm=0.02)
    assert match_grid(other, grid) is grid
    moved[0, 3] += 1
    with pytest.raises(GeometryError, match="apart"):
        match_grid(Grid(shape=grid.shape, affine=moved), grid, where="a.nii")
    with pytest.raises(GeometryError, match="size"):
        match_grid(oblique(shape=(4, 5, 7)), grid)


@pytest.mark.parametrize(("perm", "signs"), SIGNED_AXES)
def test_reorient_is_exact_in_all_axis_orders(perm, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, perm] * signs * (0.5, 1.5, 4.0)
    affine[:3, 3] = (10, -20, 30)
    grid = Grid(shape=(3, 4, 5), affine=affine)
    array = np.arange(2 * 60).reshape(2, 3, 4, 5)
    turned, target, record = reorient(array, grid)
    assert canonical_axes(target.affine) == ((0, 1, 2), (False, False, False))
    assert np.array_equal(record.undo(turned), array)
    assert record.source is grid
    for ijk in ((0, 0, 0), (4, 3, 2), (1, 2, 0)):
        new = np.rint(target.to_ijk(grid.to_ras(ijk))).astype(int)
        assert turned[(0, *new[::-1])] == array[(0, *ijk[::-1])]
    with pytest.raises(GeometryError):
        record.undo(np.zeros((9, 9, 9)))


def test_reorient_keeps_an_oblique_grid_oblique():
    grid = oblique(angle=0.5)
    _, target, record = reorient(np.zeros(grid.shape), grid)
    assert target == grid
    assert record.flips == (False, False, False)


def test_roi_holds_every_voxel_centre_in_the_box():
    grid = oblique(shape=(40, 50, 60), spacing=(1, 1, 2), angle=0.4)
    roi = Roi(center=grid.center, size=(20.0, 12.0, 30.0))
    slices = roi.slices(grid)
    k, j, i = np.indices(grid.shape)
    ras = grid.to_ras(np.stack([i, j, k], axis=-1))
    inside = np.all(np.abs(ras - roi.center) <= np.array(roi.size) / 2, axis=-1)
    block = np.zeros(grid.shape, bool)
    block[slices] = True
    assert inside.any()
    assert not (inside & ~block).any()
    assert block.sum() < 0.2 * block.size
    assert np.allclose(grid.crop(slices).to_ras([0, 0, 0]), grid.to_ras([s.start for s in slices[::-1]]))


def test_roi_is_cut_at_the_border_and_refused_outside():
    grid = Grid(shape=(10, 10, 10), affine=np.eye(4))
    assert crop_roi(grid, (0, 0, 0), (4, 4, 4)) == (slice(0, 3), slice(0, 3), slice(0, 3))
    with pytest.raises(InputError, match=r"0\.0 to 9\.0"):
        crop_roi(grid, (50, 0, 0), (4, 4, 4))
    for bad in ((0, 4, 4), (np.nan, 4, 4)):
        with pytest.raises(InputError):
            crop_roi(grid, (0, 0, 0), bad)


def test_volume_and_labelmap_check_their_arrays():
    grid = Grid(shape=(2, 3, 4), affine=np.diag([2.0, 2.0, 5.0, 1.0]))
    volume = Volume(array=np.zeros((3, 2, 3, 4), np.float32), grid=grid)
    assert volume.channels == 3
    assert volume.as_channels() is not None
    part = volume.crop((slice(1, 2), slice(0, 2), slice(2, 4)))
    assert part.array.shape == (3, 1, 2, 2)
    assert part.grid.origin == (4.0, 0.0, 5.0)
    with pytest.raises(GeometryError):
        Volume(array=np.zeros((4, 3, 2)), grid=grid)
    with pytest.raises(InputError):
        LabelMap(array=np.zeros((2, 3, 4)), grid=grid)
    labels = np.zeros((2, 3, 4), np.uint8)
    labels[0, 0, :3] = 7
    assert LabelMap(array=labels, grid=grid).volumes_ml() == {7: pytest.approx(0.06)}
