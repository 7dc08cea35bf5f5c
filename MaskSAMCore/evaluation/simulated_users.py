"""Simulated users: accuracy of clicks and boxes on a labelled scan, for a model and for plain SAM.

There are two protocols, both on the scan's own grid:

* single slices: the user sees one slice of a structure and corrects it there;
* whole volumes: the user clicks anywhere in the scan, and every click may change the whole structure.

The first click is at the innermost voxel of the structure, every further click at the innermost voxel of the largest
error; nothing is random. Single slices are also tested as Med-SA's authors do (model.md §15.3), with a fixed seed: 1 or
3 random points of the structure at once, and a box whose IoU with the structure's own is 0.5 or 0.75. All methods get
the same points, boxes and first click; further clicks correct the method's own errors. NoC is the number of clicks
until a Dice is reached, or 20 if 20 are not enough.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from MaskSAMCore.progress import CancelToken

if TYPE_CHECKING:
    from MaskSAMCore.data.simulate import Click
    from MaskSAMCore.inference.prompts import Prompt
    from MaskSAMCore.inference.session import Session
    from MaskSAMCore.inference.zeroshot import ZeroShot
    from MaskSAMCore.labels import Label, LabelTable
    from MaskSAMCore.preprocessing.masks import Box2D
    from MaskSAMCore.volume import Grid, LabelMap, Volume

CLICKS = (1, 3, 5)
POINTS = (1, 3)
OVERLAPS = (0.5, 0.75)
GOALS = (0.85, 0.90)
MAX_CLICKS = 20
SEED = 0
STRUCTURE = 1
SLICES, VOLUMES = "single slices", "whole volumes"
COLUMNS = (
    *(f"dice_{n}" for n in CLICKS),
    *(f"points_{n}" for n in POINTS),
    *(f"box_{round(100 * t)}" for t in OVERLAPS),
    *(f"{kind}_{round(100 * t)}" for t in GOALS for kind in ("noc", "reached")),
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
        return found


class Method(Protocol):
    """A method that segments one structure from prompts; its masks are bool, of the target's shape."""

    name: str

    def reset(self) -> None:
        """Forget all prompts."""
        ...

    def clicks(self, clicks: Sequence[Click]) -> np.ndarray:
        """The mask after these clicks, of which only the last is new."""
        ...

    def box(self, box: Box2D) -> np.ndarray:
        """The mask of this box alone, (x0, y0, x1, y1) in pixels of the slice."""
        ...


def click_through(target: np.ndarray, method: Method, spacing: Sequence[float]) -> tuple[float, ...]:
    """Dice after every click of a user who corrects the largest error.

    The user stops after `MAX_CLICKS` clicks, when no error is left, or when all of `CLICKS` were made and all of
    `GOALS` are reached.

    Args:
        target: The structure, bool with two or three axes; not empty.
        method: Segments it.
        spacing: Of the target's axes, mm; for the innermost voxel.
    """
    from MaskSAMCore.data.simulate import error_click

    method.reset()
    found: list[float] = []
    clicks: list[Click] = []
    click = error_click(np.zeros_like(target), target, spacing=spacing)
    while click is not None and len(clicks) < MAX_CLICKS:
        clicks.append(click)
        predicted = method.clicks(clicks)
        found.append(_dice(predicted, target))
        if len(found) >= max(CLICKS) and max(found) >= max(GOALS):
            break
        click = error_click(predicted, target, spacing=spacing)
    return tuple(found)


