"""`EngineClient`: the engine for programs that must neither import torch nor wait for it, such as 3D Slicer.

It needs the standard library and numpy alone. `prompt(...)` waits for its answer; `submit("prompt", ...)` returns a
`Job` at once, to be polled. If the worker dies, the client starts another one, opens its scans again, sends the prompts
of their structures again, and repeats the requests that were not answered.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from MaskSAMCore.errors import MaskSAMError, ResourceError
from MaskSAMCore.inference.results import Update
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker import protocol
from MaskSAMCore.worker.jobs import Job, checked_fields
from MaskSAMCore.worker.process import WorkerGone, WorkerProcess
from MaskSAMCore.worker.results import Case, Segmented, typed
from MaskSAMCore.worker.session_log import SessionLog

LOG = logging.getLogger(__name__)
RESTARTS = 1
"""Starts after a crash before all requests fail; every answer resets the count."""
START_S = 300.0
"""Longest wait for the answer to `hello`, which imports torch."""
POLL_S = 0.1


class EngineClient:
    """One worker process and the scans that are open in it. A context manager; `close` ends the process.

    The constructor does not wait for the worker; `hello` does.

    Args:
        python: An interpreter that has torch.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: Threads on the CPU; None for PyTorch's choice.
        on_event: Called on a thread of the client with `{"event": ...}`: "progress" (job, done, total, text), "done"
            (job), "ready" (hello), "restarting" (why), "lost" (case, why: it could not be opened again).
        command: The worker's program and arguments, in place of `python -m MaskSAMCore.worker`.
    """

    def __init__(
        self,
        *,
        python: str = sys.executable,
        device: str = "auto",
        threads: int | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        words = list(command) if command else [python, "-m", "MaskSAMCore.worker"]
        self._command = [*words, "--device", device, *(["--threads", str(threads)] if threads else [])]
        self._on_event = on_event
        self._changed = threading.Condition(threading.RLock())
        self._ids, self._cases = itertools.count(1), itertools.count()
        self._jobs: dict[int, Job] = {}
        self._log = SessionLog()
        self._process: WorkerProcess | None = None
        self._hello: dict[str, Any] | None = None
        self._failure: MaskSAMError | None = None
        self._starts, self._wanted, self._closing = 0, True, False
        self._owner = os.getpid()
        self._supervisor = threading.Thread(target=self._supervise, name="engine client", daemon=True)
        atexit.register(self.close)
        self._supervisor.start()

    # -- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def hello(self) -> dict[str, Any]:
        """What the worker said of itself: protocol, version, pid, device, models. Waits until it has started.

        Raises:
            MaskSAMError: It cannot be started, or the client was closed.
        """
        with self._changed:
            while self._hello is None:
                if self._failure is not None:
                    raise self._failure
                self._changed.wait(POLL_S)
            return self._hello

    @property
    def ready(self) -> bool:
        """Whether the worker has started; for callers that poll."""
        return self._hello is not None

    def poll(self, seconds: float = 0.002) -> None:
        """Let the threads of the client run; for the timer of a program that otherwise blocks them, as Slicer does."""
        time.sleep(seconds)

    def close(self) -> None:
        """End the worker, delete its folder, and fail unanswered jobs. Harmless when repeated or in a forked child."""
        if os.getpid() != self._owner:
            return
        with self._changed:
            self._closing, process = True, self._process
            self._changed.notify_all()
        if process is not None:
            process.end()
        if threading.current_thread() is not self._supervisor:
            self._supervisor.join(10)
        self._fail_all(MaskSAMError("the engine was closed"))
        atexit.unregister(self.close)

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(self, op: str, **fields: Any) -> Job:
        """Submit a request and return at once.

        Args:
            op: A key of `protocol.REQUESTS`.
            fields: As listed there; `case` may be a `Case` or its number. A volume is kept, not copied, as long as its
                case is open, and must not be changed.

        Raises:
            PromptError: A prompt is malformed; names its number and position.
            InputError: The operation is unknown, or another field is malformed.
        """
        if op == "open":
            fields = {"case": next(self._cases), **fields}
        plain = checked_fields(op, fields)
        with self._changed:
            if self._closing:
                raise MaskSAMError("the engine was closed", where=op)
            job = Job(next(self._ids), op, plain, self.cancel)
            self._jobs[job.id] = job
            self._wanted, self._failure = True, None
            self._changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """Cancel a job: at once if it was not sent yet, else as soon as the worker can stop."""
        with self._changed:
            job.cancel_asked = True
            process = self._process
            sent = process is not None and job.sent_to is process
            withdrawn = None if sent else self._jobs.pop(job.id, None)
        if withdrawn is not None:
            self._finish(job, error=Cancelled())
        elif sent and process is not None:
            self._send_cancel(process, job)

    def open(
        self,
        volume: np.ndarray,
        affine: Any,
        model: str | os.PathLike,
        *,
        modality: str | None = None,
        source: str = "the scan",
    ) -> Case:
        """Open a scan with a model.

        Args:
            volume: (K, J, I) or (C, K, J, I).
            affine: (4, 4), voxel positions (i, j, k) to RAS mm.
            model: Name of an installed model, or a model's folder.
            modality: "CT" or "MR", for a warning if the model was trained on the other; None if unknown.
            source: Name of the scan, for messages.
        """
        fields = {"volume": volume, "affine": np.asarray(affine), "model": model}
        return self.submit("open", **fields, modality=modality, source=source).result()

    def encode(self, case: Case, position: Sequence[float] | None = None, *, slabs: int | None = None) -> Job:
        """Encode slabs around a position (i, j, k) in the background; other requests go first. Does not wait."""
        return self.submit("encode", case=case, position=position, slabs=slabs)

    def prompt(
        self, case: Case, structure: int, prompts: Sequence[Mapping[str, Any]], *, multimask: bool = False
    ) -> Update:
        """Segment a structure from all of its prompts, oldest first.

        A prompt is `{"kind": "point", "position": (i, j, k)}`, `{"kind": "box", "corners": ((i, j, k), (i, j, k))}`,
        `{"kind": "scribble", "points": [(i, j, k), ...], "thickness": mm}`, `{"kind": "lasso", "points": [...]}` in a
        slice, or `{"kind": "mask", "mask": array (k, j, i), "mask_box": (k, j, i)}`. All may have `"positive": False`
        (a mask then is of other structures), `"scope": "slice" | "slab" | "volume"` and `"space": "ras"` (positions in
        mm), points also `"candidate"`.
        """
        return self.submit(
            "prompt", case=case, structure=structure, prompts=list(prompts), multimask=multimask
        ).result()

    def propagate(self, case: Case, structure: int, scope: str = "volume") -> Update:
        """Answer the structure's prompts again, the last one with this scope; repeat the scope in later lists."""
        return self.submit("propagate", case=case, structure=structure, scope=scope).result()

    def automatic(
        self, case: Case, label: int, slices: Sequence[int] | None = None
    ) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Automatic prompts for a label: a box and a point for each slice, to be edited."""
        found = self.submit("automatic", case=case, label=label, slices=slices).result()
        return [(box, point) for box, point in found["prompts"]]

    def segment(
        self, case: Case, *, roi: Sequence[Mapping[str, Any]] = (), tta: bool = False, step: float = 0.5
    ) -> Segmented:
        """Segment all structures of the model, in the whole scan or in boxes `{"center", "size"}` in RAS mm."""
        return self.submit("segment", case=case, roi=list(roi), tta=tta, step=step).result()

    def drop(self, case: Case, structure: int) -> Update:
        """Forget a structure; the update clears what it held."""
        return self.submit("drop", case=case, structure=structure).result()

    def release(self, case: Case) -> None:
        """Forget a scan and its structures."""
        self.submit("release", case=case).result()

    # -- the supervisor's thread -------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._must_start() or self._unsent()):
                    self._changed.wait()
                if self._closing:
                    return
                start, job = self._must_start(), self._unsent()
            if start:
                self._start()
            elif job is not None:
                self._send(job)

    def _must_start(self) -> bool:
        return self._wanted and (self._process is None or self._process.ended)

    def _unsent(self) -> Job | None:
        if self._hello is None:
            return None
        return next((job for job in self._jobs.values() if job.sent_to is not self._process), None)

    def _start(self) -> None:
        """Start a worker and open the scans of the last one again; give up after too many crashes in a row."""
        if self._starts:
            why = self._process.cause() if self._process is not None else ""
            if self._starts > RESTARTS:
                remedy = "Try again; if that does not help, choose another device or a smaller region."
                self._give_up(ResourceError("the engine stopped again and again", why=why, remedy=remedy))
                return
            LOG.warning("the engine stopped and is started again: %s", why)
            self._emit({"event": "restarting", "why": why})
        self._starts += 1
        process = None
        try:
            process = WorkerProcess(self._command, on_message=self._receive, on_end=self._ended)
            with self._changed:
                self._process = process
                if self._closing:  # `close` has not seen this process
                    raise WorkerGone
            hello = self._ask(process, "hello", {"protocol": protocol.VERSION}, START_S)
            for case in list(self._log.cases):
                self._reopen(process, case)
        except WorkerGone:
            if process is not None:
                process.end(0)
        except MaskSAMError as error:
            if process is not None:
                process.end(0)
            self._give_up(error)
        else:
            with self._changed:
                self._hello, self._failure = None if process.ended else hello, None
                self._changed.notify_all()
            self._emit({"event": "ready", "hello": hello})

    def _reopen(self, process: WorkerProcess, case: int) -> None:
        try:
            for op, fields in self._log.requests(case):
                self._ask(process, op, fields)
        except MaskSAMError as error:
            self._log.forget(case)
            with contextlib.suppress(MaskSAMError):  # it may be open, with one of its structures missing
                self._ask(process, "release", {"case": case})
            LOG.warning("case %d cannot be opened again: %s", case, error)
            self._emit({"event": "lost", "case": case, "why": str(error)})

    def _ask(self, process: WorkerProcess, op: str, fields: dict[str, Any], patience: float | None = None) -> Any:
        """Send a request of the client itself, and wait for its answer.

        Raises:
            WorkerGone: The worker ended, did not answer in time, or the client is being closed.
        """
        job = Job(next(self._ids), op, fields, self.cancel, internal=True)
        with self._changed:
            self._jobs[job.id] = job
        try:
            self._deliver(process, job)
            deadline = None if patience is None else time.monotonic() + patience
            while not job.wait(POLL_S):
                if process.ended or self._closing or (deadline is not None and time.monotonic() > deadline):
                    raise WorkerGone
            return job.result()
        finally:
            with self._changed:
                self._jobs.pop(job.id, None)

    def _send(self, job: Job) -> None:
        process = self._process
        if process is None:
            return
        try:
            self._deliver(process, job)
        except WorkerGone:
            process.kill()  # its reader sees the end and tells the supervisor
        except MaskSAMError as error:
            with self._changed:
                self._jobs.pop(job.id, None)
            self._finish(job, error=error)

    def _deliver(self, process: WorkerProcess, job: Job) -> None:
        written: list[protocol.ArrayRef] = []
        plain = process.write_arrays(job.fields, written)
        with self._changed:
            job.sent_to, job.written = process, written
            if job.done():  # cancelled meanwhile
                process.discard(written)
                return
        process.send({"id": job.id, "op": job.op, **plain})
        if job.cancel_asked:
            self._send_cancel(process, job)

    def _send_cancel(self, process: WorkerProcess, job: Job) -> None:
        try:
            process.send({"id": next(self._ids), "op": "cancel", "target": job.id})
        except WorkerGone:
            LOG.info("job %d: the worker is gone already", job.id)

    def _give_up(self, error: MaskSAMError) -> None:
        with self._changed:
            self._wanted, self._starts, self._process, self._hello = False, 0, None, None
            self._failure = error
        self._fail_all(error)

    def _fail_all(self, error: MaskSAMError) -> None:
        with self._changed:
            jobs = list(self._jobs.values())
            self._jobs.clear()
            self._hello, self._failure = None, error
            self._changed.notify_all()
        for job in jobs:
            self._finish(job, error=error)

    # -- the reader's thread -----------------------------------------------------------------------------------------

    def _receive(self, process: WorkerProcess, message: dict[str, Any]) -> None:
        with self._changed:
            job = self._jobs.get(message.get("id", -1))
            if job is None or job.sent_to is not process:
                if message.get("id") is None and "error" in message:
                    LOG.error("the engine: %s", protocol.error_from(message["error"]))
                return
            if "event" in message:
                job.progress = message["done"], message["total"], message["text"]
            else:
                del self._jobs[job.id]
                self._starts = self._starts if job.internal else 1
        if "event" in message:
            self._emit({**message, "job": job.id})
            return
        process.discard(job.written)
        if "error" in message:
            self._finish(job, error=protocol.error_from(message["error"]))
            return
        try:
            result = typed(job.op, message["result"])
        except (KeyError, TypeError, ValueError) as error:
            self._finish(job, error=MaskSAMError("the engine's answer is malformed", where=job.op, why=repr(error)))
            return
        if not job.internal:
            self._log.add(job.op, job.fields)
        self._finish(job, result)

    def _ended(self, process: WorkerProcess) -> None:
        with self._changed:
            if process is self._process:
                self._hello = None
            self._changed.notify_all()

    def _finish(self, job: Job, result: Any = None, error: MaskSAMError | None = None) -> None:
        job.finish(result, error)
        if not job.internal:
            self._emit({"event": "done", "job": job.id})

    def _emit(self, event: dict[str, Any]) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                LOG.exception("on_event failed")
