"""faults.md row 46: SIGKILL at a random moment, also within a checkpoint's bytes; resuming gives the same weights."""

from __future__ import annotations

import csv
import random
import shutil
import time

import pytest

from MaskSAMCore import train
from MaskSAMCore.training.loop import Trainer
from Testing.runs import arguments, assert_equal, final, start, wait_for_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [0, 1])
def test_killed_and_resumed_ends_with_the_same_weights(phantom_data, straight_run, tmp_path, attempt):
    run = tmp_path / "run"
    process = start(arguments(phantom_data, run))
    wait_for_checkpoint(process, run)
    time.sleep(random.uniform(0, 1.5))
    process.kill()
    process.communicate()
    assert train.main(arguments(phantom_data, run, "--resume")) == 0
    assert_equal(final(straight_run), final(run))
    assert (run / "metrics.csv").read_text().count("\n") == 4


class _Killed(BaseException):
    """In place of SIGKILL, at a place that no timer finds."""


@pytest.mark.slow
def test_killed_right_after_a_checkpoint_keeps_its_row(phantom_data, straight_run, tmp_path, monkeypatch):
    run, save = tmp_path / "run", Trainer.save

    def save_and_die(trainer: Trainer) -> None:
        save(trainer)
        raise _Killed

    monkeypatch.setattr(Trainer, "save", save_and_die)
    with pytest.raises(_Killed):
        train.main(arguments(phantom_data, run))
    monkeypatch.undo()
    assert train.main(arguments(phantom_data, run, "--resume")) == 0
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert_equal(final(straight_run), final(run))


@pytest.mark.slow
def test_torn_checkpoint_is_passed_over(phantom_data, straight_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(straight_run, run)
    newest = max((run / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    assert train.main(arguments(phantom_data, run, "--resume")) == 0
    assert f"skipped: {newest}" in capsys.readouterr().out
    assert_equal(final(straight_run), final(run))
