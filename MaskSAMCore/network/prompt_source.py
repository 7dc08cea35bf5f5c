"""What every source of automatic prompts is (model.md §6); `sources` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from MaskSAMCore.config.schema import ModelConfig
from MaskSAMCore.network.trunk import Trunk
from MaskSAMCore.network.types import Features, Level, PromptBatch


@dataclass
class Proposal:
    """What a source makes of a patch.

    Attributes:
        prompts: Q per slice, for SAM's decoder.
        masks: (B, Q, D, H, W) logits that the prompts were made of, or None.
        boxes: (B, Q, D, 4) in [0, 1], predicted beside the masks, or None.
        fused_boxes: (B, Q, D, 4), the boxes of the prompts as they are trained, or None.
        stages: Class logits (B, K, D, h_i, w_i) to be compared with the labels, the last at the patch's size, or None.
    """

    prompts: PromptBatch
    masks: Tensor | None = None
    boxes: Tensor | None = None
    fused_boxes: Tensor | None = None
    stages: tuple[Tensor, ...] | None = None


class PromptSource(nn.Module):
    """Prompts for one patch, from the encoder's features, from parameters, or from labels.

    Args:
        cfg: Of the whole model.
        levels: The encoder's feature levels.

    Attributes:
        LIFTS: Whether the source has a trunk that lifts the features to the patch's size; clicks can read it too.
        trunk: That trunk.
    """

    LIFTS: ClassVar[bool] = False
    trunk: Trunk | None

    def __init__(self, cfg: ModelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        self.trunk = Trunk(cfg, levels) if self.LIFTS else None

    @classmethod
    def check(cls, cfg: ModelConfig) -> None:
        """Refuse a configuration that the source cannot work in; here none.

        Raises:
            InputError: Names the value.
        """

    def stages(self, features: Features, image: Tensor) -> list[Tensor]:
        """Features of the trunk, (B, C_i, D, h_i, w_i), the last at the patch's size; empty without a trunk.

        Args:
            features: Of the encoder.
            image: (B, M, D, H, W), the scan; read with `image_widths` only.
        """
        return [] if self.trunk is None else self.trunk(features, image)

    def logits(self, stages: list[Tensor]) -> tuple[Tensor, ...]:
        """What can be trained without the decoder: masks (B, Q or K, D, h_i, w_i) of every supervised stage, if any.

        A source that goes with `decoder.kind="none"` has the scores of the K classes here.
        """
        return ()

    def forward(self, features: Features, stages: list[Tensor], labels: Tensor | None = None) -> Proposal:
        """Prompts of all slices.

        Args:
            features: Of the encoder.
            stages: Of the method above, for the same patch.
            labels: (B, D, H, W) classes, in training only.
        """
        raise NotImplementedError
