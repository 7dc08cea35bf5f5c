"""A running worker, for the client: the process, its pipes and its private folder."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np

from MaskSAMCore.errors import MaskSAMError, ResourceError
from MaskSAMCore.worker import child, protocol
from MaskSAMCore.worker.folder import PrivateFolder
from MaskSAMCore.worker.protocol import ArrayRef, TooLong

LOG = logging.getLogger(__name__)
QUIT_S = 2.0
STDERR_LINES = 40
MAX_REPLY = 64 << 20


class WorkerGone(Exception):
    """The process has ended, or its pipe is closed."""


class WorkerProcess:
    """A running worker.

    Args:
        command: Program and arguments; the option for the private folder is added.
        on_message: Called on a thread of its own with every message, its arrays in place of their files.
        on_end: Called once, on that thread, when the process has ended.

    Raises:
        ResourceError: It cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        on_message: Callable[[WorkerProcess, dict[str, Any]], None],
        on_end: Callable[[WorkerProcess], None],
    ) -> None:
        self._on_message, self._on_end = on_message, on_end
        self._sending, self._reaping = threading.Lock(), threading.Lock()
        self._finished = threading.Event()
        self._errors: deque[str] = deque(maxlen=STDERR_LINES)
        self.folder = PrivateFolder.make()
        try:
            self._process = child.start(
                "the engine",
                [*command, "--folder", str(self.folder.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
            )
        except ResourceError:
            self.folder.remove()
            raise
        self.pid = self._process.pid
        self._stdin, self._stdout, self._stderr = (
            _opened(pipe) for pipe in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        self._drain = threading.Thread(target=self._read_errors, name="engine stderr", daemon=True)
        self._drain.start()
        threading.Thread(target=self._read, name="engine replies", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether the process has ended and its folder is deleted."""
        return self._finished.is_set()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message.

        Raises:
            WorkerGone: The process has ended.
        """
        line = memoryview(protocol.to_line(message))
        try:
            with self._sending:
                while line:
                    line = line[self._stdin.write(line) or 0 :]
        except (OSError, ValueError) as error:
            raise WorkerGone from error

    def write_arrays(self, value: Any, written: list[ArrayRef]) -> Any:
        """Write the arrays among a request's fields to files; returns the fields with references to them.

        Args:
            value: The fields.
            written: Gets the references.

        Raises:
            ResourceError: The disk is full; the files are deleted again.
        """
        try:
            return _with_files(value, self.folder, written)
        except OSError as error:
            self.discard(written)
            remedy = "Free some space, or set TMPDIR to a folder on another disk."
            raise ResourceError(
                "the scan cannot be handed to the engine", where=self.folder.path, why=str(error), remedy=remedy
            ) from error

    def discard(self, written: Sequence[ArrayRef]) -> None:
        """Delete files that were written for a request."""
        for ref in written:
            self.folder.discard(ref)

    def end(self, patience: float = QUIT_S) -> None:
        """End the process and all that it started, and delete its folder.

        Args:
            patience: Seconds in which it may end by itself, once its stdin is closed; then it is killed.
        """
        if patience and self._sending.acquire(timeout=patience / 4):  # taken for good if the worker hangs
            try:
                with contextlib.suppress(OSError, ValueError):
                    self._stdin.close()
            finally:
                self._sending.release()
            self._finished.wait(patience)
        self._reap()
        self.folder.remove()

    def kill(self) -> None:
        """Kill the process and all that it started."""
        with self._reaping:
            if self._process.returncode is None:  # else its pid may be that of another process by now
                child.kill_tree(self._process)

    def _reap(self) -> None:
        self.kill()
        with self._reaping, contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)

    def cause(self) -> str:
        """Why the process ended, in words: exit code or signal, and the last line of its stderr."""
        how = child.how_it_ended(self._process.poll())
        self._drain.join(0.2)
        last = next((line for line in reversed(self._errors) if line.strip()), "")
        return f"{how}; its last message: {last[:300]}" if last else how

    # -- threads -----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            for line in protocol.lines(self._stdout, MAX_REPLY):
                if isinstance(line, TooLong):
                    LOG.error("the engine sent a line of %d bytes", line.size)
                    break
                self._on_message(self, self._arrays_in(protocol.from_line(line)))
        except (MaskSAMError, OSError) as error:
            LOG.error("the engine's reply cannot be read: %s", error)
        finally:
            self._reap()
            self.folder.remove()
            for pipe in (self._stdin, self._stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
            self._finished.set()
            self._on_end(self)

    def _read_errors(self) -> None:
        with contextlib.suppress(OSError), self._stderr:
            for line in protocol.lines(self._stderr, 1 << 14):
                if isinstance(line, bytes):
                    self._errors.append(line.decode("utf-8", "replace"))

    def _arrays_in(self, value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {"file", "dtype", "shape"}:
                ref = protocol.array_ref(value, "array")
                try:
                    return self.folder.read(ref)
                finally:
                    self.folder.discard(ref)
            return {key: self._arrays_in(each) for key, each in value.items()}
        return [self._arrays_in(each) for each in value] if isinstance(value, list) else value


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("the process was started without a pipe")
    return pipe


def _with_files(value: Any, folder: PrivateFolder, written: list[ArrayRef], kind: str = "") -> Any:
    if isinstance(value, np.ndarray):
        written.append(folder.write(value, kind))
        return written[-1].plain()
    if isinstance(value, dict):
        return {key: _with_files(each, folder, written, protocol.ARRAYS.get(key, "")) for key, each in value.items()}
    return [_with_files(each, folder, written) for each in value] if isinstance(value, (list, tuple)) else value
