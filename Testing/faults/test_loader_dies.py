"""faults.md row 44: the thread that makes batches fails; its error and case reach the user, nothing hangs."""

from __future__ import annotations

import threading

import pytest

from MaskSAMCore import train
from MaskSAMCore.training.batches import prefetch
from Testing.runs import arguments


def test_exception_reaches_the_consumer_after_the_good_batches():
    def batch(step):
        if step == 2:
            raise ValueError("case_017 is broken")
        return step

    received = []
    with pytest.raises(ValueError, match="case_017") as error:
        received.extend(prefetch(batch, range(5)))
    assert received == [0, 1]
    assert any(entry.name == "batch" for entry in error.traceback)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    batches = prefetch(lambda step: step, range(1000))
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_broken_case_is_named_by_the_command(phantom_data, straight_run, tmp_path, capsys):
    import shutil

    cache = tmp_path / "cache"
    shutil.copytree(straight_run / "cache", cache)
    for path in cache.glob("cases/*.image.npy"):
        path.write_bytes(path.read_bytes()[:200])
    settings = ("train.frozen_epochs=0",)
    assert train.main(arguments(cache, tmp_path / "run", settings=settings)) == 2
    assert "case_0" in capsys.readouterr().err
