"""faults.md row 41: label values that were not declared, empty masks, a single case: named per file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.data.verify import verify_dataset
from MaskSAMCore.errors import DatasetError
from Testing.phantom import write_dataset


def change(path: Path, values: dict[int, int]) -> None:
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    new = array.copy()
    for old, value in values.items():
        new[array == old] = value
    result = sitk.GetImageFromArray(new)
    result.CopyInformation(image)
    sitk.WriteImage(result, str(path))


def test_undeclared_values_and_empty_masks(tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw")
    change(raw / "labelsTr" / "case_001.nii.gz", {1: 9})
    change(raw / "labelsTr" / "case_002.nii.gz", {1: 0, 2: 0})
    with pytest.raises(DatasetError) as caught:
        verify_dataset(raw)
    first, second = caught.value.problems
    assert first.startswith("case_001: label value 9 (")
    assert "not declared" in first
    assert second.startswith("case_002: the label map is empty")
    data = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps(data | {"allow_empty": True}))
    with pytest.raises(DatasetError) as caught:
        verify_dataset(raw)
    assert len(caught.value.problems) == 1, "an empty mask is allowed where that is meant"


def test_a_single_case_cannot_be_split(tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw", cases=1)
    with pytest.raises(DatasetError, match=r"a single patient \(case_000\)"):
        verify_dataset(raw)


def test_a_structure_that_nobody_has(tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw")
    for path in (raw / "labelsTr").iterdir():
        change(path, {2: 0})
    with pytest.raises(DatasetError, match="no case holds the structure 'cube'"):
        verify_dataset(raw)


def test_labels_that_are_no_integers(tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw")
    path = raw / "labelsTr" / "case_003.nii.gz"
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32) + 0.5, str(path))
    with pytest.raises(DatasetError, match="case_003"):
        verify_dataset(raw)
    assert np.isclose(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).min(), 0.5)
