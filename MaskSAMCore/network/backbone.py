"""The frozen SAM encoder with its adapter slots: what all backbones share, and the ViTs (MODEL.md §3, §4.3).

SAM's own modules are kept as they are, under `sam`; only the order in which they are called is
written here, so that a slot stands where the papers put it. Whatever is trained lives outside `sam`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from MaskSAMCore.config import TOKEN_STRIDE, ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.adapters import Adapter
from MaskSAMCore.network.attention import from_windows, to_windows, vit_attention
from MaskSAMCore.network.types import Features, Level, fold, unfold

CANVAS = 1024
NECK_CHANNELS = 256


@dataclass(frozen=True, kw_only=True)
class ViTSize:
    """Sizes of one of SAM's plain vision transformers."""

    width: int
    blocks: int
    heads: int
    window: int
    global_blocks: tuple[int, ...]


SIZES: dict[str, ViTSize] = {
    "vit_b": ViTSize(width=768, blocks=12, heads=12, window=14, global_blocks=(2, 5, 8, 11)),
    "vit_l": ViTSize(width=1024, blocks=24, heads=16, window=14, global_blocks=(5, 11, 17, 23)),
    "vit_h": ViTSize(width=1280, blocks=32, heads=16, window=14, global_blocks=(7, 15, 23, 31)),
    "tiny": ViTSize(width=64, blocks=8, heads=2, window=4, global_blocks=(1, 3, 5, 7)),
}


class AdaptedEncoder(nn.Module):
    """A frozen encoder `sam` with adapters and depth positions beside it; the base of all backbones.

    Args:
        cfg: The network's configuration.
        sam: The pretrained modules; frozen here, and kept in evaluation mode for good.
        widths: Channels of each block that has slots, in the order of the blocks.
        levels: What `Features.levels` will hold, shallow to deep.
        pe_width: Channels at the place where the depth positions are added.

    Attributes:
        adapters: One ModuleDict per block, slot name to Adapter.
        depth_pe: (D, pe_width), zero at first; None where the configuration has none.
        checkpointing: Recompute each block in the backward pass instead of keeping its activations.
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
        self.scale = settings.scale
        self.checkpointing = False
        self.adapters_enabled = True
        self.sam = sam.requires_grad_(False)
        slots = () if settings.kind == "none" else settings.slots
        self.adapters = nn.ModuleList(
            nn.ModuleDict({slot: _adapter(cfg, width) for slot in dict.fromkeys(slots)}) for width in widths
        )
        self.depth_pe = nn.Parameter(torch.zeros(self.depth, pe_width)) if cfg.depth.pe_encoder else None
        self._tied_to_depth = cfg.depth.pe_encoder or (bool(slots) and settings.kind == "depth_mlp")
        self.train()

    def train(self, mode: bool = True) -> AdaptedEncoder:
        """Switch our own modules; the frozen SAM stays in evaluation mode, its batch norms with it."""
        super().train(mode)
        self.sam.eval()
        return self

    def set_adapters(self, enabled: bool) -> None:
        """Switch the adapters and the depth positions together; off, the encoder is SAM itself."""
        self.adapters_enabled = enabled

    def forward(self, x: Tensor) -> Features:
        """Encode x (B, 3, D, S_h, S_w), both sizes multiples of 16.

        Raises:
            ModelError: The input does not fit the weights in plane or in depth.
        """
        if self.adapters_enabled and self._tied_to_depth and x.shape[2] != self.depth:
            raise ModelError(
                "the model cannot take that number of slices",
                where=f"input {tuple(x.shape)}",
                why=f"{x.shape[2]} slices, its depth weights are for {self.depth}",
                remedy=f"Feed patches of {self.depth} slices.",
            )
        self._check(x)
        return self._encode(x, adapt=self.adapters_enabled)

    def frozen_features(self, x: Tensor) -> Features:
        """The same for SAM itself, whatever the state of adapters; any number of slices (MODEL.md §14.4)."""
        self._check(x)
        return self._encode(x, adapt=False)

    def _encode(self, x: Tensor, *, adapt: bool) -> Features:
        raise NotImplementedError

    def _check(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        too_large = self.backbone.pos_mode == "crop" and max(height, width) > CANVAS
        if height % TOKEN_STRIDE or width % TOKEN_STRIDE or too_large:
            raise ModelError(
                "the input does not fit the encoder",
                where=f"input {tuple(x.shape)}",
                why=f"height and width must be multiples of {TOKEN_STRIDE}, {CANVAS} at most",
                remedy="Pad or crop the slices.",
            )

    def _attn_slot(self, index: int, a: Tensor, depth: int, adapt: bool) -> Tensor:
        """`a + A(a)` for the attention's output a (B*D, h, w, C), windows reversed already."""
        if not adapt or "attn" not in self.adapters[index]:
            return a
        return a + _over_depth(self.adapters[index]["attn"], a, depth)

    def _mlp_slot(self, index: int, x: Tensor, n: Tensor, depth: int, adapt: bool) -> Tensor:
        """`x + s * A(n)`, n = the normalised input that the MLP beside it sees too; (B*D, h, w, C)."""
        if not adapt or "mlp" not in self.adapters[index]:
            return x
        return torch.add(x, _over_depth(self.adapters[index]["mlp"], n, depth), alpha=self.scale)

    def _add_depth_pe(self, x: Tensor, depth: int, adapt: bool) -> Tensor:
        """Add each slice's position to x (B*D, h, w, C) (MODEL.md §5.2)."""
        if not adapt or self.depth_pe is None:
            return x
        return (x.unflatten(0, (-1, depth)) + self.depth_pe[:, None, None]).flatten(0, 1)

    def _run(self, block: Callable[..., Tensor], *args: Any) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


