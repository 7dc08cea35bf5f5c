"""faults.md row 20: a reorientation is undone exactly, or the run fails; the affine comes back bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.io.nifti import build_header
from MaskSAMCore.volume import Grid, reorient


def random_turn(rng) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


@pytest.mark.parametrize("seed", range(20))
def test_oblique_affines_come_back(seed):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = random_turn(rng) * rng.uniform(0.3, 5, 3)
    affine[:3, 3] = rng.uniform(-500, 500, 3)
    grid = Grid(shape=(4, 5, 6), affine=affine)
    array = rng.normal(size=grid.shape)
    turned, target, record = reorient(array, grid)
    assert np.array_equal(record.undo(turned), array)
    assert np.array_equal(record.source.affine, affine)
    ijk = rng.integers(0, 4, (8, 3))
    there = np.rint(target.to_ijk(grid.to_ras(ijk))).astype(int)
    assert np.allclose(target.to_ras(there), grid.to_ras(ijk), atol=1e-9)
    assert all(turned[tuple(n[::-1])] == array[tuple(o[::-1])] for n, o in zip(there, ijk, strict=True))


def test_an_array_of_another_size_is_refused():
    _, _, record = reorient(np.zeros((4, 5, 6)), Grid(shape=(4, 5, 6), affine=np.eye(4)))
    with pytest.raises(GeometryError):
        record.undo(np.zeros((4, 5, 7)))


def test_a_file_that_would_move_the_voxels_is_not_written():
    far = np.eye(4)
    far[:3, 3] = 1e6 + 0.37
    with pytest.raises(GeometryError, match="cannot be stored exactly"):
        build_header(np.dtype(np.uint8), Grid(shape=(4, 5, 6), affine=far), "a.nii")
