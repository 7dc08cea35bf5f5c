"""Prompts of a user: clicks, boxes and existing masks, on the scan and on the prepared grid (model.md §6.7)."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from MaskSAMCore.errors import PromptError
from MaskSAMCore.inference.frame import Frame
from MaskSAMCore.inference.tiles import Clip
from MaskSAMCore.network.prompt_broadcast import SlicePrompts
from MaskSAMCore.volume import Grid, Triple

Kind = Literal["point", "box", "mask", "scribble", "lasso"]
Scope = Literal["slice", "slab", "volume"]

FLAT = 0.5
"""A box that spans fewer voxels than this along an axis was drawn in a plane."""
MARGIN = 0.1
"""A result may reach beyond the box that limits it by this share of the box's sides."""
CANDIDATES = 3
"""Masks that a single click may mean."""
LEAST_POINTS: dict[str, int] = {"scribble": 1, "lasso": 3}


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """One prompt of a structure; positions are (i, j, k) of the scan, voxel centres at integers.

    Attributes:
        kind: "point", "scribble", "box", "lasso" or "mask".
        position: (i, j, k) of a point.
        positive: Whether it marks the structure, or what does not belong to it.
        points: (i, j, k) of a scribble's line, or of a lasso's outline, which is closed and lies in a slice.
        thickness: Of a scribble, mm.
        corners: Of a box: the centres of its first and last voxel, lower before upper along each axis. A box whose
            corners are equal along one axis was drawn in that plane; any other limits the answer to its own slices.
        mask: Of a mask: block (k, j, i) of an existing segment, 0 outside. It replaces the structure so far; a negative
            one is of other structures, which this one must leave alone.
        mask_box: First voxel (k, j, i) of that block in the scan.
        scope: How far the answer reaches: "slice", the one of the prompt; "slab", the slices that the network sees
            together; "volume", as far as the structure goes.
        candidate: Of a first, positive point: which of its three candidates was chosen, 0 for the best; None for the
            one mask that the model prefers.
    """

    kind: Kind
    position: Triple | None = None
    positive: bool = True
    corners: tuple[Triple, Triple] | None = None
    points: tuple[Triple, ...] = ()
    thickness: float = 0.0
    mask: np.ndarray | None = None
    mask_box: tuple[int, int, int] = (0, 0, 0)
    scope: Scope = "slab"
    candidate: int | None = None

    @classmethod
    def point_ras(
        cls, position: Sequence[float], grid: Grid, *, positive: bool = True, scope: Scope = "slab"
    ) -> Prompt:
        """A point at a position in RAS mm."""
        return cls(kind="point", position=triple(grid.to_ijk(position)), positive=positive, scope=scope)

    @classmethod
    def box_ras(cls, first: Sequence[float], second: Sequence[float], grid: Grid, *, scope: Scope = "slab") -> Prompt:
        """The smallest box along the scan's axes around two points in RAS mm, in any order."""
        ends = grid.to_ijk(np.array([first, second], dtype=np.float64))
        return cls(kind="box", corners=(triple(ends.min(axis=0)), triple(ends.max(axis=0))), scope=scope)

    def key(self) -> Hashable:
        """A hashable value that is equal for equal prompts."""
        mask = None
        if self.mask is not None:
            block = np.ascontiguousarray(self.mask != 0)
            mask = (block.shape, hashlib.blake2b(block.data, digest_size=16).digest(), *map(int, self.mask_box))
        ends = [*([self.position] if self.position else []), *(self.corners or ()), *self.points]
        places = tuple(float(v) for end in ends for v in end)
        return self.kind, places, self.positive, mask, self.scope, self.candidate, self.thickness


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """A prompt on the prepared grid.

    Attributes:
        kind, scope, candidate: As given; a box that spans slices is of scope "volume", limited by `clip`.
        z: Its slice, or the middle one.
        prompts: One click (x, y) or one box (x0, y0, x1, y1) in edges of slice `z`. A box that was drawn across the
            slices is a click in its centre. Empty for a mask.
        clip: What the answer must not leave.
        mask: The prompt itself, if it is a mask.
    """

    kind: Kind
    scope: Scope
    candidate: int | None = None
    z: int = 0
    prompts: SlicePrompts = field(default_factory=SlicePrompts)
    clip: Clip | None = None
    mask: Prompt | None = None


