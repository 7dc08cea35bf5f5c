"""Scheduler of long work, driven by a timer, ended with the scene or the module."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from MaskSAMCore.errors import InputError
from SlicerMaskSAMLib.mrml.views import Views
from SlicerMaskSAMLib.values.status import Phase, Progress
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work.catalogue import Catalogue
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.prefetch import Prefetch
from SlicerMaskSAMLib.work.refine import Refinement
from SlicerMaskSAMLib.work.state_machine import StateMachine

MESSAGES = 30
"""Number of messages that are kept."""
TASK_TEXTS = {
    "setup": "Setting up",
    "segment": "Segmenting",
    "refine": "Answering",
    "output": "Writing",
    "teach": "Teaching",
}
"""The tasks that the user waits for, and their headline."""


class MessageLog:
    """The last messages to the user; call it to add one.

    Args:
        changed: Called when a message was added.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._lines: deque[str] = deque(maxlen=MESSAGES)
        self._changed = changed

    def __call__(self, line: str) -> None:
        self._lines.append(line)
        self._changed()

    @property
    def lines(self) -> tuple[str, ...]:
        """The messages, the newest last."""
        return tuple(self._lines)

    def clear(self) -> None:
        """Remove all messages."""
        self._lines.clear()


class Scheduler:
    """Runs one task at a time, answers prompts, and prefetches the visible slice.

    Attributes:
        missing: Whether something has to be installed before the engine can be used.
    """

    def __init__(
        self, context: Context, messages: MessageLog, catalogue: Catalogue, refinement: Refinement, views: Views | None
    ) -> None:
        self._context, self._messages = context, messages
        self._catalogue, self._refinement = catalogue, refinement
        self._state_machine = StateMachine(log=messages, on_stuck=self._end_engine)
        self._prefetch = Prefetch(context, views)
        self._next: tuple[str, Callable[[], Steps]] | None = None
        self._shown: tuple[Phase, Progress | None] | None = None
        self._nodes_removed = False
        self.missing = False
        scene = context.scene
        self._tags = [
            scene.AddObserver(event, callback)
            for event, callback in (
                (scene.StartCloseEvent, self._on_close),
                (scene.EndImportEvent, self._on_import),
                (scene.NodeRemovedEvent, self._on_removed),
            )
        ]

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Phase of the running task; the background does not count."""
        phase = self._state_machine.phase
        return Phase.NEEDS_SETUP if phase is Phase.IDLE and self.missing else phase

    @property
    def task(self) -> str:
        """Name of the running task, one of `TASK_TEXTS`; "" for none."""
        return self._state_machine.task

    @property
    def progress(self) -> Progress | None:
        """Progress of the running task."""
        return self._state_machine.progress

    @property
    def headline(self) -> str:
        """The state in words."""
        if self._state_machine.phase is not Phase.IDLE:
            return "Stopping" if self._state_machine.phase is Phase.CANCELLING else TASK_TEXTS[self.task]
        if self.missing:
            return "Setup is needed"
        return self.mismatch or ("Encoding the visible slice" if self._state_machine.background else "Ready")

    @property
    def mismatch(self) -> str:
        """Why the engine cannot be used on volume and model, for the user; or ""."""
        try:
            volume, model = self._context.require_inputs()
        except InputError as error:
            return error.remedy
        return self._catalogue.mismatch(model, volume)

    def check(self) -> None:
        """Raise InputError if the engine cannot be used on volume and model."""
        if self.missing:
            raise InputError("packages or base weights are missing", remedy="Press Set up.")
        volume, model = self._context.require_inputs()
        mismatch = self._catalogue.mismatch(model, volume)
        if mismatch:
            raise InputError("the model cannot be used on this volume", where=model.name, why=mismatch)

    # -- start and end -----------------------------------------------------------------------------------------------

    def is_running(self, name: str) -> bool:
        """Whether this task is running or about to start."""
        return self.task == name or (self._next is not None and self._next[0] == name)

    def begin(self, name: str, make: Callable[[], Steps]) -> None:
        """Start a task, after the prompts that are being answered.

        Refused, with a message, while another task runs.
        """
        if not self.task:
            self._state_machine.start(name, make())
        elif self.task == "refine" and self._next is None:
            self._next = name, make
        else:
            self._messages(f"{TASK_TEXTS[self.task]}: wait until it is done, or cancel it.")
        self._context.changed()

    def cancel(self) -> None:
        """Cancel the running task."""
        self._next = None
        self._state_machine.cancel()
        self._context.changed()

    def pause_background(self) -> None:
        """End the background task. The next tick may start it again."""
        self._state_machine.abandon_background()
        self._prefetch.reset()

    def close(self) -> None:
        """End everything, the engine process included."""
        self._state_machine.abandon_all()
        self._context.engine_link.close()
        for tag in self._tags:
            self._context.scene.RemoveObserver(tag)
        self._tags = []

    def tick(self) -> None:
        """Continue the running task without blocking."""
        self._context.engine_link.poll()
        had_events = self._handle_engine_events()
        moved = self._state_machine.tick()
        if self._state_machine.phase is Phase.IDLE:
            moved = self._begin_next() or moved
        shown = self._state_machine.phase, self._state_machine.progress
        if had_events or moved or shown != self._shown:
            self._shown = shown
            self._context.changed()

    def _begin_next(self) -> bool:
        """Start what waits: a requested task, else prompts, else a prefetch."""
        if self._next is not None:
            (name, make), self._next = self._next, None
            return self._state_machine.start(name, make())
        if self._refinement.has_work:
            return self._state_machine.start("refine", self._refinement.steps())
        if self._nodes_removed:
            self._nodes_removed = False
            self._context.engine_link.keep_scans(lambda node: self._context.scene.GetNodeByID(node) is not None)
        steps = None if self.missing or self.mismatch else self._prefetch.next_steps()
        if steps is not None:
            self._state_machine.start_background("encode", steps)
        return steps is not None

    # -- events ------------------------------------------------------------------------------------------------------

    def _handle_engine_events(self) -> bool:
        """Handle the engine's events; returns whether there were any."""
        events = self._context.engine_link.take_events()
        for event in events:
            if event["event"] == "restarting":
                self._messages(f"The engine stopped and is being restarted: {event['why']}.")
            elif event["event"] == "lost":
                self._messages(f"A scan could not be opened again: {event['why']}")
                self._prefetch.reset()
        return bool(events)

    def _end_engine(self) -> None:
        self._context.engine_link.abandon()
        self._prefetch.reset()

    def _on_close(self, _scene: Any, _event: str) -> None:
        """Stop everything before the scene is closed (faults.md row 53)."""
        stopped, self._next = self.task, None
        self._state_machine.abandon_all()
        self._context.engine_link.keep_scans(lambda node: False)
        self._context.history.clear()
        self._refinement.reset()
        self._messages.clear()
        if stopped:
            self._messages(f"{TASK_TEXTS[stopped]} was stopped: the scene was closed.")
        self._context.changed()

    def _on_import(self, _scene: Any, _event: str) -> None:
        self._refinement.reset()
        self._context.changed()

    def _on_removed(self, _scene: Any, _event: str) -> None:
        self._nodes_removed = True
