"""A residual 3-D U-Net that takes a user's prompts as maps at its input, and answers one structure of any kind.

Not in the papers: their prompts enter SAM's decoder, which sees them slice by slice. Here every prompt reaches the
whole patch through the network's own levels. The network knows no classes, and is told how large its voxels are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from MaskSAMCore.config.network_schema import GROWN_MAPS, PATCH_FACTS, PROMPT_MAPS, ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.convolution import Conv3d, zero_init
from MaskSAMCore.network.segmenter import Segmenter

CONDITION = 32


def divisors(flat: int, levels: int) -> tuple[int, int, int]:
    """What the patch's (D, H, W) must be multiples of."""
    return 2 ** (levels - 1 - flat), 2 ** (levels - 1), 2 ** (levels - 1)


class Block(nn.Module):
    """Two convolutions with a skip; the numbers of the patch scale and shift the first one's features (FiLM).

    Args:
        in_channels, out_channels: Of the block.
        kernel_size: Of both convolutions, (d, h, w).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int]) -> None:
        super().__init__()
        padding = tuple(n // 2 for n in kernel_size)
        self.conv1 = Conv3d(in_channels, out_channels, kernel_size, padding=padding, bias=False)  # type: ignore[arg-type]
        self.norm1 = nn.InstanceNorm3d(out_channels, affine=True)
        self.film = nn.Linear(CONDITION, 2 * out_channels)
        self.conv2 = Conv3d(out_channels, out_channels, kernel_size, padding=padding, bias=False)  # type: ignore[arg-type]
        self.norm2 = nn.InstanceNorm3d(out_channels, affine=True)
        self.skip = nn.Identity() if in_channels == out_channels else Conv3d(in_channels, out_channels, 1, bias=False)
        zero_init(self.film)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map x (B, in_channels, D, H, W), condition (B, CONDITION), to (B, out_channels, D, H, W)."""
        scale, shift = self.film(condition)[:, :, None, None, None].chunk(2, dim=1)
        y = F.leaky_relu(self.norm1(self.conv1(x)) * (1 + scale) + shift, 0.01)
        return F.leaky_relu(self.norm2(self.conv2(y)) + self.skip(x), 0.01)


class ClickUNet(Segmenter):
    """The network of `backbone.arch="click_unet"`; widths are `source.widths`, from the coarsest level to the finest.

    The first level convolves within the slices. The first `flat` levels are pooled within them too, so the depth of a
    patch of thick slices is not used up.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        widths = cfg.source.widths[::-1]
        kernels = [(1, 3, 3)] + [(3, 3, 3)] * (len(widths) - 1)
        ends = (1 + len(PROMPT_MAPS) + len(GROWN_MAPS), *widths)
        self.embed = nn.Sequential(nn.Linear(len(PATCH_FACTS), CONDITION), nn.SiLU())
        self.down = nn.ModuleList(Block(a, b, k) for a, b, k in zip(ends, ends[1:], kernels, strict=False))
        self.up = nn.ModuleList(
            Block(widths[n + 1] + widths[n], widths[n], kernels[n]) for n in reversed(range(len(widths) - 1))
        )
        self.out = Conv3d(widths[0], 1, 1)
        self.checkpointing = False

    @property
    def levels(self) -> int:
        """Number of sizes."""
        return len(self.down)

    def set_checkpointing(self, enabled: bool) -> None:
        """Switch gradient checkpointing on or off."""
        self.checkpointing = enabled

    def answer(self, image: Tensor, maps: Tensor, facts: Tensor, *, flat: int) -> Tensor:
        """Logits (B, 1, D, H, W) of the structure that the prompts mean.

        Args:
            image: (B, 1, D, H, W), normalised over the patch.
            maps: (B, 9, D, H, W), the channels `PROMPT_MAPS` and `GROWN_MAPS`, each from 0 to 1.
            facts: (B, 3), the numbers `PATCH_FACTS`.
            flat: Levels that are pooled within the slices alone; see `preprocessing.zoom_windows`.

        Raises:
            ModelError: The patch does not fit the levels.
        """
        needed = divisors(flat, self.levels)
        if any(n % m for n, m in zip(image.shape[2:], needed, strict=True)):
            why = f"(D, H, W) must be multiples of {needed}"
            raise ModelError("the patch does not fit the network", where=f"input {tuple(image.shape)}", why=why)
        condition = self.embed(facts)
        x, skips = torch.cat([image, maps], 1), list[Tensor]()
        for level, block in enumerate(self.down):
            if level:
                x = F.max_pool3d(x, _step(level, flat))
            x = self._run(block, x, condition)
            skips.append(x)
        for level, block in zip(reversed(range(1, self.levels)), self.up, strict=True):
            x = F.interpolate(x, scale_factor=[float(n) for n in _step(level, flat)], mode="nearest")
            x = self._run(block, torch.cat([x, skips[level - 1]], 1), condition)
        logits: Tensor = self.out(x).float()
        return logits

    def _run(self, block: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            result: Tensor = checkpoint(block, x, condition, use_reentrant=False)
            return result
        return block(x, condition)


def _step(level: int, flat: int) -> tuple[int, int, int]:
    """Pooling before a level, 1 for the second finest."""
    return (1 if level <= flat else 2), 2, 2
