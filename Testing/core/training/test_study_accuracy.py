"""The table beside nnU-Net: means over the cases that were judged and over nothing else, and the peer's clock."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from MaskSAMCore import evaluate
from MaskSAMCore.io.images import write_labels
from MaskSAMCore.volume import Grid, LabelMap
from Testing.bench import peer_nnunet, study_accuracy


def write(path: Path, width: int) -> None:
    """A block of the left 10 of 20 columns, `width` of which were found."""
    array = np.zeros((6, 12, 20), np.uint8)
    array[1:5, 2:10, :width] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(LabelMap(array=array, grid=Grid(shape=array.shape, affine=np.eye(4))), path)


def test_rows_are_means_over_the_judged_cases(tmp_path):
    result, truth = tmp_path / "ours", tmp_path / "judged/labels"
    for case, width in (("a", 10), ("b", 5)):
        write(truth / f"{case}.nii.gz", 10)
        write(result / "found" / f"{case}.nii.gz", width)
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases/dataset.json").write_text(json.dumps({"labels": {"background": 0, "block": 1}}))
    (result / "told.json").write_text(json.dumps({"steps": 7, "minutes": 1.5}))
    evaluate.main([str(result / "found"), str(truth), "-o", str(result / "dice.csv")])
    cells = [cell.strip() for cell in study_accuracy.line("set", "MaskSAM", result).strip("|").split("|")]
    mean = (1 + 2 * 5 / 15) / 2
    assert cells[:4] == ["set", "MaskSAM", f"block {mean:.3f}", f"{mean:.3f}"]
    assert float(cells[4]) == pytest.approx(2.5)
    assert cells[5:] == ["7", "1.5"]


class Loop:
    """What of nnU-Net's trainer the clock touches, in its order: epochs of steps, each of which takes seconds."""

    initial_lr = 0.01

    def __init__(self, seconds: list[float]) -> None:
        self.now, self.seconds, self.rates, self.ended = 100.0, iter(seconds), [], False
        self.num_epochs = self.num_val_iterations_per_epoch = 0

    def initialize(self) -> None:
        self.optimizer = SimpleNamespace(param_groups=[{"lr": self.initial_lr}])

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.now += next(self.seconds)
        return batch

    def run_training(self) -> None:
        for _ in range(self.num_epochs):
            for _ in range(250):
                self.train_step({})
        self.on_train_end()

    def on_train_end(self) -> None:
        self.ended = True


def test_nnunet_ends_by_the_clock_and_its_rate_falls_with_it(monkeypatch):
    loop = Loop([10, 20, 30, 20, 5, 5])
    monkeypatch.setattr(peer_nnunet.time, "monotonic", lambda: loop.now)
    # After 80 of the 95 seconds another step like the last one, of 20, would be too long.
    assert peer_nnunet.train(loop, end=195.0) == 4
    assert loop.ended
    shares = (0, 10 / 95, 30 / 95, 60 / 95)
    assert loop.rates == pytest.approx([0.01 * (1 - share) ** 0.9 for share in shares])
