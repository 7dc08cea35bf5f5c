"""What validation during training needs: Dice, and models with prompts from the ground truth."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from MaskSAMCore.network.segmenter import Segmenter


class GivenLabels(nn.Module):
    """A model with prompts from the ground truth, its last input channel being the labels."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model, self.cfg = model, model.cfg

    def segment_patch(self, patch: Tensor) -> Tensor:
        """Patch (B, M + 1, D, H, W) to class scores (B, K, D, H, W)."""
        labels = patch[:, -1].round().long()
        return self.model.scores(self.model(patch[:, :-1], None, labels))


def dice_per_class(predicted: np.ndarray, reference: np.ndarray, classes: int) -> list[float]:
    """Dice of every structure; NaN where neither has it."""
    found = []
    for index in range(1, classes):
        p, r = predicted == index, reference == index
        total = int(p.sum()) + int(r.sum())
        found.append(2 * int((p & r).sum()) / total if total else float("nan"))
    return found
