"""The student network of distillation: MONAI's SwinUNETR (model.md §11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.errors import optional_package
from MaskSAMCore.network.segmenter import DirectSegmenter

if TYPE_CHECKING:
    from monai.networks.nets.swin_unetr import SwinUNETR

STRIDE = 32
"""Stride of a SwinUNETR's deepest level; every axis of its input must be a multiple."""


def whole_size(size: Sequence[int]) -> tuple[int, int, int]:
    """The smallest (D, H, W) of at least `size` that a SwinUNETR accepts.

    Multiples of 32; at least 64 wide if depth and height are 32, because instance norms need two voxels at stride 32.
    """
    depth, height, width = (-(-n // STRIDE) * STRIDE for n in size)
    return depth, height, max(width, 2 * STRIDE) if depth == height == STRIDE else width


class SwinStudent(DirectSegmenter):
    """A SwinUNETR for patches of any size, trained from scratch.

    Feature size 12 is the paper's "tiny", 24 its "small". Patches are padded to `whole_size` by repeating their
    border, and the padding is cut off the result.

    Raises:
        PackageError: MONAI or einops is not installed.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.net = _swin_unetr(cfg)

    def set_checkpointing(self, enabled: bool) -> None:
        """Switch gradient checkpointing of the transformer blocks on or off."""
        from monai.networks.nets.swin_unetr import SwinTransformerBlock

        for module in self.net.swinViT.modules():
            if isinstance(module, SwinTransformerBlock):
                module.use_checkpoint = enabled

    def logits(self, image: Tensor) -> Tensor:
        """Class logits (B, K, D, H, W) of an image (B, M, D, H, W)."""
        size = image.shape[2:]
        missing = [whole - n for whole, n in zip(whole_size(size), size, strict=True)]
        if not any(missing):
            return self.net(image)
        sides = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
        padded = F.pad(image, sides, mode="replicate")
        inside = tuple(slice(n // 2, n // 2 + length) for n, length in zip(missing, size, strict=True))
        return self.net(padded)[(slice(None), slice(None), *inside)]


def _swin_unetr(cfg: ModelConfig) -> SwinUNETR:
    with optional_package("distill", what="a SwinUNETR"):
        import einops  # noqa: F401
        from monai.networks.nets.swin_unetr import SwinUNETR
    # MONAI reads values of tensors while it builds, which the meta device does not have.
    device = torch.get_default_device()
    with torch.device("cpu"):
        network = SwinUNETR(in_channels=cfg.channels, out_channels=cfg.classes, feature_size=cfg.backbone.width)
    return network.to(device)
