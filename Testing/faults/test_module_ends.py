"""faults.md row 58, for Slicer: cancel, module reload and the end of the application end the whole process tree."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from SlicerMaskSAMLib.values.status import Phase
from SlicerMaskSAMLib.work import state_machine
from Testing.slicer import rig as rigs
from Testing.slicer.rig import Rig
from Testing.workers import alive, eventually, left, place, script

pytestmark = pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX processes")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


@pytest.fixture
def parent(temporary: Path, rig: Rig, views: object) -> int:
    """Process ID of what the worker started itself, and would leave behind."""
    view = views.slice("Red", "Axial")
    view.show(rig.choose(rigs.volume(), "parent"))
    rig.controller.click((12, 10, 3), True, view.node)
    assert rig.until(lambda: (temporary / "child").is_file() and not rig.status.task)
    child = int((temporary / "child").read_text())
    assert alive(child)
    return child


@pytest.mark.slow
def test_the_end_of_the_module_ends_all(temporary: Path, rig: Rig, parent: int) -> None:
    worker = rig.worker
    rig.controller.close()
    assert not alive(worker)
    assert eventually(lambda: not alive(parent))
    assert left(temporary) == []


def test_reload_ends_the_old_process_and_starts_a_new_one(temporary: Path, rig: Rig, parent: int) -> None:
    worker = rig.worker
    rig.controller.close()
    with Rig(rig.scene) as reloaded:
        assert not alive(worker)
        assert eventually(lambda: not alive(parent))
        reloaded.choose(rig.parameters.inputVolume)
        assert reloaded.segment()
        assert reloaded.worker != worker
    assert left(temporary) == []


def test_cancel_leaves_the_worker_and_ends_its_work(temporary: Path, rig: Rig) -> None:
    rig.choose(rigs.volume(), "slow")
    assert rig.working()
    worker = rig.worker
    rig.controller.cancel()
    assert rig.idle()
    assert alive(worker)
    assert rigs.segmentations() == []
    rig.controller.choose_model("plain")
    assert rig.segment()
    assert rig.worker == worker


def test_cancel_of_work_that_does_not_stop_ends_the_process(
    temporary: Path, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.choose(rigs.volume(), "deaf")
    assert rig.working()
    worker = rig.worker
    monkeypatch.setattr(state_machine, "CANCEL_TIMEOUT_S", 0.1)
    rig.controller.cancel()
    assert rig.status.phase is Phase.CANCELLING
    assert rig.idle()
    assert rig.has_message("did not stop and was shut down")
    assert eventually(lambda: not alive(worker))
    assert rigs.segmentations() == []
    rig.controller.choose_model("plain")
    assert rig.segment()
    assert rig.worker != worker


APPLICATION = """
import sys, time
from Testing.slicer import environment
sys.path.insert(0, "SlicerMaskSAM")
scene = environment.start()
from Testing.slicer.rig import Rig, volume
rig = Rig(scene)
rig.choose(volume(), "slow")
assert rig.working()
print(rig.worker, flush=True)
END
"""
ENDS = {"leaves": "sys.exit()", "fails": "raise RuntimeError('on purpose')", "is killed": "time.sleep(600)"}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_the_application_ends_the_worker(temporary: Path, end: str) -> None:
    application = script(APPLICATION.replace("END", ENDS[end]))
    try:
        worker = int(application.stdout.readline())
        if end == "is killed":
            assert alive(worker)
            os.kill(application.pid, signal.SIGKILL)
        application.wait(60)
        assert eventually(lambda: not alive(worker))
        assert eventually(lambda: left(temporary) == [])
    finally:
        application.kill()
        application.stdout.close()
