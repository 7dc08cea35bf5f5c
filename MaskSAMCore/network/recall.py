"""The generator's own masks of what a user means: those under the clicks, or that fill the box or the former mask."""

from __future__ import annotations

import torch
from torch import Tensor

from MaskSAMCore.network.heads import resize_masks
from MaskSAMCore.network.types import PromptBatch

CERTAIN = 1e-3
"""Probabilities keep this distance from 0 and 1."""
NEAR = 4
"""What was said in another slice counts by 1 / (1 + slices between) to this power."""
SHARPNESS = 20.0
"""How much the structure that fits best counts before those that fit less."""


def recalled(classes: Tensor, prompts: PromptBatch, queries: int) -> Tensor:
    """Logits (B, Q, D, H, W) of the structures that every prompt means, near 0 where it means none that is known.

    A click means the structures at its voxel, several clicks all of theirs; a box means the structure that fills it
    best, and a former mask the one that it overlaps best. How well that fits decides how sure the answer is, and not
    whether its voxels count as inside: even a structure that was found in part is better than none. What was said in
    another slice counts less. Nothing is learned through it. In full precision whatever the network runs in: to half
    of it a probability of 0.999 is 1, whose logit is infinite.

    Args:
        classes: (B, K, D, H, W), the generator's class logits; class 0 is the background.
        prompts: What was said, if anything.
        queries: Q.
    """
    with torch.autocast(classes.device.type, enabled=False):
        known = classes.detach().float().softmax(1)[:, 1:]
        votes = known.new_zeros(len(known), queries, known.shape[1], known.shape[2])
        if prompts.points is not None and prompts.labels is not None and prompts.points.shape[3]:
            votes = torch.maximum(votes, _under_clicks(known, prompts.points, prompts.labels))
        if prompts.boxes is not None:
            fitting = _best(_box_filled(known, prompts.boxes))
            if prompts.boxes_known is not None:
                fitting = fitting * prompts.boxes_known[:, :, None]
            votes = torch.maximum(votes, fitting)
        if prompts.offsets is not None:
            votes = votes * (1 + prompts.offsets.abs().float())[:, :, None] ** -NEAR
        share = votes.amax(3)
        if prompts.masks is not None:
            share = torch.maximum(share, _best(_mask_overlap(known, prompts.masks, prompts.masks_known)))
        fit = share.amax(-1)
        relative = share / fit.clamp(min=1e-6)[..., None]
        meant = torch.einsum("bqk,bkdhw->bqdhw", relative, known).clamp(CERTAIN, 1 - CERTAIN)
        return torch.logit(meant) * fit[..., None, None, None]


def _best(overlap: Tensor) -> Tensor:
    """(B, Q, K-1, ...): the overlap of the structure that fits best, and nearly nothing of the others."""
    return overlap * (SHARPNESS * overlap).softmax(2)


def _under_clicks(known: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """(B, Q, K-1, D): the largest probability of each structure under the clicks for it."""
    batch, _, depth, height, width = known.shape
    x = (points[..., 0].float() * width).long().clamp(0, width - 1)
    y = (points[..., 1].float() * height).long().clamp(0, height - 1)
    b = torch.arange(batch, device=known.device)[:, None, None, None]
    z = torch.arange(depth, device=known.device)[:, None]
    at = known.permute(0, 2, 3, 4, 1)[b, z, y, x]  # (B, Q, D, P, K-1)
    return (at * (labels == 1)[..., None]).amax(3).transpose(2, 3)


def _box_filled(known: Tensor, boxes: Tensor) -> Tensor:
    """(B, Q, K-1, D): the share of each structure's voxels in that slice that the box holds, times how much of the
    box's rows and columns they reach; stray voxels elsewhere cost no more than their number."""
    inside = (known > 0.5).float()
    tall, wide = (held(boxes, axis, known.shape[4 - axis]).float() for axis in (1, 0))
    in_rows = torch.einsum("bqdw,bkdhw->bqkdh", wide, inside) * tall[:, :, None]
    in_columns = torch.einsum("bqdh,bkdhw->bqkdw", tall, inside) * wide[:, :, None]
    share = in_rows.sum(-1) / inside.sum((3, 4)).clamp(min=1)[:, None]
    reached = (in_rows > 0).sum(-1) * (in_columns > 0).sum(-1)
    return share * reached / (tall.sum(-1) * wide.sum(-1)).clamp(min=1)[:, :, None]


def held(boxes: Tensor, axis: int, count: int) -> Tensor:
    """(B, Q, D, count) bool: the columns (axis 0) or rows (axis 1), of so many, whose centres a box holds."""
    at = (torch.arange(count, device=boxes.device, dtype=boxes.dtype) + 0.5) / count
    return (at >= boxes[..., axis, None]) & (at <= boxes[..., axis + 2, None])


def _mask_overlap(known: Tensor, masks: Tensor, slices: Tensor | None) -> Tensor:
    """(B, Q, K-1): the Dice of each former mask with each structure, over the slices that have one."""
    size = (known.shape[3], known.shape[4])
    former = (resize_masks(masks.float(), size) > 0).float()
    there = known.new_ones(former.shape[:3]) if slices is None else slices.float()
    common = torch.einsum("bqdhw,bkdhw,bqd->bqk", former, known, there)
    sizes = torch.einsum("bqdhw,bqd->bq", former, there)[..., None] + torch.einsum("bkdhw,bqd->bqk", known, there)
    return 2 * common / sizes.clamp(min=1e-6)
