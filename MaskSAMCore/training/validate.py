"""What validation during training needs: Dice, figures of simulated users, and models with given prompts."""

from __future__ import annotations

from collections.abc import Sequence

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


def click_figures(cases: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of `prompted.click_dice` over the cases, each figure over those that have it, named for the log."""
    names = dict.fromkeys(name for each in cases for name in each)
    return {f"val {name}": round(float(np.mean([c[name] for c in cases if name in c])), 4) for name in names}


def in_words(figures: dict[str, float]) -> str:
    """ "click 1 0.8123, box 0.9000"."""
    return ", ".join(f"{name.removeprefix('val ')} {value:.4f}" for name, value in figures.items())
