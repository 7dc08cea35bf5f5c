"""faults.md row 9: missing slices are refused with their positions; spacing is never averaged."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.errors import GeometryError
from MaskSAMCore.io.dicom import list_series, read_series
from Testing.dicom_phantom import dicom_series, ramp


@pytest.mark.parametrize("gone", [[3], [1, 2], [2, 5]])
@pytest.mark.parametrize("resample", [False, True])
def test_positions_are_named(tmp_path, gone, resample):
    dicom_series(tmp_path, ramp((8, 4, 5)), heights=[10 + 2.5 * k for k in range(8)])
    for k in gone:
        (tmp_path / f"s{8 - k:03}.dcm").unlink()
    places = ", ".join(f"{10 + 2.5 * k:.2f}" for k in gone)
    with pytest.raises(GeometryError, match=f"{len(gone)} of 8, at {places} mm"):
        read_series(tmp_path, resample=resample)


def test_complete_series_keep_their_spacing(tmp_path):
    dicom_series(tmp_path, ramp((8, 4, 5)), heights=[2.5 * k for k in range(8)])
    volume = read_series(tmp_path)
    assert volume.grid.spacing[2] == pytest.approx(2.5)
    assert np.array_equal(volume.array, ramp((8, 4, 5)))


def test_real_series_with_a_gap(shared):
    folder = shared / "data" / "dicom" / "uneven_slices"
    for series, place in zip(list_series(folder), ("33.11", "-133.00"), strict=True):
        for resample in (False, True):
            with pytest.raises(GeometryError, match=f"1 of 5, at {place} mm"):
                read_series(folder, series=series.key, resample=resample)
