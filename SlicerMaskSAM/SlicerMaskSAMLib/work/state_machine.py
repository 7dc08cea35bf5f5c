"""State machine of the module: what is running, and who may start or end it.

Nothing here blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from MaskSAMCore.errors import MaskSAMError
from SlicerMaskSAMLib.values.status import Phase, Progress
from SlicerMaskSAMLib.values.tasks import Steps, Task
from SlicerMaskSAMLib.values.timeleft import TimeLeft

CANCEL_TIMEOUT_S = 15.0
"""Seconds that a task may take to stop after Cancel: several times what one window takes on a slow CPU."""


class StateMachine:
    """Runs at most one task that the user waits for, and one in the background.

    All methods may be called at any time, even from within a step of a task: Slicer processes events during long calls,
    and with them the timer, a second press or the end of the scene.

    Args:
        log: Shows one line of text to the user.
        on_stuck: Called when a task did not stop after Cancel; ends what it waits for.
        clock: Monotonic clock in seconds.
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
        """Name of the running task; "" for none."""
        return self._task.name if self._task is not None else ""

    @property
    def background(self) -> str:
        """Name of the background task; "" for none."""
        return self._background.name if self._background is not None else ""

    @property
    def progress(self) -> Progress | None:
        """Progress of the running task."""
        progress = self._task.progress if self._task is not None else None
        if progress is None:
            return None
        done, total, text = progress
        left = self._time_left.seconds(progress)
        return Progress(done=done, total=total, text=text, seconds_left=None if left is None else float(round(left)))

    def start(self, name: str, steps: Steps) -> bool:
        """Start a task; returns False while another one is running."""
        if self._task is not None:
            steps.close()
            return False
        self._time_left = TimeLeft(self._clock)
        self._task = Task(name, steps, on_error=self._on_error)
        return True

    def start_background(self, name: str, steps: Steps) -> None:
        """Start a background task; it replaces the previous one."""
        self._discard(self._background)
        self._background = Task(name, steps, on_error=self._on_error)

    def cancel(self) -> None:
        """Cancel the running task. Calling it again has no effect."""
        if self._task is not None and not self._task.cancelling:
            self._cancelled_at = self._clock()
            self._task.cancel()

    def abandon_all(self) -> None:
        """End all tasks now, without their results."""
        self._discard(self._task)
        self._discard(self._background)
        self._task = self._background = None

    def abandon_background(self) -> None:
        """End the background task now."""
        self._discard(self._background)
        self._background = None

    def tick(self) -> bool:
        """Continue without waiting; returns whether anything was done."""
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
            self._log("The engine did not stop and was shut down. It is started again when needed.")
            return True
        return any(moved)

    def _discard(self, task: Task | None) -> None:
        """End a task; if a step of it is running, after that step."""
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
