"""SAM's attention, with two interchangeable kernels and any rectangular grid (model.md §3.1, §3.2).

`reference` is what segment-anything and timm compute, operation by operation; `fast` gives the same
numbers to rounding through PyTorch's fused kernel and never holds a (tokens x tokens) matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from MaskSAMCore.errors import ModelError

if TYPE_CHECKING:
    from segment_anything.modeling import image_encoder
    from timm.models import tiny_vit

Kernel = Literal["fast", "reference"]
Resize = Literal["slice", "interpolate"]
PLAIN_KEYS = 1024
"""Most keys of an attention that may hold its matrix, see `attend`."""


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention of q (..., L, E) to k and v (..., S, E), by the fused kernel wherever that is the fast one.

    On a CPU its backward pass takes several times as long in bfloat16 as that of plain products: what is trained there
    holds its matrix, where that is small.

    Args:
        mask: Broadcast to (..., L, S); bool, who is seen, or a bias.
        scale: Of the products; None for 1 / sqrt(E).
    """
    trained = torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if not trained or k.shape[-2] > PLAIN_KEYS:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    logits = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1) @ v


def to_windows(x: Tensor, size: int) -> Tensor:
    """Cut (N, h, w, C) into windows (N * n_h * n_w, size, size, C), zero-padded below and right.

    The padding is computed with and takes part in the attention: SAM was trained that way.
    """
    h, w, c = x.shape[1:]
    down, right = -h % size, -w % size
    if down or right:
        x = F.pad(x, (0, 0, 0, right, 0, down))
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return x.transpose(2, 3).reshape(-1, size, size, c)


def from_windows(windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Inverse of `to_windows` for a grid (h, w): (N, h, w, C), padding cut off."""
    size = windows.shape[1]
    n_h, n_w = -(-grid[0] // size), -(-grid[1] // size)
    x = windows.unflatten(0, (-1, n_h, n_w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1]].contiguous()


def relative_rows(table: Tensor, size: int, resize: Resize) -> Tensor:
    """The (2 * size - 1, d) rows of a relative-position table for `size` tokens along its axis.

    Args:
        table: (2 * n - 1, d), learned for n tokens; the row n - 1 + k belongs to the offset k.
        size: Tokens along the axis.
        resize: `slice` keeps each offset's row; `interpolate` stretches the table linearly, as
            segment-anything does by itself.

    Raises:
        ModelError: `slice` was asked for more offsets than the table holds.
    """
    rows = 2 * size - 1
    if table.shape[0] == rows:
        return table
    if resize == "interpolate":
        stretched = F.interpolate(table.T[None].float(), size=rows, mode="linear")
        return stretched[0].T.to(table.dtype)
    known = (table.shape[0] + 1) // 2
    if size > known:
        raise ModelError(
            "the relative positions do not reach across the input",
            where="model.backbone.rel_pos_resize=slice",
            why=f"{size} tokens along an axis, the weights know {known}",
            remedy="Use a smaller patch or stem.upsample, or rel_pos_resize=interpolate.",
        )
    return table[known - size : known + size - 1]


def vit_attention(attn: image_encoder.Attention, x: Tensor, *, kernel: Kernel, resize: Resize) -> Tensor:
    """Run the weights of segment-anything's `Attention` on x (N, h, w, C).

    Args:
        attn: The module whose qkv, proj, rel_pos_h and rel_pos_w are used.
        x: (N, h, w, C), windows or whole maps, normalised already.
        kernel: See the module's docstring; they differ by rounding only.
        resize: See `relative_rows`.

    Returns:
        (N, h, w, C).
    """
    n, h, w, c = x.shape
    heads = attn.num_heads
    rows_h = relative_rows(attn.rel_pos_h, h, resize)
    rows_w = relative_rows(attn.rel_pos_w, w, resize)
    qkv = attn.qkv(x).view(n, h * w, 3, heads, -1)
    if kernel == "reference":
        y = _reference(qkv, rows_h, rows_w, (h, w), attn.scale)
    else:
        y = _augmented(qkv, rows_h, rows_w, (h, w), attn.scale)
    return attn.proj(y.transpose(1, 2).reshape(n, h, w, c))


def _reference(qkv: Tensor, rows_h: Tensor, rows_w: Tensor, grid: tuple[int, int], scale: float) -> Tensor:
    from segment_anything.modeling.image_encoder import add_decomposed_rel_pos

    n, _, _, heads, _ = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
    logits = (q * scale) @ k.transpose(-2, -1)
    logits = add_decomposed_rel_pos(logits, q, rows_h, rows_w, grid, grid)
    return (logits.softmax(dim=-1) @ v).view(n, heads, grid[0] * grid[1], -1)


def _augmented(qkv: Tensor, rows_h: Tensor, rows_w: Tensor, grid: tuple[int, int], scale: float) -> Tensor:
    """Fused attention; the bias travels as extra channels of q and k, so it is never a matrix.

    Each query carries its bias towards every row and every column, each key a one-hot of its own.
    """
    h, w = grid
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    heads, tokens, width = q.shape[1:]
    map_ = q.unflatten(2, grid)
    bias_h = torch.einsum("nahwc,hkc->nahwk", map_, _by_pair(rows_h, h).to(q.dtype)).flatten(2, 3)
    bias_w = torch.einsum("nahwc,wkc->nahwk", map_, _by_pair(rows_w, w).to(q.dtype)).flatten(2, 3)
    row = torch.eye(h, dtype=q.dtype, device=q.device).repeat_interleave(w, 0)
    column = torch.eye(w, dtype=q.dtype, device=q.device).repeat(h, 1)
    own = torch.cat([row, column], 1).expand(q.shape[0], heads, tokens, h + w)
    query = torch.cat([q * scale, bias_h, bias_w], -1)
    key = torch.cat([k, own], -1)
    # The fused kernels want one width for q, k and v; without this PyTorch falls back to plain matrices.
    value = F.pad(v, (0, h + w))
    return attend(query, key, value, scale=1.0)[..., :width]


def _by_pair(rows: Tensor, size: int) -> Tensor:
    """(2 * size - 1, d) to (size, size, d): the row of each pair's offset, query first."""
    at = torch.arange(size, device=rows.device)
    return rows[at[:, None] - at[None, :] + size - 1]


def vit_depth_attention(attn: image_encoder.Attention, x: Tensor, depth: int) -> Tensor:
    """The weights of segment-anything's `Attention` along the slices (model.md §4.4).

    Args:
        attn: Its qkv and proj are used, not its position bias, which knows the two dimensions of a plane.
        x: (B * D, h, w, C), depth fastest, normalised already; whole maps, never windows.
        depth: D.

    Returns:
        (B * D, h, w, C).
    """
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).unbind(-3)
    return attn.proj(_along_depth(q, k, v, depth, attn.scale))


