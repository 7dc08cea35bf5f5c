"""Prompt broadcast: prompts given in some slices of a patch are copied to all of its slices.

The depth adapters mix the slices of a patch, so every slice needs prompts. A slice without prompts takes those of the
nearest slice that has some, together with the distance to it (model.md §13.3). Training and inference share this rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from MaskSAMCore.network.types import PromptBatch


@dataclass(frozen=True, kw_only=True)
class SlicePrompts:
    """Clicks and box of one object in one slice; coordinates are fractions of the patch, x before y.

    Attributes:
        points: (x, y) of every click.
        labels: Label of every click: 1 inside the object, 0 outside.
        box: Half-open (x0, y0, x1, y1), or None.
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None


def nearest_slice(given: Sequence[int], z: int) -> int:
    """The slice of `given` that is nearest to slice z; the lower one of two at the same distance."""
    return min(given, key=lambda other: (abs(other - z), other))


def broadcast_prompts(
    prompts: Sequence[Sequence[Mapping[int, SlicePrompts]]],
    depth: int,
    *,
    masks: Tensor | None = None,
    masks_known: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> PromptBatch:
    """Prompts of B patches with Q objects each, in every slice.

    Args:
        prompts: [b][q] maps slice indices, 0 to depth - 1, to the prompts given there; {} if there is a mask only.
        depth: D.
        masks: (B, Q, D, 4g_h, 4g_w) logits of the objects' previous masks, or None.
        masks_known: (B, Q, D) bool, which slices have a previous mask; None means all.
        device: Device of the result.
    """
    batch, queries = len(prompts), len(prompts[0])
    given = [each for row in prompts for one in row for each in one.values()]
    most = max((len(each.points) for each in given), default=0)
    boxed = any(each.box is not None for each in given)
    points = torch.zeros(batch, queries, depth, most, 2)
    labels = torch.full((batch, queries, depth, most), -1)
    boxes = torch.zeros(batch, queries, depth, 4)
    known = torch.zeros(batch, queries, depth, dtype=torch.bool)
    offsets = torch.zeros(batch, queries, depth, dtype=torch.long)
    for b, row in enumerate(prompts):
        for q, slices in enumerate(row):
            for z in range(depth) if slices else ():
                source = nearest_slice(list(slices), z)
                each, place = slices[source], (b, q, z)
                offsets[place] = z - source
                if each.points:
                    points[place][: len(each.points)] = torch.tensor(each.points)
                    labels[place][: len(each.points)] = torch.tensor(each.labels)
                if each.box is not None:
                    boxes[place], known[place] = torch.tensor(each.box), True
    # With a mask only, SAM still expects one token: its "not a point".
    pointed = most > 0 or not boxed
    return PromptBatch(
        points=points.to(device) if pointed else None,
        labels=labels.to(device) if pointed else None,
        boxes=boxes.to(device) if boxed else None,
        boxes_known=known.to(device) if boxed and not bool(known.all()) else None,
        masks=masks,
        masks_known=masks_known,
        offsets=offsets.to(device),
    )
