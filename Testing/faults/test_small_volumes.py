"""faults.md row 24: one slice, few slices or pixels, anisotropy: padded, cropped back, same grid."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.inference.predictor import Predictor
from Testing.toy_model import Threshold, bright_scan, make_card, make_plan


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 40, 40), (40, 3, 40), (12, 1, 1), (2, 2, 2), (1, 1, 40)])
@pytest.mark.parametrize("view", ["axial", "coronal", "sagittal"])
def test_the_result_lies_on_the_grid_of_the_scan(shape: tuple[int, int, int], view: str):
    first = tuple(slice(0, (n + 1) // 2) for n in shape)
    volume, block = bright_scan(shape, at=first)
    result = Predictor.of(Threshold(0.0), make_card(plan=make_plan(view=view))).segment(volume, tta=True)
    assert result.labels.grid is volume.grid
    assert np.array_equal(result.labels.array > 0, block)


def test_slices_ten_times_as_thick_as_pixels():
    volume, block = bright_scan(
        (6, 40, 40), np.diag([0.8, 0.8, 8.0, 1.0]), at=(slice(2, 4), slice(9, 20), slice(9, 20))
    )
    plan = make_plan(spacing=(8.0, 0.8, 0.8), anisotropic=True)
    assert np.array_equal(Predictor.of(Threshold(), make_card(plan=plan)).segment(volume).labels.array > 0, block)