def tiny_depth_attention(attn: tiny_vit.Attention, x: Tensor, depth: int) -> Tensor:
    """The same with the weights of timm's TinyViT `Attention`, its norm included."""
    qkv = attn.qkv(attn.norm(x)).unflatten(-1, (attn.num_heads, -1))
    q, k, v = qkv.split([attn.key_dim, attn.key_dim, attn.val_dim], dim=-1)
    return attn.proj(_along_depth(q, k, v, depth, attn.scale))


def _along_depth(q: Tensor, k: Tensor, v: Tensor, depth: int, scale: float) -> Tensor:
    """q, k, v (B * D, h, w, heads, c) to (B * D, h, w, heads * c); each position sees itself in every slice.

    Plain products for both kernels: D is small, so their matrices are smaller than the tokens, and there are more
    sequences than CUDA's fused kernels take.
    """
    q, k, v = (t.unflatten(0, (-1, depth)).movedim(1, -2) for t in (q, k, v))
    y = ((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return y.movedim(-2, 1).flatten(0, 1).flatten(-2)


def tiny_attention(attn: tiny_vit.Attention, x: Tensor, *, kernel: Kernel) -> Tensor:
    """Run the weights of timm's TinyViT `Attention` on windows x (N, tokens, C), its norm included.

    The bias table is gathered anew in every call: it costs next to nothing, and timm's own cache
    outlives loaded weights and hands tensors of inference mode to training.

    Returns:
        (N, tokens, C).
    """
    n, tokens, _ = x.shape
    qkv = attn.qkv(attn.norm(x)).view(n, tokens, attn.num_heads, -1)
    q, k, v = (t.transpose(1, 2) for t in qkv.split([attn.key_dim, attn.key_dim, attn.val_dim], dim=3))
    bias = attn.attention_biases[:, attn.attention_bias_idxs]
    if kernel == "reference":
        y = ((q * attn.scale) @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v
    else:
        # Four dimensions: with three, PyTorch's CPU kernel falls back to plain matrices.
        y = attend(q, k, v, mask=bias[None].to(q.dtype))
    return attn.proj(y.transpose(1, 2).reshape(n, tokens, attn.out_dim))
