"""Simulated users: accuracy of clicks and boxes on a labelled scan, for a model and for plain SAM.

There are two protocols, both on the scan's own grid:

* single slices: the user sees one slice of a structure and corrects it there;
* whole volumes: the user clicks anywhere in the scan, and every click may change the whole structure.

The first click is at the innermost voxel of the structure, every further click at the innermost voxel of the largest
error; nothing is random. Single slices are also tested as Med-SA's authors do (model.md §15.3), with a fixed seed: 1 or
3 random points of the structure at once, and a box whose IoU with the structure's own is 0.5 or 0.75. All methods get
the same points, boxes and first click; further clicks correct the method's own errors. NoC is the number of clicks
until a Dice is reached, or 20 if 20 are not enough. A click is idle if it changes no voxel but its own.

A model for structures of any kind answers in whole volumes alone. There a first scribble and a first lasso are tested
as well, and plain SAM segments slice by slice, see `methods.PropagatedSam`.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from MaskSAMCore.data.simulate import Click, box_with_overlap, error_click, random_clicks
from MaskSAMCore.evaluation.drawn_prompts import drawn_lasso, drawn_scribble
from MaskSAMCore.evaluation.methods import Method, ModelMethod, PropagatedSam, SamMethod, SliceMethod
from MaskSAMCore.evaluation.metrics import dice
from MaskSAMCore.inference.zeroshot import colours, grey_values, picture
from MaskSAMCore.preprocessing.masks import tight_box
from MaskSAMCore.progress import CancelToken

if TYPE_CHECKING:
    from MaskSAMCore.inference.session import Session
    from MaskSAMCore.inference.sessions import AnySession
    from MaskSAMCore.inference.zeroshot import ZeroShot
    from MaskSAMCore.labels import Label, LabelTable
    from MaskSAMCore.preprocessing.masks import Box2D
    from MaskSAMCore.volume import Grid, LabelMap, Volume

CLICKS = (1, 3, 5, 10)
POINTS = (1, 3)
OVERLAPS = (0.5, 0.75)
GOALS = (0.80, 0.85, 0.90)
MAX_CLICKS = 20
SEED = 0
SLICES, VOLUMES = "single slices", "whole volumes"
COLUMNS = (
    *(f"dice_{n}" for n in CLICKS),
    *(f"points_{n}" for n in POINTS),
    *(f"box_{round(100 * t)}" for t in OVERLAPS),
    *(f"{kind}_{round(100 * t)}" for t in GOALS for kind in ("noc", "reached")),
    "scribble",
    "lasso",
    "idle",
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Results of one method on one structure, in one slice or as a whole.

    Attributes:
        protocol: `SLICES` or `VOLUMES`.
        case, label, name: Case, label id and name of the structure.
        method: Name of the method.
        clicks: Dice after 1, 2, ... clicks, until the user stopped; see `click_through`.
        place: Index of the slice along its axis in the scan; None for a whole volume.
        points: Dice with random points, for each number of `POINTS`; empty if not tested.
        boxes: Dice with a box, for each IoU of `OVERLAPS`; empty if not tested.
        scribble, lasso: Dice with one as the only prompt; NaN if not tested.
        idle: Share of the clicks that changed no voxel but their own.
    """

    protocol: str
    case: str
    label: int
    name: str
    method: str
    clicks: tuple[float, ...]
    place: int | None = None
    points: tuple[float, ...] = ()
    boxes: tuple[float, ...] = ()
    scribble: float = math.nan
    lasso: float = math.nan
    idle: float = math.nan

    def figures(self) -> dict[str, float]:
        """Values by the names of `COLUMNS`; NaN for those that do not exist."""
        found = {f"dice_{n}": self.clicks[min(n, len(self.clicks)) - 1] for n in CLICKS}
        points = self.points or (math.nan,) * len(POINTS)
        found |= {f"points_{n}": value for n, value in zip(POINTS, points, strict=True)}
        boxes = self.boxes or (math.nan,) * len(OVERLAPS)
        found |= {f"box_{round(100 * t)}": value for t, value in zip(OVERLAPS, boxes, strict=True)}
        for goal in GOALS:
            needed = next((n for n, value in enumerate(self.clicks, start=1) if value >= goal), None)
            found[f"noc_{round(100 * goal)}"] = MAX_CLICKS if needed is None else needed
            found[f"reached_{round(100 * goal)}"] = float(needed is not None)
        return found | {"scribble": self.scribble, "lasso": self.lasso, "idle": self.idle}


