"""faults.md row 56: one state machine, whatever comes in through processEvents; a second press is Cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.values.status import Phase
from Testing.slicer import rig as rigs
from Testing.slicer.rig import BRIGHT, CORNER, Rig, bright, voxels


def in_the_middle(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]) -> list[str]:
    """Let something happen while the first structure is being written, as events do that Slicer handles in a long call.

    Returns:
        One entry per time that it happened.
    """
    times: list[str] = []
    write = bridge.write_segment

    def write_slowly(*given: Any) -> None:
        if not times:
            times.append("happened")
            happens()
        write(*given)

    monkeypatch.setattr(bridge, "write_segment", write_slowly)
    return times


def test_two_presses_at_once_do_nothing(rig: Rig) -> None:
    rig.choose(rigs.volume())
    rig.controller.segment()
    rig.controller.segment()
    assert rig.idle()
    assert rigs.segmentations() == []
    assert "segment" not in rig.asked


@pytest.mark.slow
@pytest.mark.parametrize("presses", [2, 3, 4])
def test_any_number_of_presses_ends_in_one_run_or_none(rig: Rig, presses: int) -> None:
    rig.choose(rigs.volume(), "slow")
    for _ in range(presses):
        rig.controller.segment()
        rig.controller.tick()
    assert rig.idle()
    assert rig.asked.count("segment") <= 1
    assert len(rigs.segmentations()) <= 1


def test_a_press_while_it_is_cancelled_changes_nothing(rig: Rig) -> None:
    rig.choose(rigs.volume(), "slow")
    assert rig.working()
    rig.controller.segment()
    rig.controller.segment()
    assert rig.status.phase is Phase.CANCELLING
    assert rig.idle()
    assert rigs.segmentations() == []


def test_the_timer_turns_in_the_middle_of_a_step(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = rig.choose(rigs.volume())
    times = in_the_middle(monkeypatch, lambda: [rig.controller.tick() for _ in range(3)] and None)
    found = rig.segment()
    assert times
    assert list(rigs.segments(found)) == [CORNER, BRIGHT]
    np.testing.assert_array_equal(voxels(found, BRIGHT, volume), bright(volume))


def test_segment_is_pressed_in_the_middle_of_a_step(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.choose(rigs.volume())
    times = in_the_middle(monkeypatch, rig.controller.segment)
    rig.controller.segment()
    assert rig.idle()
    assert times
    assert rigs.segmentations() == [], "it was cancelled, and nothing of it stays"
    assert rig.status.undo == ""
    assert rig.segment()


def test_other_buttons_are_pressed_in_the_middle_of_a_step(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.choose(rigs.volume())

    def press() -> None:
        rig.controller.volumes_table()
        rig.controller.undo()
        rig.controller.choose_model("slow")
        rig.controller.set_wanted([CORNER], False)

    times = in_the_middle(monkeypatch, press)
    found = rig.segment()
    assert times
    assert list(rigs.segments(found)) == [CORNER, BRIGHT], "as it was ordered"
    assert rig.has_message("wait until it is done, or cancel")


def test_the_module_ends_in_the_middle_of_a_step(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.choose(rigs.volume())
    times = in_the_middle(monkeypatch, rig.controller.close)
    rig.controller.segment()
    assert rig.until(lambda: times)
    assert rig.status.phase is Phase.IDLE
    assert rig.status.undo == ""
