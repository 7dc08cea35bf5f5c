"""faults.md row 57, for Slicer: the worker fails after part of its output: nothing of it is imported."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from MaskSAMCore.worker.client import EngineClient
from SlicerMaskSAMLib.mrml import bridge
from Testing.slicer import rig as rigs
from Testing.slicer.rig import BRIGHT, Rig, bright, voxels

FAILING = """
import json, os, sys
import numpy as np
from MaskSAMCore.worker.__main__ import parser
folder = parser().parse_args().folder

def block(label, box, shape):
    name = f"{label}" * 32 + ".raw"
    (folder / name).write_bytes(bytes([1]) * int(np.prod(shape)))
    return {"label": label, "name": "?", "box": box, "mask": {"file": name, "dtype": "uint8", "shape": shape}}

for line in sys.stdin:
    m = json.loads(line)
    answer, error = {}, None
    if m["op"] == "hello":
        answer = {"pid": os.getpid(), "device": "none"}
    elif m["op"] == "open":
        shape = m["volume"]["shape"]
        answer = {"id": m["case"], "model": "m", "shape": shape, "axis": 0, "labels": [], "warnings": []}
    elif m["op"] == "segment":
        blocks = [block(1, [0, 2, 0, 3, 0, 4], [2, 3, 4])]
        answer = {"blocks": blocks, "warnings": [], "device": "none", "windows": 1, "seconds": 0}
        exec(HOW)
    print(json.dumps({"id": m["id"], **({"error": error} if error else {"result": answer})}), flush=True)
"""
HOW = {
    "dies after the first structure was written": "os._exit(1)",
    "dies in the middle of its answer": 'sys.stdout.write(\'{"id": 3, "resu\'); sys.stdout.flush(); os._exit(1)',
    "says nothing about the rest": "del answer['warnings']",
    "gives less voxels than it says": "blocks[0]['mask']['shape'] = [9, 9, 9]",
    "gives a structure beyond the volume": "blocks.append(block(2, [0, 2, 0, 3, 99, 103], [2, 3, 4]))",
    "gives a mask that does not fill its box": "blocks.append(block(2, [0, 5, 0, 3, 0, 4], [2, 3, 4]))",
    "gives an error": "error = {'name': 'ResourceError', 'what': 'the disk is full'}",
}


def failing(how: str) -> Callable[[Callable[[dict[str, Any]], None]], EngineClient]:
    """An engine that answers half and then fails."""
    code = f"HOW = {how!r}\n{FAILING}"
    return lambda on_event: EngineClient(command=[sys.executable, "-c", code], on_event=on_event)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_nothing_of_half_an_answer_is_imported(scene: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    monkeypatch.setattr(bridge, "write_segment", lambda *given: written.append(given))
    with Rig(scene, start=failing(HOW[how])) as rig:
        rig.choose(rigs.volume())
        assert rig.segment() is None
        assert rigs.segmentations() == []
        assert rig.status.undo == ""
        assert rig.status.messages
        assert not written, "not even for a moment"


@pytest.mark.parametrize("how", ["dies after the first structure was written", "gives a structure beyond the volume"])
def test_what_was_there_before_is_as_it_was(scene: Any, how: str) -> None:
    with Rig(scene, start=failing(HOW[how])) as rig:
        volume = rig.choose(rigs.volume())
        rig.parameters.segmentation = mine = bridge.new_segmentation(scene, "Mine", volume=volume)
        label = rigs.fake_model("plain").card.labels.labels[0]
        segment_id, grid = bridge.add_segment(mine, label), bridge.geometry(volume)
        bridge.write_segment(mine, segment_id, grid, grid.box, bright(volume))
        assert rig.segment() is mine
        assert list(rigs.segments(mine)) == [BRIGHT]
        np.testing.assert_array_equal(voxels(mine, BRIGHT, volume), bright(volume))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX signals")
def test_a_worker_that_is_killed_once_does_it_again_and_the_result_comes_once(rig: Rig) -> None:
    volume = rig.choose(rigs.volume(), "slow")
    assert rig.working()
    os.kill(rig.worker, signal.SIGKILL)
    assert rig.idle()
    [found] = rigs.segmentations()
    assert rig.has_message("The engine stopped and is being restarted")
    assert len(rigs.segments(found)) == 2
    np.testing.assert_array_equal(voxels(found, BRIGHT, volume), bright(volume))


@pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX signals")
def test_a_worker_that_is_killed_again_and_again_is_given_up(rig: Rig) -> None:
    rig.choose(rigs.volume(), "slow")
    assert rig.working()
    killed: set[int] = set()

    def kill() -> bool:
        engine = rig.engines[-1]
        if rig.status.task and engine.ready and rig.worker not in killed:
            killed.add(rig.worker)
            os.kill(rig.worker, signal.SIGKILL)
        return not rig.status.task

    assert rig.until(kill)
    assert len(killed) > 1
    assert rig.has_message("again and again")
    assert rigs.segmentations() == []
    rig.controller.choose_model("plain")
    assert rig.segment(), "and the next press starts it anew"
