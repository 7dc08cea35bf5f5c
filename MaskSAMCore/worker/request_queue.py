"""Queue of the requests for the engine: first come, first served; background work comes last."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from MaskSAMCore.errors import InputError
from MaskSAMCore.progress import CancelToken
from MaskSAMCore.worker.protocol import Request

BACKGROUND = ("encode",)
MAX_WAITING = 1024
"""Most requests that may wait; more are refused."""


@dataclass
class Task:
    """A request in the queue or in work; `interrupted` if it stops for another one and is to be resumed."""

    request: Request
    token: CancelToken = field(default_factory=CancelToken)
    interrupted: bool = False

    @property
    def background(self) -> bool:
        """Whether all other requests go first."""
        return self.request.op in BACKGROUND


class RequestQueue:
    """The queue between the reader's thread and the engine's thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._first: deque[Task] = deque()
        self._last: deque[Task] = deque()
        self._running: Task | None = None

    def put(self, request: Request) -> None:
        """Queue a request, and interrupt background work for any other request.

        Raises:
            InputError: Its id is in use, or too many requests wait.
        """
        with self._changed:
            tasks = [*self._first, *self._last, *([self._running] if self._running else [])]
            if any(task.request.id == request.id for task in tasks):
                raise InputError("the id is in use", where=f"id {request.id}")
            if len(tasks) > MAX_WAITING:
                raise InputError("too many requests wait", why=f"{len(tasks)} of them", remedy="Wait for replies.")
            task = Task(request)
            (self._last if task.background else self._first).append(task)
            running = self._running
            if running is not None and running.background and not task.background and not running.token.cancelled:
                running.interrupted = True
                running.token.cancel()
            self._changed.notify()

    def take(self) -> Task:
        """Wait for the next task and return it."""
        with self._changed:
            while not self._first and not self._last:
                self._changed.wait()
            self._running = (self._first or self._last).popleft()
            return self._running

    def done(self, task: Task) -> None:
        """Mark the running task as answered."""
        with self._changed:
            self._running = None

    def again(self, task: Task) -> bool:
        """Queue an interrupted task again; False if it was cancelled, so that it is done."""
        with self._changed:
            self._running = None
            if task.interrupted:
                self._last.appendleft(Task(task.request))
            return task.interrupted

    def withdraw(self, which: Callable[[Task], bool]) -> list[Task]:
        """Remove and return waiting tasks; if the running task is one of them, ask it to stop."""
        with self._changed:
            out = [task for task in (*self._first, *self._last) if which(task)]
            self._first = deque(task for task in self._first if not which(task))
            self._last = deque(task for task in self._last if not which(task))
            if self._running is not None and which(self._running):
                self._running.interrupted = False
                self._running.token.cancel()
            return out

    def cancel_running(self, number: int) -> bool:
        """Ask a request to stop if it is running; returns whether it is."""
        with self._changed:
            if self._running is None or self._running.request.id != number:
                return False
            self._running.interrupted = False
            self._running.token.cancel()
            return True
