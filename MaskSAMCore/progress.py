"""Progress callbacks and the cancel token of long work."""

from __future__ import annotations

import json
import sys
import threading
import time
from types import TracebackType
from typing import Any, Protocol, TextIO

from MaskSAMCore.errors import MaskSAMError

JSON_INTERVAL_S = 0.5
"""Least interval between two JSON lines of a stage."""


class Cancelled(MaskSAMError):
    """Raised by work that was cancelled by the user or a signal; nothing is left half done.

    Args:
        exit_code: 130 for the user and Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, what: str = "cancelled", *, exit_code: int = 130) -> None:
        super().__init__(what)
        self.exit_code = exit_code


class CancelToken:
    """Flag that long work checks between two steps; it is set by another thread or a signal handler."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.exit_code = 130

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def cancel(self, exit_code: int = 130) -> None:
        """Set the flag; the first call sets the exit code."""
        if not self._event.is_set():
            self.exit_code = exit_code
            self._event.set()

    def check(self) -> None:
        """Raise Cancelled if the flag is set."""
        if self._event.is_set():
            raise Cancelled(exit_code=self.exit_code)


class Progress(Protocol):
    """Callback of long work: `done` of `total` units of the stage `text` are done."""

    def __call__(self, done: int, total: int, text: str) -> None: ...


def no_progress(done: int, total: int, text: str) -> None:
    """A progress callback that does nothing."""


class TerminalProgress:
    """Progress as a bar on a terminal, as JSON lines elsewhere; a context manager that closes the bar.

    A JSON line is `{"event": "progress", "done": 3, "total": 9, "text": "..."}`. The first and the last of every stage
    are written, and at most two a second between them.

    Args:
        stream: Where to write; None for stderr, as stdout is for results.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._bar: Any = None
        self._stage: tuple[str, int] | None = None
        self._last = 0.0

    def __call__(self, done: int, total: int, text: str) -> None:
        if self._stream.isatty():
            self._draw(done, total, text)
        else:
            self._write(done, total, text)

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, done: int, total: int, text: str) -> None:
        if self._bar is None or self._stage != (text, total) or done < self._bar.n:
            from tqdm import tqdm

            self.close()
            self._bar = tqdm(total=total, desc=text, file=self._stream, leave=True, dynamic_ncols=True)
            self._stage = (text, total)
        self._bar.update(done - self._bar.n)

    def _write(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        new = self._stage != (text, total)
        if not new and done < total and now - self._last < JSON_INTERVAL_S:
            return
        self._stage, self._last = (text, total), now
        event = {"event": "progress", "done": done, "total": total, "text": text}
        self._stream.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._stream.flush()


def terminal_progress(stream: TextIO | None = None) -> TerminalProgress:
    """Progress for a command: `with terminal_progress() as progress: work(progress=progress)`."""
    return TerminalProgress(stream)
