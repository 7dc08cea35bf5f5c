"""faults.md row 53: the scene is closed in the middle of a run."""

from __future__ import annotations

from typing import Any

import pytest

from MaskSAMCore.errors import MaskSAMError
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.status import Phase
from Testing.slicer import rig as rigs
from Testing.slicer.rig import Rig
from Testing.workers import LONG_S


def reset(rig: Rig) -> bool:
    """Whether nothing is left of the old scene: no work, no nodes, nothing to undo; with a message."""
    now = rig.status
    return (
        (now.phase, now.task, now.progress, now.undo, now.prompts) == (Phase.IDLE, "", None, "", ())
        and rigs.segmentations() == []
        and now.messages == ("Segmenting was stopped: the scene was closed.",)
    )


def test_while_the_engine_works(rig: Rig) -> None:
    rig.controller.segment()
    assert rig.status.messages, "about the lack of a volume; it goes with the scene"
    rig.choose(rigs.volume(), "slow")
    assert rig.working()
    [case] = rig.engines[0]._log.cases
    [job] = [job for job in rig.engines[0]._jobs.values() if job.op == "segment"]
    rig.scene.Clear(False)
    assert reset(rig)
    assert rig.asked[-1] == "release"
    with pytest.raises(MaskSAMError, match="cancelled"):
        job.result(LONG_S)
    for _ in range(5):
        rig.controller.tick()
    assert reset(rig), "and nothing comes later"
    with pytest.raises(MaskSAMError, match="no such case"):
        rig.engines[0].submit("encode", case=case).result(LONG_S)


def test_while_the_scan_is_being_opened(rig: Rig) -> None:
    rig.choose(rigs.volume())
    rig.controller.segment()
    rig.controller.tick()
    rig.scene.Clear(False)
    assert reset(rig)
    assert rig.idle()
    assert "segment" not in rig.asked
    assert reset(rig)


def test_while_structures_arrive(rig: Rig) -> None:
    volume = rig.choose(rigs.volume())
    rig.controller.segment()
    assert rig.until(lambda: any(rigs.segments(node) for node in rigs.segmentations()))
    half = rigs.segmentations()[0]
    rig.scene.Clear(False)
    assert reset(rig)
    for _ in range(5):
        rig.controller.tick()
    assert reset(rig)
    assert len(rigs.segments(half)) == 1, "the rest went nowhere"
    assert bridge.geometry(volume), "the old nodes can still be read by whoever holds them"


def test_from_within_a_step(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slicer handles events in the middle of a long call, and the user closes the scene just then."""
    rig.choose(rigs.volume())
    write = bridge.write_segment

    def write_and_close(*given: Any) -> None:
        monkeypatch.setattr(bridge, "write_segment", write)
        rig.scene.Clear(False)
        write(*given)

    monkeypatch.setattr(bridge, "write_segment", write_and_close)
    rig.controller.segment()
    assert rig.until(lambda: bridge.write_segment is write)
    assert rig.idle()
    assert reset(rig)


def test_while_a_click_is_answered(rig: Rig, views: Any) -> None:
    view = views.slice("Red", "Axial")
    view.show(rig.choose(rigs.volume()))
    rig.controller.click((12, 10, 3), True, view.node)
    assert rig.until(lambda: "prompt" in rig.asked)
    rig.scene.Clear(False)
    assert rig.status.messages == ("Answering was stopped: the scene was closed.",)
    assert rig.idle()
    assert rigs.segmentations() == []
    assert rig.status.undo == ""


def test_the_next_scene_works_at_once(rig: Rig) -> None:
    rig.choose(rigs.volume(), "slow")
    assert rig.working()
    rig.scene.Clear(False)
    rig.parameters = rigs.parameters()
    rig.controller.set_parameters(rig.parameters)
    rig.choose(rigs.volume())
    assert len(rigs.segments(rig.segment())) == 2
    assert len(rig.engines) == 1, "by the same process"
