"""faults.md row 10: irregular spacing is refused, or resampled on request; the tolerance is relative."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.io.dicom import read_series
from Testing.dicom_phantom import dicom_series

HEIGHTS = [0.0, 2.0, 4.0, 7.0, 9.0, 12.5]


def linear(heights) -> np.ndarray:
    """Voxels that say how high they lie, in tenths of a millimetre."""
    return np.array([np.full((4, 5), round(h * 10)) for h in heights]).astype(np.int16)


def test_refused(tmp_path):
    dicom_series(tmp_path, linear(HEIGHTS), heights=HEIGHTS)
    with pytest.raises(GeometryError, match=r"gaps run from 2 to 3.5 mm .*resampling"):
        read_series(tmp_path)


def test_resampled_on_request(tmp_path):
    dicom_series(tmp_path, linear(HEIGHTS), heights=HEIGHTS, origin=(3.0, 4.0, 100.0))
    volume = read_series(tmp_path, resample=True)
    assert volume.grid.spacing[2] == pytest.approx(2.0)
    assert "resampled" in volume.warnings[0]
    heights = volume.grid.to_ras([[0, 0, k] for k in range(volume.grid.shape[0])])[:, 2] - 100
    assert np.allclose(volume.array[:, 0, 0], heights * 10, atol=1e-3)
    assert heights[-1] == pytest.approx(12.0)


@pytest.mark.parametrize(("spacing", "jitter", "fine"), [(0.3, 0.001, True), (0.3, 0.02, False), (5.0, 0.02, True)])
def test_tolerance_is_relative(tmp_path, spacing, jitter, fine):
    heights = [spacing * k + (jitter if k == 2 else 0) for k in range(5)]
    dicom_series(tmp_path, linear(heights), heights=heights)
    if fine:
        assert read_series(tmp_path).grid.spacing[2] == pytest.approx(spacing)
    else:
        with pytest.raises(GeometryError, match="irregular"):
            read_series(tmp_path)
