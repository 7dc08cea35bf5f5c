"""The state machine: one piece of work at a time, and everything may be called from within it (faults.md row 56)."""

from __future__ import annotations

from typing import Any

import pytest

from MaskSAMCore.errors import InputError
from MaskSAMCore.progress import Cancelled
from SlicerMaskSAMLib.values.status import Phase
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work.state_machine import CANCEL_TIMEOUT_S, StateMachine


class Letter:
    """Something to wait for, answered by hand; a deaf one does not end when it is asked to."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.progress: tuple[int, int, str] | None = None
        self.arrived = self.withdrawn = False
        self._deaf = deaf

    def done(self) -> bool:
        return self.arrived

    def result(self) -> Any:
        return "news"

    def cancel(self) -> None:
        self.withdrawn = True
        self.arrived = self.arrived or not self._deaf


class Desk:
    """A machine with a clock that is moved by hand, and what it did."""

    def __init__(self) -> None:
        self.now = 0.0
        self.messages: list[str] = []
        self.stuck = 0
        self.done: list[str] = []
        self.machine = StateMachine(log=self.messages.append, on_stuck=self.lose_patience, clock=lambda: self.now)

    def lose_patience(self) -> None:
        self.stuck += 1

    def reading(self, letter: Letter) -> Steps:
        try:
            self.done.append((yield letter))
        except Cancelled:
            self.done.append("cancelled")
            raise
        finally:
            self.done.append("left")

    def turn(self, times: int = 5) -> None:
        for _ in range(times):
            self.machine.tick()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_work_runs_from_idle_to_idle(desk: Desk) -> None:
    letter = Letter()
    assert desk.machine.phase is Phase.IDLE
    assert desk.machine.start("segment", desk.reading(letter))
    desk.turn()
    assert (desk.machine.phase, desk.machine.task) == (Phase.WORKING, "segment")
    letter.arrived = True
    desk.turn()
    assert (desk.machine.phase, desk.machine.task) == (Phase.IDLE, "")
    assert desk.done == ["news", "left"]


def test_other_work_cannot_begin_meanwhile(desk: Desk) -> None:
    desk.machine.start("segment", desk.reading(Letter()))
    other = desk.reading(Letter())
    assert not desk.machine.start("teach", other)
    assert desk.machine.task == "segment"
    assert list(other) == [], "it was closed"


def test_cancel_waits_for_the_end_of_the_work(desk: Desk) -> None:
    letter = Letter(deaf=True)
    desk.machine.start("segment", desk.reading(letter))
    desk.turn()
    desk.machine.cancel()
    desk.turn()
    assert letter.withdrawn
    assert desk.machine.phase is Phase.CANCELLING
    assert desk.done == []
    letter.arrived = True
    desk.turn()
    assert desk.machine.phase is Phase.IDLE
    assert desk.done == ["cancelled", "left"]
    assert not desk.stuck


def test_work_that_does_not_stop_is_given_up(desk: Desk) -> None:
    desk.machine.start("segment", desk.reading(Letter(deaf=True)))
    desk.turn()
    desk.machine.cancel()
    desk.now = CANCEL_TIMEOUT_S / 2
    desk.machine.cancel()
    desk.turn()
    assert not desk.stuck
    desk.now = CANCEL_TIMEOUT_S + 1
    desk.turn()
    assert desk.stuck == 1
    assert desk.machine.phase is Phase.IDLE
    assert desk.done == ["left"]


def test_an_error_is_logged_and_ends_the_task(desk: Desk) -> None:
    def failing() -> Steps:
        yield None
        raise InputError("no volume is chosen")

    desk.machine.start("segment", failing())
    desk.turn()
    assert desk.messages == ["no volume is chosen"]
    assert desk.machine.phase is Phase.IDLE


def test_a_bug_ends_the_work_as_well(desk: Desk) -> None:
    def broken() -> Steps:
        yield None
        raise ZeroDivisionError

    desk.machine.start("segment", broken())
    with pytest.raises(ZeroDivisionError):
        desk.turn()
    assert desk.machine.phase is Phase.IDLE
    assert desk.machine.start("segment", desk.reading(Letter()))


def test_a_tick_from_within_a_step_does_nothing(desk: Desk) -> None:
    """What processEvents in the middle of a long call does to the timer."""
    ticks: list[bool] = []

    def handling_events() -> Steps:
        yield None
        ticks.append(desk.machine.tick())
        yield None

    desk.machine.start("segment", handling_events())
    desk.turn()
    assert ticks == [False]
    assert desk.machine.phase is Phase.IDLE


def test_cancel_from_within_a_step_ends_it_at_its_next_rest(desk: Desk) -> None:
    reached: list[str] = []

    def handling_events() -> Steps:
        yield None
        desk.machine.cancel()
        reached.append("the end of the step")
        yield None
        reached.append("the next step")

    desk.machine.start("segment", handling_events())
    desk.turn()
    assert reached == ["the end of the step"]
    assert desk.machine.phase is Phase.IDLE


def test_everything_is_dropped_from_within_a_step(desk: Desk) -> None:
    reached: list[str] = []

    def handling_events() -> Steps:
        yield None
        desk.machine.abandon_all()
        assert desk.machine.phase is Phase.IDLE
        reached.append("the end of the step")
        yield None
        reached.append("the next step")

    desk.machine.start("segment", handling_events())
    desk.turn()
    assert reached == ["the end of the step"]


def test_drop_closes_the_work_and_asks_for_the_end_of_what_it_waits_for(desk: Desk) -> None:
    front, back = Letter(deaf=True), Letter(deaf=True)
    desk.machine.start("segment", desk.reading(front))
    desk.machine.start_background("encode", desk.reading(back))
    desk.turn()
    desk.machine.abandon_all()
    assert front.withdrawn
    assert back.withdrawn
    assert desk.done == ["left", "left"]
    assert desk.machine.phase is Phase.IDLE
    assert desk.machine.background == ""


def test_the_background_keeps_nobody_from_working_and_the_newest_wins(desk: Desk) -> None:
    first, second = Letter(), Letter()
    desk.machine.start_background("encode", desk.reading(first))
    desk.turn()
    desk.machine.start_background("encode", desk.reading(second))
    desk.turn()
    assert first.withdrawn
    assert not second.withdrawn
    assert desk.machine.phase is Phase.IDLE
    assert desk.machine.background == "encode"
    assert desk.machine.start("segment", desk.reading(Letter()))
    desk.machine.abandon_background()
    desk.turn()
    assert second.withdrawn
    assert desk.machine.phase is Phase.WORKING


def test_progress_comes_with_the_time_left(desk: Desk) -> None:
    letter = Letter()
    desk.machine.start("segment", desk.reading(letter))
    desk.turn()
    assert desk.machine.progress is None
    letter.progress = 0, 10, "segmenting"
    assert desk.machine.progress.seconds_left is None
    desk.now += 4
    letter.progress = 2, 10, "segmenting"
    told = desk.machine.progress
    assert (told.done, told.total, told.text, told.seconds_left) == (2, 10, "segmenting", pytest.approx(16))
