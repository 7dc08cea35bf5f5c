"""Set loss of automatic mode, and BCE plus Dice of given prompts (model.md §9.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import LossConfig, ModelConfig
from MaskSAMCore.losses.matching import (
    ALL_PIXELS,
    AUXILIARY,
    BOX_GIOU,
    BOX_L1,
    CLASSIFICATION,
    Assignment,
    SliceTargets,
    assign_by_class,
    match,
    slice_targets,
)
from MaskSAMCore.losses.segmentation import SegmentationLoss, segmentation_loss
from MaskSAMCore.network.boxes import giou
from MaskSAMCore.network.gt_source import class_masks
from MaskSAMCore.network.types import Prompted, QueryOutputs

if TYPE_CHECKING:
    from MaskSAMCore.losses.segmentation import SegmentationLoss

OVERSAMPLE = 2
UNCERTAIN = 0.75
NO_OBJECT = 0.1
"""Weight of queries without a structure in the class term."""
QUALITY, SUGGESTION, CLICKED = 1.0, 0.2, 0.2
"""Weights of SAM's quality estimate, of the class logits and of the clicked voxels; BCE and Dice have weight 1."""


class SetLoss(nn.Module):
    """Matches queries and structures in every slice and sums the weighted terms.

    Args:
        cfg: Weights.
        classes: K, background included.
    """

    def __init__(self, cfg: LossConfig, classes: int) -> None:
        super().__init__()
        self.cfg, self.classes = cfg, classes

    def forward(self, outputs: QueryOutputs, labels: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """The loss, always in float32.

        Args:
            outputs: Output of the network; fields that are None have no term.
            labels: (B, D, H, W) integer classes.
            valid: (B, D) bool, slices that are not padding; None for all.

        Returns:
            `loss`, the weighted sum, and the unweighted terms, detached: `class`, `bce`, `dice`,
            `aux_bce`, `aux_dice`, `generator`, `box_l1`, `box_giou`.
        """
        with torch.autocast(outputs.masks.device.type, enabled=False):
            targets = slice_targets(labels, self.classes, valid)
            if self.cfg.assignment == "own":
                pairs = assign_by_class(targets, valid=valid)
            else:
                pairs = match(outputs, targets, self.cfg, valid=valid)
            return self._sum(self._terms(outputs, targets, pairs), outputs)

    def generator(self, stages: tuple[Tensor, ...], labels: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of the generator's masks only; mask k belongs to class k (§9.4).

        Args:
            stages: Mask logits (B, N, D, H, W) with N >= K, as the only entry.
            labels, valid: As of `forward`.
        """
        masks = stages[-1]
        with torch.autocast(masks.device.type, enabled=False):
            targets = slice_targets(labels, self.classes, valid)
            used = assign_by_class(targets, valid=valid).used
            loss = self._segmentation(masks, targets, used)
            return {"loss": loss, "generator": loss.detach()}

    def _segmentation(self, masks: Tensor, targets: SliceTargets, used: Tensor) -> Tensor:
        return segmentation_loss(masks[:, : self.classes], targets, used, log_dice=self.cfg.generator_dice == "log")

    def _terms(self, outputs: QueryOutputs, targets: SliceTargets, pairs: Assignment) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        count = max(1, pairs.slices.numel())
        if outputs.cls is not None:
            terms["class"] = _class_term(outputs.cls, pairs, self.classes)
        chosen = targets.masks.flatten(0, 1)[pairs.slices * self.classes + pairs.classes]
        terms["bce"], terms["dice"] = mask_terms(_matched(outputs.masks, pairs), chosen, count)
        if outputs.aux_masks is not None and self.cfg.generator:
            terms["generator"] = self._segmentation(outputs.aux_masks, targets, pairs.used)
        if outputs.aux_masks is not None:
            terms["aux_bce"], terms["aux_dice"] = mask_terms(_matched(outputs.aux_masks, pairs), chosen, count)
        if outputs.aux_boxes is not None:
            mine = _matched(outputs.aux_boxes, pairs).float()
            theirs = targets.boxes[pairs.slices, pairs.classes]
            terms["box_l1"] = (mine - theirs).abs().sum() / count
            terms["box_giou"] = (1 - giou(mine, theirs)).sum() / count
        return terms

    def _sum(self, terms: dict[str, Tensor], outputs: QueryOutputs) -> dict[str, Tensor]:
        cfg = self.cfg
        weights = {
            "class": CLASSIFICATION,
            "bce": cfg.bce,
            "dice": cfg.dice,
            "aux_bce": AUXILIARY,
            "aux_dice": AUXILIARY,
            "generator": cfg.generator,
            "box_l1": BOX_L1,
            "box_giou": BOX_GIOU,
        }
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": total, **{name: term.detach() for name, term in terms.items()}}


class BinaryLoss(nn.Module):
    """BCE plus Dice of prompts from the ground truth: query q belongs to class q + 1 (model.md §6.5).

    Args:
        cfg: Weights `bce` and `dice`.
        classes: K, background included.
    """

    def __init__(self, cfg: LossConfig, classes: int) -> None:
        super().__init__()
        self.cfg, self.classes = cfg, classes

    def forward(self, outputs: QueryOutputs, labels: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """The loss; arguments as of `SetLoss`. Returns `loss`, and `bce` and `dice`, detached."""
        prompts = outputs.valid
        if valid is not None:
            slices = valid.to(labels.device)[:, None]
            prompts = slices.expand(outputs.masks.shape[:3]) if prompts is None else prompts & slices
        targets = class_masks(labels, self.classes)
        return binary_loss(outputs.masks, targets, prompts, bce=self.cfg.bce, dice=self.cfg.dice)


def binary_loss(
    logits: Tensor, targets: Tensor, valid: Tensor | None = None, *, bce: float = 1.0, dice: float = 1.0
) -> dict[str, Tensor]:
    """BCE plus Dice of masks with known targets, in float32.

    Args:
        logits: (B, Q, D, H, W).
        targets: The same shape, bool or 0/1.
        valid: (B, Q, D) bool, prompts that exist; None for all.
        bce, dice: Weights.

    Returns:
        `loss`, the weighted sum, and `bce` and `dice`, detached.
    """
    with torch.autocast(logits.device.type, enabled=False):
        mine, theirs = logits.flatten(0, 2), targets.flatten(0, 2)
        if valid is not None:
            index = valid.flatten().nonzero()[:, 0]
            mine, theirs = mine.index_select(0, index), theirs.index_select(0, index)
        cross, overlap = mask_terms(mine, theirs, max(1, len(mine)))
        return {"loss": bce * cross + dice * overlap, "bce": cross.detach(), "dice": overlap.detach()}


def build_loss(cfg: ModelConfig) -> SetLoss | BinaryLoss | SegmentationLoss:
    """Build the loss of `cfg.loss.kind`; it is called with outputs, labels and valid slices."""
    if cfg.loss.kind == "segmentation":
        return SegmentationLoss(cfg.loss, cfg.classes)
    if cfg.loss.kind == "binary":
        return BinaryLoss(cfg.loss, cfg.classes)
    return SetLoss(cfg.loss, cfg.classes)


def mask_terms(logits: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """BCE and Dice, each summed over P pairs and divided by `count`.

    In slices of up to 65 536 pixels all pixels are used; in larger ones half as many samples, three quarters of them
    where the logits are closest to 0.

    Args:
        logits: (P, H, W).
        targets: (P, H, W), bool or 0/1.
        count: Divisor of the sums.
    """
    cross, overlap = _mask_values(logits, targets)
    return cross.sum() / count, overlap.sum() / count


def _mask_values(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """BCE and Dice (P,) of every pair; arguments as of `mask_terms`."""
    x, y = logits.float().flatten(1), targets.flatten(1)
    if x.shape[1] > ALL_PIXELS and len(x):
        index = _uncertain_points(x.detach())
        x, y = x.gather(1, index), y.gather(1, index)
    y = y.float()
    return F.binary_cross_entropy_with_logits(x, y, reduction="none").mean(1), dice_loss(x, y)


def prompt_loss(
    answer: Prompted, targets: Tensor, weight: Tensor, classes: Tensor, clicked: Tensor | None = None
) -> dict[str, Tensor]:
    """BCE plus Dice of prompted masks, and the losses of quality, clicks and class, in float32.

    Of several candidates only the best of each prompt is used, as in SAM's training.

    Args:
        answer: Output of the network.
        targets: (B, Q, D, H, W) bool.
        weight: (B, Q, D), weight of every slice; 0 leaves it out.
        classes: (B, Q), true class of every object; 0 for a prompt without one.
        clicked: (n, 5), indices b, q, z, y, x of the clicked voxels, or None.

    Returns:
        `loss`, and the terms, detached: `prompt_bce`, `prompt_dice`, `quality`, `clicked` if there are clicks, and
        `suggestion` if there is a class head.
    """
    with torch.autocast(answer.masks.device.type, enabled=False):
        masks = answer.masks.float()
        shape, count = masks.shape[:3], masks.shape[3]
        wide = targets[:, :, :, None].expand(masks.shape)
        cross, overlap = (v.view(*shape, count) for v in _mask_values(masks.flatten(0, 3), wide.flatten(0, 3)))
        share = (weight / weight.sum().clamp(min=1e-6))[..., None]
        each = ((cross + overlap) * share).sum(2)
        best = each.argmin(-1, keepdim=True)
        chosen = [(v * share).sum(2).gather(-1, best).sum() for v in (cross, overlap)]
        real = _iou(masks.detach() > 0, wide)
        judged = (weight[..., None] > 0) & torch.isfinite(real)
        gap = torch.where(judged, answer.quality.float() - torch.where(judged, real, 0.0), 0.0)
        terms = {"prompt_bce": chosen[0], "prompt_dice": chosen[1]}
        terms["quality"] = gap.square().sum() / judged.sum().clamp(min=1)
        loss = chosen[0] + chosen[1] + QUALITY * terms["quality"]
        if clicked is not None and len(clicked):
            b, q, z, y, x = clicked.T
            theirs = masks.gather(3, best[:, :, None, :, None, None].expand(*shape, 1, *masks.shape[4:]))[:, :, :, 0]
            terms["clicked"] = F.binary_cross_entropy_with_logits(theirs[b, q, z, y, x], targets[b, q, z, y, x].float())
            loss = loss + CLICKED * terms["clicked"]
        if answer.cls is not None:
            named = (weight > 0) & targets.flatten(3).any(-1)
            logits, wanted = answer.cls.float()[named], classes[..., None].expand(shape)[named]
            terms["suggestion"] = F.cross_entropy(logits, wanted, reduction="sum") / named.sum().clamp(min=1)
            loss = loss + SUGGESTION * terms["suggestion"]
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}


def _iou(predicted: Tensor, targets: Tensor) -> Tensor:
    """IoU of bool masks over the last two axes; NaN if both are empty."""
    common = (predicted & targets).flatten(-2).sum(-1)
    return common / (predicted | targets).flatten(-2).sum(-1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss, 1 - (2 sum(pg) + 1) / (sum(p) + sum(g) + 1), over the last axis: (P, n) to (P,)."""
    probability = logits.sigmoid()
    overlap = (probability * targets).sum(-1)
    return 1 - (2 * overlap + 1) / (probability.sum(-1) + targets.sum(-1) + 1)


def _uncertain_points(logits: Tensor) -> Tensor:
    """Sampled pixel indices (P, points) for logits (P, pixels), most of them where the logits are closest to 0."""
    pairs, pixels = logits.shape
    points = pixels // 2
    certain = int(UNCERTAIN * points)
    candidates = torch.randint(pixels, (pairs, OVERSAMPLE * points), device=logits.device)
    order = logits.gather(1, candidates).abs().topk(certain, dim=1, largest=False, sorted=False).indices
    rest = torch.randint(pixels, (pairs, points - certain), device=logits.device)
    return torch.cat([candidates.gather(1, order), rest], dim=1)


def _class_term(cls: Tensor, pairs: Assignment, classes: int) -> Tensor:
    """Cross entropy of all queries in the used slices; unmatched queries have the class "no object"."""
    batch, queries, depth, _ = cls.shape
    wanted = torch.full((batch * depth, queries), classes, device=cls.device)
    wanted[pairs.slices, pairs.queries] = pairs.classes
    weight = cls.new_ones(classes + 1, dtype=torch.float32)
    weight[classes] = NO_OBJECT
    # Masked before the product below, because a slice that is left out may contain NaN.
    logits = cls.float().transpose(1, 2).flatten(0, 1).masked_fill(~pairs.used[:, None, None], 0.0)
    each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight=weight, reduction="none")
    share = weight[wanted] * pairs.used[:, None]
    return (each.view_as(share) * pairs.used[:, None]).sum() / share.sum().clamp(min=1e-6)


def _matched(x: Tensor, pairs: Assignment) -> Tensor:
    """Rows (P, ...) of x (B, N, D, ...) for the matched pairs."""
    _, queries, depth = x.shape[:3]
    volume, z = pairs.slices // depth, pairs.slices % depth
    return x.flatten(0, 2).index_select(0, (volume * queries + pairs.queries) * depth + z)
