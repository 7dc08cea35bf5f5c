"""Base class of the backbones: a frozen SAM encoder with adapter slots (model.md §3, §4.3).

SAM's own modules are unchanged, under `sam`. This module and the backbones define the order in which they are called,
with the adapter slots where the papers have them. All trained parameters are outside `sam`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from MaskSAMCore.config.network_schema import TOKEN_STRIDE, ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.adapters import PARALLEL_SCALE, Adapter, DepthBranch, core_of
from MaskSAMCore.network.types import Features, Level

CANVAS = 1024
NECK_CHANNELS = 256


class AdaptedEncoder(nn.Module):
    """A frozen encoder `sam` with adapters and depth positions; base class of the backbones.

    Args:
        cfg: Configuration of the whole model.
        sam: The pretrained modules; they are frozen and stay in evaluation mode.
        widths: Channels of each block that has slots, in the order of the blocks.
        levels: Channels and strides of `Features.levels`, shallow to deep.
        pe_width: Channels where the depth positions are added.

    Attributes:
        adapters: One ModuleDict per block, slot name to Adapter.
        depth_branches: One `DepthBranch` per block, or empty.
        depth_pe: (D, pe_width), depth positions, which start at zero; or None.
        checkpointing: Whether each block is recomputed in the backward pass.
        adapters_enabled: Set by `set_adapters`.
    """

    def __init__(
        self, cfg: ModelConfig, *, sam: nn.Module, widths: Sequence[int], levels: tuple[Level, ...], pe_width: int
    ) -> None:
        super().__init__()
        settings = cfg.enc_adapter
        self.backbone = cfg.backbone
        self.levels = levels
        self.depth = cfg.patch[0]
        self.checkpointing = False
        self.adapters_enabled = True
        self.sam = sam.requires_grad_(False)
        slots = () if settings.kind == "none" else settings.slots
        self.adapters = nn.ModuleList(
            nn.ModuleDict({slot: _adapter(cfg, width) for slot in dict.fromkeys(slots)}) for width in widths
        )
        branches = () if settings.depth_branch == "none" else widths
        self.depth_branches = nn.ModuleList(
            DepthBranch(width, kind=settings.depth_branch, ratio=settings.ratio, act=settings.act) for width in branches
        )
        self.depth_pe = nn.Parameter(torch.zeros(self.depth, pe_width)) if cfg.depth.pe_encoder else None
        self._tied_to_depth = cfg.depth.pe_encoder or (bool(slots) and core_of(settings.kind).tied)
        self.train()

    def train(self, mode: bool = True) -> AdaptedEncoder:
        """Set training mode; the frozen SAM stays in evaluation mode, because of its batch norms."""
        super().train(mode)
        self.sam.eval()
        return self

    def set_adapters(self, enabled: bool) -> None:
        """Switch adapters and depth positions on or off; without them the encoder is SAM's own."""
        self.adapters_enabled = enabled

    def forward(self, x: Tensor) -> Features:
        """Encode x (B, 3, D, S_h, S_w), both sizes multiples of 16.

        Raises:
            ModelError: The size of the input does not suit the weights, in the plane or in depth.
        """
        if self.adapters_enabled and self._tied_to_depth and x.shape[2] != self.depth:
            raise ModelError(
                "the patch has another number of slices than the model",
                where=f"input {tuple(x.shape)}",
                why=f"{x.shape[2]} slices, the weights are for {self.depth}",
                remedy=f"Use patches of {self.depth} slices.",
            )
        self._check(x)
        return self._encode(x, adapt=self.adapters_enabled)

    def frozen_features(self, x: Tensor) -> Features:
        """Encode x as SAM does, without adapters; any number of slices (model.md §14.4)."""
        self._check(x)
        return self._encode(x, adapt=False)

    def _encode(self, x: Tensor, *, adapt: bool) -> Features:
        raise NotImplementedError

    def _check(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        if height % TOKEN_STRIDE or width % TOKEN_STRIDE or max(height, width) > CANVAS:
            raise ModelError(
                "the input does not fit the encoder",
                where=f"input {tuple(x.shape)}",
                why=f"height and width must be multiples of {TOKEN_STRIDE}, {CANVAS} at most",
                remedy="Pad or crop the slices.",
            )

    def _depth_slot(self, index: int, a: Tensor, attend: Callable[[], Tensor], adapt: bool) -> Tensor:
        """Add attention along the slices to the attention's output `a` (B*D, h, w, C), if there is a branch.

        Args:
            index: Index of the block.
            a: Output of the attention, after the windows are joined.
            attend: Runs the block's attention along depth on the whole map; (B*D, h, w, C).
            adapt: Whether the branch is used.
        """
        if not adapt or not len(self.depth_branches):
            return a
        return a + self.depth_branches[index](attend())

    def _slot(self, index: int, name: str) -> nn.Module | None:
        """The adapter in a slot of a block; None where the slot is empty."""
        slots = self.adapters[index]
        return slots[name] if isinstance(slots, nn.ModuleDict) and name in slots else None

    def _attn_slot(self, index: int, a: Tensor, depth: int, adapt: bool) -> Tensor:
        """`a + A(a)` for the attention's output a (B*D, h, w, C), after the windows are joined."""
        adapter = self._slot(index, "attn") if adapt else None
        return a if adapter is None else a + _over_depth(adapter, a, depth)

    def _mlp_slot(self, index: int, x: Tensor, n: Tensor, depth: int, adapt: bool) -> Tensor:
        """`x + s * A(n)` with n the normalised input of the MLP; both (B*D, h, w, C)."""
        adapter = self._slot(index, "mlp") if adapt else None
        return x if adapter is None else torch.add(x, _over_depth(adapter, n, depth), alpha=PARALLEL_SCALE)

    def _add_depth_pe(self, x: Tensor, depth: int, adapt: bool) -> Tensor:
        """Add each slice's position to x (B*D, h, w, C) (model.md §5.2)."""
        if not adapt or self.depth_pe is None:
            return x
        return (x.unflatten(0, (-1, depth)) + self.depth_pe[:, None, None]).flatten(0, 1)

    def _run(self, block: Callable[..., Tensor], *args: Any) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


def _adapter(cfg: ModelConfig, width: int) -> Adapter:
    settings = cfg.enc_adapter
    return Adapter(
        width,
        kind=settings.kind,
        depth=cfg.patch[0],
        ratio=settings.ratio,
        position=settings.depth_position,
        act=settings.act,
    )


def _over_depth(adapter: nn.Module, x: Tensor, depth: int) -> Tensor:
    """Apply an adapter for (B, D, h, w, C) to slices (B*D, h, w, C), depth fastest."""
    return adapter(x.unflatten(0, (-1, depth))).flatten(0, 1)
