"""SAM's ViT encoders with adapters, and the choice of the backbone (model.md §3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from MaskSAMCore.config.network_schema import TOKEN_STRIDE, ModelConfig
from MaskSAMCore.network.attention import from_windows, to_windows, vit_attention, vit_depth_attention
from MaskSAMCore.network.encoder import CANVAS, NECK_CHANNELS, AdaptedEncoder
from MaskSAMCore.network.mobile import MobileEncoder
from MaskSAMCore.network.types import Features, Level, fold, unfold

if TYPE_CHECKING:
    from segment_anything.modeling import ImageEncoderViT


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


class ViTEncoder(AdaptedEncoder):
    """SAM's ViT-B, -L or -H, or a small one of the same classes for tests.

    Its four levels are the outputs of the blocks with global attention, at stride 16.
    """

    sam: ImageEncoderViT

    def __init__(self, cfg: ModelConfig) -> None:
        size = SIZES[cfg.backbone.arch]
        level = Level(channels=size.width, stride=TOKEN_STRIDE)
        super().__init__(
            cfg,
            sam=image_encoder(size),
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
        """Absolute positions (1, g_h, g_w, C) for a token grid (g_h, g_w) (model.md §3.1)."""
        table = self.sam.pos_embed
        return table[:, : grid[0], : grid[1]]

    def _block(self, index: int, x: Tensor, depth: int, adapt: bool) -> Tensor:
        block = self.sam.blocks[index]
        attend = partial(vit_attention, block.attn, kernel=self.backbone.attention_kernel)
        n = block.norm1(x)
        if block.window_size:
            a = from_windows(attend(to_windows(n, block.window_size)), (x.shape[1], x.shape[2]))
        else:
            a = attend(n)
        a = self._depth_slot(index, a, partial(vit_depth_attention, block.attn, n, depth), adapt)
        x = x + self._attn_slot(index, a, depth, adapt)
        n = block.norm2(x)
        return self._mlp_slot(index, x + block.mlp(n), n, depth, adapt)


def build_encoder(cfg: ModelConfig) -> AdaptedEncoder:
    """Build the encoder of `cfg.backbone.arch` with random weights; SAM's are loaded into `.sam`."""
    if cfg.backbone.arch == "mobile":
        return MobileEncoder(cfg)
    return ViTEncoder(cfg)


def image_encoder(size: ViTSize) -> ImageEncoderViT:
    """SAM's image encoder of the given size, with random weights."""
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
