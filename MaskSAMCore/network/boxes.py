"""Boxes of masks, their fusion, and the generalised IoU (model.md §6.3).

Boxes are (x0, y0, x1, y1), half-open fractions of the patch, x along columns. A mask over the columns a to b has
x0 = a / W, x1 = (b + 1) / W.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EPS = 1e-7


def hard_box(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Bounding boxes of binary masks.

    Args:
        mask: (..., H, W) bool.

    Returns:
        Boxes (..., 4) float32, zero where the mask is empty, and (...) bool, which masks are empty.
    """
    x0, x1 = _hard_extent(mask.any(-2))
    y0, y1 = _hard_extent(mask.any(-1))
    empty = ~mask.flatten(-2).any(-1)
    boxes = torch.stack([x0, y0, x1, y1], dim=-1)
    return boxes.masked_fill(empty[..., None], 0.0), empty


def fuse_boxes(
    kind: Literal["average", "learned", "mask", "none"],
    *,
    learned: Tensor | None,
    extents: Tensor | None,
    empty: Tensor | None,
) -> Tensor | None:
    """Fuse learned boxes and boxes of masks into the boxes that prompt SAM (model.md §6.3, the paper's Fig. 5 a-d).

    Args:
        kind: "average" is the mean of both, and the learned box where the mask is empty; "learned" and "mask" take one
            of them. If only one of the two is given, it is returned.
        learned: (..., 4) or None.
        extents: (..., 4), boxes of the masks, or None.
        empty: (...) bool, which masks are empty; required with `extents`.

    Returns:
        (..., 4), or None for "none" and if neither is given.
    """
    if kind == "none":
        return None
    if learned is None or extents is None or empty is None:
        return extents if learned is None else learned
    if kind == "learned":
        return learned
    if kind == "mask":
        return extents
    return torch.where(empty[..., None], learned, (learned + extents) / 2)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (...) in [-1, 1] of boxes (..., 4), which may broadcast."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    union = _area(a) + _area(b) - inside
    hull_low, hull_high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(-1)
    return inside / union.clamp(min=EPS) - (hull - union) / hull.clamp(min=EPS)


def _area(box: Tensor) -> Tensor:
    return (box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1)


def _hard_extent(line: Tensor) -> tuple[Tensor, Tensor]:
    size = line.shape[-1]
    # argmax of integers is the first of equals; the flipped line yields the distance from the end.
    first = line.to(torch.uint8).argmax(-1)
    last = size - line.flip(-1).to(torch.uint8).argmax(-1)
    return first.float() / size, last.float() / size
