"""faults.md rows 47 to 49, for the worker: full memory at any step, too little to begin with, and a GPU that is lost.

It steps down and says so; where there is no step left the request fails by name, and the worker goes on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.commandline import EXIT_DEVICE_LOST
from MaskSAMCore.errors import ResourceError
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.worker.results import Case
from Testing.flood_worker import COMMAND, STEPS
from Testing.toy_model import bright_scan
from Testing.workers import apply, eventually, left, place, point

IN = point(8, 15, 5)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


def flood(**options: object) -> EngineClient:
    return EngineClient(command=COMMAND, device="cpu", threads=1, **options)


def work(engine: EngineClient, model: str) -> tuple[Case, list[str]]:
    """Every kind of work on a scan; returns what was said on the way."""
    volume, block = bright_scan()
    case = engine.open(volume.array, np.eye(4), model)
    said = [*case.warnings]
    mask = np.zeros(case.shape, np.uint8)
    update = engine.prompt(case, 1, [IN])
    apply(mask, update)
    said += update.messages
    update = engine.propagate(case, 1)
    apply(mask, update)
    said += update.messages
    assert np.array_equal(mask, block)
    engine.automatic(case, 3, [5])
    found = engine.segment(case)
    assert found.blocks[0].mask.sum() == block.sum()
    return case, said + list(found.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_memory_is_full_once(temporary: Path, step: str) -> None:
    with flood() as engine:
        pid = engine.hello["pid"]
        case, said = work(engine, f"{step}:1:OutOfMemoryError")
        assert step == "forward" or any("memory is full" in text for text in said), "it says what it gave up"
        engine.release(case)
        assert engine.hello["pid"] == pid
        assert [path.name for path in left(temporary)[1:]] == [".owner"]
    assert left(temporary) == []


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_memory_stays_full(temporary: Path, step: str) -> None:
    with flood() as engine:
        good, _ = work(engine, "toy")
        pid = engine.hello["pid"]
        for _ in range(2):
            with pytest.raises(ResourceError, match="memory is full"):
                work(engine, f"{step}:99:OutOfMemoryError")
            assert [path.name for path in left(temporary)[1:]] == [".owner"]
        assert engine.prompt(good, 1, [IN | {"scope": "volume"}]).box is None, "what was open stays as it was"
        work(engine, "prompted:0:OutOfMemoryError")
        assert engine.hello["pid"] == pid
    assert left(temporary) == []


@pytest.mark.slow
def test_memory_that_is_full_leaves_a_structure_as_it_was(temporary: Path) -> None:
    volume, _ = bright_scan()
    with flood() as engine:
        case = engine.open(volume.array, np.eye(4), "toy")
        engine.prompt(case, 1, [IN])
        engine.open(volume.array, np.eye(4), "prompted:99:OutOfMemoryError")
        bad = engine.open(volume.array, np.eye(4), "prompted:2:OutOfMemoryError")
        with pytest.raises(ResourceError, match="memory is full"):
            engine.prompt(bad, 1, [IN])
        assert engine.prompt(bad, 1, [IN]).voxels == 400
        assert engine.prompt(case, 1, [IN]).box is None


@pytest.mark.slow
def test_too_little_memory_to_begin_with(temporary: Path) -> None:
    volume, _ = bright_scan()
    with flood() as engine:
        with pytest.raises(ResourceError, match="not enough memory") as error:
            engine.open(volume.array, np.eye(4), "ram")
        assert "GiB needed" in error.value.why
        assert [path.name for path in left(temporary)[1:]] == [".owner"]
        work(engine, "toy")


@pytest.mark.slow
def test_a_lost_gpu_ends_the_process_and_the_work_is_done_again_once(temporary: Path) -> None:
    events: list[dict] = []
    volume, _ = bright_scan()
    with flood(on_event=events.append) as engine:
        good = engine.open(volume.array, np.eye(4), "toy")
        engine.prompt(good, 1, [IN])
        bad = engine.open(volume.array, np.eye(4), "prompted:1:AcceleratorError")
        with pytest.raises(ResourceError, match="the GPU was lost"):  # every new process loses it again
            engine.prompt(bad, 1, [IN])
        assert [event["event"] for event in events].count("restarting") == 1
        assert eventually(lambda: left(temporary) == [])
        engine.release(bad)
        assert engine.prompt(good, 1, [IN]).box is None
    assert left(temporary) == []
    assert EXIT_DEVICE_LOST == 3
