"""AutoSAM Adapter's encoder: SAM's weights on three-dimensional tokens (model.md §10).

The scan becomes a cube of tokens instead of a stack of slices, and SAM's blocks attend within shifted windows of 8x8x8
tokens. SAM's weights stay frozen under `sam`. The paper also trains the layer norms, and relative depth positions that
start as the mean of SAM's two tables; both are stored as differences from SAM's values. They start at zero, so nothing
has to be copied when base weights are loaded, and weight decay pulls towards SAM.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from MaskSAMCore.config.network_schema import TOKEN_STRIDE, ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.adapters import Adapter
from MaskSAMCore.network.attention import attend, relative_rows
from MaskSAMCore.network.backbone import SIZES, image_encoder
from MaskSAMCore.network.convolution import Conv3d, zero_init
from MaskSAMCore.network.encoder import NECK_CHANNELS
from MaskSAMCore.network.types import fold, unfold

if TYPE_CHECKING:
    from segment_anything.modeling.image_encoder import Attention

WINDOW = 8
LEVELS = 4
Cube = tuple[int, int, int]


class NormShift(nn.Module):
    """Trained differences on weight and bias of a frozen layer norm; they start at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """Apply `norm` with the differences added to x (..., C)."""
        return F.layer_norm(x, norm.normalized_shape, norm.weight + self.weight, norm.bias + self.bias, norm.eps)


