"""Cross entropy and Dice losses of class logits, at one or several scales (model.md §9.4, §9.6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import LossConfig
from MaskSAMCore.losses.matching import SliceTargets, slice_targets
from MaskSAMCore.network.types import QueryOutputs

SMOOTH = 1e-5
"""Added to numerator and denominator of Dice, as in nnU-Net."""


class SegmentationLoss(nn.Module):
    """Cross entropy plus Dice of the class logits, and of the generator's stages if there are any.

    Self-Prompt-SAM's paper does not give the weights of the stages; here each has half the weight of the next finer
    one. Labels are resized to coarser stages with the nearest pixel.

    Args:
        cfg: Weights `bce` (of the cross entropy) and `dice`, and whether Dice includes the `background`.
        classes: K, background included.
    """

    def __init__(self, cfg: LossConfig, classes: int) -> None:
        super().__init__()
        self.cfg, self.classes = cfg, classes

    def forward(self, outputs: QueryOutputs, labels: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """The loss, always in float32.

        Args:
            outputs: Output of the network; `masks` (B, K, D, H, W) are class logits.
            labels: (B, D, H, W) integer classes.
            valid: (B, D) bool, slices that are not padding; None for all.

        Returns:
            `loss`, the sum of the terms, and the terms, detached: `segmentation` of the masks and `generator` of the
            stages. Without the decoder the masks are the last stage, and there is no `segmentation`.
        """
        terms: dict[str, Tensor] = {}
        stages = outputs.stages or ()
        if not stages or outputs.masks is not stages[-1]:
            terms["segmentation"] = self._of((outputs.masks,), labels, valid)
        if stages:
            terms["generator"] = self._of(stages, labels, valid)
        total = torch.stack(list(terms.values())).sum()
        return {"loss": total, **{name: term.detach() for name, term in terms.items()}}

    def generator(self, stages: tuple[Tensor, ...], labels: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """The loss of the generator only.

        Args:
            stages: Class logits (B, K, D, h_i, w_i), the last at the labels' size.
            labels, valid: As of `forward`.
        """
        loss = self._of(stages, labels, valid)
        return {"loss": loss, "generator": loss.detach()}

    def _of(self, stages: tuple[Tensor, ...], labels: Tensor, valid: Tensor | None) -> Tensor:
        with torch.autocast(labels.device.type, enabled=False):
            weights = stage_weights(len(stages))
            return torch.stack([w * self._one(x, labels, valid) for w, x in zip(weights, stages, strict=True)]).sum()

    def _one(self, logits: Tensor, labels: Tensor, valid: Tensor | None) -> Tensor:
        size = logits.shape[-2:]
        if labels.shape[-2:] != size:
            labels = F.interpolate(labels.float(), size=size, mode="nearest-exact").long()
        targets = slice_targets(labels, self.classes, valid)
        used = torch.ones_like(targets.present[:, 0]) if valid is None else valid.flatten().to(logits.device)
        cross, dice = segmentation_terms(
            logits, targets, used, per_patch=True, smooth=SMOOTH, background=self.cfg.background
        )
        return self.cfg.bce * cross + self.cfg.dice * dice


def stage_weights(count: int) -> tuple[float, ...]:
    """Weights of the generator's stages, coarse to fine: each twice the one before, sum 1."""
    return tuple(2.0**i / (2**count - 1) for i in range(count))


def segmentation_loss(logits: Tensor, targets: SliceTargets, used: Tensor, *, log_dice: bool = False) -> Tensor:
    """Cross entropy plus Dice over the whole batch, without the background; see `segmentation_terms`.

    Args:
        logits, targets, used: As of `segmentation_terms`.
        log_dice: Whether to use -log Dice, averaged over the structures in the batch, instead of 1 - Dice.
    """
    if log_dice:
        cross, dice = segmentation_terms(logits, targets, used, smooth=SMOOTH, log=True)
    else:
        cross, dice = segmentation_terms(logits, targets, used)
    return cross + dice


def segmentation_terms(
    logits: Tensor,
    targets: SliceTargets,
    used: Tensor,
    *,
    per_patch: bool = False,
    smooth: float = 1.0,
    background: bool = False,
    log: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross entropy and Dice of class logits (model.md §9.4), in float32.

    Args:
        logits: (B, K, D, H, W).
        targets: Ground truth of the same slices.
        used: (B * D,) bool, slices that are part of the loss.
        per_patch: Whether Dice is computed in every patch and averaged, or once over the whole batch.
        smooth: Added to numerator and denominator of Dice.
        background: Whether Dice includes class 0.
        log: Whether to use -log Dice of the structures that are present, instead of 1 - Dice of all. Its gradient does
            not vanish where a small structure is hardly found (K. Wong et al., MICCAI 2018).
    """
    mine = logits.float().transpose(1, 2).flatten(0, 1)[used]
    theirs = targets.masks[used].float()
    if not len(mine):
        return logits.sum() * 0.0, logits.sum() * 0.0
    cross = F.cross_entropy(mine, theirs)
    probability = mine.softmax(1)
    first = 0 if background else 1
    sums = [t.sum((2, 3))[:, first:] for t in (probability * theirs, probability + theirs)]
    overlap, total = (_per_patch(t, used, len(logits)) if per_patch else t.sum(0) for t in sums)
    quotient = (2 * overlap + smooth) / (total + smooth)
    if not log:
        return cross, (1 - quotient).mean()
    held = targets.present[used][:, first:].float()
    there = (_per_patch(held, used, len(logits)) if per_patch else held.sum(0)) > 0
    return cross, -quotient.log()[there].sum() / there.sum().clamp(min=1)


def _per_patch(sums: Tensor, used: Tensor, patches: int) -> Tensor:
    """Add the sums (n, K) of the used slices up per patch: (patches, K), patches without used slices left out."""
    filled = sums.new_zeros(len(used), sums.shape[1])
    filled[used] = sums
    return filled.unflatten(0, (patches, -1)).sum(1)[used.unflatten(0, (patches, -1)).any(1)]
