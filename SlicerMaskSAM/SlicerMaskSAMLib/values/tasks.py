"""Cooperative tasks: generators that are resumed without blocking."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.progress import Cancelled


class Waitable(Protocol):
    """Something that a task can wait for: a job of the engine or a process."""

    @property
    def progress(self) -> tuple[int, int, str] | None:
        """The last reported `(done, total, text)`; None before the first."""
        ...

    def done(self) -> bool:
        """Whether `result` returns at once."""
        ...

    def result(self) -> Any:
        """The result; raises the error if it failed."""
        ...

    def cancel(self) -> None:
        """Request cancellation; `done` becomes true some time later."""
        ...


Steps = Generator["Waitable | None", Any, Any]
"""A generator that yields what it waits for and receives the result, or has the error thrown in. Yielding None only
returns control to the GUI."""


class Task:
    """A generator of steps, resumed by `tick`, which never blocks.

    Args:
        name: One of `Status.task`.
        steps: The work. A MaskSAMError that it raises is passed to `on_error`; Cancelled is not.
        on_error: Called with the error that ended the task.
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
        """Whether the task has finished, failed or been cancelled."""
        return self._ended

    @property
    def progress(self) -> tuple[int, int, str] | None:
        """Progress of what the task waits for."""
        return self._waiting.progress if self._waiting is not None else None

    def tick(self) -> bool:
        """Resume the steps if possible without waiting; returns whether it was."""
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
        """Request cancellation; the steps receive Cancelled when their wait has ended."""
        if self._ended or self.cancelling:
            return
        self.cancelling = True
        if self._waiting is not None:
            self._waiting.cancel()

    def abandon(self) -> None:
        """End now. What the task waits for is cancelled, without waiting for it."""
        if not self._ended:
            self._ended = True
            if self._waiting is not None:
                self._waiting.cancel()
            self._steps.close()
