"""faults.md row 19: an asymmetric phantom in all 48 axis orders and flips comes back on the same voxels.

Every voxel is coloured by where it lies in RAS, so a swap of ijk and kji, of LPS and RAS, or a lost flip shows.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.io.formats import grid_of
from MaskSAMCore.io.images import read_labels, read_volume, write_labels
from MaskSAMCore.volume import Grid, LabelMap, reorient

ORDERS = [(p, f) for p in itertools.permutations(range(3)) for f in itertools.product((1, -1), repeat=3)]
SIZES = np.array([5, 6, 7])
SPACING = np.array([1.0, 2.0, 3.0])


def phantom(perm, signs, turn=None):
    """The same asymmetric body on a lattice whose axis `a` runs along RAS axis `perm[a]`, with sign `signs[a]`."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, perm] * signs * SPACING[list(perm)]
    for axis, (source, sign) in enumerate(zip(perm, signs, strict=True)):
        if sign < 0:
            affine[:3, 3] -= affine[:3, axis] * (SIZES[source] - 1)
    sizes = SIZES[list(perm)]
    k, j, i = np.indices(sizes[::-1])
    ras = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ affine.T
    r, a, s = (np.rint(ras[..., n] / SPACING[n]).astype(int) for n in range(3))
    labels = (1 + (r >= 3) + 2 * (a >= 2) + 4 * (s >= 2)) * ((r > 0) & (a < 5) & (s < 6))
    affine[:3, 3] += (10, -20, 30)
    if turn is not None:
        affine = turn @ affine
    return labels.astype(np.uint8), Grid(shape=tuple(sizes[::-1]), affine=affine)


@pytest.mark.parametrize(("perm", "signs"), ORDERS)
@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd", ".mha"])
def test_write_and_read(tmp_path, perm, signs, suffix):
    labels, grid = phantom(perm, signs)
    assert len(np.unique(labels)) == 9
    write_labels(LabelMap(array=labels, grid=grid), tmp_path / f"a{suffix}")
    back = read_labels(tmp_path / f"a{suffix}")
    assert np.array_equal(back.array, labels)
    assert back.grid.same_as(grid)
    volume = read_volume(tmp_path / f"a{suffix}")
    straight, target, record = reorient(volume.array, volume.grid)
    reference, home = phantom((0, 1, 2), (1, 1, 1))
    assert np.array_equal(straight, reference)
    assert target.same_as(home)
    assert np.array_equal(record.undo(straight), labels)
    image = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    assert grid_of(image).same_as(grid)
    assert np.array_equal(sitk.GetArrayFromImage(image), labels)


@pytest.mark.parametrize(("perm", "signs"), ORDERS)
def test_oblique(tmp_path, perm, signs):
    c, s = np.cos(0.2), np.sin(0.2)
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    labels, grid = phantom(perm, signs, turn)
    write_labels(LabelMap(array=labels, grid=grid), tmp_path / "a.nii")
    back = read_labels(tmp_path / "a.nii")
    assert np.array_equal(back.array, labels)
    assert back.grid.same_as(grid)
    assert np.array_equal(reorient(back.array, back.grid)[0], phantom((0, 1, 2), (1, 1, 1))[0])
