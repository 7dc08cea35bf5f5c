"""Base class of the prompt sources (model.md §6); `sources` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.network.trunk import Trunk
from MaskSAMCore.network.types import Features, Level, PromptBatch


@dataclass
class Proposal:
    """Output of a prompt source for a batch of patches.

    Attributes:
        prompts: Q prompts per slice, for SAM's decoder.
        masks: (B, Q, D, H, W) mask logits that the prompts were made of, or None.
        boxes: (B, Q, D, 4) in [0, 1], predicted by a head of their own, or None.
        fused_boxes: (B, Q, D, 4), the boxes of the prompts before rounding, or None.
        stages: Class logits (B, K, D, h_i, w_i) for the loss, the last at the size of the patch, or None.
    """

    prompts: PromptBatch
    masks: Tensor | None = None
    boxes: Tensor | None = None
    fused_boxes: Tensor | None = None
    stages: tuple[Tensor, ...] | None = None


class PromptSource(nn.Module):
    """Makes the prompts of a patch from the encoder's features or from labels.

    Args:
        cfg: Configuration of the whole model.
        levels: The encoder's feature levels.

    Attributes:
        HAS_TRUNK: Whether the source has a trunk, which upsamples the features to the size of the patch; the click
            head uses its features too.
        trunk: The trunk, or None.
    """

    HAS_TRUNK: ClassVar[bool] = False
    trunk: Trunk | None

    def __init__(self, cfg: ModelConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        self.trunk = Trunk(cfg, levels) if self.HAS_TRUNK else None

    @classmethod
    def check(cls, cfg: ModelConfig) -> None:
        """Check that the source supports the configuration; the base class supports every one.

        Raises:
            InputError: Names the key.
        """

    def stages(self, features: Features, image: Tensor) -> list[Tensor]:
        """Feature maps of the trunk, (B, C_i, D, h_i, w_i), the last at the size of the patch; [] without a trunk.

        Args:
            features: Output of the encoder.
            image: (B, M, D, H, W), the scan; used with `source.image_widths` only.
        """
        return [] if self.trunk is None else self.trunk(features, image)

    def logits(self, stages: list[Tensor]) -> tuple[Tensor, ...]:
        """Logits (B, Q or K, D, h_i, w_i) of every supervised stage, which can be trained without the decoder.

        A source that supports `decoder.kind="none"` returns logits of the K classes.
        """
        return ()

    def forward(self, features: Features, stages: list[Tensor], labels: Tensor | None = None) -> Proposal:
        """Make the prompts of all slices.

        Args:
            features: Output of the encoder.
            stages: Output of `stages` for the same patch.
            labels: (B, D, H, W) classes, in training only.
        """
        raise NotImplementedError