def check(prompts: Sequence[Prompt], grid: Grid) -> None:
    """Check that prompts can be answered on a grid (faults.md row 31).

    Raises:
        PromptError: One cannot, or two clicks contradict each other; names the first by number and position.
    """
    if not prompts:
        raise PromptError("no prompt was given", remedy="Give a point, a box or a mask.")
    clicks: dict[tuple[int, ...], int] = {}
    for index, prompt in enumerate(prompts):
        problem = _problem(prompt, index, grid)
        if problem:
            what, why = problem
            raise PromptError(what, where=_where(prompts, index), why=why)
        if prompt.kind == "point" and prompt.position is not None:
            voxel = tuple(int(np.floor(v + 0.5)) for v in prompt.position)
            other = clicks.setdefault(voxel, index)
            if prompts[other].positive != prompt.positive:
                raise PromptError(
                    "two clicks contradict each other",
                    where=_where(prompts, index),
                    why=f"prompt {other + 1} is a click of the other kind on the same voxel {voxel}",
                    remedy="Remove one of them.",
                )


def _where(prompts: Sequence[Prompt], index: int) -> str:
    prompt = prompts[index]
    places = {"point": prompt.position, "box": prompt.corners, "mask": prompt.mask_box}
    place = places.get(prompt.kind, prompt.points[:1])
    order = "(k, j, i)" if prompt.kind == "mask" else "(i, j, k)"
    return f"prompt {index + 1} of {len(prompts)}, {prompt.kind} at {order} {place}"


def _problem(prompt: Prompt, index: int, grid: Grid) -> tuple[str, str] | None:
    """What is wrong with a prompt, and why; None if it can be answered."""
    if prompt.kind not in get_args(Kind) or prompt.scope not in get_args(Scope):
        return "unknown kind or scope", f"found {prompt.kind!r} and {prompt.scope!r}"
    if prompt.candidate is not None and (
        prompt.kind != "point" or not prompt.positive or index or prompt.candidate not in range(CANDIDATES)
    ):
        return "only a first, positive click has candidates 0, 1 and 2", f"candidate {prompt.candidate}"
    if prompt.kind == "mask":
        return _mask_problem(prompt, grid)
    drawn = prompt.kind in LEAST_POINTS
    given = [prompt.position] if prompt.kind == "point" else prompt.points if drawn else prompt.corners
    values = np.array(given, dtype=object)
    count = len(values) if values.ndim else 0
    found = values.tolist()[:3] if count else values.tolist()
    if drawn and count < LEAST_POINTS[prompt.kind]:
        return f"a {prompt.kind} needs {LEAST_POINTS[prompt.kind]} points", f"found {count}"
    if values.shape != ({"point": 1, "box": 2}.get(prompt.kind, count), 3):
        return "a position must be three numbers", f"found {found}"
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError):
        return "a position must be three numbers", f"found {found}"
    if not np.isfinite(values).all():
        return "a position is not finite", "NaN or infinite"
    size = np.array(grid.shape[::-1])
    if drawn and not (np.isfinite(prompt.thickness) and prompt.thickness >= 0):
        return "the thickness of a scribble must be zero or more", f"found {prompt.thickness}"
    if prompt.kind == "lasso" and np.ptp(values, axis=0).min() > FLAT:
        return "a lasso must lie in a slice", "its points share no index"
    if prompt.kind == "box" and (values[0] > values[-1]).any():
        return "the corners of the box are swapped", "the first one must be the lower along every axis"
    low, high = values.min(axis=0), values.max(axis=0)
    if (high < -0.5).any() or (low > size - 0.5).any():
        return "lies outside of the scan", f"which has {tuple(size.tolist())} voxels along i, j, k"
    return None


def _mask_problem(prompt: Prompt, grid: Grid) -> tuple[str, str] | None:
    mask = prompt.mask
    if mask is None or mask.ndim != 3 or not (mask.dtype == bool or np.issubdtype(mask.dtype, np.integer)):
        found = "none" if mask is None else f"{mask.dtype} of shape {mask.shape}"
        return "a mask must be a block (k, j, i) of integers", f"found {found}"
    ends = [low + n for low, n in zip(prompt.mask_box, mask.shape, strict=True)]
    if min(prompt.mask_box) < 0 or any(end > n for end, n in zip(ends, grid.shape, strict=True)):
        return "the mask reaches beyond the scan", f"it ends at {tuple(ends)}, the scan at {grid.shape}"
    return None if mask.any() else ("the mask is empty", "no voxel of it is set")


