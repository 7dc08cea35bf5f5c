"""The click head: corrects a mask from maps of its clicks and box, at the size of the patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.network.convolution import Conv3d, zero_init
from MaskSAMCore.network.heads import resize_masks
from MaskSAMCore.network.mask_recall import inside_box, recall_masks
from MaskSAMCore.network.trunk import IN_PLANE, WHOLE, ConvBlock, Kernel, same_padding
from MaskSAMCore.network.types import PromptBatch

SIGMAS = (1.5, 6.0)
"""Standard deviations, in voxels, of the Gaussians drawn at a click: its place, and its surroundings."""
MAPS = 2 * len(SIGMAS) + 2
LOGIT_SCALE = 8.0
"""Logits are divided by this before the convolutions."""


class ClickHead(nn.Module):
    """Corrects decoded masks with two convolutions over the trunk's features, the mask and maps of the prompts.

    Not in the papers (`decoder.click_maps`). For SAM's decoder a click is a token beside image tokens of stride 16, so
    that further clicks on one border change little. Here every click is drawn at its voxels, as in interactive
    networks that take clicks as input channels. The correction starts at zero, or at the recalled mask.

    Args:
        features: F, channels of the trunk's last stage.
        in_plane: Whether the convolutions stay within slices.
        recalls: Whether the mask of the structure meant is recalled from the generator (`decoder.click_masks`).
        width: Channels of the hidden layer.
    """

    def __init__(self, features: int, *, in_plane: bool, recalls: bool = False, width: int = 16) -> None:
        super().__init__()
        kernel: Kernel = IN_PLANE if in_plane else WHOLE
        padding = same_padding(kernel)
        # One convolution over all channels, split in two: the part over the features is the same for all prompts of a
        # patch. The names of these layers are those of the tensors in saved models.
        self.seen = Conv3d(features, width, kernel, padding=padding)
        self.said = Conv3d(MAPS + 1, width, kernel, padding=padding, bias=False)
        self.meant = Conv3d(1, width, kernel, padding=padding, bias=False) if recalls else None
        self.trust = nn.Parameter(torch.ones(())) if recalls else None
        self.norm = nn.Sequential(nn.GroupNorm(width, width), nn.LeakyReLU(0.01))
        self.block = ConvBlock(width, width, kernel=kernel)
        self.last = nn.Conv3d(width, 1, 1)
        zero_init(self.last)

    def forward(self, masks: Tensor, fine: Tensor, prompts: PromptBatch, classes: Tensor | None = None) -> Tensor:
        """Corrected logits (B, Q, D, m, H, W).

        Args:
            masks: (B, Q, D, m, H, W) logits.
            fine: (B, F, D, H, W), features of the trunk.
            prompts: The prompts that `masks` were decoded from.
            classes: (B, K, D, H, W), class logits of the generator; required with `recalls`.
        """
        batch, queries, _, count = masks.shape[:4]
        size = (masks.shape[-2], masks.shape[-1])
        precise = torch.promote_types(masks.dtype, torch.float32)
        maps = prompt_maps(prompts, tuple(masks.shape[:3]), size, dtype=precise).to(masks.dtype)
        seen = self.seen(fine.to(masks.dtype)).repeat_interleave(queries, 0)
        if self.meant is not None and self.trust is not None and classes is not None:
            meant = recall_masks(classes, prompts, queries).to(masks.dtype)
            seen = seen + self.meant(meant.flatten(0, 1)[:, None] / LOGIT_SCALE)
            masks = masks + self.trust * meant[:, :, :, None]
        each = []
        for m in range(count):
            own = torch.cat([maps, masks[:, :, None, :, m] / LOGIT_SCALE], dim=2)
            x = self.said(own.flatten(0, 1)) + seen
            each.append(self.last(self.block(self.norm(x)))[:, 0].unflatten(0, (batch, queries)))
        return masks + torch.stack(each, dim=3)


def prompt_maps(
    prompts: PromptBatch, shape: tuple[int, ...], size: tuple[int, int], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw prompts as maps (B, Q, MAPS, D, H, W): positive and negative clicks per scale, box, previous mask.

    Prompts that were copied from another slice are divided by 1 + the distance to it in slices.

    Args:
        prompts: With at least one of `points`, `boxes` and `masks`.
        shape: (B, Q, D).
        size: (H, W).
        dtype: Type of the maps.
    """
    given = next(t for t in (prompts.points, prompts.boxes, prompts.masks) if t is not None)
    empty = torch.zeros(*shape, *size, device=given.device, dtype=dtype)
    faint = empty.new_ones(shape) if prompts.offsets is None else 1 / (1 + prompts.offsets.abs().to(dtype))
    faint = faint[..., None, None]
    maps = [*(spot * faint for spot in _spots(prompts, empty)), _inside(prompts, empty) * faint]
    former = empty
    if prompts.masks is not None:
        former = resize_masks(prompts.masks.to(dtype), size) / LOGIT_SCALE
        if prompts.masks_known is not None:
            former = torch.where(prompts.masks_known[..., None, None], former, empty)
    return torch.stack([*maps, former], dim=2)


def _spots(prompts: PromptBatch, empty: Tensor) -> list[Tensor]:
    """Per scale the maps of the positive and of the negative clicks, each (B, Q, D, H, W) as `empty`."""
    if prompts.points is None or prompts.labels is None or not prompts.points.shape[3]:
        return [empty] * (2 * len(SIGMAS))
    x, y = prompts.points.to(empty.dtype).unbind(-1)
    apart = [(_centres(n, empty) - at[..., None] * n).square() for n, at in zip(empty.shape[3:], (y, x), strict=True)]
    spots = []
    for sigma in SIGMAS:
        rows, columns = (torch.exp(-each / (2 * sigma**2)) for each in apart)
        for label in (1, 0):
            chosen = (prompts.labels == label).to(empty.dtype)[..., None]
            spots.append(torch.einsum("bqdph,bqdpw->bqdhw", rows * chosen, columns).clamp(max=1.0))
    return spots


def _inside(prompts: PromptBatch, empty: Tensor) -> Tensor:
    """1 inside the box, else 0; (B, Q, D, H, W) as `empty`."""
    if prompts.boxes is None:
        return empty
    wide, tall = (inside_box(prompts.boxes, axis, empty.shape[4 - axis]) for axis in (0, 1))
    inside = tall[..., :, None] & wide[..., None, :]
    if prompts.boxes_known is not None:
        inside = inside & prompts.boxes_known[..., None, None]
    return inside.to(empty.dtype)


def _centres(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device, dtype=like.dtype) + 0.5
