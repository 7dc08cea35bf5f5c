"""Prompts from the ground truth, for the supplement's model without a generator (model.md §6.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.boxes import hard_box
from MaskSAMCore.network.prompt_source import PromptSource, Proposal
from MaskSAMCore.network.types import Features, Level, PromptBatch


class GroundTruth(PromptSource):
    """Makes one box prompt per structure and slice from the labels; has no parameters."""

    def __init__(self, cfg: ModelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(cfg, levels)
        self.classes = cfg.classes

    def forward(self, features: Features, stages: list[Tensor], labels: Tensor | None = None) -> Proposal:
        """Make the box prompts of `labels`; see `gt_prompts`.

        Raises:
            ModelError: `labels` is None.
        """
        if labels is None:
            raise ModelError(
                "this model takes its prompts from the ground truth",
                where="model.source.kind=gt",
                remedy="Use it on cases with labels, or use a model that makes its prompts itself.",
            )
        return Proposal(prompts=gt_prompts(labels, self.classes))


def class_masks(labels: Tensor, classes: int) -> Tensor:
    """Binary masks (B, K-1, D, H, W) of labels (B, D, H, W), one per structure, without the background."""
    ids = torch.arange(1, classes, device=labels.device)
    return labels[:, None] == ids[:, None, None, None]


def gt_prompts(labels: Tensor, classes: int) -> PromptBatch:
    """Bounding box of every structure in every slice; query q belongs to class q + 1.

    Args:
        labels: (B, D, H, W) integer classes.
        classes: K, background included.

    Returns:
        `boxes` (B, K-1, D, 4), zero where the structure is absent, and `valid` (B, K-1, D), where it is present.
    """
    boxes, empty = hard_box(class_masks(labels, classes))
    return PromptBatch(boxes=boxes, valid=~empty)
