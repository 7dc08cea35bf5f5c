"""The worker's side of the protocol: reads requests, passes them to the engine one at a time, and sends replies.

There are three threads. The reader takes lines from stdin, refuses malformed ones, and answers `cancel` and `quit` at
once. The engine's thread works on the requests. The main thread waits for the end, which is `quit`, the end of stdin, a
signal, or the death of the client. It then deletes the private folder and exits, whatever the engine is doing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from MaskSAMCore import __version__
from MaskSAMCore.commandline import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED
from MaskSAMCore.errors import DeviceLostError, InputError, MaskSAMError, ResourceError, translated
from MaskSAMCore.progress import Cancelled, CancelToken, Progress
from MaskSAMCore.worker import protocol
from MaskSAMCore.worker.folder import PrivateFolder
from MaskSAMCore.worker.protocol import ArrayRef, Refused, Request, TooLong
from MaskSAMCore.worker.request_queue import RequestQueue, Task

WATCH_S = 0.25
"""Interval in which the main thread checks whether the client is alive."""
PROGRESS_S = 0.1
"""Least interval between two progress events of a request."""
LOG = logging.getLogger(__name__)


class Engine(Protocol):
    """What the server needs of an engine: `worker.engine.Engine`, or one for tests."""

    def hello(self) -> dict[str, Any]:
        """Description of device and models; called once, first."""

    def handle(self, op: str, fields: dict[str, Any], *, progress: Progress, cancel: CancelToken) -> dict[str, Any]:
        """Do a request; arrays among fields and results are numpy's. After an error nothing is changed."""

    def undelivered(self, op: str, fields: dict[str, Any]) -> None:
        """Take back the result of this request, which did not reach the client."""


