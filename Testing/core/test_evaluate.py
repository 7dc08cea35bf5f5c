"""`python -m MaskSAMCore.evaluate`: pairs of folders, a model on a fold, the table and its means."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore import evaluate
from MaskSAMCore.data.splits import folds
from MaskSAMCore.io.images import read_labels, write_labels, write_volume
from MaskSAMCore.labels import PALETTE, Label, LabelTable
from MaskSAMCore.volume import Grid, LabelMap
from MaskSAMCore.zoo import model_folder
from Testing.toy_model import Threshold, bright_scan, make_card

TABLE = LabelTable(labels=(Label(id=1, name="bright", color=PALETTE[0]), Label(id=2, name="absent", color=PALETTE[1])))


def label_map(*blocks: tuple[int, tuple[slice, ...]], spacing: float = 1.0) -> LabelMap:
    array = np.zeros((10, 20, 20), np.uint8)
    for number, block in blocks:
        array[block] = number
    return LabelMap(array=array, grid=Grid(shape=array.shape, affine=np.diag([spacing, 1.0, 1.0, 1.0])))


CUBE = (slice(2, 8), slice(4, 12), slice(4, 12))
MOVED = (slice(2, 8), slice(4, 12), slice(6, 14))


def run(*arguments: object) -> int:
    return evaluate.main([str(a) for a in arguments])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases: one shifted by two voxels, one missed, with a second label that is only predicted."""
    predictions, references = tmp_path / "predictions", tmp_path / "labelsTr"
    predictions.mkdir()
    references.mkdir()
    write_labels(label_map((1, MOVED)), predictions / "a.nii.gz")
    write_labels(label_map((1, MOVED)), predictions / "a.seg.nrrd")
    write_labels(label_map((1, CUBE)), references / "a.nii.gz")
    write_labels(label_map((2, CUBE)), predictions / "b.nii.gz")
    write_labels(label_map((1, CUBE)), references / "b.nii.gz")
    return predictions, references


def test_table_holds_every_case_and_label_and_their_means(folders, tmp_path, capsys):
    assert run(*folders, "-o", tmp_path / "table.csv") == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    cases = {(r["case"], r["label"]): r for r in rows if r["case"] not in ("mean", "std")}
    assert set(cases) == {("a", "1"), ("b", "1"), ("b", "2")}
    assert float(cases["a", "1"]["dice"]) == pytest.approx(0.75)
    assert float(cases["a", "1"]["hd95"]) == pytest.approx(2.0)
    assert cases["b", "1"]["dice"] == "0"
    assert cases["b", "1"]["hd95"] == ""
    means = {r["label"]: r for r in rows if r["case"] == "mean"}
    assert float(means["1"]["dice"]) == pytest.approx(0.375)
    assert float(means["1"]["hd95"]) == pytest.approx(2.0)
    assert (means["1"]["cases"], means["1"]["one_sided"]) == ("2", "1")
    assert float(means[""]["dice"]) == pytest.approx(0.25)
    said = capsys.readouterr().out
    assert "0.750" in said
    assert "0.375" in said
    assert "NSD within 1 mm" in said


def test_names_come_from_the_dataset_beside_the_references(folders, tmp_path, capsys):
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MRI"}, "labels": {"background": 0, "cube": 1, "ghost": 2, "never": 3}})
    )
    (tmp_path / "imagesTr").mkdir()
    assert run(*folders, "-o", tmp_path / "table.csv", "--tolerance", "2") == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert {r["structure"] for r in rows} == {"cube", "ghost", "never", "all"}
    never = [r for r in rows if r["structure"] == "never"]
    assert all(r["dice"] == "" for r in never)
    assert never[-1]["cases"] == "0"
    assert "NSD within 2 mm" in capsys.readouterr().out


def test_missing_predictions_are_all_named(folders, capsys):
    predictions, references = folders
    for name in ("a.nii.gz", "a.seg.nrrd", "b.nii.gz"):
        (predictions / name).unlink()
    write_labels(label_map(), predictions / "c.nii.gz")
    assert run(predictions, references) == 2
    said = capsys.readouterr().err
    assert "a: " in said
    assert "b: " in said


def test_pairs_on_different_grids_are_refused(folders, capsys):
    predictions, references = folders
    write_labels(label_map((1, CUBE), spacing=2.0), predictions / "b.nii.gz", overwrite=True)
    assert run(predictions, references) == 2
    assert "b.nii.gz" in capsys.readouterr().err


