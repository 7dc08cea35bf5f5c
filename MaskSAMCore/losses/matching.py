"""Matching of queries and structures, separately in every slice (model.md §9.1, §9.2).

Slices are numbered b * D + d. The pairwise costs of a batch are matrix products, and are copied to the CPU in one
transfer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from MaskSAMCore.config.network_schema import LossConfig
from MaskSAMCore.network.boxes import giou, hard_box
from MaskSAMCore.network.types import QueryOutputs

BAD_COST = 100.0
CLASSIFICATION, AUXILIARY, BOX_L1, BOX_GIOU = 0.2, 0.5, 0.5, 0.2
"""Weights in cost and loss: of the queries' class, of BCE and Dice of the generator's masks, and of the learned boxes'
L1 distance and generalised IoU (model.md §9.3)."""
ALL_PIXELS = 65536
"""Up to this many pixels per slice, the loss uses all of them, and the cost every second row and column."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SliceTargets:
    """Ground truth of every slice, for G = B * D slices and K classes with the background.

    Attributes:
        masks: (G, K, H, W) bool.
        boxes: (G, K, 4) float, zero where the class is absent.
        present: (G, K) bool; false in slices that are not valid.
    """

    masks: Tensor
    boxes: Tensor
    present: Tensor


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Matched pairs of queries and classes.

    Attributes:
        slices: Slice of every pair.
        queries: Query of every pair.
        classes: Class of every pair.
        used: (G,) bool, slices that are part of the loss.
    """

    slices: Tensor
    queries: Tensor
    classes: Tensor
    used: Tensor


def slice_targets(labels: Tensor, classes: int, valid: Tensor | None = None) -> SliceTargets:
    """Masks, boxes and presence of every class in every slice.

    Args:
        labels: (B, D, H, W) integer classes.
        classes: K, background included.
        valid: (B, D) bool, slices that are not padding; None for all.
    """
    ids = torch.arange(classes, device=labels.device)
    masks = labels.flatten(0, 1)[:, None] == ids[:, None, None]
    boxes, empty = hard_box(masks)
    present = ~empty if valid is None else ~empty & valid.reshape(-1, 1).to(empty.device)
    return SliceTargets(masks=masks, boxes=boxes, present=present)


def assign_by_class(targets: SliceTargets, *, valid: Tensor | None = None) -> Assignment:
    """Assign query k to class k in every slice where class k is present; arguments as of `match`."""
    slices, classes = targets.present.nonzero(as_tuple=True)
    used = torch.ones_like(targets.present[:, 0]) if valid is None else valid.flatten().to(slices.device)
    return Assignment(slices=slices, queries=classes, classes=classes, used=used)


def match(outputs: QueryOutputs, targets: SliceTargets, cfg: LossConfig, *, valid: Tensor | None = None) -> Assignment:
    """Assign one query to each class that is present, with the smallest total cost in every slice.

    Slices without a finite cost are left out, with a warning.

    Args:
        outputs: Output of the network.
        targets: Of the same slices.
        cfg: Weights of BCE and Dice.
        valid: (B, D) bool, slices that are not padding; None for all.
    """
    with torch.no_grad():
        cost = pairwise_cost(outputs, targets, cfg)
        bad = ~cost.isfinite()
        hopeless = (bad | ~targets.present[:, None]).all(-1).all(-1) & targets.present.any(-1)
        cost = cost.masked_fill(bad, BAD_COST).masked_fill(~targets.present[:, None], torch.inf)
        cost = cost.masked_fill(hopeless[:, None, None], torch.nan)
    table = cost.cpu().numpy()
    device = cost.device
    pairs = [_solve(rows) for rows in table]
    lengths = [len(query) for query, _ in pairs]
    index = np.stack(
        [np.repeat(np.arange(len(pairs)), lengths), *(np.concatenate(p) for p in zip(*pairs, strict=True))]
    )
    slices, queries, classes = torch.from_numpy(index.astype(np.int64)).to(device)
    skipped = np.isnan(table).any(axis=(1, 2))
    if skipped.any():
        _log.warning("no finite matching cost in %d of %d slices, which are left out", skipped.sum(), len(skipped))
    used = ~hopeless if valid is None else ~hopeless & valid.flatten().to(device)
    return Assignment(slices=slices, queries=queries, classes=classes, used=used)


def pairwise_cost(outputs: QueryOutputs, targets: SliceTargets, cfg: LossConfig) -> Tensor:
    """Cost (G, N, K) float32 of assigning class k to query n; terms without an output are left out."""
    points, index = cost_points(targets.masks)
    cost = _mask_cost(_at(outputs.masks, index), points, bce=cfg.bce, dice=cfg.dice)
    if outputs.aux_masks is not None:
        cost = cost + _mask_cost(_at(outputs.aux_masks, index), points, bce=AUXILIARY, dice=AUXILIARY)
    if outputs.cls is not None:
        probability = _per_slice(outputs.cls).float().softmax(-1)
        cost = cost - CLASSIFICATION * probability[..., : cost.shape[-1]]
    boxes = outputs.aux_boxes if outputs.fused_boxes is None else outputs.fused_boxes
    if boxes is not None:
        mine, theirs = _per_slice(boxes).float()[:, :, None], targets.boxes[:, None]
        cost = cost + BOX_L1 * (mine - theirs).abs().sum(-1) - BOX_GIOU * giou(mine, theirs)
    return cost


def cost_points(masks: Tensor) -> tuple[Tensor, Tensor | None]:
    """Sample target masks at the pixels that the cost uses.

    Args:
        masks: (G, K, H, W).

    Returns:
        (G, K, P) float32, and the P flat pixel indices, or None for every second row and column. In large slices P is
        half of the pixels, drawn once for the whole batch.
    """
    pixels = masks.shape[-2] * masks.shape[-1]
    index = None
    if pixels > ALL_PIXELS:
        index = torch.randint(pixels, (pixels // 2,), device=masks.device)
    return _pick(masks, index).float(), index


def _solve(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matched queries and classes of one slice; rows (N, K) are inf for absent classes, all NaN to skip the slice."""
    classes = np.flatnonzero(np.isfinite(rows[0]))
    queries, columns = linear_sum_assignment(rows[:, classes])
    return queries, classes[columns]


def _mask_cost(logits: Tensor, targets: Tensor, *, bce: float, dice: float) -> Tensor:
    """Cost (G, N, K) of logits (G, N, P) and targets (G, K, P)."""
    count = logits.shape[-1]
    cross = F.softplus(logits).sum(-1)[..., None] - logits @ targets.mT
    probability = logits.sigmoid()
    overlap = probability @ targets.mT
    total = probability.sum(-1)[..., None] + targets.sum(-1)[:, None]
    return bce / count * cross + dice * (1 - (2 * overlap + 1) / (total + 1))


def _at(masks: Tensor, index: Tensor | None) -> Tensor:
    """Logits (B, N, D, H, W) at the pixels of the cost: (G, N, P) float32."""
    return _per_slice(_pick(masks, index)).float()


def _pick(masks: Tensor, index: Tensor | None) -> Tensor:
    if index is None:
        return masks[..., ::2, ::2].flatten(-2)
    return masks.flatten(-2)[..., index]


def _per_slice(x: Tensor) -> Tensor:
    """Reshape (B, N, D, ...) to (B*D, N, ...)."""
    return x.transpose(1, 2).flatten(0, 1)
