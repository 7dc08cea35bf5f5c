"""The one state machine: what is going on, and who may start or end it. Nothing here waits."""

from __future__ import annotations

import time
from collections.abc import Callable

from MaskSAMCore.errors import MaskSAMError
from SlicerMaskSAMLib.values.status import Phase, Progress
from SlicerMaskSAMLib.values.tasks import Steps, Task
from SlicerMaskSAMLib.values.timeleft import TimeLeft

CANCEL_TIMEOUT_S = 15.0
"""How long work may take to stop after Cancel: a few times what one window takes on a slow CPU."""


class StateMachine:
    """Drives at most one piece of work that the user waits for, and one in the background.

    Everything may be called at any time, from within a step of the work as well: Slicer handles events in the middle
    of long calls, and with them the timer, a second press or the end of the scene.

    Args:
        log: Tells the user one line.
        on_stuck: Called where the work did not stop after Cancel; ends what it waits for.
        clock: Seconds that only grow.
    """

    def __init__(
        self, *, log: Callable[[str], None], on_stuck: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log, self._on_stuck, self._clock = log, on_stuck, clock
        self._task: Task | None = None
        self._background: Task | None = None
        self._discarded: list[Task] = []
        self._time_left = TimeLeft(clock)
        self._cancelled_at = 0.0
        self._ticking = False

    @property
    def phase(self) -> Phase:
        """IDLE, WORKING or CANCELLING; the background does not count."""
        if self._task is None:
            return Phase.IDLE
        return Phase.CANCELLING if self._task.cancelling else Phase.WORKING

    @property
    def task(self) -> str:
        """Name of the work; "" for none."""
        return self._task.name if self._task is not None else ""

    @property
    def background(self) -> str:
        """Name of the work in the background; "" for none."""
        return self._background.name if self._background is not None else ""

    @property
    def progress(self) -> Progress | None:
        """Of the work that the user waits for."""
        told = self._task.progress if self._task is not None else None
        if told is None:
            return None
        done, total, text = told
        left = self._time_left.seconds(told)
        return Progress(done=done, total=total, text=text, seconds_left=None if left is None else float(round(left)))

    def start(self, name: str, steps: Steps) -> bool:
        """Begin work; whether it could begin, which it cannot while other work is going on."""
        if self._task is not None:
            steps.close()
            return False
        self._time_left = TimeLeft(self._clock)
        self._task = Task(name, steps, on_error=self._on_error)
        return True

    def start_background(self, name: str, steps: Steps) -> None:
        """Begin work that nobody waits for, in place of the one before."""
        self._discard(self._background)
        self._background = Task(name, steps, on_error=self._on_error)

    def cancel(self) -> None:
        """Ask for the end of the work. A second time changes nothing."""
        if self._task is not None and not self._task.cancelling:
            self._cancelled_at = self._clock()
            self._task.cancel()

    def abandon_all(self) -> None:
        """End everything now; results that are on their way are dropped."""
        self._discard(self._task)
        self._discard(self._background)
        self._task = self._background = None

    def abandon_background(self) -> None:
        """End the work in the background now."""
        self._discard(self._background)
        self._background = None

    def tick(self) -> bool:
        """Go on where that is possible without waiting; whether anything was done."""
        if self._ticking:
            return False
        self._ticking = True
        try:
            return self._tick()
        finally:
            self._ticking = False
            self._task = _unless_ended(self._task)
            self._background = _unless_ended(self._background)
            self._discard(None)

    def _tick(self) -> bool:
        moved = [task.tick() for task in (self._task, self._background) if task is not None]
        if self.phase is Phase.CANCELLING and self._clock() - self._cancelled_at > CANCEL_TIMEOUT_S:
            self._discard(self._task)
            self._task = None
            self._on_stuck()
            self._log("The engine did not stop and was ended. It starts again when it is needed.")
            return True
        return any(moved)

    def _discard(self, task: Task | None) -> None:
        """End a task; one that is in the middle of a step ends after it."""
        if task is not None:
            self._discarded.append(task)
        if not self._ticking:
            discarded, self._discarded = self._discarded, []
            for each in discarded:
                each.abandon()

    def _on_error(self, error: MaskSAMError) -> None:
        self._log(str(error))


def _unless_ended(task: Task | None) -> Task | None:
    return None if task is None or task.ended else task
