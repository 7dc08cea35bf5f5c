"""faults.md row 27: NaN and Inf are refused for training; elsewhere replaced, with a warning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.data.build import prepare
from MaskSAMCore.errors import DatasetError, InputError
from MaskSAMCore.preprocessing.preprocess import preprocess
from Testing.core.data.test_data import CONFIG
from Testing.core.preprocessing.test_preprocess import canonical, plan
from Testing.phantom import write_dataset


def test_training_refuses_and_counts(tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw")
    for case, values in (("case_001", (np.nan, np.inf, -np.inf)), ("case_003", (np.nan,))):
        path = raw / "imagesTr" / f"{case}_0000.nii.gz"
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        array[0, 0, : len(values)] = values
        broken = sitk.GetImageFromArray(array)
        broken.CopyInformation(image)
        sitk.WriteImage(broken, str(path))
    with pytest.raises(DatasetError) as caught:
        prepare(raw, tmp_path / "cache", CONFIG)
    assert [p[:25] for p in caught.value.problems] == ["case_001: 3 voxels are Na", "case_003: 1 voxels are Na"]
    assert not (tmp_path / "cache").exists()


def test_an_array_in_memory_is_mended_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    scan = canonical()
    clean = scan.array.copy()
    low = np.unravel_index(clean.argmin(), clean.shape)
    scan.array[2, 3, 4], scan.array[1, 1, 1] = np.nan, -np.inf
    scan.source = "scan.nii"
    ready = preprocess(scan, plan())
    assert np.isfinite(ready.image).all()
    assert ready.record.nonfinite == 2
    assert ready.image[0, 2, 3, 4] == ready.image[0, 1, 1, 1] == ready.image[0][low]
    assert "scan.nii: 2 NaN or Inf voxels" in caplog.text
    scan.array[:] = np.nan
    with pytest.raises(InputError, match="no finite voxel"):
        preprocess(scan, plan())
