"""Connection to the engine process, and the scans that are open in it."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from MaskSAMCore.errors import MaskSAMError
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.worker.jobs import Job
from MaskSAMCore.worker.results import Case
from SlicerMaskSAMLib.mrml import bridge
from SlicerMaskSAMLib.mrml.modality import modality
from SlicerMaskSAMLib.values.tasks import Steps

Event = dict[str, Any]
StartEngine = Callable[[Callable[[Event], None]], EngineClient]
"""Starts the engine without blocking. Events are passed to the given callback, on any thread."""
MAX_OPEN_SCANS = 4
"""Number of scans kept open; the least recently used are closed."""
CASE_IDS = itertools.count(1)
"""Case numbers in the engine; each is used once, so that no scan is mistaken for another."""
ENGINE_MODALITIES = ("CT", "MR")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A volume in its present state, for one model."""

    node: str
    fingerprint: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A scan that is open, or will be when the job is done."""

    job: Job
    number: int


class SharedJob:
    """Waits for a job that others may need too: only the waiting is cancelled."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._left = False

    @property
    def progress(self) -> tuple[int, int, str] | None:
        """Progress of the job."""
        return self._job.progress

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._left or self._job.done()

    def result(self) -> Any:
        """The job's result; raises Cancelled after `cancel`."""
        if self._left:
            raise Cancelled
        return self._job.result()

    def cancel(self) -> None:
        """Stop waiting. The job goes on."""
        self._left = True


class EngineShutdown:
    """Shutdown of an engine in a thread, a few seconds at most."""

    progress: tuple[int, int, str] | None = None

    def __init__(self, client: EngineClient | None) -> None:
        self._thread = threading.Thread(target=_close, args=(client,), name="engine's end")
        self._thread.start()

    def join(self) -> None:
        """Block until the process has ended."""
        self._thread.join()

    def done(self) -> bool:
        """Whether the process has ended."""
        return not self._thread.is_alive()

    def result(self) -> None:
        """Nothing."""

    def cancel(self) -> None:
        """No effect: the shutdown goes on."""


class EngineLink:
    """The engine, started on first use, and its open scans. Only `close` blocks.

    Args:
        start: Starts the engine.
        log: Called with each warning about a scan, one line each, when it has been opened.
    """

    def __init__(self, start: StartEngine, *, log: Callable[[str], None] = lambda line: None) -> None:
        self._start, self._log = start, log
        self._client: EngineClient | None = None
        self._openings: dict[Scan, Opening] = {}
        self._warned: set[int] = set()
        self._events: deque[Event] = deque()
        self._device = ""

    @property
    def client(self) -> EngineClient:
        """The client of the engine; starts the engine if it is not running."""
        if self._client is None:
            self._client = self._start(self._events.append)
        return self._client

    @property
    def device(self) -> str:
        """Device of the engine with its free memory at start; "" while not running."""
        return self._device

    def poll(self) -> None:
        """Let the engine's threads run; takes about two milliseconds."""
        if self._client is not None:
            self._client.poll()

    def case(self, volume: Any, model: str) -> Steps:
        """Steps to the `Case` of a volume in its present state.

        Opens it if needed, and closes older states of it.

        Raises:
            InputError: The volume has no voxels, or several channels.
            MaskSAMError: The engine cannot open it with this model.
        """
        scan = Scan(node=volume.GetID(), fingerprint=bridge.fingerprint(volume), model=model)
        self._close(lambda other: other.node == scan.node and other.fingerprint != scan.fingerprint)
        opening = self._openings.pop(scan, None) or self._open(volume, scan)
        self._openings[scan] = opening  # moved to the end: the most recently used
        oldest = list(self._openings)[:-MAX_OPEN_SCANS]
        self._close(lambda other: other in oldest)
        try:
            case: Case = yield SharedJob(opening.job)
        except Cancelled:
            raise
        except MaskSAMError:
            self._openings.pop(scan, None)
            raise
        if case.id not in self._warned:
            self._warned.add(case.id)
            for line in case.warnings:
                self._log(line)
        return case

    def take_events(self) -> list[Event]:
        """Events of the engine since the last call, in order; see `EngineClient`."""
        events = []
        while self._events:
            event = self._events.popleft()
            events.append(event)
            if event["event"] == "ready":
                self._device = str(event["hello"].get("device", ""))
            elif event["event"] == "restarting":
                self._device = ""
            elif event["event"] == "lost":
                gone = [scan for scan, opening in self._openings.items() if opening.number == event["case"]]
                for scan in gone:
                    del self._openings[scan]
        return events

    def keep_scans(self, nodes: Callable[[str], bool]) -> None:
        """Close the scans of all volumes except those whose node ID satisfies `nodes`."""
        self._close(lambda scan: not nodes(scan.node))

    def forget_model(self, model: str) -> None:
        """Close the scans of a model that was removed or replaced."""
        self._close(lambda scan: scan.model == model)

    def abandon(self) -> EngineShutdown:
        """Shut the engine down in the background; the next use starts a new one."""
        client, self._client = self._client, None
        self._openings.clear()
        self._device = ""
        return EngineShutdown(client)

    def close(self) -> None:
        """Shut the engine down and wait for its end, a few seconds at most."""
        self.abandon().join()

    def _open(self, volume: Any, scan: Scan) -> Opening:
        made_by, number = modality(volume), next(CASE_IDS)
        job = self.client.submit(
            "open",
            case=number,
            volume=bridge.scalars(volume),
            affine=bridge.geometry(volume).affine,
            model=scan.model,
            modality=made_by if made_by in ENGINE_MODALITIES else None,
            source=volume.GetName() or "the scan",
        )
        return Opening(job=job, number=number)

    def _close(self, which: Callable[[Scan], bool]) -> None:
        for scan in [scan for scan in self._openings if which(scan)]:
            opening = self._openings.pop(scan)
            if self._client is not None:
                opening.job.cancel()
                self._client.submit("release", case=opening.number)


def _close(client: EngineClient | None) -> None:
    if client is not None:
        client.close()