def serve(engine: Callable[[], Engine], folder: Path | None = None) -> NoReturn:
    """Run the worker on stdin and stdout, and exit the process in the end; never returns.

    Args:
        engine: Makes the engine, on its own thread, at `hello`.
        folder: The client's private folder; None makes one.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    faulthandler.enable()
    _no_core_dumps()
    private = PrivateFolder.adopt(folder) if folder is not None else PrivateFolder.make()
    tempfile.tempdir = os.environ["TMPDIR"] = str(private.path)  # temporary files of libraries are deleted with it
    inlet, outlet = _own_pipes()
    server = Server(engine, private, inlet=inlet, outlet=outlet)
    _end_on_signals(server)
    code = server.run()
    private.remove()
    os._exit(code)  # the engine's thread may be in a computation that cannot be interrupted


class Server:
    """Serves the requests of one client, from `hello` to the end.

    Args:
        engine: Makes the engine, at `hello`.
        folder: For the arrays.
        inlet, outlet: Raw binary streams of requests and replies.
    """

    def __init__(
        self, engine: Callable[[], Engine], folder: PrivateFolder, *, inlet: io.RawIOBase, outlet: io.RawIOBase
    ) -> None:
        self._make, self._folder, self._inlet, self._outlet = engine, folder, inlet, outlet
        self._engine: Engine | None = None
        self._greeted = False
        self._queue = RequestQueue()
        self._sending = threading.Lock()
        self._over = threading.Event()
        self._code = 0

    def run(self) -> int:
        """Serve until the end; returns the exit code."""
        parent = os.getppid()
        for name, work in (("reader", self._read), ("engine", self._work)):
            threading.Thread(target=work, name=name, daemon=True).start()
        while not self._over.wait(WATCH_S):
            if os.getppid() != parent or self._folder.abandoned():
                self.end(0)
        return self._code

    def end(self, code: int) -> None:
        """Make `run` return; the first call sets the exit code."""
        if not self._over.is_set():
            self._code = code
            self._over.set()

    # -- the reader's thread -----------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            for line in protocol.lines(self._inlet):
                if isinstance(line, TooLong):
                    why = f"it has {line.size} bytes, {protocol.MAX_LINE} are allowed"
                    remedy = "Send arrays in files of the private folder."
                    self._fail(None, InputError("the message is too long", why=why, remedy=remedy))
                elif line.strip():
                    self._receive(line)
        except OSError as error:
            LOG.warning("stdin: %s", error)
        finally:
            self.end(0)

    def _receive(self, line: bytes) -> None:
        try:
            request = protocol.parse_request(line)
            if request.op == "hello":
                self._greet(request)
            elif not self._greeted:
                raise Refused(request.id, InputError("out of order", where=request.op, remedy="Send hello first."))
            elif request.op == "cancel":
                self._cancel(request)
            elif request.op == "quit":
                self._reply(request.id, {})
                self.end(0)
            else:
                self._accept(request)
        except Refused as refused:
            self._fail(refused.id, refused.error)

    def _greet(self, request: Request) -> None:
        theirs = request.fields["protocol"]
        if self._greeted:
            raise Refused(request.id, InputError("out of order", where="hello", why="it was sent already"))
        if theirs != protocol.VERSION:
            why = f"the client speaks version {theirs}, this worker (MaskSAM {__version__}) version {protocol.VERSION}"
            remedy = "Install the same version of MaskSAM on both sides."
            raise Refused(request.id, InputError("the protocols differ", where="hello", why=why, remedy=remedy))
        self._greeted = True
        self._accept(request)

    def _accept(self, request: Request) -> None:
        try:
            self._queue.put(request)
        except MaskSAMError as error:
            raise Refused(request.id, error) from error
        if request.op in ("release", "drop"):
            for task in self._queue.withdraw(lambda task: _obsolete(task, request)):
                self._fail(task.request.id, Cancelled())

    def _cancel(self, request: Request) -> None:
        target = request.fields["target"]
        withdrawn = self._queue.withdraw(lambda task: task.request.id == target)
        found = bool(withdrawn) or self._queue.cancel_running(target)
        for task in withdrawn:
            self._fail(task.request.id, Cancelled())
        self._reply(request.id, {"found": found})

    # -- the engine's thread -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while True:
                self._do(self._queue.take())
        finally:
            self.end(EXIT_FAILED)  # a library called sys.exit(), or a bug ended this thread

    def _do(self, task: Task) -> None:
        number = task.request.id
        try:
            line = self._answer(task)
        except Cancelled as error:
            if not self._queue.again(task):
                self._fail(number, error)
        except MaskSAMError as error:
            self._queue.done(task)
            self._fail(number, error)
        except Exception as error:
            known = translated(error, where=self._folder.path)
            if isinstance(known, DeviceLostError):  # the client does the work again in a new process
                LOG.error("%s", known)
                self.end(known.exit_code)
                return
            if known is None:
                LOG.exception("the engine failed in %s", task.request.op)
                why = f"{type(error).__name__}: {error}"[:500]
                known = MaskSAMError("the engine failed", where=task.request.op, why=why, remedy="Please report this.")
            self._queue.done(task)
            self._fail(number, known)
        else:
            self._queue.done(task)
            self._write(line)

    def _answer(self, task: Task) -> bytes:
        request = task.request
        task.token.check()
        if request.op == "hello":
            self._engine = self._make()
            known = {"protocol": protocol.VERSION, "version": __version__, "pid": os.getpid()}
            return protocol.to_line({"id": request.id, "result": known | self._engine.hello()})
        if self._engine is None:
            raise ResourceError("the engine did not start", where=request.op, remedy="See the reply to hello.")
        fields = self._arrays_in(request.fields)
        result = self._engine.handle(request.op, fields, progress=self._progress(request.id), cancel=task.token)
        written: list[ArrayRef] = []
        try:
            return protocol.to_line({"id": request.id, "result": self._arrays_out(result, written)})
        except (OSError, MemoryError, TypeError, ValueError):
            for ref in written:
                self._folder.discard(ref)
            self._engine.undelivered(request.op, fields)
            raise

    def _arrays_in(self, value: Any) -> Any:
        if isinstance(value, ArrayRef):
            return self._folder.read(value, mapped=len(value.shape) > 1 and value.dtype == "float32")
        if isinstance(value, dict):
            return {key: self._arrays_in(each) for key, each in value.items()}
        return tuple(map(self._arrays_in, value)) if isinstance(value, (list, tuple)) else value

    def _arrays_out(self, value: Any, written: list[ArrayRef]) -> Any:
        if isinstance(value, np.ndarray):
            written.append(self._folder.write(value))
            return written[-1].plain()
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, dict):
            return {key: self._arrays_out(each, written) for key, each in value.items()}
        return [self._arrays_out(each, written) for each in value] if isinstance(value, (list, tuple)) else value

    # -- replies, from either thread ---------------------------------------------------------------------------------

    def _progress(self, number: int) -> Progress:
        last = [float("-inf")]

        def report(done: int, total: int, text: str) -> None:
            now = time.monotonic()
            if done >= total or now - last[0] >= PROGRESS_S:
                last[0] = now
                self._send({"event": "progress", "id": number, "done": int(done), "total": int(total), "text": text})

        return report

    def _reply(self, number: int, result: dict[str, Any]) -> None:
        self._send({"id": number, "result": result})

    def _fail(self, number: int | None, error: MaskSAMError) -> None:
        self._send({"id": number, "error": protocol.error_fields(error)})

    def _send(self, message: dict[str, Any]) -> None:
        self._write(protocol.to_line(message))

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            with self._sending:
                while rest:
                    rest = rest[self._outlet.write(rest) or 0 :]
        except OSError:
            self.end(0)  # the client has gone


def _obsolete(task: Task, request: Request) -> bool:
    """Whether a task is background work of a case that is being released."""
    case = request.fields["case"]
    return request.op == "release" and task.background and task.request.fields["case"] == case


def _end_on_signals(server: Server) -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal end the worker in the same way as the client's death."""
    codes = {"SIGINT": EXIT_INTERRUPTED, "SIGTERM": EXIT_TERMINATED, "SIGHUP": EXIT_TERMINATED}
    known = {getattr(signal, name): code for name, code in codes.items() if hasattr(signal, name)}
    for number in known:
        signal.signal(number, lambda found, frame: server.end(known[found]))


def _own_pipes() -> tuple[io.RawIOBase, io.RawIOBase]:
    """Take stdin and stdout for the protocol; what libraries print goes to stderr, and they can read nothing."""
    sys.stdout.flush()
    inlet, outlet = io.FileIO(os.dup(0), "rb"), io.FileIO(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return inlet, outlet


def _no_core_dumps() -> None:
    """Prevent that a crash writes the memory, which holds the scan, to the disk."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
