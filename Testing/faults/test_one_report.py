"""faults.md row 40: all problems of a data set come in one report before the first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from MaskSAMCore.data.build import prepare
from MaskSAMCore.data.splits import load_splits
from MaskSAMCore.data.verify import verify_dataset
from MaskSAMCore.errors import DatasetError
from MaskSAMCore.prepare import main
from Testing.core.data.test_data import CONFIG
from Testing.phantom import write_dataset


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    raw = write_dataset(tmp_path / "raw", cases=7)
    images, labels = raw / "imagesTr", raw / "labelsTr"
    (labels / "case_000.nii.gz").unlink()
    (images / "case_001_0000.nii.gz").unlink()
    path = images / "case_002_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    (labels / "case_003.nii.gz").write_text("<html>not found</html>")
    shutil.copy(images / "case_004_0000.nii.gz", images / "case_005_0000.nii.gz")
    data = json.loads((raw / "dataset.json").read_text())
    data["patients"] = {"case_005": "Smith", "case_006": "Smith"}
    (raw / "dataset.json").write_text(json.dumps(data))
    splits = [{"train": ["case_004", "case_005"], "val": ["case_006"]}, {"train": ["case_099"], "val": []}]
    (raw / "splits_final.json").write_text(json.dumps(splits))
    return raw


def test_everything_is_reported_at_once(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        prepare(broken, tmp_path / "cache", CONFIG)
    report = "\n".join(caught.value.problems)
    for part in (
        "case_000: labelsTr/case_000.nii.gz is missing",
        "case_001: imagesTr/case_001_0000.nii.gz is missing",
        "case_002:",
        "case_003:",
        "case_005: case_005_0000.nii.gz is the same scan as in case case_004",
        "fold 0: patient Smith is in train and in val",
        "fold 1: train: there is no case 'case_099'",
        "fold 1: val is missing or empty",
    ):
        assert part in report, part
    assert len(caught.value.problems) == 8
    assert not (tmp_path / "cache").exists(), "nothing was begun"


def test_the_command_prints_it_and_says_bad_input(broken: Path, tmp_path: Path, capsys) -> None:
    assert main([str(broken), "-o", str(tmp_path / "cache")]) == 2
    text = capsys.readouterr().err
    assert "8 problem(s)" in text
    assert "case_002" in text
    assert "Smith" in text


def test_a_sound_data_set_passes(tmp_path: Path) -> None:
    raw = write_dataset(tmp_path / "raw")
    (raw / "splits.json").write_text(json.dumps({"train": ["case_000", "case_001"], "val": ["case_003"]}))
    cases = verify_dataset(raw).cases
    (split,) = load_splits(raw, [c.id for c in cases])
    assert split.train == ("case_000", "case_001")
    assert split.val == ("case_003",)


def test_a_folder_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.json is missing"):
        verify_dataset(tmp_path)
