"""How long work will still take, estimated from the progress that it tells."""

from __future__ import annotations

import time
from collections.abc import Callable

LEAST_SHARE = 0.05
"""Of the stage must be done before anything is said."""
LEAST_S = 1.0
"""Must have passed before anything is said."""


class TimeLeft:
    """Follows `(done, total, text)` of one piece of work; every text, or a `done` that falls, starts a new stage.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage: tuple[int, str] | None = None
        self._first = (0, 0.0)
        self._last = (0, 0.0)

    def seconds(self, progress: tuple[int, int, str]) -> float | None:
        """Seconds that the stage will still take; None while nothing can be said, as when it should have ended."""
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
