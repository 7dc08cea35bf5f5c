"""Hold-out evaluation of a quickly trained model, on the cases that were left out of its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from MaskSAMCore.progress import CancelToken, Progress

if TYPE_CHECKING:
    import numpy as np

    from MaskSAMCore.config.schema import Config
    from MaskSAMCore.data.dataset import PreparedDataset
    from MaskSAMCore.data.raw import RawDataset
    from MaskSAMCore.inference.predictor import Predictor
    from MaskSAMCore.volume import LabelMap

STEPS = (0.5, 1.0)
"""Distances of two windows as shares of a patch: that of `segment`, and a coarse one to save time."""
POOR_DICE = 0.5
"""Dice below which the model is of no use for a structure."""
USER_WINDOWS = 3
"""Cost of the simulated user of one structure, in windows."""


@dataclass(frozen=True, kw_only=True)
class HoldOutPlan:
    """Cases of a hold-out evaluation, and how they will be segmented.

    Attributes:
        cases: Ids of the cases.
        step: Distance of two windows as a share of the patch.
        seconds: Estimated duration.
    """

    cases: tuple[str, ...]
    step: float
    seconds: float


@dataclass(kw_only=True)
class HoldOutResult:
    """Accuracy of a model on the held-out cases.

    Attributes:
        step: Distance of two windows as a share of the patch.
        dice: By case and structure, the Dice on the scan's own grid; left out where neither label map has the
            structure.
        users: By case, the mean Dice of simulated users ("click 1", "click 3", "box") within one patch around each
            structure; empty for a model that takes no prompts.
        worst: The case with the lowest mean Dice; "" if nothing was measured.
        found: The model's label map of that case.
    """

    step: float
    dice: dict[str, dict[str, float]] = field(default_factory=dict)
    users: dict[str, dict[str, float]] = field(default_factory=dict)
    worst: str = ""
    found: LabelMap | None = None

    def structures(self) -> dict[str, dict[str, float]]:
        """By structure, the mean Dice and the number of cases with it."""
        return {
            name: {"dice": round(sum(values) / len(values), 4), "cases": len(values)}
            for name, values in _columns(self.dice.values()).items()
        }

    def poor_structures(self) -> list[str]:
        """Structures with a mean Dice below `POOR_DICE`."""
        return [name for name, row in self.structures().items() if row["dice"] < POOR_DICE]

    def prompts(self) -> dict[str, float]:
        """Mean Dice of the simulated users over all cases."""
        return {name: round(sum(v) / len(v), 4) for name, v in _columns(self.users.values()).items()}


def plan_hold_out(
    prepared: PreparedDataset, config: Config, cases: Sequence[str], *, window_s: float, most_s: float
) -> HoldOutPlan:
    """Choose as many cases as fit into a time, at least one; with overlapping windows if all cases fit so.

    Args:
        prepared: The data set, for the sizes of the cases.
        config: Of the model.
        cases: In the order of preference.
        window_s: Seconds of one window.
        most_s: Seconds for all cases.
    """
    from MaskSAMCore.inference.sliding_window import window_count

    users = 0 if config.train.mode == "auto" else USER_WINDOWS * (config.model.classes - 1)
    plan = HoldOutPlan(cases=(), step=STEPS[0], seconds=0.0)
    for step in STEPS:
        chosen: list[str] = []
        spent = 0.0
        for case in cases:
            depth, height, width = prepared.case(case).label.shape
            seconds = window_s * (window_count((depth, height, width), config.model.patch, step=step) + users)
            if chosen and spent + seconds > most_s:
                break
            chosen, spent = [*chosen, case], spent + seconds
        plan = HoldOutPlan(cases=tuple(chosen), step=step, seconds=spent)
        if len(chosen) == len(cases) and spent <= most_s:
            break
    return plan


def evaluate_hold_out(
    predictor: Predictor,
    raw: RawDataset,
    prepared: PreparedDataset,
    plan: HoldOutPlan,
    *,
    enough: Callable[[], bool],
    progress: Progress,
    cancel: CancelToken,
) -> HoldOutResult:
    """Segment the held-out cases, and let simulated users click into them.

    Args:
        predictor: Of the model.
        raw: The cases as they were saved.
        prepared: The same cases, preprocessed.
        plan: Which cases, and how.
        enough: Called after every case; True leaves out the rest.
        progress: Called after every case.
        cancel: Checked before every window.

    Raises:
        Cancelled: `cancel` was set.
    """
    from MaskSAMCore.data.raw import read_case
    from MaskSAMCore.evaluation.metrics import dice
    from MaskSAMCore.preprocessing.resample import pad_to
    from MaskSAMCore.training.prompted import click_dice

    result = HoldOutResult(step=plan.step)
    known = {case.id: case for case in raw.cases}
    lowest = math.inf
    for number, case in enumerate(plan.cases):
        if number and enough():
            break
        volume, reference = read_case(raw, known[case])
        found = predictor.segment(volume, step=plan.step, cancel=cancel).labels
        scores = {label.name: dice(found.array == label.id, reference.array == label.id) for label in raw.labels.labels}
        result.dice[case] = {name: value for name, value in scores.items() if not math.isnan(value)}
        mean = _mean(result.dice[case].values())
        if mean < lowest:
            lowest, result.worst, result.found = mean, case, found
        config = predictor.card.config
        if config.train.mode != "auto":
            ready = prepared.case(case)
            image, classes = (pad_to(array, config.model.patch)[0] for array in _arrays(ready.image, ready.label))
            result.users[case] = click_dice(predictor.network, image, classes, config.model.patch)
        progress(number + 1, len(plan.cases), "judging")
    return result


def _arrays(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    return np.asarray(image, np.float32), np.asarray(label)


def _columns(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.inf
