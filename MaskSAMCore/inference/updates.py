"""Changes between two states of a structure, as blocks of the scan's own voxels."""

from __future__ import annotations

import functools

import numpy as np

from MaskSAMCore.inference.frame import Frame
from MaskSAMCore.inference.results import Bounds, Candidate, Suggestion, Update
from MaskSAMCore.inference.tiles import State, Tile, trimmed, union
from MaskSAMCore.labels import LabelTable


def candidate(frame: Frame, state: State, z: int) -> Candidate:
    """The candidate that a state is, of a click in prepared slice `z`."""
    box = _extent(state)
    return Candidate(
        box=None if box is None else _box(frame, box),
        mask=_block(frame, state, box),
        quality=float(state.quality.get(z, 0.0)),
    )


def update(frame: Frame, labels: LabelTable, structure: int, old: State, new: State) -> Update:
    """The change from the state `old`, which the caller has, to the state `new`."""
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
    """Estimated IoU of the slices that hold some of the structure, by index along `axis` of the scan."""
    near, size, flip = frame.nearest[0], frame.size[0], frame.record.flips[0]
    found = {size - 1 - d if flip else d: state.quality.get(int(near[d])) for d in sorted(state.slices)}
    return {k: round(float(value), 4) for k, value in sorted(found.items()) if value is not None}


def _suggestion(labels: LabelTable, classes: tuple[float, ...]) -> Suggestion | None:
    best = int(np.argmax(classes)) if classes else 0
    if not 0 < best < len(classes) - 1:
        return None
    label = labels.labels[best - 1]
    return Suggestion(label=label.id, name=label.name, probability=classes[best])


def _box(frame: Frame, turned: Bounds) -> Bounds:
    k, j, i = frame.block(turned)
    return k.start, k.stop, j.start, j.stop, i.start, i.stop


def _block(frame: Frame, state: State, box: Bounds | None) -> np.ndarray:
    """The mask as uint8 (k, j, i), inside a turned box."""
    if box is None:
        return np.zeros((0, 0, 0), np.uint8)
    nothing = Tile(box[2], box[4], np.zeros((0, 0), bool))
    block = np.stack([state.slices.get(d, nothing).cut(box[2:]) for d in range(box[0], box[1])])
    return np.ascontiguousarray(frame.unturned(block), np.uint8)


def _extent(state: State) -> Bounds | None:
    """Turned bounding box of a structure; None if it is empty."""
    if not state.slices:
        return None
    rect = functools.reduce(union, (tile.rect for tile in state.slices.values()))
    return min(state.slices), max(state.slices) + 1, *rect


def _changed(old: State, new: State) -> Bounds | None:
    """Turned bounding box of the voxels that differ; None if none do."""
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
