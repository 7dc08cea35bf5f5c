"""faults.md row 58, for the worker: cancel, close and the end of the program end the process tree."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.progress import Cancelled
from Testing.workers import LONG_S, alive, eventually, fake, left, place, point, scan

pytestmark = pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX process groups")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


@pytest.mark.parametrize("end", ["close", "kill"])
def test_what_the_worker_started_ends_with_it(temporary: Path, end: str) -> None:
    with fake() as engine:
        case = engine.open(scan(), np.eye(4), "parent")
        engine.prompt(case, 1, [point(5, 5, 2)])
        child, worker = int((temporary / "child").read_text()), engine.hello["pid"]
        assert alive(child)
        if end == "kill":
            os.kill(worker, signal.SIGKILL)
            assert eventually(lambda: not alive(child))
    assert eventually(lambda: not alive(child))
    assert not alive(worker)
    assert left(temporary) == []


def test_close_does_not_wait_for_work_that_cannot_be_cancelled(temporary: Path) -> None:
    engine = fake()
    case = engine.open(scan(), np.eye(4), "deaf")
    job = engine.submit("segment", case=case)
    assert eventually(lambda: job.progress)
    job.cancel()
    worker = engine.hello["pid"]
    engine.close()
    assert job.done()
    assert not alive(worker)
    assert left(temporary) == []


@pytest.mark.slow
def test_close_ends_even_a_worker_that_does_not_run(temporary: Path) -> None:
    engine = fake()
    worker = engine.hello["pid"]
    os.kill(worker, signal.SIGSTOP)
    engine.close()
    assert not alive(worker)
    assert left(temporary) == []


def test_cancel_leaves_the_worker_and_its_state_alone(temporary: Path) -> None:
    with fake() as engine:
        worker, case = engine.hello["pid"], engine.open(scan(), np.eye(4), "slow")
        engine.prompt(case, 1, [point(5, 5, 2)])
        for _ in range(5):
            job = engine.encode(case)
            assert eventually(lambda job=job: job.progress)
            job.cancel()
            with pytest.raises(Cancelled):
                job.result(LONG_S)
        assert engine.hello["pid"] == worker
        assert engine.prompt(case, 1, [point(5, 5, 2)]).box is None
    assert left(temporary) == []
