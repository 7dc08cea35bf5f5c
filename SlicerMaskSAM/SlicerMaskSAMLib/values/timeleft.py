"""Remaining time of a task, estimated from its progress."""

from __future__ import annotations

import time
from collections.abc import Callable

LEAST_SHARE = 0.05
"""Share of the stage that must be done before an estimate is made."""
LEAST_S = 1.0
"""Seconds that must have passed before an estimate is made."""


class TimeLeft:
    """Estimates the remaining time of a stage from `(done, total, text)`.

    A new text or total, or a smaller `done`, starts a new stage.

    Args:
        clock: Monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage: tuple[int, str] | None = None
        self._first = (0, 0.0)
        self._last = (0, 0.0)

    def seconds(self, progress: tuple[int, int, str]) -> float | None:
        """Remaining seconds of the stage; None without an estimate."""
        done, total, text = progress
        now = self._clock()
        if self._stage != (total, text) or done < self._last[0]:
            self._stage, self._first, self._last = (total, text), (done, now), (done, now)
        if done > self._last[0]:
            self._last = done, now
        fresh, spent = self._last[0] - self._first[0], self._last[1] - self._first[1]
        if total <= 0 or fresh < LEAST_SHARE * total or spent < LEAST_S:
            return None
        left = spent / fresh * (total - self._last[0]) - (now - self._last[1])
        return left if left > 0 else None
