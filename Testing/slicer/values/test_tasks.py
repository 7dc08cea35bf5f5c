"""Tasks: work that waits without blocking."""

from __future__ import annotations

from typing import Any

import pytest

from MaskSAMCore.errors import InputError, MaskSAMError
from MaskSAMCore.progress import Cancelled
from SlicerMaskSAMLib.values.tasks import Steps, Task


class Letter:
    """Something to wait for, answered by hand."""

    def __init__(self) -> None:
        self.progress: tuple[int, int, str] | None = None
        self.answer: Any = None
        self.arrived = self.withdrawn = False

    def done(self) -> bool:
        return self.arrived

    def result(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def cancel(self) -> None:
        self.withdrawn = True

    def arrive(self, answer: Any) -> None:
        self.answer, self.arrived = answer, True


class Desk:
    """Tasks with a record of what they did and of what went wrong."""

    def __init__(self) -> None:
        self.record: list[Any] = []
        self.errors: list[MaskSAMError] = []

    def task(self, steps: Steps) -> Task:
        return Task("test", steps, on_error=self.errors.append)

    def read(self, *letters: Letter) -> Steps:
        try:
            for letter in letters:
                self.record.append((yield letter))
        except Cancelled:
            self.record.append("cancelled")
            raise
        finally:
            self.record.append("closed")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_it_goes_on_when_what_it_waits_for_is_done(desk: Desk) -> None:
    first, second = Letter(), Letter()
    task = desk.task(desk.read(first, second))
    assert task.tick()
    assert not task.tick()
    assert desk.record == []
    first.arrive("one")
    assert task.tick()
    assert desk.record == ["one"]
    assert not task.ended
    second.arrive("two")
    assert task.tick()
    assert desk.record == ["one", "two", "closed"]
    assert task.ended
    assert not task.tick()


def test_none_gives_way_once(desk: Desk) -> None:
    def steps() -> Steps:
        for number in range(2):
            desk.record.append(number)
            yield None

    task = desk.task(steps())
    task.tick()
    assert desk.record == [0]
    task.tick()
    assert desk.record == [0, 1]


def test_an_error_is_thrown_into_the_steps_and_reported_if_it_leaves_them(desk: Desk) -> None:
    letter = Letter()
    task = desk.task(desk.read(letter))
    task.tick()
    letter.arrive(InputError("no such scan"))
    task.tick()
    assert task.ended
    assert [error.what for error in desk.errors] == ["no such scan"]
    assert desk.record == ["closed"]


def test_steps_may_catch_an_error_and_go_on(desk: Desk) -> None:
    def steps() -> Steps:
        try:
            yield lost
        except InputError:
            desk.record.append((yield spare))

    lost, spare = Letter(), Letter()
    task = desk.task(steps())
    task.tick()
    lost.arrive(InputError("lost"))
    task.tick()
    spare.arrive("spare")
    task.tick()
    assert task.ended
    assert desk.record == ["spare"]
    assert desk.errors == []


def test_cancel_asks_what_it_waits_for_and_ends_the_steps_without_an_error(desk: Desk) -> None:
    letter = Letter()
    task = desk.task(desk.read(letter))
    task.tick()
    task.cancel()
    assert letter.withdrawn
    assert not task.tick()
    assert not task.ended
    letter.arrive("too late")
    task.tick()
    assert task.ended
    assert desk.record == ["cancelled", "closed"]
    assert desk.errors == []


def test_cancelled_before_its_first_step_it_does_nothing(desk: Desk) -> None:
    task = desk.task(desk.read(Letter()))
    task.cancel()
    task.tick()
    assert task.ended
    assert desk.record == []


def test_abandoned_it_ends_at_once(desk: Desk) -> None:
    letter = Letter()
    task = desk.task(desk.read(letter))
    task.tick()
    task.abandon()
    assert letter.withdrawn
    assert task.ended
    assert desk.record == ["closed"]
    assert not task.tick()


def test_its_progress_is_that_of_what_it_waits_for(desk: Desk) -> None:
    letter = Letter()
    task = desk.task(desk.read(letter))
    assert task.progress is None
    task.tick()
    letter.progress = (1, 4, "encoding")
    assert task.progress == (1, 4, "encoding")


def test_a_mistake_of_the_program_is_not_hidden(desk: Desk) -> None:
    def steps() -> Steps:
        yield None
        raise ZeroDivisionError

    task = desk.task(steps())
    task.tick()
    with pytest.raises(ZeroDivisionError):
        task.tick()
    assert task.ended
