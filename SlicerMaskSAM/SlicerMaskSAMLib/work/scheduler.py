"""What takes time: begun when it may begin, driven by the timer, and ended with the scene or the module."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from MaskSAMCore.errors import InputError
from SlicerMaskSAMLib.values.status import Phase, Progress
from SlicerMaskSAMLib.values.tasks import Steps
from SlicerMaskSAMLib.work.catalogue import Catalogue
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.prefetch import Prefetch
from SlicerMaskSAMLib.work.refine import Refinement
from SlicerMaskSAMLib.work.state_machine import StateMachine

MESSAGES = 30
"""Lines that are kept for the user."""
TASK_TEXTS = {
    "setup": "Setting up",
    "segment": "Segmenting",
    "refine": "Answering",
    "output": "Writing",
    "teach": "Teaching",
}
"""Work that the user waits for, and how it is called."""


class MessageLog:
    """The last lines for the user; called with a new one.

    Args:
        changed: Called when there is one.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._lines: deque[str] = deque(maxlen=MESSAGES)
        self._changed = changed

    def __call__(self, line: str) -> None:
        self._lines.append(line)
        self._changed()

    @property
    def lines(self) -> tuple[str, ...]:
        """The newest last."""
        return tuple(self._lines)

    def clear(self) -> None:
        """Forget them."""
        self._lines.clear()


class Scheduler:
    """One piece of work at a time; prompts when nothing else is asked for; and what is shown, in the background.

    Attributes:
        missing: Whether something has to be installed before the engine can be used.
    """

    def __init__(
        self, context: Context, messages: MessageLog, catalogue: Catalogue, refinement: Refinement, views: Any
    ) -> None:
        self._context, self._messages = context, messages
        self._catalogue, self._refinement = catalogue, refinement
        self._state_machine = StateMachine(log=messages, on_stuck=self._end_engine)
        self._prefetch = Prefetch(context, views)
        self._next: tuple[str, Callable[[], Steps]] | None = None
        self._shown: Any = None
        self._nodes_removed = False
        self.missing = False
        scene = context.scene
        self._tags = [
            scene.AddObserver(event, heard)
            for event, heard in (
                (scene.StartCloseEvent, self._on_close),
                (scene.EndImportEvent, self._on_import),
                (scene.NodeRemovedEvent, self._on_removed),
            )
        ]

    # -- how things stand --------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Of all work; the background does not count."""
        phase = self._state_machine.phase
        return Phase.NEEDS_SETUP if phase is Phase.IDLE and self.missing else phase

    @property
    def task(self) -> str:
        """One of `TASK_TEXTS`; "" for none."""
        return self._state_machine.task

    @property
    def progress(self) -> Progress | None:
        """Of the work that the user waits for."""
        return self._state_machine.progress

    @property
    def headline(self) -> str:
        """The state in plain words."""
        if self._state_machine.phase is not Phase.IDLE:
            return "Stopping" if self._state_machine.phase is Phase.CANCELLING else TASK_TEXTS[self.task]
        if self.missing:
            return "Set-up is needed"
        return self.mismatch or ("Encoding the visible slice" if self._state_machine.background else "Ready")

    @property
    def mismatch(self) -> str:
        """Why the engine cannot be used on volume and model, in words for the user; "" where it can."""
        try:
            volume, model = self._context.require_inputs()
        except InputError as error:
            return error.remedy
        return self._catalogue.mismatch(model, volume)

    def check(self) -> None:
        """Raise InputError where the engine cannot be used on volume and model."""
        if self.missing:
            raise InputError("something has to be installed first", remedy="Press Set up.")
        volume, model = self._context.require_inputs()
        mismatch = self._catalogue.mismatch(model, volume)
        if mismatch:
            raise InputError("the model does not suit the volume", where=model.name, why=mismatch)

    # -- begin and end -----------------------------------------------------------------------------------------------

    def is_running(self, name: str) -> bool:
        """Whether this work is going on, or is about to begin."""
        return self.task == name or (self._next is not None and self._next[0] == name)

    def begin(self, name: str, make: Callable[[], Steps]) -> None:
        """Begin work; where prompts are being answered, it begins after them. Other work has to end first."""
        if not self.task:
            self._state_machine.start(name, make())
        elif self.task == "refine" and self._next is None:
            self._next = name, make
        else:
            self._messages(f"{TASK_TEXTS[self.task]}: wait for the end, or cancel.")
        self._context.changed()

    def cancel(self) -> None:
        """Ask for the end of what is going on."""
        self._next = None
        self._state_machine.cancel()
        self._context.changed()

    def pause_background(self) -> None:
        """End what goes on in the background; it begins anew with the next tick."""
        self._state_machine.abandon_background()
        self._prefetch.reset()

    def close(self) -> None:
        """End everything, the engine's process included."""
        self._state_machine.abandon_all()
        self._context.engine_link.close()
        for tag in self._tags:
            self._context.scene.RemoveObserver(tag)
        self._tags = []

    def tick(self) -> None:
        """Go on, as far as that is possible without waiting."""
        self._context.engine_link.poll()
        heard = self._handle_engine_events()
        moved = self._state_machine.tick()
        if self._state_machine.phase is Phase.IDLE:
            moved = self._begin_next() or moved
        shown = self._state_machine.phase, self._state_machine.progress
        if heard or moved or shown != self._shown:
            self._shown = shown
            self._context.changed()

    def _begin_next(self) -> bool:
        """Begin what waits: what a button asked for, then prompts, then the slice that is shown."""
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

    # -- what happens ------------------------------------------------------------------------------------------------

    def _handle_engine_events(self) -> bool:
        """Take note of what the engine told; whether it told anything."""
        events = self._context.engine_link.take_events()
        for event in events:
            if event["event"] == "restarting":
                self._messages(f"The engine stopped and is started again: {event['why']}.")
            elif event["event"] == "lost":
                self._messages(f"A scan could not be opened again: {event['why']}")
                self._prefetch.reset()
        return bool(events)

    def _end_engine(self) -> None:
        self._context.engine_link.abandon()
        self._prefetch.reset()

    def _on_close(self, _scene: Any, _event: str) -> None:
        """The scene is about to be closed: nothing that was begun may write into the next one (faults.md row 53)."""
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
