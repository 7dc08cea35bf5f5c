"""Heads: class scores at the size of the patch from decoded masks (model.md §6.5, §7.3, §8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from MaskSAMCore.network.convolution import Conv3d, zero_init


def semantic(cls: Tensor, masks: Tensor) -> Tensor:
    """Class scores of queries, P(c, v) = sum_q softmax(cls_q)[c] * sigmoid(mask_q(v)) (model.md §8).

    The scores do not sum to 1. They are computed in float32, one slice at a time to save memory.

    Args:
        cls: (B, Q, D, K + 1) logits, the last for "no object", which is dropped after the softmax.
        masks: (B, Q, D, H, W) logits.

    Returns:
        (B, K, D, H, W) float32.
    """
    # Autocast would compute the products in half precision.
    with torch.autocast(masks.device.type, enabled=False):
        weights = cls.float().softmax(-1)[..., :-1].permute(0, 2, 3, 1)
        batch, _, depth, *size = masks.shape
        scores = weights.new_empty(batch, weights.shape[2], depth, *size)
        for z in range(depth):
            scores[:, :, z] = (weights[:, z] @ masks[:, :, z].float().sigmoid().flatten(2)).unflatten(2, size)
    return scores


def argmax_head(masks: Tensor, valid: Tensor | None = None) -> Tensor:
    """Class scores of prompts whose class is known: query q belongs to class q + 1 (model.md §6.5).

    The softmax over the logits, with 0 for the background. The class with the highest logit wins if that is above 0,
    else the background.

    Args:
        masks: (B, K - 1, D, H, W) logits.
        valid: (B, K - 1, D) bool; prompts that are not valid get the score 0.

    Returns:
        (B, K, D, H, W) float32.
    """
    scores = masks.float()
    if valid is not None:
        scores = scores.masked_fill(~valid[..., None, None], -torch.inf)
    return F.pad(scores, (0, 0, 0, 0, 0, 0, 1, 0)).softmax(1)


def resize_masks(masks: Tensor, size: tuple[int, int], *, mode: str = "bilinear") -> Tensor:
    """Resize masks (B, Q, D, h, w) to (B, Q, D, H, W) in the plane; returns `masks` itself if the size fits.

    Args:
        masks: Logits, or 0/1 with `mode="nearest"`.
        size: (H, W).
        mode: "bilinear" or "nearest".
    """
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    corners = None if mode == "nearest" else False
    flat = F.interpolate(masks.flatten(1, 2), size=tuple(size), mode=mode, align_corners=corners)
    return flat.unflatten(1, masks.shape[1:3])


class MaskUpsampler(nn.Module):
    """Learned x4 upsampling with the queries as channels (model.md §7.3).

    It mixes queries, so it is used for the generator's N queries only; masks of a user's prompts are resized.

    Args:
        queries: N.
        width: Channels of the hidden layers.
    """

    def __init__(self, queries: int, *, width: int = 64) -> None:
        super().__init__()

        def doubling() -> list[nn.Module]:
            up = nn.ConvTranspose3d(width, width, (1, 2, 2), stride=(1, 2, 2))
            return [up, nn.InstanceNorm3d(width), nn.GELU()]

        self.layers = nn.Sequential(
            Conv3d(queries, width, 3, padding=1),
            nn.InstanceNorm3d(width, affine=True),
            nn.LeakyReLU(0.01),
            *doubling(),
            *doubling(),
            Conv3d(width, queries, 3, padding=1),
        )

    def forward(self, masks: Tensor) -> Tensor:
        """Map logits (B, N, D, h, w) to (B, N, D, 4h, 4w)."""
        return self.layers(masks)


class MaskBlend(nn.Module):
    """Weighted sum of the generator's and the decoded masks, with learned weights.

    Not in the paper (`decoder.mask_residual`): SAM's decoder gets the mask prompt at stride 16 only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Parameter(torch.tensor(1.0))
        self.sam = nn.Parameter(torch.tensor(0.1))

    def forward(self, aux: Tensor, sam: Tensor) -> Tensor:
        """Blend logits `aux` of the generator and `sam` of the decoder, both (B, N, D, H, W)."""
        return self.aux * aux + self.sam * sam


class MultiClassHead(nn.Module):
    """Self-Prompt-SAM's MC-Adapter: a residual block over the decoded masks of all classes (model.md §7.6).

    Two convolutions with four times as many channels between them; the last one starts at zero, so that an untrained
    head changes nothing.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv3d(classes, 4 * classes, 3, padding=1),
            nn.InstanceNorm3d(4 * classes, affine=True),
            nn.GELU(),
            nn.Conv3d(4 * classes, classes, 1),
        )
        zero_init(self.layers[-1])

    def forward(self, masks: Tensor) -> Tensor:
        """Map logits (B, K, D, H, W), one per class, to the same shape."""
        return masks + self.layers(masks)


class FineMaskHead(nn.Module):
    """Adds a mask at the size of the patch, from each mask token and the trunk's features, to SAM's mask.

    Not in the papers (`decoder.fine_masks`): SAM's masks have stride 4 and come from frozen features, the trunk's last
    stage has the resolution of the patch. Starts at zero.

    Args:
        width: F, channels of the features.
        token: Width of the mask tokens.
    """

    def __init__(self, width: int, *, token: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(token, token), nn.ReLU(), nn.Linear(token, width + 1))
        zero_init(self.layers[-1])

    def forward(self, tokens: Tensor, fine: Tensor) -> Tensor:
        """Logits (B, Q, D, m, H, W) of tokens (B, Q, D, m, 256) and features `fine` (B, F, D, H, W)."""
        weight, bias = self.layers(tokens).split((fine.shape[1], 1), dim=-1)
        return torch.einsum("bqdmf,bfdhw->bqdmhw", weight, fine.to(weight.dtype)) + bias[..., None]
