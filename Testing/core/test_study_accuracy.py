"""The table beside nnU-Net: means over the cases that were judged, and over nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore import evaluate
from MaskSAMCore.io.images import write_labels
from MaskSAMCore.volume import Grid, LabelMap

SCRIPT = Path(__file__).resolve().parents[1] / "bench/study_accuracy.py"


def write(path: Path, width: int) -> None:
    """A block of the left 10 of 20 columns, `width` of which were found."""
    array = np.zeros((6, 12, 20), np.uint8)
    array[1:5, 2:10, :width] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(LabelMap(array=array, grid=Grid(shape=array.shape, affine=np.eye(4))), path)


def test_rows_are_means_over_the_judged_cases(tmp_path):
    spec = importlib.util.spec_from_file_location("study_accuracy", SCRIPT)
    assert spec is not None and spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    result, truth = tmp_path / "ours", tmp_path / "judged/labels"
    for case, width in (("a", 10), ("b", 5)):
        write(truth / f"{case}.nii.gz", 10)
        write(result / "found" / f"{case}.nii.gz", width)
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases/dataset.json").write_text(json.dumps({"labels": {"background": 0, "block": 1}}))
    (result / "told.json").write_text(json.dumps({"steps": 7, "minutes": 1.5}))
    evaluate.main([str(result / "found"), str(truth), "-o", str(result / "dice.csv")])
    cells = [cell.strip() for cell in study.line("set", "MaskSAM", result).strip("|").split("|")]
    mean = (1 + 2 * 5 / 15) / 2
    assert cells[:4] == ["set", "MaskSAM", f"block {mean:.3f}", f"{mean:.3f}"]
    assert float(cells[4]) == pytest.approx(2.5)
    assert cells[5:] == ["7", "1.5"]
