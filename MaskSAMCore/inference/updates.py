"""What a session tells its caller: the changed part of a structure, on the scan's own voxels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from MaskSAMCore.inference.frame import Box, Frame
from MaskSAMCore.inference.tiles import State, Tile, trimmed, union
from MaskSAMCore.labels import LabelTable


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One of the three masks that a single click may mean.

    Attributes:
        box: Bounding box (k0, k1, j0, j1, i0, i1) of the mask, upper ones exclusive; None where it is empty.
        mask: uint8 0/1 (k, j, i) inside the box.
        quality: The model's estimate of its IoU in the slice of the click, 0 to 1.
    """

    box: Box | None
    mask: np.ndarray
    quality: float


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The label that the model takes the structure for; `label` is its id in the model's table."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Update:
    """What a call changed in one structure.

    Attributes:
        structure: Its number.
        box: Bounding box (k0, k1, j0, j1, i0, i1), upper ones exclusive, of the voxels that differ from the
            structure's last answer; None where none does.
        mask: uint8 0/1 (k, j, i), the structure inside `box`; of shape (0, 0, 0) without one.
        extent: Bounding box of the whole structure; None where it is empty.
        voxels: Of the whole structure.
        axis: Which axis of (K, J, I) the model's slices are counted along.
        quality: The model's estimate of the IoU, 0 to 1, of every slice (index along `axis`) with the structure that
            it has answered.
        worst: The slice with the lowest estimate, if there is one.
        candidates: With `multimask`, the three meanings of a single click, the best first; `mask` is the best one's.
            The choice is made lasting with `Prompt.candidate`.
        suggestion: The label that fits, None where the model has no opinion.
        encoded: Runs of the encoder in this call.
        seconds: Of this call.
        messages: What the user should be told, one line each.
    """

    structure: int
    box: Box | None
    mask: np.ndarray
    extent: Box | None = None
    voxels: int = 0
    axis: int = 0
    quality: dict[int, float] = field(default_factory=dict)
    worst: int | None = None
    candidates: tuple[Candidate, ...] = ()
    suggestion: Suggestion | None = None
    encoded: int = 0
    seconds: float = 0.0
    messages: tuple[str, ...] = ()


def candidate(frame: Frame, state: State, z: int) -> Candidate:
    """A state as a candidate of a click in prepared slice `z`."""
    box = _extent(state)
    return Candidate(
        box=None if box is None else _box(frame, box),
        mask=_block(frame, state, box),
        quality=float(state.quality.get(z, 0.0)),
    )


def update(frame: Frame, labels: LabelTable, structure: int, old: State, new: State) -> Update:
    """The way from what was shown to what is to be shown."""
    box, extent = _changed(old, new), _extent(new)
    quality = _quality(frame, new)
    return Update(
        structure=structure,
        box=None if box is None else _box(frame, box),
        mask=_block(frame, new, box),
        extent=None if extent is None else _box(frame, extent),
        voxels=sum(int(tile.array.sum()) for tile in new.slices.values()),
        axis=frame.axis,
        quality=quality,
        worst=min(quality, key=lambda k: quality[k]) if quality else None,
        suggestion=_suggestion(labels, new.classes),
    )


def _quality(frame: Frame, state: State) -> dict[int, float]:
    """By index along `axis`, of slices that hold some of the structure."""
    near, size, flip = frame.nearest[0], frame.size[0], frame.record.flips[0]
    found = {size - 1 - d if flip else d: state.quality.get(int(near[d])) for d in sorted(state.slices)}
    return {k: round(float(value), 4) for k, value in sorted(found.items()) if value is not None}


def _suggestion(labels: LabelTable, classes: tuple[float, ...]) -> Suggestion | None:
    best = int(np.argmax(classes)) if classes else 0
    if not 0 < best < len(classes) - 1:
        return None
    label = labels.labels[best - 1]
    return Suggestion(label=label.id, name=label.name, probability=classes[best])


def _box(frame: Frame, turned: Box) -> Box:
    k, j, i = frame.block(turned)
    return k.start, k.stop, j.start, j.stop, i.start, i.stop


def _block(frame: Frame, state: State, box: Box | None) -> np.ndarray:
    """uint8 (k, j, i) of a turned box."""
    if box is None:
        return np.zeros((0, 0, 0), np.uint8)
    nothing = Tile(box[2], box[4], np.zeros((0, 0), bool))
    block = np.stack([state.slices.get(d, nothing).cut(box[2:]) for d in range(box[0], box[1])])
    return np.ascontiguousarray(frame.unturned(block), np.uint8)


def _extent(state: State) -> Box | None:
    """Bounding box of a structure, turned."""
    if not state.slices:
        return None
    rect = functools.reduce(union, (tile.rect for tile in state.slices.values()))
    return min(state.slices), max(state.slices) + 1, *rect


def _changed(old: State, new: State) -> Box | None:
    """Bounding box, turned, of the voxels that differ."""
    places: list[int] = []
    rects = []
    for d in sorted({*old.slices, *new.slices}):
        a, b = old.slices.get(d), new.slices.get(d)
        if a is b:
            continue
        rect = functools.reduce(union, (tile.rect for tile in (a, b) if tile is not None))
        nothing = Tile(rect[0], rect[2], np.zeros((0, 0), bool))
        differs = trimmed(rect[0], rect[2], (a or nothing).cut(rect) != (b or nothing).cut(rect))
        if differs is not None:
            places.append(d)
            rects.append(differs.rect)
    return (places[0], places[-1] + 1, *functools.reduce(union, rects)) if places else None
