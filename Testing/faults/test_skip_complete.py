"""faults.md row 52: complete outputs are skipped without loading the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from MaskSAMCore import outputs, segment
from MaskSAMCore.errors import ResourceError
from MaskSAMCore.io.images import write_volume
from MaskSAMCore.volume import LabelMap
from Testing.toy_model import bright_scan, make_card

SET = (".nii.gz", ".seg.nrrd", ".csv", ".png")


def test_complete_outputs_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("MaskSAMCore.zoo.installed.find_model", lambda name: Path("toy"))
    monkeypatch.setattr("MaskSAMCore.zoo.model_folder.load_card", lambda path: make_card())
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    write_volume(bright_scan()[0], tmp_path / "scan.nii.gz")
    (tmp_path / "out").mkdir()
    for suffix in SET:
        (tmp_path / "out" / f"scan{suffix}").write_bytes(b"complete")
    assert segment.main([str(tmp_path / "scan.nii.gz"), "-m", "toy", "-o", str(tmp_path / "out")]) == 0
    assert "skipped" in capsys.readouterr().out
    assert all((tmp_path / "out" / f"scan{s}").read_bytes() == b"complete" for s in SET)


@pytest.mark.parametrize("error", [ResourceError("the disk is full"), KeyboardInterrupt()])
def test_what_fails_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    """The picture, the last of the four, fails."""
    volume, block = bright_scan()
    labels = LabelMap(array=block.astype("uint8") * 3, grid=volume.grid)
    case = outputs.place([outputs.Case(name="c", scans=(tmp_path / "c",))], tmp_path / "out")[0]
    assert outputs.ready(case) is False

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("MaskSAMCore.inference.montage.save_montage", fail)
    with pytest.raises(type(error)):
        outputs.write(case, volume, labels)
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    outputs.write(case, volume, labels)
    assert outputs.ready(case) is True
