"""faults.md row 6, for `segment`: existing outputs are refused unless --overwrite; inputs are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from MaskSAMCore import outputs, segment
from MaskSAMCore.io.images import write_volume
from MaskSAMCore.volume import LabelMap
from Testing.toy_model import bright_scan, make_card


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    """Every refusal comes before the model is loaded."""
    monkeypatch.setattr("MaskSAMCore.zoo.installed.find_model", lambda name: Path("toy"))
    monkeypatch.setattr("MaskSAMCore.zoo.model_folder.load_card", lambda path: make_card())
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", lambda *_, **__: pytest.fail("the model was loaded"))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_volume(bright_scan()[0], tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def refused(capsys, *arguments: object) -> str:
    assert segment.main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


def test_an_existing_file_is_kept(scan, tmp_path, capsys):
    target = tmp_path / "old.nii.gz"
    target.write_bytes(b"precious")
    assert "--overwrite" in refused(capsys, scan, "-m", "toy", "-o", target)
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_the_input_is_never_an_output(scan, tmp_path, capsys, overwrite):
    before = scan.read_bytes()
    assert "input" in refused(capsys, scan, "-m", "toy", "-o", scan, *overwrite)
    assert "input" in refused(capsys, scan, "-m", "toy", "-o", tmp_path, *overwrite)  # OUT/scan.nii.gz is the scan
    assert scan.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_a_link_to_the_input_is_the_input(scan, tmp_path, capsys):
    link = tmp_path / "link.nii.gz"
    link.symlink_to(scan)
    assert "input" in refused(capsys, scan, "-m", "toy", "-o", link, "--overwrite")


def test_nothing_is_written_among_the_files_of_a_series(tmp_path, capsys):
    series = tmp_path / "series"
    series.mkdir()
    assert "among the input" in refused(capsys, series, "-m", "toy", "-o", series / "r.nii.gz")


def test_part_of_a_set_is_not_completed_behind_the_users_back(scan, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "scan.csv").write_text("mine")
    assert "scan.csv" in refused(capsys, scan, "-m", "toy", "-o", folder)
    assert (folder / "scan.csv").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="NOT TESTED HERE: permissions do not bind this user")
def test_a_read_only_folder_is_refused(scan, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir(mode=0o500)
    assert "read-only" in refused(capsys, scan, "-m", "toy", "-o", folder)


def test_a_read_only_file_is_refused_even_with_overwrite(scan, tmp_path, capsys):
    target = tmp_path / "old.nii.gz"
    target.write_bytes(b"precious")
    target.chmod(0o400)
    assert "read-only" in refused(capsys, scan, "-m", "toy", "-o", target, "--overwrite")
    assert target.read_bytes() == b"precious"


def test_a_set_that_cannot_be_completed_leaves_the_old_one_intact(tmp_path, monkeypatch):
    """The third of four files fails: none of the new ones stays, all of the old ones do."""
    volume, block = bright_scan()
    labels = LabelMap(array=block.astype("uint8") * 3, grid=volume.grid)
    case = outputs.place([outputs.Case(name="c", scans=(tmp_path / "c",))], tmp_path / "out")[0]
    outputs.ready(case)
    for target in case.targets[:3]:
        target.write_text("old")
    original, failed = os.replace, []

    def replace(source, target):
        if Path(target) == case.targets[2] and not failed:
            failed.append(target)
            raise OSError(28, "No space left on device")
        return original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr("MaskSAMCore.inference.montage.save_montage", lambda *a, **k: Path(a[2]).write_bytes(b"p"))
    with pytest.raises(OSError, match="No space"):
        outputs.write(case, volume, labels, overwrite=True)
    assert failed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["c.csv", "c.nii.gz", "c.seg.nrrd"]
    assert all(t.read_text() == "old" for t in case.targets[:3])
