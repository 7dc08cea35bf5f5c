"""The bundled model with the real base weights, through the real command, on real scans of several kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from MaskSAMCore import segment
from MaskSAMCore.config.describe import network_description
from MaskSAMCore.config.serialize import from_dict
from MaskSAMCore.evaluation.metrics import dice
from MaskSAMCore.io.images import read_labels, read_volume, write_volume
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.preprocessing.masks import interior_voxel
from MaskSAMCore.preprocessing.plan import Plan
from MaskSAMCore.preprocessing.preprocess import preprocess, preprocess_labels
from MaskSAMCore.preprocessing.resample import pad_to
from MaskSAMCore.training.card import model_readme
from MaskSAMCore.training.prompted import click_dice
from MaskSAMCore.volume import Grid, Volume
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.zoo import installed, model_folder
from Testing.workers import apply, point

MODEL = "hippocampus-mr"


@pytest.fixture(scope="module")
def case(shared: Path, mobile_sam: Path) -> tuple[Volume, np.ndarray]:
    """A validation case of the model's fold: scan and reference."""
    name = model_folder.load_card(installed.find_model(MODEL)).provenance["validation_cases"][0]
    folder = shared / "data" / "hippocampus"
    volume = read_volume(folder / "imagesTr" / f"{name}_0000.nii.gz")
    return volume, read_labels(folder / "labelsTr" / f"{name}.nii.gz").array


def run(scan: Path, out: Path, *extra: str) -> np.ndarray:
    assert segment.main([str(scan), "-m", MODEL, "-o", str(out), "--device", "cpu", *extra]) == 0
    found = read_labels(out)
    assert found.grid.same_as(read_volume(scan).grid)
    return found.array


def test_bundled_model_is_whole_and_small(repo: Path):
    card = model_folder.verify_model(installed.find_model(MODEL))
    assert [label.name for label in card.labels.labels] == ["Anterior hippocampus", "Posterior hippocampus"]
    assert sum(path.stat().st_size for path in installed.find_model(MODEL).iterdir()) < 15e6
    assert any("evaluate" in command for command in card.metrics)
    assert not set(card.provenance["training_cases"]) & set(card.provenance["validation_cases"])


@pytest.mark.parametrize("name", ["cardiac-cine-mr", "headneck-ct", "hippocampus-mr"])
def test_every_bundled_card_says_what_the_network_is_made_of(name: str):
    folder = installed.find_model(name)
    card = model_folder.load_card(folder)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert readme == model_readme(card), "written by `model_readme` from model.json"
    assert network_description(card.config.model) in readme


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_slice_comes_back_as_one_slice(case, tmp_path):
    volume, _ = case
    middle = volume.grid.shape[0] // 2
    part = volume.crop((slice(middle, middle + 1), slice(None), slice(None)))
    write_volume(part, tmp_path / "slice.mha")
    assert run(tmp_path / "slice.mha", tmp_path / "labels.nrrd").shape[0] == 1


@pytest.mark.slow
def test_dicom_folder_comes_back_on_its_own_grid_and_is_doubted(shared, mobile_sam, tmp_path, capsys):
    folder = shared / "data" / "dicom" / "ct_head"
    centre = ",".join(f"{v:.1f}" for v in read_volume(folder).grid.center)
    run(folder, tmp_path / "labels.nii.gz", f"--roi={centre},20,20,20", "--step", "1")
    assert "CT" in capsys.readouterr().out


def held_out(shared: Path, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prepared images and classes of validation cases of the model's fold."""
    card = model_folder.load_card(installed.find_model(MODEL))
    plan, folder = from_dict(Plan, card.plan), shared / "data" / "hippocampus"
    found = []
    for name in card.provenance["validation_cases"][-count:]:
        prepared = preprocess(read_volume(folder / "imagesTr" / f"{name}_0000.nii.gz"), plan)
        labels = read_labels(folder / "labelsTr" / f"{name}.nii.gz")
        classes = preprocess_labels(labels, prepared.record, plan, card.labels)
        found.append((pad_to(prepared.image, plan.patch)[0], pad_to(classes, plan.patch)[0]))
    return found


def mean_dice(network: MaskSAM, cases: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    rows = [click_dice(network, image, classes, network.cfg.patch) for image, classes in cases]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@pytest.mark.slow
def test_clicks_find_the_structure_and_their_condition_helps(shared, mobile_sam, monkeypatch):
    """Without what HyP learned from the prompt, the same weights do worse on held-out cases."""
    network, _ = installed.load_model(installed.find_model(MODEL))
    cases = held_out(shared, 3)
    conditioned = mean_dice(network, cases)
    assert conditioned["click 1"] > 0.75
    assert conditioned["click 3"] > 0.8
    assert conditioned["box"] > 0.75
    whole = network.decoder._condition

    def hidden(*arguments):
        condition, known = whole(*arguments)
        return condition, torch.zeros_like(known)

    monkeypatch.setattr(network.decoder, "_condition", hidden)
    plain = mean_dice(network, cases)
    assert all(plain[name] < conditioned[name] for name in ("click 1", "box"))


@pytest.mark.slow
def test_through_the_worker_a_click_gives_the_structure_and_the_next_needs_no_encoder(case, mobile_sam):
    volume, reference = case
    target = reference == 1
    k, j, i = interior_voxel(target, volume.grid.spacing[::-1])
    with EngineClient(device="cpu", threads=1) as engine:
        opened = engine.open(volume.array, volume.grid.affine, MODEL)
        clicks = [point(i, j, k, scope="volume")]
        found = np.zeros(volume.grid.shape, np.uint8)
        apply(found, engine.prompt(opened, 1, clicks))
        assert dice(found > 0, target) > 0.75
        wrong = np.argwhere((found > 0) != target)[0]
        clicks.append(point(*wrong[::-1].tolist(), positive=bool(target[tuple(wrong)]), scope="volume"))
        before, update = found.copy(), engine.prompt(opened, 1, clicks)
        assert update.encoded == 0
        apply(found, update)
        assert (found[tuple(wrong)] > 0) == target[tuple(wrong)]
        assert update.suggestion.name == "Anterior hippocampus"
        apply(found, engine.prompt(opened, 1, clicks[:1]))
        assert np.array_equal(found, before)
        (box, centre), *_ = engine.automatic(opened, 1, [k])
        assert box["kind"] == "box"
        assert centre["kind"] == "point"
