"""The loss of a student that learns from labels and from a teacher (model.md §11)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.losses.segmentation import SegmentationLoss
from MaskSAMCore.network.types import QueryOutputs


class DistillationLoss(nn.Module):
    """L = λ·L_seg + (1−λ)·MSE(softmax(student), teacher), the mean over voxels and classes.

    The paper prints the MSE without its minus sign and with the labels in the teacher's place; its text makes the
    teacher the target, and so do we.

    Args:
        labels: L_seg.
        share: λ; 1 leaves the labels alone, 0 the teacher alone.
    """

    def __init__(self, labels: SegmentationLoss, share: float) -> None:
        super().__init__()
        self.labels, self.share = labels, share

    def forward(
        self, outputs: QueryOutputs, labels: Tensor, valid: Tensor | None, teacher: Tensor
    ) -> dict[str, Tensor]:
        """The loss, in float32.

        Args:
            outputs: `masks` (B, K, D, H, W) are the student's class logits.
            labels: (B, D, H, W) integer classes.
            valid: (B, D) bool, slices that are not padding; None for all.
            teacher: (B, K, D, H, W) the teacher's probabilities.

        Returns:
            `loss`, the weighted sum, and `segmentation` and `imitation`, detached.
        """
        terms = self.labels(outputs, labels, valid)
        with torch.autocast(outputs.masks.device.type, enabled=False):
            imitation = imitation_loss(outputs.masks, teacher, valid)
            loss = self.share * terms["loss"] + (1 - self.share) * imitation
        return terms | {"loss": loss, "imitation": imitation.detach()}


def imitation_loss(logits: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared difference of probabilities over the slices that count; arguments as of `DistillationLoss`."""
    mine, theirs = (x.float().transpose(1, 2).flatten(0, 1) for x in (logits, teacher))
    if valid is not None:
        used = valid.flatten().to(mine.device)
        mine, theirs = mine[used], theirs[used]
    return (mine.softmax(1) - theirs).square().mean() if len(mine) else logits.sum() * 0.0


def probabilities(scores: Tensor) -> Tensor:
    """Class scores (..., K, D, H, W) of any head as probabilities that sum to 1 over the classes.

    The scores of a query head do not (model.md §8). Where a teacher claims nothing, every class is as likely.
    """
    known = scores.float().clamp(min=0) + 1e-6
    return known / known.sum(-4, keepdim=True)
