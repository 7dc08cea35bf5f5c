"""Prompts from the ground truth: the supplement's model without a generator (model.md §6.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from MaskSAMCore.config.schema import ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.boxes import hard_box
from MaskSAMCore.network.prompt_source import PromptSource, Proposal
from MaskSAMCore.network.types import Features, Level, PromptBatch


class GroundTruth(PromptSource):
    """The boxes of the labels; it has no parameters."""

    def __init__(self, cfg: ModelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(cfg, levels)
        self.classes = cfg.classes

    def forward(self, features: Features, stages: list[Tensor], labels: Tensor | None = None) -> Proposal:
        """See `PromptSource` and `gt_prompts`.

        Raises:
            ModelError: There are no labels.
        """
        if labels is None:
            raise ModelError(
                "this model takes its prompts from the ground truth",
                where="model.source.kind=gt",
                remedy="It can be trained and evaluated on labelled cases, not run on a new scan.",
            )
        return Proposal(prompts=gt_prompts(labels, self.classes))


def class_masks(labels: Tensor, classes: int) -> Tensor:
    """Labels (B, D, H, W) to (B, K-1, D, H, W) bool, one per structure; background is left out."""
    ids = torch.arange(1, classes, device=labels.device)
    return labels[:, None] == ids[:, None, None, None]


def gt_prompts(labels: Tensor, classes: int) -> PromptBatch:
    """One box per structure and slice: its extents; query q is class q + 1.

    Args:
        labels: (B, D, H, W) integer classes.
        classes: K, background included.

    Returns:
        `boxes` (B, K-1, D, 4), and `valid` (B, K-1, D): where the structure is present. Absent
        structures have a zero box.
    """
    boxes, empty = hard_box(class_masks(labels, classes))
    return PromptBatch(boxes=boxes, valid=~empty)
