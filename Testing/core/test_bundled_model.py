"""The bundled model with the real base weights, through the real command, on real scans of several kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore import segment, zoo
from MaskSAMCore.io.images import read_labels, read_volume, write_volume
from MaskSAMCore.metrics import dice
from MaskSAMCore.volume import Grid, Volume

MODEL = "hippocampus-mr"


@pytest.fixture(scope="module")
def case(shared: Path, mobile_sam: Path) -> tuple[Volume, np.ndarray]:
    """A validation case of the model's fold: scan and reference."""
    name = zoo.load_card(zoo.find_model(MODEL)).provenance["validation_cases"][0]
    folder = shared / "data" / "hippocampus"
    volume = read_volume(folder / "imagesTr" / f"{name}_0000.nii.gz")
    return volume, read_labels(folder / "labelsTr" / f"{name}.nii.gz").array


def run(scan: Path, out: Path, *extra: str) -> np.ndarray:
    assert segment.main([str(scan), "-m", MODEL, "-o", str(out), "--device", "cpu", *extra]) == 0
    found = read_labels(out)
    assert found.grid.same_as(read_volume(scan).grid)
    return found.array


def test_bundled_model_is_whole_and_small(repo: Path):
    card = zoo.verify_model(zoo.find_model(MODEL))
    assert [label.name for label in card.labels.labels] == ["Anterior hippocampus", "Posterior hippocampus"]
    assert sum(path.stat().st_size for path in zoo.find_model(MODEL).iterdir()) < 15e6
    assert any("evaluate" in command for command in card.metrics)
    assert not set(card.provenance["training_cases"]) & set(card.provenance["validation_cases"])


def test_finds_both_parts_on_the_scans_own_grid_also_when_it_lies_obliquely(case, tmp_path):
    volume, reference = case
    write_volume(volume, tmp_path / "scan.nii.gz")
    found = run(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz")
    assert all(dice(found == label, reference == label) > 0.75 for label in (1, 2))

    angle = np.deg2rad(17)
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    oblique = Grid(shape=volume.grid.shape, affine=turn @ volume.grid.affine)
    write_volume(Volume(array=volume.array, grid=oblique), tmp_path / "oblique.nrrd")
    again = run(tmp_path / "oblique.nrrd", tmp_path / "oblique.seg.nrrd")
    assert (again == found).mean() > 0.999


def test_one_slice_comes_back_as_one_slice(case, tmp_path):
    volume, _ = case
    middle = volume.grid.shape[0] // 2
    part = volume.crop((slice(middle, middle + 1), slice(None), slice(None)))
    write_volume(part, tmp_path / "slice.mha")
    assert run(tmp_path / "slice.mha", tmp_path / "labels.nrrd").shape[0] == 1


def test_dicom_folder_comes_back_on_its_own_grid_and_is_doubted(shared, mobile_sam, tmp_path, capsys):
    folder = shared / "data" / "dicom" / "ct_head"
    centre = ",".join(f"{v:.1f}" for v in read_volume(folder).grid.center)
    run(folder, tmp_path / "labels.nii.gz", f"--roi={centre},20,20,20", "--step", "1")
    assert "CT" in capsys.readouterr().out
