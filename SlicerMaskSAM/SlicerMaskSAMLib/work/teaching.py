"""Teaching: saved training cases, and a model trained on them on this computer."""

from __future__ import annotations

import atexit
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from MaskSAMCore.data.raw import RawDataset, read_dataset
from MaskSAMCore.data.save import remove_case
from MaskSAMCore.errors import DatasetError, InputError
from MaskSAMCore.worker.folder import PrivateFolder
from SlicerMaskSAMLib.engine.commands import core_command
from SlicerMaskSAMLib.values.status import CaseRow, TrainingResult
from SlicerMaskSAMLib.values.tasks import Steps, Waitable
from SlicerMaskSAMLib.work.context import Context
from SlicerMaskSAMLib.work.output import training_folder

MIN_CASES = 2
"""Fewest cases: one to train on and one to evaluate on."""
DESCRIPTION, LABELS = "dataset.json", "labelsTr"
_UNUSABLE = re.compile(r"[^A-Za-z0-9._-]+")

StartCommand = Callable[..., Waitable]
"""Starts `python -m MaskSAMCore.<words>`; its result has the command's output as `stdout`."""


class Teaching:
    """The training folder as a list, and training on it.

    Args:
        context: Its parameters name the folder and the device.
        start: Starts a command.

    Attributes:
        last_result: Result of the last training; None before the first.
    """

    def __init__(self, context: Context, *, start: StartCommand = core_command) -> None:
        self.last_result: TrainingResult | None = None
        self._context, self._start = context, start
        self._seen: tuple[object, ...] = ()
        self._rows: tuple[CaseRow, ...] = ()
        self._pictures: PrivateFolder | None = None
        self._drawn = 0

    @property
    def enough(self) -> bool:
        """Whether there are enough cases to train on."""
        return len(self.cases()) >= MIN_CASES

    def cases(self) -> tuple[CaseRow, ...]:
        """The cases of the training folder with their structures.

        The folder is read again only if it changed.
        """
        folder = training_folder(self._context.parameters)
        seen = (folder, *(_changed(folder / part) for part in (DESCRIPTION, LABELS)))
        if seen != self._seen:
            self._seen, self._rows = seen, ()
            if (folder / DESCRIPTION).is_file():
                try:
                    self._rows = _rows(read_dataset(folder))
                except DatasetError as error:
                    self._context.log(str(error))
        return self._rows

    def remove_case(self, name: str) -> None:
        """Delete a case from the training folder.

        Raises:
            InputError: There is no such case.
            ResourceError: Another process uses the folder.
        """
        remove_case(training_folder(self._context.parameters), name)
        self._context.changed()

    def teach(self, name: str) -> Steps:
        """Steps that train a model on the cases; returns the `TrainingResult`.

        A model of this name that was taught here is replaced, once the new one is complete.

        Args:
            name: Name of the model; the training folder's if empty.

        Raises:
            InputError: There are too few cases, they have problems, or another model has this name.
            MaskSAMError: The training failed.
        """
        if not self.enough:
            why = f"{len(self.cases())} saved"
            remedy = f'Save at least {MIN_CASES} with "Save as training case".'
            raise InputError("there are too few training cases", why=why, remedy=remedy)
        folder = training_folder(self._context.parameters)
        name = _UNUSABLE.sub("-", name or folder.name).strip("-._") or "model"
        words = ["teach", str(folder), "--name", name, "--picture", str(self._picture())]
        words += ["--device", self._context.parameters.device]
        words += ["--overwrite"] if self._is_taught_here(name) else []
        result = yield self._start(*words)
        report = json.loads(result.stdout.splitlines()[-1])
        self.last_result = TrainingResult(
            model=report["model"],
            dice=report["dice"],
            left_out=tuple(report["left_out"]),
            worst_case=report["worst_case"],
            overlay=report["overlay"],
            seconds=report["seconds"],
        )
        self._context.log(_summary(self.last_result, report["poor"]))
        self._context.changed()
        return self.last_result

    def _is_taught_here(self, name: str) -> bool:
        """Whether the user has a model of this name that was taught here."""
        found = (model for model in self._context.models() if model.name == name and model.origin == "user")
        return any(model.card is not None and "lesson" in model.card.provenance for model in found)

    def _picture(self) -> Path:
        """A new file for a picture.

        It shows a patient, so its folder is deleted when this process ends.
        """
        if self._pictures is None:
            self._pictures = PrivateFolder.make()
            atexit.register(self._pictures.remove)
        self._drawn += 1
        return self._pictures.path / f"result-{self._drawn}.png"


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _rows(dataset: RawDataset) -> tuple[CaseRow, ...]:
    data = json.loads((dataset.folder / DESCRIPTION).read_text(encoding="utf-8"))
    held = data.get("structures", {})
    return tuple(CaseRow(name=case.id, structures=tuple(held.get(case.id, ()))) for case in dataset.cases)


def _summary(result: TrainingResult, poor: Sequence[str]) -> str:
    text = f"{result.model} was taught in {result.seconds / 60:.1f} minutes."
    if not result.dice:
        return f"{text} No case was held out, so its quality is unknown."
    figures = ", ".join(f"{name} {dice:.2f}" for name, dice in result.dice.items())
    text = f"{text} Dice on {', '.join(result.left_out)}: {figures}."
    return f"{text} Not good enough yet for {', '.join(poor)}: more cases help." if poor else text
