"""Work that waits without blocking: a generator that yields what it waits for, and a task that drives it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.progress import Cancelled


class Waitable(Protocol):
    """What a task waits for: a job of the engine, a process."""

    @property
    def progress(self) -> tuple[int, int, str] | None:
        """The last `(done, total, text)` that it told; None before the first."""
        ...

    def done(self) -> bool:
        """Whether `result` answers at once."""
        ...

    def result(self) -> Any:
        """The outcome, or its error raised."""
        ...

    def cancel(self) -> None:
        """Ask for its end; it is done some time later."""
        ...


Steps = Generator["Waitable | None", Any, Any]
"""Yields what it waits for and is sent its result, or has its error thrown in; None only gives way to the GUI."""


class Task:
    """One piece of work, driven by `tick`, which never waits.

    Args:
        name: One of `Status.task`.
        steps: What is done; a MaskSAMError that leaves it is handed to `on_error`, Cancelled is not.
        on_error: Told the error that ended the work.
    """

    def __init__(self, name: str, steps: Steps, *, on_error: Callable[[MaskSAMError], None]) -> None:
        self.name = name
        self.cancelling = False
        self._steps = steps
        self._on_error = on_error
        self._waiting: Waitable | None = None
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self._ended

    @property
    def progress(self) -> tuple[int, int, str] | None:
        """Of what it waits for."""
        return self._waiting.progress if self._waiting is not None else None

    def tick(self) -> bool:
        """Go on where that is possible without waiting; whether anything was done."""
        if self._ended or (self._waiting is not None and not self._waiting.done()):
            return False
        waiting, self._waiting = self._waiting, None
        try:
            if self.cancelling:
                self._waiting = self._steps.throw(Cancelled())
            elif waiting is None:
                self._waiting = self._steps.send(None)
            else:
                try:
                    result = waiting.result()
                except MaskSAMError as error:
                    self._waiting = self._steps.throw(error)
                else:
                    self._waiting = self._steps.send(result)
        except (StopIteration, Cancelled):
            self._ended = True
        except MaskSAMError as error:
            self._ended = True
            self._on_error(error)
        except BaseException:
            self._ended = True
            raise
        return True

    def cancel(self) -> None:
        """Ask for the end. The steps get Cancelled as soon as what they wait for has ended."""
        if self._ended or self.cancelling:
            return
        self.cancelling = True
        if self._waiting is not None:
            self._waiting.cancel()

    def abandon(self) -> None:
        """End now; what it waits for is asked to end, and nobody waits for that."""
        if not self._ended:
            self._ended = True
            if self._waiting is not None:
                self._waiting.cancel()
            self._steps.close()
