"""faults.md row 20: an oblique scan is brought to RAS order and comes back on exactly its own grid."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.preprocessing.preprocess import preprocess, preprocess_labels, restore_labels
from MaskSAMCore.volume import Grid, LabelMap, Volume, reorient
from Testing.core.preprocessing.test_preprocess import plan


def oblique(seed: int) -> Grid:
    """A grid turned by random angles, its axes permuted and some reversed."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(np.eye(3) + 0.35 * rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn[:, rng.permutation(3)] * rng.choice([-1, 1], 3) * rng.uniform(0.6, 2.0, 3)
    affine[:3, 3] = rng.normal(0, 50, 3)
    return Grid(shape=(6, 8, 10), affine=affine)


@pytest.mark.parametrize("seed", range(12))
def test_labels_come_back_voxel_by_voxel(seed: int) -> None:
    grid = oblique(seed)
    rng = np.random.default_rng(seed)
    scan = Volume(array=rng.normal(size=grid.shape).astype(np.float32), grid=grid)
    labels = rng.integers(0, 3, grid.shape).astype(np.uint8)
    _, canonical, undo = reorient(scan.array, grid)
    spacing = tuple(canonical.spacing[::-1])
    ready = preprocess(scan, plan(spacing=spacing))
    assert ready.image.shape[1:] == canonical.shape, "the input's axes run closest to S, A, R"
    classes = preprocess_labels(LabelMap(array=labels, grid=grid), ready.record, plan(spacing=spacing))
    np.testing.assert_array_equal(classes, undo.apply(labels))
    back = restore_labels(np.stack([classes == c for c in range(3)]).astype(np.float32), ready.record)
    np.testing.assert_array_equal(back, labels)
    assert ready.record.source_shape == grid.shape


def test_a_result_that_would_not_fit_fails() -> None:
    grid = oblique(0)
    ready = preprocess(Volume(array=np.ones(grid.shape, np.float32), grid=grid), plan())
    with pytest.raises(GeometryError, match="network's grid"):
        restore_labels(np.zeros((2, 3, 3, 3), np.float32), ready.record)
