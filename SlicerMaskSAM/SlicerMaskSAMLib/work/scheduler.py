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
from SlicerMaskSAMLib.work.prefetch import Lookout
from SlicerMaskSAMLib.work.refine import Refinement
from SlicerMaskSAMLib.work.state_machine import Machine

MESSAGES = 30
"""Lines that are kept for the user."""
NAMES = {
    "setup": "Setting up",
    "segment": "Segmenting",
    "refine": "Answering",
    "output": "Writing",
    "teach": "Teaching",
}
"""Work that the user waits for, and how it is called."""


class Messages:
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


class Work:
    """One piece of work at a time; prompts when nothing else is asked for; and what is shown, in the background.

    Attributes:
        missing: Whether something has to be installed before the engine can be used.
    """

    def __init__(
        self, context: Context, messages: Messages, catalogue: Catalogue, refinement: Refinement, views: Any
    ) -> None:
        self._context, self._messages = context, messages
        self._catalogue, self._refinement = catalogue, refinement
        self._machine = Machine(say=messages, on_stuck=self._give_engine_up)
        self._lookout = Lookout(context, views)
        self._next: tuple[str, Callable[[], Steps]] | None = None
        self._shown: Any = None
        self._nodes_gone = False
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
        phase = self._machine.phase
        return Phase.NEEDS_SETUP if phase is Phase.IDLE and self.missing else phase

    @property
    def task(self) -> str:
        """One of `NAMES`; "" for none."""
        return self._machine.task

    @property
    def progress(self) -> Progress | None:
        """Of the work that the user waits for."""
        return self._machine.progress

    @property
    def headline(self) -> str:
        """The state in plain words."""
        if self._machine.phase is not Phase.IDLE:
            return "Stopping" if self._machine.phase is Phase.CANCELLING else NAMES[self.task]
        if self.missing:
            return "Set-up is needed"
        return self.misfit or ("Encoding the visible slice" if self._machine.background else "Ready")

    @property
    def misfit(self) -> str:
        """Why the engine cannot be used on volume and model, in words for the user; "" where it can."""
        try:
            volume, model = self._context.need()
        except InputError as error:
            return error.remedy
        return self._catalogue.misfit(model, volume)

    def check(self) -> None:
        """Raise InputError where the engine cannot be used on volume and model."""
        if self.missing:
            raise InputError("something has to be installed first", remedy="Press Set up.")
        volume, model = self._context.need()
        misfit = self._catalogue.misfit(model, volume)
        if misfit:
            raise InputError("the model does not suit the volume", where=model.name, why=misfit)

    # -- begin and end -----------------------------------------------------------------------------------------------

    def doing(self, name: str) -> bool:
        """Whether this work is going on, or is about to begin."""
        return self.task == name or (self._next is not None and self._next[0] == name)

    def begin(self, name: str, make: Callable[[], Steps]) -> None:
        """Begin work; where prompts are being answered, it begins after them. Other work has to end first."""
        if not self.task:
            self._machine.start(name, make())
        elif self.task == "refine" and self._next is None:
            self._next = name, make
        else:
            self._messages(f"{NAMES[self.task]}: wait for the end, or cancel.")
        self._context.changed()

    def cancel(self) -> None:
        """Ask for the end of what is going on."""
        self._next = None
        self._machine.cancel()
        self._context.changed()

    def rest(self) -> None:
        """End what goes on in the background; it begins anew with the next tick."""
        self._machine.drop_background()
        self._lookout.again()

    def close(self) -> None:
        """End everything, the engine's process included."""
        self._machine.drop()
        self._context.link.close()
        for tag in self._tags:
            self._context.scene.RemoveObserver(tag)
        self._tags = []

    def tick(self) -> None:
        """Go on, as far as that is possible without waiting."""
        self._context.link.poll()
        heard = self._hear()
        moved = self._machine.tick()
        if self._machine.phase is Phase.IDLE:
            moved = self._begin_next() or moved
        shown = self._machine.phase, self._machine.progress
        if heard or moved or shown != self._shown:
            self._shown = shown
            self._context.changed()

    def _begin_next(self) -> bool:
        """Begin what waits: what a button asked for, then prompts, then the slice that is shown."""
        if self._next is not None:
            (name, make), self._next = self._next, None
            return self._machine.start(name, make())
        if self._refinement.waiting:
            return self._machine.start("refine", self._refinement.steps())
        if self._nodes_gone:
            self._nodes_gone = False
            self._context.link.keep(lambda node: self._context.scene.GetNodeByID(node) is not None)
        steps = None if self.missing or self.misfit else self._lookout.look()
        if steps is not None:
            self._machine.start_background("encode", steps)
        return steps is not None

    # -- what happens ------------------------------------------------------------------------------------------------

    def _hear(self) -> bool:
        """Take note of what the engine told; whether it told anything."""
        events = self._context.link.drain()
        for event in events:
            if event["event"] == "restarting":
                self._messages(f"The engine stopped and is started again: {event['why']}.")
            elif event["event"] == "lost":
                self._messages(f"A scan could not be opened again: {event['why']}")
                self._lookout.again()
        return bool(events)

    def _give_engine_up(self) -> None:
        self._context.link.abandon()
        self._lookout.again()

    def _on_close(self, _scene: Any, _event: str) -> None:
        """The scene is about to be closed: nothing that was begun may write into the next one (faults.md row 53)."""
        stopped, self._next = self.task, None
        self._machine.drop()
        self._context.link.keep(lambda node: False)
        self._context.history.clear()
        self._refinement.reset()
        self._messages.clear()
        if stopped:
            self._messages(f"{NAMES[stopped]} was stopped: the scene was closed.")
        self._context.changed()

    def _on_import(self, _scene: Any, _event: str) -> None:
        self._refinement.reset()
        self._context.changed()

    def _on_removed(self, _scene: Any, _event: str) -> None:
        self._nodes_gone = True
