"""Background commands, such as `python -m MaskSAMCore.teach`, as waitable jobs."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from MaskSAMCore.commandline import EXIT_BAD_INPUT
from MaskSAMCore.errors import InputError, MaskSAMError
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker import child
from MaskSAMCore.worker.folder import PrivateFolder

KILL_AFTER_S = 10.0
"""From the request to end, which lets a command finish its step and clean up, to the end by force."""
READ_BYTES = 1 << 20
STDERR_LINES = 200
ERROR_CHARACTERS = 2000
_ERROR = re.compile(r"(python -m \S+: )?error: ", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """Result of a command that succeeded: its exit code, 0, and its standard output."""

    stdout: str
    code: int = 0


def interpreter() -> str:
    """Path of Slicer's Python (PythonSlicer), or else of the running interpreter."""
    return shutil.which("PythonSlicer") or sys.executable


def core_command(*words: str | os.PathLike) -> CommandJob:
    """Start `python -m MaskSAMCore.<first word> <other words>` in the background."""
    name, *rest = map(str, words)
    return CommandJob([interpreter(), "-m", f"MaskSAMCore.{name}", *rest], name=name, env=child.watched())


class CommandJob:
    """A program in the background; it ends with this process, or when cancelled.

    Its child processes end with it. Nothing here blocks, and progress needs no thread: the program writes to files, and
    `done` reads what was added.

    Args:
        words: The program and its arguments.
        name: Name for messages: "teach".
        env: Environment variables in addition to those of this process.
        stdout_is_progress: Whether lines on stdout describe what the program is doing. The last line becomes the text
            of `progress`, with an unknown total of 0.

    Attributes:
        progress: The last reported `(done, total, text)`; None before the first.

    Raises:
        ResourceError: The program cannot be started.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        stdout_is_progress: bool = False,
    ) -> None:
        self.progress: tuple[int, int, str] | None = None
        self._name = name or Path(words[0]).name
        self._stdout_is_progress = stdout_is_progress
        self._ending = threading.Lock()
        self._ended = self._cancelled = False
        self._error: MaskSAMError | None = None
        self._stderr_tail: deque[str] = deque(maxlen=STDERR_LINES)
        self._output: list[str] = []
        self._owner = os.getpid()
        self._folder = PrivateFolder.make()
        try:
            self._process = self._start(words, env or {})
        except MaskSAMError:
            self._folder.remove()
            raise
        self._stdout = _Lines(self._folder.path / "stdout")
        self._stderr = _Lines(self._folder.path / "stderr")
        self.pid = self._process.pid
        atexit.register(self.close)

    def done(self) -> bool:
        """Whether the program has ended. Reads what it wrote since the last call."""
        if not self._ended and self._ending.acquire(blocking=False):  # another thread may be ending it
            try:
                self._poll()
            finally:
                self._ending.release()
        return self._ended

    def result(self) -> CommandResult:
        """The result.

        Raises:
            Cancelled: It was cancelled before it succeeded.
            MaskSAMError: It failed; the message is the program's own.
            RuntimeError: It is still running.
        """
        if not self.done():
            raise RuntimeError(f"{self._name} is still running")
        if self._error is not None:
            raise self._error
        return CommandResult(stdout="\n".join(self._output))

    def cancel(self) -> None:
        """Request the end; a program that does not obey is killed some seconds later."""
        if not self._cancelled and not self.done():
            self._cancelled = True
            threading.Thread(target=self._terminate, name=f"end of {self._name}", daemon=True).start()

    def close(self) -> None:
        """Kill the program and its child processes now.

        Safe to call twice, and in a forked child.
        """
        if os.getpid() != self._owner:
            return
        with self._ending:
            if not self._ended:
                self._cancelled = True
                child.kill_tree(self._process)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(KILL_AFTER_S)
                self._end(self._process.returncode or -signal.SIGTERM)

    def _start(self, words: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen:
        with (
            open(self._folder.path / "stdout", "xb") as stdout,
            open(self._folder.path / "stderr", "xb") as stderr,
        ):
            return child.start(
                f"the command {self._name!r}",
                words,
                env={"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **env},
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
            )

    def _terminate(self) -> None:
        child.ask_to_end(self._process)
        try:
            self._process.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            self.close()
        else:
            with self._ending:
                self._poll()

    def _poll(self) -> None:
        """Update the state. The lock must be held, as for `_end`."""
        if self._ended:
            return
        code = self._process.poll()  # before reading, so that the last output is not missed
        self._read_output(last=code is not None)
        if code is not None:
            self._end(code)

    def _read_output(self, *, last: bool) -> None:
        for line in self._stdout.read(last=last):
            self._output.append(line)
            if self._stdout_is_progress and line.strip():
                self.progress = (0, 0, line.strip())
        for line in self._stderr.read(last=last):
            event = _event(line)
            if event is None:
                self._stderr_tail.append(line)
            else:
                self.progress = event

    def _end(self, code: int) -> None:
        child.kill_tree(self._process)  # child processes that are still running
        assert self._process.stdin is not None
        for pipe in (self._process.stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        self._folder.remove()
        if code:
            self._error = Cancelled() if self._cancelled else _failure(self._name, code, list(self._stderr_tail))
        atexit.unregister(self.close)
        self._ended = True


class _Lines:
    """The lines of a file that another process is writing."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  # closed by its owner
        self._rest = b""

    def read(self, *, last: bool) -> list[str]:
        """The lines completed since the last call; with `last`, also the incomplete rest."""
        lines: list[bytes] = []
        while part := self._file.read(READ_BYTES):
            *whole, self._rest = (self._rest + part).split(b"\n")
            lines += whole
        if last and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _event(line: str) -> tuple[int, int, str] | None:
    """Progress from a line of `progress.TerminalProgress`; None for any other line."""
    try:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") != "progress":
            return None
        return int(event["done"]), int(event["total"]), str(event["text"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _failure(name: str, code: int, stderr: Sequence[str]) -> MaskSAMError:
    """The command's own error message, or else how it ended and its last line."""
    kind = InputError if code == EXIT_BAD_INPUT else MaskSAMError
    first = max((number for number, line in enumerate(stderr) if _ERROR.match(line)), default=None)
    if first is not None:
        message = _ERROR.sub("", "\n".join(stderr[first:]), count=1).strip()
        return kind(message[:ERROR_CHARACTERS])
    words = next((line.strip() for line in reversed(stderr) if line.strip()), "")
    how = child.how_it_ended(code)
    return kind("the command failed", where=name, why=f"{how}; its last line: {words[:300]}" if words else how)
