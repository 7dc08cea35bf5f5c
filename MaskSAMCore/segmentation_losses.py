"""The loss of networks with one logit per class: cross entropy + Dice (MODEL.md §9.6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.config import LossConfig
from MaskSAMCore.losses import segmentation_loss
from MaskSAMCore.matching import own, slice_targets
from MaskSAMCore.network.types import QueryOutputs


class SegmentationLoss(nn.Module):
    """CE + Dice 1:1 over all K classes, the background's Dice included; the release halves both, which is the same.

    Args:
        cfg: It has no weights for this loss.
        classes: K, background included.
    """

    def __init__(self, cfg: LossConfig, classes: int) -> None:
        super().__init__()
        self.cfg, self.classes = cfg, classes

    def forward(self, outputs: QueryOutputs, labels: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """The loss, in float32.

        Args:
            outputs: `masks` (B, K, D, H, W) are class logits.
            labels: (B, D, H, W) integer classes.
            valid: (B, D) bool, slices that are not padding; None for all.

        Returns:
            `loss`, and the same detached as `segmentation`.
        """
        with torch.autocast(outputs.masks.device.type, enabled=False):
            targets = slice_targets(labels, self.classes, valid)
            loss = segmentation_loss(outputs.masks, targets, own(targets, valid=valid).used, background=True)
            return {"loss": loss, "segmentation": loss.detach()}