def test_folders_that_are_none_and_tables_that_exist(folders, tmp_path, capsys):
    assert run(tmp_path / "no", folders[1]) == 2
    (tmp_path / "empty").mkdir()
    assert run(folders[0], tmp_path / "empty") == 2
    (tmp_path / "table.csv").write_text("mine")
    assert run(*folders, "-o", tmp_path / "table.csv") == 2
    assert (tmp_path / "table.csv").read_text() == "mine"
    assert run(*folders, "-o", tmp_path / "table.csv", "--overwrite") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["one"],
        ["a", "b", "c"],
        ["a", "b", "--fold", "0"],
        ["a", "b", "--model", "m"],
        ["a", "b", "--worst", "w"],
    ],
)
def test_wrong_options_end_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        evaluate.main(arguments)
    assert caught.value.code == 2


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six bright blocks, the threshold as model, trained on three folds with seed 7."""
    folder = tmp_path / "data"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for index in range(6):
        volume, block = bright_scan((8, 24, 24), at=(slice(2, 6), slice(6, 12), slice(4 + index, 12 + index)))
        write_volume(volume, folder / "imagesTr" / f"case{index}_0000.nii.gz")
        write_labels(
            LabelMap(array=block.astype(np.uint8), grid=volume.grid), folder / "labelsTr" / f"case{index}.nii.gz"
        )
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MRI"}, "labels": {"background": 0, "bright": 1, "absent": 2}})
    )
    card = make_card(labels=TABLE)
    config = card.config
    config = replace(config, data=replace(config.data, split_seed=7), train=replace(config.train, folds=3))
    card = replace(card, config=config)
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", lambda name, device, **_: (ThreeClasses(), card))
    return folder


class ThreeClasses(Threshold):
    """The threshold's two classes and one that is never found."""

    def segment_patch(self, image):
        import torch

        scores = super().segment_patch(image)
        return torch.cat([scores, torch.zeros_like(scores[:, :1])], dim=1)


def test_a_model_is_judged_on_the_validation_cases_of_its_fold(dataset, tmp_path, capsys):
    assert run("--model", "toy", dataset, "--fold", "1", "-o", tmp_path / "t.csv", "--device", "cpu") == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    expected = folds([f"case{i}" for i in range(6)], 3, 7)[1].val
    assert {r["case"] for r in rows} - {"mean", "std"} == set(expected)
    assert [float(r["dice"]) for r in rows if r["case"] == "mean" and r["label"] == "1"] == [1.0]
    assert [r["dice"] for r in rows if r["case"] == "mean" and r["label"] == "2"] == [""]
    assert "Device: CPU" in capsys.readouterr().out


def test_chosen_cases_and_mirroring(dataset, tmp_path):
    assert run("--model", "toy", dataset, "--cases", "case3", "case1", "--tta", "-o", tmp_path / "t.csv") == 0
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    assert [r["case"] for r in rows if r["label"] == "1"] == ["case1", "case3", "mean", "std"]


def test_the_worst_cases_are_drawn(dataset, tmp_path, capsys):
    case = dataset / "labelsTr/case4.nii.gz"
    wrong = read_labels(case)
    write_labels(LabelMap(array=np.roll(wrong.array, 6, axis=1), grid=wrong.grid), case, overwrite=True)
    assert run("--model", "toy", dataset, "--worst", tmp_path / "worst") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Worst:")]
    assert len(lines) == 3
    assert "case4, mean Dice 0.000" in lines[0]
    assert "mean Dice 1.000" in lines[1]
    assert {p.name for p in (tmp_path / "worst").iterdir()} == {line.split()[-1].split("/")[-1] for line in lines}


def test_explicit_splits_of_the_dataset_win(dataset, tmp_path):
    (dataset / "splits.json").write_text(json.dumps([{"train": ["case0", "case1"], "val": ["case5"]}]))
    assert run("--model", "toy", dataset, "--fold", "0", "-o", tmp_path / "t.csv") == 0
    assert "case5" in (tmp_path / "t.csv").read_text()
    assert "case4" not in (tmp_path / "t.csv").read_text()


@pytest.mark.parametrize("options", [["--fold", "9"], ["--fold", "-1"], ["--cases", "case9"]])
def test_folds_and_cases_that_do_not_exist(dataset, options, capsys):
    assert run("--model", "toy", dataset, *options) == 2
    assert "no such" in capsys.readouterr().err


def test_a_model_of_other_labels_is_refused(dataset, monkeypatch, capsys):
    card = make_card()
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", lambda name, device, **_: (Threshold(), card))
    assert run("--model", "toy", dataset, "--fold", "0") == 2
    assert "labels" in capsys.readouterr().err


@pytest.mark.slow
def test_figures_are_written_into_the_card(phantom_data, straight_run, tmp_path, capsys):
    model = shutil.copytree(straight_run / "model", tmp_path / "model")
    before = model_folder.load_card(model)
    assert run("--model", model, phantom_data, "--fold", "0", "--step", "1", "--record", "--device", "cpu") == 0
    card = model_folder.verify_model(model)
    command = next(key for key in card.metrics if "evaluate" in key)
    assert str(tmp_path) not in command
    assert "--record" not in command
    assert "--fold 0" in command
    assert card.metrics[command]["ball"]["cases"] == 1
    assert set(before.metrics) < set(card.metrics)
    assert command in (model / "README.md").read_text()


@pytest.mark.slow
def test_labels_of_other_names_are_compared_by_number(phantom_data, straight_run, tmp_path, capsys):
    data = shutil.copytree(phantom_data, tmp_path / "data")
    description = json.loads((data / "dataset.json").read_text())
    description["labels"] = {"background": 0, "sphere": 1, "cube": 2}
    (data / "dataset.json").write_text(json.dumps(description))
    assert run("--model", straight_run / "model", data, "--fold", "0", "--step", "1", "--device", "cpu") == 0
    assert "compared by number" in capsys.readouterr().out
