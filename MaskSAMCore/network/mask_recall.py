"""Mask recall: the generator's mask of the structure that a prompt refers to."""

from __future__ import annotations

import torch
from torch import Tensor

from MaskSAMCore.network.heads import resize_masks
from MaskSAMCore.network.types import PromptBatch

CERTAIN = 1e-3
"""Probabilities are clamped to [CERTAIN, 1 - CERTAIN] before the logit."""
SHARPNESS = 20.0
"""Inverse temperature of the softmax over structures, and of the sigmoid around a coverage of one half."""


def recall_masks(classes: Tensor, prompts: PromptBatch, queries: int) -> Tensor:
    """Logits (B, Q, D, H, W) of the structures that each prompt refers to; near 0 if it refers to none.

    A previous mask refers to the structures that it covers. Otherwise a click refers to the most probable structure at
    its voxel (several clicks to all of theirs), and a box to the structure that fills it best. The previous mask comes
    first, because corrective clicks lie where the generator is wrong. How well a structure fits scales the logits, not
    their sign. Only the slices that a prompt was given in are evaluated, not those that it was copied to, because
    another structure may lie there.

    No gradient flows through the result. It is computed in float32: in bfloat16 a probability of 0.999 rounds to
    1, whose logit is infinite.

    Args:
        classes: (B, K, D, H, W), class logits of the generator; class 0 is the background.
        prompts: Points, boxes and previous masks; each may be absent.
        queries: Q.
    """
    with torch.autocast(classes.device.type, enabled=False):
        known = classes.detach().float().softmax(1)[:, 1:]
        votes = known.new_zeros(len(known), queries, known.shape[1], known.shape[2])
        if prompts.points is not None and prompts.labels is not None and prompts.points.shape[3]:
            votes = torch.maximum(votes, _under_clicks(known, prompts.points, prompts.labels))
        if prompts.boxes is not None:
            fitting = _best(_box_filled(known, prompts.boxes), 2)
            if prompts.boxes_known is not None:
                fitting = fitting * prompts.boxes_known[:, :, None]
            votes = torch.maximum(votes, fitting)
        if prompts.offsets is not None:
            votes = votes * (prompts.offsets == 0)[:, :, None]
        share = votes.amax(3)
        if prompts.masks is not None:
            covered = _covered(known, prompts.masks, prompts.masks_known)
            share = covered + (1 - covered.amax(-1, keepdim=True)) * share
        fit = share.amax(-1)
        relative = share / fit.clamp(min=1e-6)[..., None]
        meant = torch.einsum("bqk,bkdhw->bqdhw", relative, known).clamp(CERTAIN, 1 - CERTAIN)
        return torch.logit(meant) * fit[..., None, None, None]


def _best(fits: Tensor, dim: int) -> Tensor:
    """Scale `fits` by a sharp softmax along `dim`: the best fit is kept, the others become nearly 0."""
    return fits * (SHARPNESS * fits).softmax(dim)


def _under_clicks(known: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """(B, Q, K-1, D): the highest probability of each structure under the positive clicks that it wins."""
    batch, _, depth, height, width = known.shape
    x = (points[..., 0].float() * width).long().clamp(0, width - 1)
    y = (points[..., 1].float() * height).long().clamp(0, height - 1)
    b = torch.arange(batch, device=known.device)[:, None, None, None]
    z = torch.arange(depth, device=known.device)[:, None]
    at = _best(known.permute(0, 2, 3, 4, 1)[b, z, y, x], -1)  # (B, Q, D, P, K-1)
    return (at * (labels == 1)[..., None]).amax(3).transpose(2, 3)


def _box_filled(known: Tensor, boxes: Tensor) -> Tensor:
    """(B, Q, K-1, D): how well each structure fills the box.

    The share of the structure's pixels in the slice that lie in the box, times the share of the box's rows and columns
    that they reach.
    """
    inside = (known > 0.5).float()
    tall, wide = (inside_box(boxes, axis, known.shape[4 - axis]).float() for axis in (1, 0))
    in_rows = torch.einsum("bqdw,bkdhw->bqkdh", wide, inside) * tall[:, :, None]
    in_columns = torch.einsum("bqdh,bkdhw->bqkdw", tall, inside) * wide[:, :, None]
    share = in_rows.sum(-1) / inside.sum((3, 4)).clamp(min=1)[:, None]
    reached = (in_rows > 0).sum(-1) * (in_columns > 0).sum(-1)
    return share * reached / (tall.sum(-1) * wide.sum(-1)).clamp(min=1)[:, :, None]


def inside_box(boxes: Tensor, axis: int, count: int) -> Tensor:
    """(B, Q, D, count) bool: which of `count` columns (axis 0) or rows (axis 1) have their centre inside the box."""
    at = (torch.arange(count, device=boxes.device, dtype=boxes.dtype) + 0.5) / count
    return (at >= boxes[..., axis, None]) & (at <= boxes[..., axis + 2, None])


def _covered(known: Tensor, masks: Tensor, slices: Tensor | None) -> Tensor:
    """(B, Q, K-1): the share of each structure that a previous mask covers, near 0 if that is less than half.

    Scaled by how certain the mask is and by how much of it the structures explain. Only slices with a mask count.
    """
    former = resize_masks(masks.float(), (known.shape[3], known.shape[4]))
    there = known.new_ones(former.shape[:3]) if slices is None else slices.float()
    inside = (former > 0) * there[..., None, None]
    voxels = inside.sum((2, 3, 4)).clamp(min=1)
    common = torch.einsum("bqdhw,bkdhw->bqk", inside, known)
    share = common / torch.einsum("bkdhw,bqd->bqk", known, there).clamp(min=1e-6)
    share = share * (SHARPNESS * (share - 0.5)).sigmoid()
    explained = (share * common).sum(-1) / voxels
    sure = (torch.tanh(former / 2) * inside).sum((2, 3, 4)) / voxels
    return share * (explained * sure)[..., None]
