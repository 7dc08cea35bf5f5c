"""Data classes passed between the parts of the network, and `fold`/`unfold` of the depth axis.

Image-like tensors are (B, C, D, H, W). SAM's two-dimensional modules get (B*D, ...) with depth as the fastest index,
so that every operation along depth starts with `unflatten(0, (-1, D))` (model.md §1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def fold(x: Tensor) -> Tensor:
    """Move depth into the batch: (B, C, D, H, W) to (B*D, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold(x: Tensor, depth: int) -> Tensor:
    """Undo `fold`: (B*D, C, H, W) to (B, C, D, H, W)."""
    return x.unflatten(0, (-1, depth)).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Level:
    """Channels and stride (in pixels of the encoder's input) of one feature level of a backbone."""

    channels: int
    stride: int


@dataclass
class Features:
    """Output of the encoder for one batch of patches; cached when the encoder is frozen.

    Attributes:
        levels: Feature maps from shallow to deep, each (B, C_l, D, h_l, w_l).
        embed: (B, 256, D, g_h, g_w) after SAM's neck.
    """

    levels: tuple[Tensor, ...]
    embed: Tensor

    @property
    def depth(self) -> int:
        return self.embed.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        return self.embed.shape[3], self.embed.shape[4]


@dataclass
class Slab:
    """The part of an encoded patch that prompts need; cached for interactive use (model.md §2.5, §13.3).

    Attributes:
        embed: (B, 256, D, g_h, g_w) after SAM's neck.
        fine: (B, F, D, H, W), features of the generator's trunk at the size of the patch; None if prompts do not use
            them.
    """

    embed: Tensor
    fine: Tensor | None = None

    @property
    def depth(self) -> int:
        return self.embed.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        return self.embed.shape[3], self.embed.shape[4]

    @property
    def nbytes(self) -> int:
        return self.embed.nbytes + (0 if self.fine is None else self.fine.nbytes)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Slab:
        """A copy on another device or in another precision."""
        fine = None if self.fine is None else self.fine.to(device=device, dtype=dtype)
        return Slab(embed=self.embed.to(device=device, dtype=dtype), fine=fine)


@dataclass
class PromptBatch:
    """Q prompts per slice, from a generator, from labels or from a user.

    Coordinates are fractions of the patch, x before y. A field that is None is absent from all prompts.

    Attributes:
        points: (B, Q, D, P, 2).
        labels: (B, Q, D, P), 1 foreground, 0 background, -1 padding; required with `points`.
        boxes: (B, Q, D, 4), half-open (x0, y0, x1, y1).
        boxes_known: (B, Q, D) bool, which prompts have a box; None means all.
        masks: (B, Q, D, 4g_h, 4g_w), logits or 0/1.
        masks_known: (B, Q, D) bool, which prompts have a mask; None means all.
        offsets: (B, Q, D) integers, distance in slices to the slice that the prompt was given in; None means 0.
        class_tokens: (B, Q, D, 256), auxiliary class tokens.
        valid: (B, Q, D) bool, which prompts exist; None means all.
        complete: True if no point is padding and every box is known; saves a check that would wait for the GPU.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    boxes_known: Tensor | None = None
    masks: Tensor | None = None
    masks_known: Tensor | None = None
    offsets: Tensor | None = None
    class_tokens: Tensor | None = None
    valid: Tensor | None = None
    complete: bool = False


@dataclass
class PromptTokens:
    """Prompts in SAM's embedding space; G = B*Q*D sequences, depth fastest, then Q.

    Attributes:
        sparse: (G, t, 256).
        dense: (G, 256, g_h, g_w), or (1, 256, 1, 1), SAM's "no mask" embedding, when there are no mask prompts.
        cls: (G, 256) auxiliary class tokens or None.
        queries: Q.
        ignored: (G, t) bool, sparse tokens that are padding and must not be attended to; None means none.
        condition: (G, 512), mean and maximum over the sparse tokens that are not padding, or 0 (model.md §4.5).
        conditioned: (G,) bool, whether any sparse token is not padding.
    """

    sparse: Tensor
    dense: Tensor
    cls: Tensor | None
    queries: int
    ignored: Tensor | None = None
    condition: Tensor | None = None
    conditioned: Tensor | None = None


@dataclass
class Decoded:
    """Output of the mask decoder.

    Attributes:
        mask: (B, Q, D, m, 4g_h, 4g_w) logits; m = 1, or 3 with `multimask`.
        quality: (B, Q, D, m) SAM's estimate of the mask's IoU.
        cls: (B, Q, D, K+1) class logits, the last for "no object"; None without a class head.
        tokens: (B, Q, D, m, 256), the output token of each mask.
    """

    mask: Tensor
    quality: Tensor
    cls: Tensor | None
    tokens: Tensor


@dataclass
class Prompted:
    """Masks of given prompts at the in-plane size of the patch.

    Attributes:
        masks: (B, Q, D, m, H, W) logits; m = 1, or 3 with `multimask`.
        quality: (B, Q, D, m) SAM's estimate of the mask's IoU.
        cls: (B, Q, D, K+1) class logits, the last for "no object"; None without a class head.
    """

    masks: Tensor
    quality: Tensor
    cls: Tensor | None


@dataclass
class QueryOutputs:
    """Output of a training pass, compared with the labels by the losses.

    Attributes:
        masks: (B, N, D, H, W) mask logits; (B, K, D, H, W) class logits if the generator makes one prompt per class.
        cls: (B, N, D, K+1) class logits of the queries, or None.
        aux_masks: (B, N, D, H, W) mask logits of the generator, or None.
        aux_boxes: (B, N, D, 4) boxes of the generator in [0, 1], or None.
        fused_boxes: (B, N, D, 4) boxes that prompted the decoder (for the matching cost), or None.
        valid: (B, N, D) bool, which prompts exist; None if the model made the prompts itself.
        stages: Class logits (B, K, D, h_i, w_i) of the generator's supervised stages, the last at the size of the
            patch, or None. Without the decoder, the last stage is `masks` itself.
    """

    masks: Tensor
    cls: Tensor | None
    aux_masks: Tensor | None = None
    aux_boxes: Tensor | None = None
    fused_boxes: Tensor | None = None
    valid: Tensor | None = None
    stages: tuple[Tensor, ...] | None = None
