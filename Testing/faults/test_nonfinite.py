"""faults.md row 27: NaN and Inf are counted, replaced by a rule and said; training can see the count."""

from __future__ import annotations

import numpy as np
import pytest

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.images import read_volume, write_volume
from MaskSAMCore.volume import Grid, Volume


def scan(tmp_path, array, suffix=".nii.gz"):
    path = tmp_path / f"a{suffix}"
    write_volume(Volume(array=array, grid=Grid(shape=array.shape, affine=np.eye(4))), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_counted_and_replaced(tmp_path, suffix, caplog):
    array = np.linspace(-50, 80, 60, dtype=np.float32).reshape(3, 4, 5)
    array[0, 0, :3], array[1, 1, 1], array[2, 2, 2] = np.nan, np.inf, -np.inf
    finite = array[np.isfinite(array)]
    volume = read_volume(scan(tmp_path, array, suffix))
    assert volume.nonfinite == 5
    assert np.isfinite(volume.array).all()
    assert (volume.array[0, 0, :3] == finite.min()).all()
    assert volume.array[2, 2, 2] == finite.min()
    assert volume.array[1, 1, 1] == finite.max()
    assert np.array_equal(volume.array[np.isfinite(array)], finite)
    assert "5 voxels are NaN or Inf" in volume.warnings[0]
    assert "5 voxels" in caplog.text


def test_the_count_passes_on_through_channels_and_crops(tmp_path):
    array = np.zeros((2, 3, 4), np.float32)
    array[0, 0, 0] = np.nan
    path = scan(tmp_path, array)
    both = read_volume([path, path])
    assert both.nonfinite == 2
    assert both.crop((slice(1, 2),) * 3).nonfinite == 2


def test_values_beyond_float32_count_too(tmp_path):
    array = np.zeros((2, 3, 4), np.float64)
    array[1, 1, 1] = 1e300
    assert read_volume(scan(tmp_path, array)).nonfinite == 1


def test_nothing_finite_is_refused(tmp_path):
    with pytest.raises(InputError, match="no finite voxel"):
        read_volume(scan(tmp_path, np.full((2, 3, 4), np.nan, np.float32)))


def test_a_clean_scan_has_none(tmp_path):
    volume = read_volume(scan(tmp_path, np.ones((2, 3, 4), np.float32)))
    assert volume.nonfinite == 0
    assert volume.warnings == ()
