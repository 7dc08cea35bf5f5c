"""The tensors that travel between the parts of the network, and the one place that folds depth.

Image-like tensors are (B, C, D, H, W). SAM's two-dimensional modules see (B*D, ...) with depth
fastest, so every depth operator is a plain `unflatten(0, (-1, D))` (model.md §1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def fold(x: Tensor) -> Tensor:
    """(B, C, D, H, W) to (B*D, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold(x: Tensor, depth: int) -> Tensor:
    """(B*D, C, H, W) to (B, C, D, H, W)."""
    return x.unflatten(0, (-1, depth)).transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Level:
    """One feature level of a backbone: its channels and its stride in encoder pixels."""

    channels: int
    stride: int


@dataclass
class Features:
    """What the encoder returns; the unit that is cached.

    Attributes:
        levels: Shallow to deep, each (B, C_l, D, h_l, w_l).
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
    """What prompts read of one encoded patch; the unit that is cached (model.md §2.5, §13.3).

    Attributes:
        embed: (B, 256, D, g_h, g_w) after SAM's neck.
        fine: (B, F, D, H, W), the trunk's features at the patch's own size; None where prompts do not read them.
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
        """The same on another device or in another precision."""
        fine = None if self.fine is None else self.fine.to(device=device, dtype=dtype)
        return Slab(embed=self.embed.to(device=device, dtype=dtype), fine=fine)


@dataclass
class PromptBatch:
    """Prompts of any source, Q per slice; coordinates are fractions of the patch, x before y.

    Attributes:
        points: (B, Q, D, P, 2) or None.
        labels: (B, Q, D, P), 1 foreground, 0 background, -1 padding; with `points`.
        boxes: (B, Q, D, 4) half-open (x0, y0, x1, y1) or None.
        boxes_known: (B, Q, D) bool, whether there is a box; None for all.
        masks: (B, Q, D, 4g_h, 4g_w) logits (or 0/1) or None.
        masks_known: (B, Q, D) bool, whether there is a mask; None for all.
        offsets: (B, Q, D) integers, slices from the one that the prompt was given in, 0 there; None for all 0.
        class_tokens: (B, Q, D, 256) auxiliary class tokens or None.
        valid: (B, Q, D) bool or None for all valid.
        complete: No point is padding and every box is known, so that nobody has to look.
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
        ignored: (G, t) bool, sparse tokens that only fill up and that nothing may attend to; None for none.
        condition: (G, 512), mean and maximum of the sparse tokens that say something (model.md §4.5), zero without any.
        conditioned: (G,) bool, whether there was one.
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
    """What the mask decoder returns.

    Attributes:
        mask: (B, Q, D, m, 4g_h, 4g_w) logits; m = 1, or 3 with `multimask`.
        quality: (B, Q, D, m) SAM's estimate of the mask's IoU.
        cls: (B, Q, D, K+1) class logits, last "no object"; None without class head.
        tokens: (B, Q, D, m, 256) the decoder's output for each mask.
    """

    mask: Tensor
    quality: Tensor
    cls: Tensor | None
    tokens: Tensor


@dataclass
class Prompted:
    """Masks of given prompts, at the patch's own in-plane size.

    Attributes:
        masks: (B, Q, D, m, H, W) logits; m = 1, or 3 with `multimask`.
        quality: (B, Q, D, m) SAM's estimate of the mask's IoU.
        cls: (B, Q, D, K+1) class logits, last "no object"; None without class head.
    """

    masks: Tensor
    quality: Tensor
    cls: Tensor | None


@dataclass
class QueryOutputs:
    """What the losses compare with the labels, at the patch's own in-plane size.

    Attributes:
        masks: (B, N, D, H, W) logits; of a class generator (B, K, D, H, W), which compete for every voxel.
        cls: (B, N, D, K+1) logits, or None.
        aux_masks: (B, N, D, H, W) logits of the generator, or None.
        aux_boxes: (B, N, D, 4) boxes of the generator in [0, 1], or None.
        fused_boxes: (B, N, D, 4) boxes that prompted the decoder (for the matching cost), or None.
        valid: (B, N, D) bool, which of the given prompts exist; None where the model made its own.
        stages: Class logits (B, K, D, h_i, w_i) of the generator's supervised stages, the last at the patch's own size,
            or None. Where nothing is decoded, the last is `masks` itself.
    """

    masks: Tensor
    cls: Tensor | None
    aux_masks: Tensor | None = None
    aux_boxes: Tensor | None = None
    fused_boxes: Tensor | None = None
    valid: Tensor | None = None
    stages: tuple[Tensor, ...] | None = None
