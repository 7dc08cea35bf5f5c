"""faults.md row 26: label and image grids that differ are snapped within a stated tolerance, else an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.data.raw import read_case, read_dataset
from MaskSAMCore.data.verify import verify_dataset
from MaskSAMCore.errors import DatasetError
from Testing.phantom import write_dataset


def shift(path: Path, mm: float) -> None:
    image = sitk.ReadImage(str(path))
    image.SetOrigin([o + mm for o in image.GetOrigin()])
    sitk.WriteImage(image, str(path))


def test_a_hundredth_of_a_voxel_is_snapped(tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw")
    shift(raw / "labelsTr" / "case_001.nii.gz", 0.01)
    dataset = verify_dataset(raw)
    volume, labels = read_case(dataset, dataset.cases[1])
    assert labels.grid == volume.grid


def test_half_a_voxel_and_another_size_are_named(tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw")
    shift(raw / "labelsTr" / "case_001.nii.gz", 0.5)
    path = raw / "labelsTr" / "case_002.nii.gz"
    image = sitk.ReadImage(str(path))
    smaller = sitk.GetImageFromArray(np.ascontiguousarray(sitk.GetArrayFromImage(image)[1:]))
    smaller.SetSpacing(image.GetSpacing())
    sitk.WriteImage(smaller, str(path))
    with pytest.raises(DatasetError) as caught:
        verify_dataset(raw)
    first, second = caught.value.problems
    assert "case_001" in first
    assert "mm apart" in first
    assert "case_002" in second
    assert "size" in second
    with pytest.raises(Exception, match="mm apart"):
        read_case(read_dataset(raw), read_dataset(raw).cases[1])
