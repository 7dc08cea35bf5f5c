"""Dice, IoU, NSD and HD95 against numbers worked out by hand, and the rules for absent structures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from MaskSAMCore.errors import GeometryError, InputError
from MaskSAMCore.evaluation.metrics import dice, score, score_labels, summarize
from MaskSAMCore.volume import Grid, LabelMap


def block(*corners: tuple[int, int], shape: tuple[int, int, int] = (20, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in corners)] = True
    return mask


CUBE = block((5, 15), (5, 15), (5, 15))


def test_equal_masks_are_perfect():
    found = score(CUBE, CUBE, (1, 1, 1))
    assert (found.dice, found.iou, found.nsd, found.hd95) == (1, 1, 1, 0)
    assert found.predicted_ml == found.reference_ml == pytest.approx(1.0)


def test_overlap_of_two_cubes_by_hand():
    moved = block((5, 15), (5, 15), (10, 20))
    found = score(moved, CUBE, (1, 1, 1))
    assert found.dice == pytest.approx(500 * 2 / 2000)
    assert found.iou == pytest.approx(500 / 1500)
    assert dice(moved, CUBE) == pytest.approx(found.dice)


@pytest.mark.parametrize(("spacing", "expected"), [((1, 1, 3), 6.0), ((3, 1, 1), 2.0), ((1, 1, 0.5), 1.0)])
def test_distances_are_in_mm_along_the_right_axis(spacing: tuple[float, ...], expected: float):
    """A cube shifted two voxels along i: its far face lies two voxels off, in mm of that axis."""
    moved = block((5, 15), (5, 15), (7, 17))
    assert score(moved, CUBE, spacing).hd95 == pytest.approx(expected)


def test_surface_dice_is_one_within_the_tolerance():
    wider = block((5, 15), (5, 15), (5, 16))
    assert score(wider, CUBE, (1, 1, 1), tolerance_mm=1).nsd == 1
    # borders of 488 and 524 voxels, 424 of them common: of the cube's face i = 14 only the rim is border in both
    strict = score(wider, CUBE, (1, 1, 1), tolerance_mm=0.5).nsd
    assert strict == pytest.approx(2 * 424 / (488 + 524))
    # i is 2 mm now: the new face is out of reach; of the old face's 64 inner voxels 28 lie 1 mm from the rim
    longer = score(wider, CUBE, (1, 1, 2), tolerance_mm=1).nsd
    assert longer == pytest.approx((424 + 28 + 424) / (488 + 524))


def test_monai_stays_quiet(recwarn: pytest.WarningsRecorder):
    score(CUBE, block((5, 15), (5, 15), (5, 16)), (1, 1, 1))
    assert not list(recwarn)


def test_structure_that_the_scan_cuts_off_has_its_border_there():
    whole = block((0, 20), (0, 20), (0, 20))
    found = score(whole, block((0, 20), (0, 20), (0, 18)), (1, 1, 1))
    assert found.hd95 == pytest.approx(2.0)
    assert found.nsd < 1


def test_one_slice_can_be_measured():
    mask = block((0, 1), (3, 9), (3, 9), shape=(1, 20, 20))
    moved = block((0, 1), (3, 9), (4, 10), shape=(1, 20, 20))
    assert score(moved, mask, (5, 1, 1)).hd95 == pytest.approx(1.0)


def test_absent_in_both_has_no_value():
    found = score(np.zeros_like(CUBE), np.zeros_like(CUBE), (1, 1, 1))
    assert all(math.isnan(v) for v in (found.dice, found.iou, found.nsd, found.hd95))
    assert not found.one_sided


@pytest.mark.parametrize("missed", [True, False])
def test_absent_in_one_is_zero_and_counted(missed: bool):
    empty = np.zeros_like(CUBE)
    found = score(empty, CUBE, (1, 1, 1)) if missed else score(CUBE, empty, (1, 1, 1))
    assert (found.dice, found.iou, found.nsd) == (0, 0, 0)
    assert math.isnan(found.hd95)
    assert found.one_sided


def test_means_leave_out_what_does_not_exist():
    empty = np.zeros_like(CUBE)
    rows = [score(CUBE, CUBE, (1, 1, 1)), score(empty, CUBE, (1, 1, 1)), score(empty, empty, (1, 1, 1))]
    found = summarize(rows)
    assert (found.cases, found.one_sided) == (2, 1)
    assert found.mean["dice"] == pytest.approx(0.5)
    assert found.std["dice"] == pytest.approx(0.5)
    assert found.mean["hd95"] == 0
    nothing = summarize(rows[2:])
    assert nothing.cases == 0
    assert math.isnan(nothing.mean["dice"])


def test_labels_of_a_case_use_the_spacing_of_their_grid():
    affine = np.diag([3.0, 1.0, 1.0, 1.0])
    grid = Grid(shape=CUBE.shape, affine=affine)
    moved = block((5, 15), (5, 15), (7, 17))
    predicted = LabelMap(array=moved.astype(np.uint8) * 7, grid=grid)
    reference = LabelMap(array=CUBE.astype(np.uint8) * 7, grid=grid)
    found = score_labels(predicted, reference)
    assert list(found) == [7]
    assert found[7].hd95 == pytest.approx(6.0)
    assert found[7].reference_ml == pytest.approx(3.0)
    assert list(score_labels(predicted, reference, [1, 7])) == [1, 7]


def test_different_grids_are_refused():
    a = LabelMap(array=CUBE.astype(np.uint8), grid=Grid(shape=CUBE.shape, affine=np.eye(4)))
    b = LabelMap(array=CUBE.astype(np.uint8), grid=Grid(shape=CUBE.shape, affine=np.diag([2.0, 1, 1, 1])))
    with pytest.raises(GeometryError):
        score_labels(a, b)
    with pytest.raises(GeometryError):
        score(CUBE, CUBE[1:], (1, 1, 1))
    with pytest.raises(InputError, match="tolerance"):
        score(CUBE, CUBE, (1, 1, 1), tolerance_mm=-1)
