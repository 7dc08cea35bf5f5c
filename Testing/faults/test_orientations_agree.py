"""faults.md row 21: a scan stored in another orientation gives the same input and the same result."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MaskSAMCore.io.images import read_volume, write_volume
from MaskSAMCore.preprocessing.preprocess import preprocess, restore_labels
from MaskSAMCore.volume import Volume
from Testing.core.preprocessing.test_preprocess import plan, stored_as


def test_files_in_four_orientations(shared: Path, tmp_path: Path) -> None:
    scan = read_volume(shared / "data" / "headneck_ct" / "imagesTr" / "hn_020_0000.nii.gz")
    scan = Volume(array=scan.array[40:72, 30:100, 20:110], grid=scan.crop(np.s_[40:72, 30:100, 20:110]).grid)
    how = plan("axial", (3.0, 4.7, 4.7), kind="ct")
    ready = preprocess(scan, how)
    threshold = (ready.image[0] > 0.5).astype(np.float32)
    expected = restore_labels(np.stack([1 - threshold, threshold]), ready.record)
    assert 100 < expected.sum() < expected.size / 2
    orientations = [((0, 1, 2), (True, False, False)), ((2, 0, 1), (False, True, True)), ((1, 2, 0), (True,) * 3)]
    for number, (axes, flips) in enumerate(orientations):
        path = tmp_path / f"{number}.nii.gz"
        write_volume(stored_as(scan, axes, flips), path)
        other = read_volume(path)
        again = preprocess(other, how)
        np.testing.assert_allclose(again.image, ready.image, atol=1e-4)
        result = restore_labels(np.stack([1 - threshold, threshold]), again.record)
        same = stored_as(Volume(array=expected, grid=scan.grid), axes, flips)
        np.testing.assert_array_equal(result, same.array)
        assert other.grid.same_as(same.grid, 0.01)