def evenly_spaced(places: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """`count` of the places at even distances; all of them if `count` is 0 or there are no more."""
    if not 0 < count < len(places):
        return [int(p) for p in places]
    return [int(places[int((i + 0.5) * len(places) / count)]) for i in range(count)]


def drawn_box(target: np.ndarray, overlap: float, seed: Sequence[int]) -> Box2D:
    """A random box (x0, y0, x1, y1) with that IoU to the target's own.

    It is cut at the edge of the picture, and at least one pixel wide.
    """
    from MaskSAMCore.data.simulate import box_with_overlap
    from MaskSAMCore.preprocessing.masks import tight_box

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
    from MaskSAMCore.data.simulate import Click, random_clicks

    places = random_clicks(target, max(POINTS), np.random.default_rng(list(seed)))
    return [Click(position=(int(y), int(x)), positive=True) for y, x in places]


class ModelMethod:
    """Our model, in a `Session`.

    Args:
        name: Of the method, for the tables.
        session: Of the scan.
        grid: Of the scan.
        plane: (axis of (K, J, I), index) of the slice that the user sees; None for the whole volume.
        cancel: Checked before every answer.
    """

    def __init__(
        self, name: str, session: Session, grid: Grid, plane: tuple[int, int] | None, cancel: CancelToken | None = None
    ) -> None:
        self.name, self.session, self.grid, self.plane, self.cancel = name, session, grid, plane, cancel
        self.found: np.ndarray = np.zeros(grid.shape, bool)

    def reset(self) -> None:
        """See `Method`."""
        self.session.drop(STRUCTURE)
        self.found[...] = False

    def clicks(self, clicks: Sequence[Click]) -> np.ndarray:
        """See `Method`."""
        from MaskSAMCore.inference.prompts import Prompt

        return self._answer(
            [
                Prompt(
                    kind="point",
                    position=self._ijk(click.position),
                    positive=click.positive,
                    scope="volume" if self.plane is None else "slice",
                )
                for click in clicks
            ]
        )

    def box(self, box: Box2D) -> np.ndarray:
        """See `Method`."""
        from MaskSAMCore.inference.prompts import Prompt

        x0, y0, x1, y1 = box  # edges; the corners of a prompt are voxel centres
        corners = (self._ijk((y0, x0)), self._ijk((max(y1 - 1, y0), max(x1 - 1, x0))))
        return self._answer([Prompt(kind="box", corners=corners, scope="slice")])

    def _answer(self, prompts: Sequence[Prompt]) -> np.ndarray:
        update = self.session.prompt(STRUCTURE, prompts, cancel=self.cancel)
        if update.box is not None:
            k0, k1, j0, j1, i0, i1 = update.box
            self.found[k0:k1, j0:j1, i0:i1] = update.mask
        return self.found.copy() if self.plane is None else self.found.take(self.plane[1], axis=self.plane[0])

    def _ijk(self, position: Sequence[float]) -> tuple[float, float, float]:
        kji = [float(p) for p in position]
        if self.plane is not None:
            kji.insert(*self.plane)
        k, j, i = kji
        return i, j, k


class SamMethod:
    """Plain SAM on one slice; its last logits are a prompt of the next click.

    Its single mask is used from the first click on. On medical slices it was better than the one of its three
    candidates that SAM itself estimates to be best.
    """

    def __init__(self, name: str, sam: ZeroShot) -> None:
        self.name, self.sam = name, sam
        self.low_res: np.ndarray | None = None

    def reset(self) -> None:
        """See `Method`."""
        self.low_res = None

    def clicks(self, clicks: Sequence[Click]) -> np.ndarray:
        """See `Method`."""
        points = np.array([click.position[::-1] for click in clicks], float) + 0.5
        answer = self.sam.predict(points, np.array([int(c.positive) for c in clicks]), mask_input=self.low_res)
        self.low_res = answer.low_res[0]
        return answer.logits[0] > 0

    def box(self, box: Box2D) -> np.ndarray:
        """See `Method`."""
        return self.sam.predict(box=np.array(box)).logits[0] > 0


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
        for label, mask in targets.items():
            whole = ModelMethod(self.name, session, volume.grid, None, cancel)
            clicks = click_through(mask, whole, volume.grid.spacing[::-1])
            whole.reset()
            yield Trial(protocol=VOLUMES, case=case, label=label.id, name=label.name, method=self.name, clicks=clicks)

    def _slices(
        self,
        case: str,
        volume: Volume,
        targets: dict[Label, np.ndarray],
        session: Session,
        cancel: CancelToken | None,
    ) -> Iterator[Trial]:
        from MaskSAMCore.inference.zeroshot import colours, grey_values, picture

        axis = session.axis
        others = tuple(a for a in range(3) if a != axis)
        spacing = [volume.grid.spacing[::-1][a] for a in others]
        chosen = {n: evenly_spaced(np.flatnonzero(mask.any(axis=others)), self.slices) for n, mask in targets.items()}
        channel = volume.as_channels()[0]
        window = grey_values(channel)
        for index in sorted({i for some in chosen.values() for i in some}):
            methods: list[Method] = [ModelMethod(self.name, session, volume.grid, (axis, index), cancel)]
            if self.sam is not None:
                seen = volume.as_channels().take(index, axis=axis + 1) if self.colour else None
                self.sam.set_image(picture(channel.take(index, axis=axis), *window) if seen is None else colours(seen))
                methods.append(SamMethod(self.sam_name, self.sam))
            for label, method in itertools.product((n for n, some in chosen.items() if index in some), methods):
                target: np.ndarray = targets[label].take(index, axis=axis)
                clicks = click_through(target, method, spacing)
                seed = (SEED, zlib.crc32(case.encode()), label.id, index)
                drawn, points, boxes = drawn_points(target, seed), [], []
                for count in POINTS:
                    method.reset()
                    points.append(_dice(method.clicks(drawn[:count]), target))
                method.reset()
                for overlap in OVERLAPS:
                    box = drawn_box(target, overlap, seed)
                    boxes.append(_dice(method.box(box), target))
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
                )


def _dice(predicted: np.ndarray, target: np.ndarray) -> float:
    from MaskSAMCore.evaluation.metrics import dice

    return dice(predicted, target)
