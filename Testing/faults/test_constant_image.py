"""faults.md row 28: a constant or all-zero image causes no division by zero; it is marked, and training refuses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from MaskSAMCore.config.schema import AugmentConfig
from MaskSAMCore.data.augment import generator, intensity
from MaskSAMCore.data.verify import verify_dataset
from MaskSAMCore.errors import DatasetError
from MaskSAMCore.preprocessing.preprocess import preprocess, restore_labels
from Testing.core.preprocessing.test_preprocess import canonical, plan
from Testing.phantom import write_dataset


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 0.1, 7.5, -1000.0])
@pytest.mark.parametrize("kind", ["zscore", "ct"])
def test_no_division_by_zero(value: float, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    scan = canonical()
    scan.array[:] = value
    ready = preprocess(scan, plan(kind=kind))
    assert np.isfinite(ready.image).all()
    assert ready.image.min() == ready.image.max()
    if kind == "zscore":
        assert not ready.image.any()
    assert ready.record.constant
    assert "constant" in caplog.text
    assert ready.record.cropped == scan.grid.shape
    scores = np.stack([np.ones(ready.record.shape), np.zeros(ready.record.shape)]).astype(np.float32)
    assert not restore_labels(scores, ready.record).any()


def test_a_scan_with_contrast_is_not_marked() -> None:
    assert not preprocess(canonical(), plan()).record.constant


def test_augmentation_survives_it() -> None:
    names = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma")
    config = AugmentConfig(**dict.fromkeys(names, 1.0))
    assert torch.isfinite(intensity(torch.zeros(1, 4, 8, 8), config, generator(0), in_plane=False)).all()


def test_training_refuses_it(tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw")
    path = raw / "imagesTr" / "case_002_0000.nii.gz"
    image = sitk.ReadImage(str(path))
    flat = sitk.GetImageFromArray(np.full_like(sitk.GetArrayFromImage(image), 3))
    flat.CopyInformation(image)
    sitk.WriteImage(flat, str(path))
    with pytest.raises(DatasetError, match=r"case_002: case_002_0000\.nii\.gz .* is constant: every voxel is 3"):
        verify_dataset(raw)