class ViTEncoder(AdaptedEncoder):
    """SAM's ViT-B, -L or -H, or the test-sized one of the same classes.

    Its four levels are the outputs of the global-attention blocks, at stride 16.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        size = SIZES[cfg.backbone.arch]
        level = Level(channels=size.width, stride=TOKEN_STRIDE)
        super().__init__(
            cfg,
            sam=_image_encoder(size),
            widths=[size.width] * size.blocks,
            levels=(level,) * len(size.global_blocks),
            pe_width=size.width,
        )

    def _encode(self, x: Tensor, *, adapt: bool) -> Features:
        depth = x.shape[2]
        t = self.sam.patch_embed(fold(x))
        t = t + self._position((t.shape[1], t.shape[2]))
        t = self._add_depth_pe(t, depth, adapt)
        levels = []
        for index, block in enumerate(self.sam.blocks):
            t = self._run(self._block, index, t, depth, adapt)
            if block.window_size == 0:
                levels.append(unfold(t.permute(0, 3, 1, 2), depth))
        embed = self.sam.neck(t.permute(0, 3, 1, 2))
        return Features(levels=tuple(levels), embed=unfold(embed, depth))

    def _position(self, grid: tuple[int, int]) -> Tensor:
        """The absolute positions (1, g_h, g_w, C) for a grid (MODEL.md §3.1)."""
        table = self.sam.pos_embed
        if self.backbone.pos_mode == "crop":
            return table[:, : grid[0], : grid[1]]
        if tuple(table.shape[1:3]) == grid:
            return table
        resized = F.interpolate(table.permute(0, 3, 1, 2), size=grid, mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1)

    def _block(self, index: int, x: Tensor, depth: int, adapt: bool) -> Tensor:
        block = self.sam.blocks[index]
        attend = partial(
            vit_attention,
            block.attn,
            kernel=self.backbone.attention_kernel,
            resize=self.backbone.rel_pos_resize,
        )
        n = block.norm1(x)
        if block.window_size:
            a = from_windows(attend(to_windows(n, block.window_size)), (x.shape[1], x.shape[2]))
        else:
            a = attend(n)
        x = x + self._attn_slot(index, a, depth, adapt)
        n = block.norm2(x)
        return self._mlp_slot(index, x + block.mlp(n), n, depth, adapt)


def build_encoder(cfg: ModelConfig) -> AdaptedEncoder:
    """The encoder that `cfg.backbone.arch` names, with random weights; load SAM's into `.sam`."""
    if cfg.backbone.arch == "mobile":
        from MaskSAMCore.network.mobile import MobileEncoder

        return MobileEncoder(cfg)
    return ViTEncoder(cfg)


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


def _image_encoder(size: ViTSize) -> nn.Module:
    from segment_anything.modeling import ImageEncoderViT

    return ImageEncoderViT(
        img_size=CANVAS,
        patch_size=TOKEN_STRIDE,
        embed_dim=size.width,
        depth=size.blocks,
        num_heads=size.heads,
        mlp_ratio=4,
        out_chans=NECK_CHANNELS,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=size.window,
        global_attn_indexes=size.global_blocks,
    )
