"""Distillation loss: a student learns from labels and from a teacher (model.md §11)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.losses.segmentation import SegmentationLoss
from MaskSAMCore.network.types import QueryOutputs


class DistillationLoss(nn.Module):
    """L = λ·L_seg + (1−λ)·MSE(softmax(student), teacher), with the mean over voxels and classes.

    The paper's formula lacks the minus sign in the MSE and has the labels in place of the teacher; its text has the
    teacher as the target, as here.

    Args:
        labels: L_seg.
        share: λ; 1 for the labels only, 0 for the teacher only.
    """

    def __init__(self, labels: SegmentationLoss, share: float) -> None:
        super().__init__()
        self.labels, self.share = labels, share

    def forward(
        self, outputs: QueryOutputs, labels: Tensor, valid: Tensor | None, teacher: Tensor
    ) -> dict[str, Tensor]:
        """The loss, in float32.

        Args:
            outputs: Output of the student; `masks` (B, K, D, H, W) are class logits.
            labels: (B, D, H, W) integer classes.
            valid: (B, D) bool, slices that are not padding; None for all.
            teacher: (B, K, D, H, W), probabilities of the teacher.

        Returns:
            `loss`, the weighted sum, and the terms, detached: those of L_seg, and `imitation`.
        """
        terms = self.labels(outputs, labels, valid)
        with torch.autocast(outputs.masks.device.type, enabled=False):
            imitation = imitation_loss(outputs.masks, teacher, valid)
            loss = self.share * terms["loss"] + (1 - self.share) * imitation
        return terms | {"loss": loss, "imitation": imitation.detach()}


def imitation_loss(logits: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared difference of the probabilities over the valid slices; arguments as of `DistillationLoss`."""
    student, target = (x.float().transpose(1, 2).flatten(0, 1) for x in (logits, teacher))
    if valid is not None:
        used = valid.flatten().to(student.device)
        student, target = student[used], target[used]
    return (student.softmax(1) - target).square().mean() if len(student) else logits.sum() * 0.0


def probabilities(scores: Tensor) -> Tensor:
    """Normalise class scores (..., K, D, H, W) of any head to a sum of 1 over the classes.

    The scores of a query head do not sum to 1 (model.md §8). Where all are zero, the result is uniform.
    """
    known = scores.float().clamp(min=0) + 1e-6
    return known / known.sum(-4, keepdim=True)
