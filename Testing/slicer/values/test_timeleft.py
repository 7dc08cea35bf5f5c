"""How long work will still take."""

from __future__ import annotations

import pytest

from SlicerMaskSAMLib.values.timeleft import TimeLeft


class Clock:
    """Seconds, moved on by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def left(clock: Clock) -> TimeLeft:
    return TimeLeft(clock)


def test_there_is_no_estimate_before_enough_progress(left: TimeLeft, clock: Clock) -> None:
    assert left.seconds((0, 100, "segmenting")) is None
    clock.now += 10
    assert left.seconds((1, 100, "segmenting")) is None, "one of a hundred says little"
    left = TimeLeft(clock)
    left.seconds((0, 10, "segmenting"))
    clock.now += 0.1
    assert left.seconds((5, 10, "segmenting")) is None, "so does a tenth of a second"


def test_the_rest_takes_as_long_as_the_first_part_did(left: TimeLeft, clock: Clock) -> None:
    left.seconds((0, 10, "segmenting"))
    clock.now += 8
    assert left.seconds((4, 10, "segmenting")) == pytest.approx(12)


def test_it_counts_down_between_two_reports(left: TimeLeft, clock: Clock) -> None:
    left.seconds((0, 10, "segmenting"))
    clock.now += 8
    left.seconds((4, 10, "segmenting"))
    clock.now += 5
    assert left.seconds((4, 10, "segmenting")) == pytest.approx(7)
    clock.now += 500
    assert left.seconds((4, 10, "segmenting")) is None, "it should have ended long ago"


def test_progress_before_the_first_report_does_not_count(left: TimeLeft, clock: Clock) -> None:
    left.seconds((6, 10, "segmenting"))
    clock.now += 2
    assert left.seconds((8, 10, "segmenting")) == pytest.approx(2)


@pytest.mark.parametrize("later", [(0, 10, "encoding"), (0, 20, "segmenting"), (0, 10, "segmenting")])
def test_another_stage_is_judged_by_itself(left: TimeLeft, clock: Clock, later: tuple[int, int, str]) -> None:
    left.seconds((0, 10, "segmenting"))
    clock.now += 8
    left.seconds((8, 10, "segmenting"))
    assert left.seconds(later) is None


def test_a_stage_without_an_end_has_no_estimate(left: TimeLeft, clock: Clock) -> None:
    left.seconds((0, 0, "starting"))
    clock.now += 8
    assert left.seconds((3, 0, "starting")) is None
