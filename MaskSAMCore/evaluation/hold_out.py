"""Judging a model that was just taught by the cases that were left out of its lesson."""

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
"""Distances of two windows, as shares of a patch, that cases are segmented with: as `segment` does, or coarsely."""
POOR_DICE = 0.5
"""Dice below which a structure is not found well enough to be of use."""
USER_WINDOWS = 3
"""What the simulated user of one structure costs, in windows."""


@dataclass(frozen=True, kw_only=True)
class HoldOutPlan:
    """What will be judged, and how.

    Attributes:
        cases: To be segmented.
        step: Distance of two windows.
        seconds: What that will take, roughly.
    """

    cases: tuple[str, ...]
    step: float
    seconds: float


@dataclass(kw_only=True)
class HoldOutResult:
    """What the cases say about a model.

    Attributes:
        step: Distance of two windows.
        dice: Case, then structure, to Dice on the scan's own grid; nothing where neither map has the structure.
        users: Case to the mean Dice of simulated users ("click 1", "click 3", "box") within one patch around each
            structure; empty for a model that takes no prompts.
        worst: The case with the lowest mean Dice; "" if there was nothing to measure.
        found: Its label map by the model.
    """

    step: float
    dice: dict[str, dict[str, float]] = field(default_factory=dict)
    users: dict[str, dict[str, float]] = field(default_factory=dict)
    worst: str = ""
    found: LabelMap | None = None

    def structures(self) -> dict[str, dict[str, float]]:
        """Structure to its mean Dice, and the number of cases that it stands for."""
        return {
            name: {"dice": round(sum(values) / len(values), 4), "cases": len(values)}
            for name, values in _columns(self.dice.values()).items()
        }

    def poor_structures(self) -> list[str]:
        """Structures that the model is of no use for yet."""
        return [name for name, row in self.structures().items() if row["dice"] < POOR_DICE]

    def prompts(self) -> dict[str, float]:
        """Mean Dice of the simulated users."""
        return {name: round(sum(v) / len(v), 4) for name, v in _columns(self.users.values()).items()}


def plan_hold_out(
    prepared: PreparedDataset, config: Config, cases: Sequence[str], *, window_s: float, most_s: float
) -> HoldOutPlan:
    """As many of the cases as fit into `most_s` seconds, at least one, with overlapping windows where that fits.

    Args:
        prepared: Tells the sizes of the cases.
        config: Of the model.
        cases: In the order of preference.
        window_s: Seconds of one window.
        most_s: Seconds that the plan should not exceed.
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
    """Segment the cases of an plan, and let simulated users click into them.

    Args:
        predictor: Of the model.
        raw: The cases as they were saved.
        prepared: The same, as the network sees them.
        plan: What to judge.
        enough: Asked after every case; True ends the plan with those that were judged.
        progress: Told after every case.
        cancel: Asked before every window.
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
