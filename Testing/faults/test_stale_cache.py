"""faults.md row 43: a stale or corrupt cache is rebuilt by `prepare` and refused by training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MaskSAMCore.data.build import prepare
from MaskSAMCore.data.dataset import PreparedDataset
from MaskSAMCore.errors import DatasetError
from Testing.core.data.test_data import CONFIG, contents
from Testing.phantom import write_dataset


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    raw, cache = write_dataset(tmp_path / "raw"), tmp_path / "cache"
    prepare(raw, cache, CONFIG)
    return raw, cache


@pytest.mark.parametrize("name", ["case_001.image.npy", "case_001.label.npy", "case_001.points.npy", "case_001.json"])
def test_one_changed_byte(made: tuple[Path, Path], name: str) -> None:
    raw, cache = made
    before = contents(cache)
    path = cache / "cases" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=name):
        PreparedDataset(cache).case("case_001")
    with pytest.raises(DatasetError, match=name):
        PreparedDataset(cache).verify()
    PreparedDataset(cache).case("case_002")
    _, report = prepare(raw, cache, CONFIG)
    assert [case for case, _ in report.rebuilt] == ["case_001"]
    assert len(report.kept) == 3
    assert contents(cache) == before


def test_a_missing_file_is_named_at_once(made: tuple[Path, Path]) -> None:
    raw, cache = made
    (cache / "cases" / "case_002.label.npy").unlink()
    with pytest.raises(DatasetError, match=r"case_002\.label\.npy is missing"):
        PreparedDataset(cache)
    prepare(raw, cache, CONFIG)[0].verify()


def test_a_changed_scan_makes_its_case_stale(made: tuple[Path, Path]) -> None:
    raw, cache = made
    path = raw / "imagesTr" / "case_003_0000.nii.gz"
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(image * 2 + sitk.Cast(image > 150, sitk.sitkFloat32) * 90, str(path))
    before = np.array(PreparedDataset(cache).case("case_003").image)
    fresh, report = prepare(raw, cache, CONFIG)
    assert report.rebuilt == (("case_003", "its sources or the plan have changed"),)
    assert not np.array_equal(fresh.case("case_003").image, before)


def test_a_damaged_or_foreign_manifest(made: tuple[Path, Path]) -> None:
    raw, cache = made
    path = cache / "manifest.json"
    whole = path.read_text()
    for text, message in (
        (whole[:100], "damaged"),
        (json.dumps(json.loads(whole) | {"format": 99}), "another format"),
        (json.dumps({k: v for k, v in json.loads(whole).items() if k != "plan"}), "plan"),
        ("[]", "another format"),
    ):
        path.write_text(text)
        with pytest.raises(DatasetError, match=message):
            PreparedDataset(cache)
    fresh, report = prepare(raw, cache, CONFIG)
    assert len(report.kept) == 4
    assert path.read_text() == whole
    fresh.verify()