def place(prompts: Sequence[Prompt], frame: Frame) -> list[Placed | None]:
    """Prompts on the prepared grid, after `check`; None for a negative click where the scan is empty.

    Raises:
        PromptError: A positive click or a box lies where the scan is empty, or a mask is negative.
    """
    placed: list[Placed | None] = []
    for index, prompt in enumerate(as_clicks_and_boxes(prompts)):
        if prompt.kind == "mask":
            if not prompt.positive:
                raise PromptError(
                    "this model cannot be shown other structures",
                    where=_where(prompts, index),
                    remedy="Take them away from its answer, or use a model for structures of any kind.",
                )
            placed.append(Placed(kind="mask", scope=prompt.scope, mask=prompt))
            continue
        found = _point(prompt, frame) if prompt.kind == "point" else _box(prompt, frame)
        if found is None and prompt.positive:
            raise PromptError(
                "lies where the scan is empty", where=_where(prompts, index), remedy="Place it on the image."
            )
        placed.append(found)
    return placed


def as_clicks_and_boxes(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts for a model that takes clicks and boxes only, one for each: a scribble's middle, and a lasso's box.

    A negative box or lasso becomes a negative click into its middle.
    """
    found = []
    for prompt in prompts:
        low, high = _extent(prompt)
        middle = triple((low + high) / 2)
        if prompt.kind == "scribble":
            at = prompt.points[len(prompt.points) // 2]
            found.append(replace(prompt, kind="point", position=at, points=(), thickness=0.0))
        elif prompt.kind in ("lasso", "box") and not prompt.positive:
            found.append(replace(prompt, kind="point", position=middle, corners=None, points=()))
        elif prompt.kind == "lasso":
            found.append(replace(prompt, kind="box", corners=(triple(low), triple(high)), points=()))
        else:
            found.append(prompt)
    return found


def _extent(prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    ends = np.array(prompt.points or prompt.corners or [prompt.position or (0, 0, 0)], float)
    return ends.min(axis=0), ends.max(axis=0)


def _slice(turned: float, frame: Frame) -> int | None:
    """The prepared slice nearest to the scan's slice at a turned depth; None where the scan is empty."""
    near = frame.nearest[0]
    z = int(near[min(max(int(np.floor(turned + 0.5)), 0), len(near) - 1)])
    return None if z < 0 else z


def _point(prompt: Prompt, frame: Frame) -> Placed | None:
    turned = frame.turn(prompt.position or (0.0, 0.0, 0.0))
    z = _slice(turned[0], frame)
    _, y, x = frame.prepared(turned)
    _, height, width = frame.record.shape
    if z is None or not (-0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5):
        return None
    click = SlicePrompts(points=((x + 0.5, y + 0.5),), labels=(int(prompt.positive),))
    return Placed(kind="point", scope=prompt.scope, candidate=prompt.candidate, z=z, prompts=click)


def _box(prompt: Prompt, frame: Frame) -> Placed | None:
    """A box in its slice; one that spans slices is placed in its middle slice and limits the answer to itself."""
    ends = np.sort([frame.turn(corner) for corner in prompt.corners or ()], axis=0)
    flat = ends[1] - ends[0] < FLAT
    z = _slice(float(ends[:, 0].mean()), frame)
    low = np.array(frame.edges(ends[0]))
    high = np.array(frame.edges(ends[1] + 1))
    if not flat[0]:
        # the middle of the part that the scan fills
        used = np.flatnonzero(frame.nearest[0] >= 0)
        z = _slice(float(ends[:, 0].clip(used[0], used[-1]).mean()), frame)
    if z is None or (high <= 0).any() or (low >= frame.record.shape).any():
        return None
    inner = [(float(max(a, 0)), float(min(b, n))) for a, b, n in zip(low, high, frame.record.shape, strict=True)]
    (y0, y1), (x0, x1) = inner[1:]
    drawn = SlicePrompts(box=(x0, y0, x1, y1))
    if flat[0]:
        return Placed(kind="box", scope=prompt.scope, z=z, prompts=drawn)
    if flat[1] or flat[2]:
        drawn = SlicePrompts(points=(((x0 + x1) / 2, (y0 + y1) / 2),), labels=(1,))
    limits = tuple(
        None if thin else (float(a - MARGIN * (b - a)), float(b + MARGIN * (b - a)))
        for a, b, thin in zip(low, high, flat, strict=True)
    )
    return Placed(
        kind="box",
        scope="slice" if prompt.scope == "slice" else "volume",
        z=z,
        prompts=drawn,
        clip=Clip(limits=limits),
    )


def triple(values: np.ndarray) -> Triple:
    """An array of three numbers as a tuple."""
    i, j, k = (float(v) for v in values)
    return i, j, k
