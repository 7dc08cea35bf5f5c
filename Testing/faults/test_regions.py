"""faults.md row 31: an unusable region among the prompts of `segment` is named by number and position."""

from __future__ import annotations

import pytest

from MaskSAMCore import segment
from MaskSAMCore.errors import PromptError
from MaskSAMCore.inference.predictor import Predictor
from MaskSAMCore.io.images import write_volume
from MaskSAMCore.volume import Roi
from Testing.toy_model import Threshold, bright_scan, make_card

GOOD = Roi(center=(10.0, 17.0, 10.0), size=(6.0, 6.0, 6.0))


@pytest.mark.parametrize(
    ("center", "size", "message"),
    [
        ((float("nan"), 0.0, 0.0), (5.0, 5.0, 5.0), "finite"),
        ((10.0, 10.0, 10.0), (5.0, float("inf"), 5.0), "finite"),
        ((10.0, 10.0, 10.0), (5.0, -5.0, 5.0), "above 0"),
        ((10.0, 10.0, 10.0), (0.0, 5.0, 5.0), "above 0"),
        ((5000.0, 0.0, 0.0), (5.0, 5.0, 5.0), "holds no voxel"),
    ],
)
def test_region_is_named_by_number_and_position(center, size, message):
    volume, _ = bright_scan()
    predictor = Predictor.of(Threshold(), make_card())
    with pytest.raises(PromptError, match=message) as error:
        predictor.segment(volume, roi=[GOOD, Roi(center=center, size=size)])
    assert "region 2 of 2" in str(error.value)
    assert str(center) in str(error.value)


def test_command_ends_with_2_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", lambda name, device, **_: (Threshold(), make_card()))
    monkeypatch.setattr("MaskSAMCore.zoo.installed.find_model", lambda name: tmp_path)
    monkeypatch.setattr("MaskSAMCore.zoo.model_folder.load_card", lambda path: make_card())
    write_volume(bright_scan()[0], tmp_path / "scan.nii.gz")
    words = [str(tmp_path / "scan.nii.gz"), "-m", "toy", "-o", str(tmp_path / "r.nii.gz"), "--roi=9000,0,0,5,5,5"]
    assert segment.main(words) == 2
    assert "region 1 of 1" in capsys.readouterr().err
    assert not (tmp_path / "r.nii.gz").exists()
