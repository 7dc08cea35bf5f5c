"""The generator's own masks of what is meant: those under clicks, in a box, or covered by the former mask."""

from __future__ import annotations

import torch
from torch import Tensor

from MaskSAMCore.network.heads import resize_masks
from MaskSAMCore.network.types import PromptBatch

CERTAIN = 1e-3
"""Probabilities keep this distance from 0 and 1."""
SHARPNESS = 20.0
"""How much the structure that fits best counts before those that fit less, and what a mask covers by more than half
before what it covers by less."""


def recalled(classes: Tensor, prompts: PromptBatch, queries: int) -> Tensor:
    """Logits (B, Q, D, H, W) of the structures that every prompt means, near 0 where it means none that is known.

    A former mask means the structures that it covers. What it leaves open clicks decide, each for the likeliest
    structure at its voxel and several for all of theirs, and a box, for the structure that fills it best. So the
    corrections of a mask, which lie where the generator is wrong, do not change what is meant. How well all that fits
    decides how sure the answer is, and not whether its voxels count as inside: even a structure that was found in part
    is better than none. Only the slices in which something was said are asked: where it is copied to, another
    structure may lie. Nothing is learned through it. In full precision whatever the network runs in: to half of it a
    probability of 0.999 is 1, whose logit is infinite.

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
    """How well it fits, for the structure that fits best, and nearly nothing for the others along `dim`."""
    return fits * (SHARPNESS * fits).softmax(dim)


def _under_clicks(known: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """(B, Q, K-1, D): the probability under the clicks for it of each structure that is the likeliest under one."""
    batch, _, depth, height, width = known.shape
    x = (points[..., 0].float() * width).long().clamp(0, width - 1)
    y = (points[..., 1].float() * height).long().clamp(0, height - 1)
    b = torch.arange(batch, device=known.device)[:, None, None, None]
    z = torch.arange(depth, device=known.device)[:, None]
    at = _best(known.permute(0, 2, 3, 4, 1)[b, z, y, x], -1)  # (B, Q, D, P, K-1)
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


def _covered(known: Tensor, masks: Tensor, slices: Tensor | None) -> Tensor:
    """(B, Q, K-1): the share of each structure that a former mask covers, where that is most of it, times how sure the
    mask is and how much of it these structures are; over the slices that have one."""
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
