"""All prompts of a slice together, in edges of the prepared slice, and the part of them that a window sees.

Positions are (x, y), counted from the border of the slice: pixel i covers i to i + 1. The network takes the same
`SlicePrompts` in fractions of a window; `in_window` makes those.
"""

from __future__ import annotations

from collections.abc import Iterable

from MaskSAMCore.inference.prompts import Placed
from MaskSAMCore.network.prompt_broadcast import SlicePrompts
from MaskSAMCore.preprocessing.masks import Box2D


def by_slice(placed: Iterable[Placed]) -> dict[int, SlicePrompts]:
    """Prompts by prepared slice, without masks. Clicks add up; of several boxes in a slice the last one counts."""
    found: dict[int, SlicePrompts] = {}
    for each in placed:
        if each.kind != "mask":
            found[each.z] = joined(found.get(each.z, SlicePrompts()), each.prompts)
    return found


def joined(first: SlicePrompts, second: SlicePrompts) -> SlicePrompts:
    """The clicks of both; the box of the second, if it has one."""
    return SlicePrompts(
        points=(*first.points, *second.points),
        labels=(*first.labels, *second.labels),
        box=second.box or first.box,
    )


def is_positive(prompts: SlicePrompts) -> bool:
    """Whether a click or a box says where the structure is."""
    return prompts.box is not None or 1 in prompts.labels


def extent(prompts: SlicePrompts) -> Box2D:
    """Bounding box (x0, y0, x1, y1) of clicks and box."""
    spans = [(x, y, x, y) for x, y in prompts.points] + ([] if prompts.box is None else [prompts.box])
    x0, y0, x1, y1 = zip(*spans, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def in_window(prompts: SlicePrompts, corner: tuple[int, int], size: tuple[int, int]) -> SlicePrompts | None:
    """The clicks and the part of the box inside a window, in fractions of it; None if nothing is.

    Args:
        prompts: In edges of the slice.
        corner: First (y, x) of the window.
        size: Its (height, width).
    """
    (y, x), (height, width) = corner, size
    kept = [
        ((cx - x, cy - y), label)
        for (cx, cy), label in zip(prompts.points, prompts.labels, strict=True)
        if 0 <= cx - x <= width and 0 <= cy - y <= height
    ]
    box = None
    if prompts.box is not None:
        x0, x1 = (min(max(v - x, 0), width) for v in prompts.box[::2])
        y0, y1 = (min(max(v - y, 0), height) for v in prompts.box[1::2])
        box = (x0 / width, y0 / height, x1 / width, y1 / height) if x0 < x1 and y0 < y1 else None
    if not kept and box is None:
        return None
    return SlicePrompts(
        points=tuple((cx / width, cy / height) for (cx, cy), _ in kept),
        labels=tuple(label for _, label in kept),
        box=box,
    )