class Course(NamedTuple):
    """What the clicks of a user led to: the Dice after each, and the share of those that changed next to nothing."""

    dice: tuple[float, ...]
    idle: float


def click_through(target: np.ndarray, method: Method, spacing: Sequence[float]) -> Course:
    """The clicks of a user who corrects the largest error.

    The user stops after `MAX_CLICKS` clicks, when no error is left, or when all of `CLICKS` were made and all of
    `GOALS` are reached.

    Args:
        target: The structure, bool with two or three axes; not empty.
        method: Segments it.
        spacing: Of the target's axes, mm; for the innermost voxel.
    """
    method.reset()
    found: list[float] = []
    clicks: list[Click] = []
    idle, former = 0, np.zeros_like(target)
    click = error_click(former, target, spacing=spacing)
    while click is not None and len(clicks) < MAX_CLICKS:
        clicks.append(click)
        predicted = method.clicks(clicks)
        found.append(dice(predicted, target))
        idle += int((predicted != former).sum()) <= 1
        former = predicted
        if len(found) >= max(CLICKS) and max(found) >= max(GOALS):
            break
        click = error_click(predicted, target, spacing=spacing)
    return Course(tuple(found), idle / max(len(clicks), 1))


def evenly_spaced(places: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """`count` of the places at even distances; all of them if `count` is 0 or there are no more."""
    if not 0 < count < len(places):
        return [int(p) for p in places]
    return [int(places[int((i + 0.5) * len(places) / count)]) for i in range(count)]


def drawn_box(target: np.ndarray, overlap: float, seed: Sequence[int]) -> Box2D:
    """A random box (x0, y0, x1, y1) with that IoU to the target's own.

    It is cut at the edge of the picture, and at least one pixel wide.
    """
    tight = tight_box(target)
    assert tight is not None
    rough: np.ndarray = np.reshape(box_with_overlap(tight, overlap, np.random.default_rng(list(seed))), (2, 2))
    size = np.array(target.shape[::-1], float)
    low, high = np.clip(rough, 0, size)
    low = np.clip(np.minimum(low, (low + high - 1) / 2), 0, size - 1)
    high = np.maximum(high, low + 1)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def drawn_points(target: np.ndarray, seed: Sequence[int]) -> list[Click]:
    """Different random pixels of the structure: the largest number of `POINTS`, or all if there are fewer."""
    places = random_clicks(target, max(POINTS), np.random.default_rng(list(seed)))
    return [Click(position=(int(y), int(x)), positive=True) for y, x in places]


def whole_trial(case: str, label: Label, mask: np.ndarray, method: Method, grid: Grid) -> Trial:
    """The clicks of one user in a whole volume.

    Args:
        case: Its id.
        label: The structure.
        mask: bool (K, J, I), not empty.
        method: Segments it.
        grid: Of the scan.
    """
    clicks, idle = click_through(mask, method, grid.spacing[::-1])
    return Trial(
        protocol=VOLUMES, case=case, label=label.id, name=label.name, method=method.name, clicks=clicks, idle=idle
    )


@dataclass(frozen=True, kw_only=True)
class Study:
    """Settings of an interactive evaluation.

    Attributes:
        name: Of the model.
        labels: Structures to test; those that a case lacks are left out.
        sam: Plain SAM, to compare with; None to leave it out.
        sam_name: Its name in the tables.
        slices: Number of slices of each structure, at even distances; 0 for all.
        colour: Whether the scans are colour pictures.
    """

    name: str
    labels: LabelTable
    sam: ZeroShot | None = None
    sam_name: str = ""
    slices: int = 3
    colour: bool = False

    def trials(
        self, case: str, volume: Volume, reference: LabelMap, session: Session, cancel: CancelToken | None = None
    ) -> Iterator[Trial]:
        """All trials of one case.

        Args:
            case: Its id.
            volume, reference: The scan and its labels, on one grid.
            session: Of the scan, with the model.
            cancel: Checked before every answer of the model.
        """
        targets = {label: reference.array == label.id for label in self.labels.labels}
        targets = {label: mask for label, mask in targets.items() if mask.any()}
        yield from self._slices(case, volume, targets, session, cancel)
        if volume.grid.shape[session.axis] == 1:
            return  # a picture has only one slice
        whole = ModelMethod(self.name, session, volume.grid, None, cancel)
        for label, mask in targets.items():
            trial = whole_trial(case, label, mask, whole, volume.grid)
            whole.reset()
            yield trial

    def open_set_trials(
        self,
        case: str,
        volume: Volume,
        reference: LabelMap,
        session: AnySession,
        cancel: CancelToken | None = None,
        last: np.ndarray | None = None,
    ) -> Iterator[Trial]:
        """All trials of one case with a model for structures of any kind; arguments as of `trials`.

        `last`, (K, J, I), gets the label ids of the model's answers to the last clicks.
        """
        whole = ModelMethod(self.name, session, volume.grid, None, cancel)
        methods: list[Method] = [whole]
        if self.sam is not None:
            methods.append(PropagatedSam(self.sam_name, self.sam, volume, session.axis, cancel))
        for label in self.labels.labels:
            mask = reference.array == label.id
            if not mask.any():
                continue
            for method in methods:
                found = whole_trial(case, label, mask, method, volume.grid)
                if method is whole:
                    if last is not None:
                        last[whole.found] = label.id
                    drawn = {}
                    for kind, draw in (("scribble", drawn_scribble), ("lasso", drawn_lasso)):
                        whole.reset()
                        drawn[kind] = dice(whole.drawing(draw(mask, session.axis)), mask)
                    found = replace(found, scribble=drawn["scribble"], lasso=drawn["lasso"])
                method.reset()
                yield found

    def _slices(
        self,
        case: str,
        volume: Volume,
        targets: dict[Label, np.ndarray],
        session: Session,
        cancel: CancelToken | None,
    ) -> Iterator[Trial]:
        axis = session.axis
        others = tuple(a for a in range(3) if a != axis)
        spacing = [volume.grid.spacing[::-1][a] for a in others]
        chosen = {n: evenly_spaced(np.flatnonzero(mask.any(axis=others)), self.slices) for n, mask in targets.items()}
        channel = volume.as_channels()[0]
        window = grey_values(channel)
        for index in sorted({i for some in chosen.values() for i in some}):
            methods: list[SliceMethod] = [ModelMethod(self.name, session, volume.grid, (axis, index), cancel)]
            if self.sam is not None:
                seen = volume.as_channels().take(index, axis=axis + 1) if self.colour else None
                self.sam.set_image(picture(channel.take(index, axis=axis), *window) if seen is None else colours(seen))
                methods.append(SamMethod(self.sam_name, self.sam))
            for label, method in itertools.product((n for n, some in chosen.items() if index in some), methods):
                target: np.ndarray = targets[label].take(index, axis=axis)
                clicks, idle = click_through(target, method, spacing)
                seed = (SEED, zlib.crc32(case.encode()), label.id, index)
                drawn, points, boxes = drawn_points(target, seed), [], []
                for count in POINTS:
                    method.reset()
                    points.append(dice(method.clicks(drawn[:count]), target))
                method.reset()
                for overlap in OVERLAPS:
                    box = drawn_box(target, overlap, seed)
                    boxes.append(dice(method.box(box), target))
                method.reset()
                yield Trial(
                    protocol=SLICES,
                    case=case,
                    label=label.id,
                    name=label.name,
                    place=index,
                    method=method.name,
                    clicks=clicks,
                    points=tuple(points),
                    boxes=tuple(boxes),
                    idle=idle,
                )
