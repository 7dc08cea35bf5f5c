"""`make demo`: the sample scan out of its package, and the judgement of the result."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore import demo
from MaskSAMCore.errors import InputError
from MaskSAMCore.io.images import write_volume
from MaskSAMCore.volume import Grid, LabelMap, Roi
from Testing.toy_model import Threshold, bright_scan, make_card, make_plan


def head(*centres: tuple[float, float, float]) -> LabelMap:
    """Balls of 8 mm radius (2.1 mL) on a 2 mm grid in MNI space."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -80, -100, -60
    grid = Grid(shape=(60, 80, 80), affine=affine)
    k, j, i = np.indices(grid.shape)
    points = grid.to_ras(np.stack([i, j, k], axis=-1))
    array = np.zeros(grid.shape, np.uint8)
    for centre in centres:
        array[((points - np.array(centre)) ** 2).sum(-1) <= 64] = 1
    return LabelMap(array=array, grid=grid)


def test_one_ball_on_either_side_is_plausible():
    labels = head((27, -20, -14), (-27, -20, -14))
    assert demo.implausible(labels) == []
    found = demo.sides(labels)
    assert found["right"][0] == pytest.approx(2.1, abs=0.2)
    assert found["left"][1] == pytest.approx(-27, abs=0.5)


def test_missing_and_misplaced_structures_are_told():
    assert any(text.startswith("left: 0.00 mL") for text in demo.implausible(head((27, -20, -14))))
    array = head((27, -20, -14), (-27, -20, -14))
    wrong = LabelMap(array=array.array, grid=Grid(shape=array.grid.shape, affine=array.grid.affine.copy()))
    wrong.array[:] = 0
    wrong.array[Roi(center=(28, -22, -14), size=demo.SIZE).slices(wrong.grid)] = 1
    assert any(text.startswith("right") for text in demo.implausible(wrong))  # 146 mL


def fake_pip(content: dict[str, bytes] | None):
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        assert "--no-deps" in command
        assert demo.PACKAGE in command
        if content is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no network\n")
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "nilearn-1-py3-none-any.whl", "w") as wheel:
            for name, data in content.items():
                wheel.writestr(name, data)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_the_scan_is_taken_out_of_the_wheel_once(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(demo.subprocess, "run", fake_pip({demo.MEMBER: b"scan", "nilearn/code.py": b"no"}))
    path = demo.sample_scan()
    assert path.read_bytes() == b"scan"
    assert home in path.parents
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    monkeypatch.setattr(demo.subprocess, "run", fake_pip(None))
    assert demo.sample_scan() == path


@pytest.mark.parametrize(("content", "words"), [(None, "no network"), ({"other": b""}, "not in the package")])
def test_no_scan_is_an_error_that_says_why(home: Path, monkeypatch: pytest.MonkeyPatch, content, words: str):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(demo.subprocess, "run", fake_pip(content))
    with pytest.raises(InputError, match=words):
        demo.sample_scan()
    assert not list((home / "samples").iterdir())


def test_the_scan_alone_is_brought_and_named(home: Path, tmp_path: Path, capsys):
    scan = home / "samples" / demo.SCAN
    scan.parent.mkdir()
    scan.touch()
    assert demo.main(["--scan-only", "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{scan}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_scan_to_pictures(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """The threshold finds two bright balls where the hippocampi lie; a second run replaces the first."""
    labels = head((27, -20, -14), (-27, -20, -14))
    volume, _ = bright_scan(labels.grid.shape, labels.grid.affine, at=(slice(0, 0),) * 3)
    volume.array[labels.array > 0] += 200
    write_volume(volume, tmp_path / "scan.nii.gz")
    card = make_card(plan=make_plan(spacing=(2.0, 2.0, 2.0), median_shape=(26, 32, 22)))
    monkeypatch.setattr(demo, "sample_scan", lambda: tmp_path / "scan.nii.gz")
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", lambda name, device, **_: (Threshold(), card))
    for _ in range(2):
        assert demo.main(["-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".csv", ".gz", ".nrrd", ".png"]
    assert "plausible" in capsys.readouterr().out
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", lambda name, device, **_: (Threshold(1e9), card))
    assert demo.main(["-o", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert "not plausible" in capsys.readouterr().err