class DepthEmbedding(nn.Module):
    """Joins the tokens of slices along depth: linear interpolation, then a depth-wise convolution.

    SAM's patch embedding is the "1 x k x k" part of the paper's factorised embedding, this is the "k x 1 x 1" part. The
    paper upsamples the scan along depth before both. An affine embedding commutes with an interpolation whose weights
    sum to one, so the slices are embedded first. Interpolation and convolution are both linear, so they are combined
    into one small matrix per channel, and the upsampled tokens are never in memory.

    Args:
        channels: C.
        upsample: Factor of the upsampling along depth.
    """

    def __init__(self, channels: int, upsample: int) -> None:
        super().__init__()
        self.upsample = upsample
        self.conv = nn.Conv1d(channels, channels, TOKEN_STRIDE, stride=TOKEN_STRIDE, groups=channels)
        zero_init(self.conv)
        # Starts as the mean over the block, not as noise as in the release.
        nn.init.constant_(self.conv.weight, 1 / TOKEN_STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, D, h, w) to (B, C, D * upsample / 16, h, w)."""
        one_hot = torch.eye(x.shape[2], dtype=x.dtype, device=x.device)[:, None]
        enlarged = F.interpolate(one_hot, scale_factor=float(self.upsample), mode="linear", align_corners=False)[:, 0]
        blocks = enlarged.unflatten(1, (-1, TOKEN_STRIDE))
        weight = torch.einsum("ck,ztk->ctz", self.conv.weight[:, 0].to(x.dtype), blocks)
        y = torch.einsum("bczhw,ctz->bcthw", x, weight)
        return y if self.conv.bias is None else y + self.conv.bias.to(y.dtype)[:, None, None, None]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, D, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class VolumeEncoder(nn.Module):
    """Encodes a scan as four cubes of tokens, from shallow to deep.

    Attributes:
        sam: SAM's image encoder; frozen, its 2-D neck is not used.
        checkpointing: Whether each block is recomputed in the backward pass.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        size, settings = SIZES[cfg.backbone.arch], cfg.enc_adapter
        self.cfg, self.checkpointing = cfg.backbone, False
        # The small backbone for tests has fewer relative positions than a window of 8 needs.
        self.window = min(WINDOW, size.window)
        self.sam = image_encoder(size).requires_grad_(False)
        self.depth_conv = DepthEmbedding(size.width, cfg.stem.upsample)
        depth = cfg.patch[0] * cfg.stem.upsample // TOKEN_STRIDE
        self.depth_pe = nn.Parameter(torch.zeros(depth, size.width)) if cfg.depth.pe_encoder else None
        make = partial(Adapter, size.width, depth=depth, ratio=settings.ratio, position=settings.depth_position)
        count = 0 if settings.kind == "none" else size.blocks
        self.adapters = nn.ModuleList(make(kind=settings.kind, act=settings.act) for _ in range(count))
        self.norms = nn.ModuleList(nn.ModuleList(NormShift(size.width) for _ in range(2)) for _ in range(size.blocks))
        self.depth_rows = nn.ParameterList(
            nn.Parameter(torch.zeros_like(block.attn.rel_pos_h)) for block in self.sam.blocks
        )
        self.necks = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(size.width, NECK_CHANNELS, 1, bias=False),
                ChannelNorm(NECK_CHANNELS, eps=1e-6),
                Conv3d(NECK_CHANNELS, NECK_CHANNELS, 3, padding=1, bias=False),
                ChannelNorm(NECK_CHANNELS, eps=1e-6),
            )
            for _ in range(LEVELS)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode x (B, 3, D, S_h, S_w), upsampled in the plane only, as four cubes (B, 256, T, g_h, g_w).

        Raises:
            ModelError: The weights are for another depth.
        """
        t = self.depth_conv(unfold(self.sam.patch_embed(fold(x)).permute(0, 3, 1, 2), x.shape[2]))
        t = t.permute(0, 2, 3, 4, 1)
        if self.depth_pe is not None and t.shape[1] != len(self.depth_pe):
            raise ModelError(
                "the patch has another number of slices than the model",
                where=f"input {tuple(x.shape)}",
                why=f"{t.shape[1]} tokens along depth, the weights are for {len(self.depth_pe)}",
                remedy="Use patches of the size that the model was trained with.",
            )
        t = t + self._position((t.shape[2], t.shape[3]))
        if self.depth_pe is not None:
            t = t + self.depth_pe[:, None, None]
        levels: list[Tensor] = []
        blocks = len(self.sam.blocks)
        for index in range(blocks):
            if self.checkpointing and self.training and torch.is_grad_enabled():
                t = checkpoint(self.block, index, t, use_reentrant=False)
            else:
                t = self.block(index, t)
            if (index + 1) * LEVELS % blocks == 0:
                levels.append(self.necks[len(levels)](t.permute(0, 4, 1, 2, 3)))
        return levels

    def _position(self, grid: tuple[int, int]) -> Tensor:
        """SAM's absolute positions, averaged to the token grid: (1, g_h, g_w, C)."""
        return F.adaptive_avg_pool2d(self.sam.pos_embed.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)

    def block(self, index: int, x: Tensor) -> Tensor:
        """Run one of SAM's blocks, with the adapter before it, on a cube of tokens (B, T, h, w, C)."""
        block = self.sam.blocks[index]
        before_attention, before_mlp = self.norms[index].children()
        if len(self.adapters):
            x = x + self.adapters[index](x)
        x = x + self._attend(index, before_attention(block.norm1, x))
        return x + block.mlp(before_mlp(block.norm2, x))

    def _attend(self, index: int, n: Tensor) -> Tensor:
        attn, grid = self.sam.blocks[index].attn, n.shape[1:4]
        mean = (attn.rel_pos_h + attn.rel_pos_w) / 2
        tables = (mean + self.depth_rows[index], attn.rel_pos_h, attn.rel_pos_w)
        attend = partial(cube_attention, attn, tables=tables)
        if self.cfg.attention == "sam2d":
            side = self.sam.blocks[index].window_size
            window: Cube = (1, side, side) if side else (1, grid[1], grid[2])
            return windowed(attend, n, window, shift=(0, 0, 0), see_padding=True)
        depth, height, width = (min(self.window, size) for size in grid)
        # No shift along an axis that is one window long, as in Swin.
        shift = [self.window // 2 if index % 2 == 0 and size > self.window else 0 for size in grid]
        return windowed(attend, n, (depth, height, width), shift=(shift[0], shift[1], shift[2]), see_padding=False)


def windowed(attend: partial[Tensor], x: Tensor, window: Cube, *, shift: Cube, see_padding: bool) -> Tensor:
    """Attention within windows of a cube of tokens; (B, T, h, w, C).

    Args:
        attend: `cube_attention` of some weights, called with windows (N, *window, C) and a mask.
        x: (B, T, h, w, C).
        window: Sides of the windows (d, h, w).
        shift: Shift of the windows (d, h, w); tokens that wrap around do not attend to the others, as in Swin.
        see_padding: Whether tokens attend to the zero padding of the last windows, as in SAM's training.
    """
    batch, *grid, channels = x.shape
    fill = [-size % side for size, side in zip(grid, window, strict=True)]
    y = F.pad(x, (0, 0, 0, fill[2], 0, fill[1], 0, fill[0])) if any(fill) else x
    if any(shift):
        y = y.roll([-s for s in shift], dims=(1, 2, 3))
    counts = [(size + more) // side for size, more, side in zip(grid, fill, window, strict=True)]
    shape = [batch, *(n for pair in zip(counts, window, strict=True) for n in pair), channels]
    windows = y.reshape(shape).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, *window, channels)
    mask = None
    if any(shift) or (any(fill) and not see_padding):
        regions = _regions(grid, fill, shift, x.device).reshape(shape[1:-1])
        ids = regions.permute(0, 2, 4, 1, 3, 5).reshape(len(windows) // batch, -1)
        mask = (ids[:, :, None] == ids[:, None, :]).repeat(batch, 1, 1)
    answer = attend(windows, mask=mask).reshape(batch, *counts, *window, channels)
    y = answer.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *y.shape[1:4], channels)
    if any(shift):
        y = y.roll(list(shift), dims=(1, 2, 3))
    return y[:, : grid[0], : grid[1], : grid[2]]


def _regions(grid: list[int], fill: list[int], shift: Cube, device: torch.device) -> Tensor:
    """Region number of every place of the padded and shifted cube; attention stays within a region."""
    axes = []
    for size, more, s in zip(grid, fill, shift, strict=True):
        at = torch.arange(size + more, device=device).roll(-s)
        axes.append((at < s).long() + 2 * (at >= size))
    return axes[0][:, None, None] * 16 + axes[1][:, None] * 4 + axes[2]


def cube_attention(attn: Attention, x: Tensor, *, tables: tuple[Tensor, Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """SAM's attention over cubes x (N, d, h, w, C), with relative positions along three axes.

    As in `attention`, each query holds its bias for every place along every axis, each key a one-hot vector of its own
    place.

    Args:
        attn: The module whose qkv and proj are used.
        x: Tokens after the layer norm.
        tables: Relative positions (2n - 1, C / heads) along d, h and w.
        mask: (N, tokens, tokens) bool, which keys each query attends to; None for all.
    """
    n, *sides, c = x.shape
    tokens, heads = sides[0] * sides[1] * sides[2], attn.num_heads
    q, k, v = attn.qkv(x).view(n, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    cube = q.unflatten(2, sides)
    biases, places = [], []
    index = torch.tensor(list(product(*(range(side) for side in sides))), device=x.device)
    for axis, (letter, side) in enumerate(zip("dhw", sides, strict=True)):
        rows = relative_rows(tables[axis], side)
        at = torch.arange(side, device=x.device)
        pairs = rows[at[:, None] - at[None, :] + side - 1].to(q.dtype)
        biases.append(torch.einsum(f"nadhwc,{letter}kc->nadhwk", cube, pairs).flatten(2, 4))
        places.append(F.one_hot(index[:, axis], side).to(q.dtype))
    own = torch.cat(places, 1).expand(n, heads, -1, -1)
    query, key = torch.cat([q * attn.scale, *biases], -1), torch.cat([k, own], -1)
    # The fused kernels need q, k and v of one width.
    value = F.pad(v, (0, own.shape[-1]))
    seen = None if mask is None else mask[:, None]
    y = attend(query, key, value, mask=seen, scale=1.0)[..., : v.shape[-1]]
    return attn.proj(y.transpose(1, 2).reshape(n, *sides, c))
