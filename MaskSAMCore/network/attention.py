"""SAM's attention with two interchangeable kernels, on any rectangular grid (model.md §3.1, §3.2).

`reference` computes what segment-anything and timm do, operation by operation. `fast` gives the same numbers up to
rounding with PyTorch's fused kernel, without a (tokens x tokens) matrix in memory.
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
PLAIN_KEYS = 1024
"""Largest number of keys for which `attend` may compute plain products."""


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention of q (..., L, E) to k and v (..., S, E), with the fused kernel except where that is slow.

    In bfloat16 on a CPU, the backward pass of the fused kernel takes several times as long as that of plain products,
    which are used for training there if the matrix is small.

    Args:
        q, k, v: Queries, keys and values.
        mask: Broadcastable to (..., L, S); bool, which keys are attended to, or a bias.
        scale: Factor of the products; None for 1 / sqrt(E).
    """
    trained = torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if not trained or k.shape[-2] > PLAIN_KEYS:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    logits = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1) @ v


def to_windows(x: Tensor, size: int) -> Tensor:
    """Cut (N, h, w, C) into windows (N * n_h * n_w, size, size, C), zero-padded below and on the right.

    The padding takes part in the attention, as in SAM's training.
    """
    h, w, c = x.shape[1:]
    down, right = -h % size, -w % size
    if down or right:
        x = F.pad(x, (0, 0, 0, right, 0, down))
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return x.transpose(2, 3).reshape(-1, size, size, c)


def from_windows(windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Undo `to_windows` for a grid (h, w): (N, h, w, C) without the padding."""
    size = windows.shape[1]
    n_h, n_w = -(-grid[0] // size), -(-grid[1] // size)
    x = windows.unflatten(0, (-1, n_h, n_w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : grid[0], : grid[1]].contiguous()


def relative_rows(table: Tensor, size: int) -> Tensor:
    """Rows (2 * size - 1, d) of a relative-position table for `size` tokens along its axis: each offset keeps its row.

    Args:
        table: (2 * n - 1, d), learned for n tokens; the row n - 1 + k belongs to the offset k.
        size: Tokens along the axis.

    Raises:
        ModelError: The table has too few offsets.
    """
    rows = 2 * size - 1
    if table.shape[0] == rows:
        return table
    known = (table.shape[0] + 1) // 2
    if size > known:
        raise ModelError(
            "the input is larger than the relative positions of the weights",
            where="model.patch",
            why=f"{size} tokens along an axis, the weights know {known}",
            remedy="Use a smaller patch or stem.upsample.",
        )
    return table[known - size : known + size - 1]


def vit_attention(attn: image_encoder.Attention, x: Tensor, *, kernel: Kernel) -> Tensor:
    """Run the weights of segment-anything's `Attention` on x (N, h, w, C).

    Args:
        attn: The module whose qkv, proj, rel_pos_h and rel_pos_w are used.
        x: (N, h, w, C), windows or whole maps, after the layer norm.
        kernel: "fast" or "reference"; see the module's docstring.

    Returns:
        (N, h, w, C).
    """
    n, h, w, c = x.shape
    heads = attn.num_heads
    rows_h = relative_rows(attn.rel_pos_h, h)
    rows_w = relative_rows(attn.rel_pos_w, w)
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
    """Fused attention with the position bias as extra channels of q and k, so that it is never a matrix.

    Each query holds its bias for every row and every column, each key a one-hot vector of its own row and column.
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
    # The fused kernels need q, k and v of one width; otherwise PyTorch falls back to plain products.
    value = F.pad(v, (0, h + w))
    return attend(query, key, value, scale=1.0)[..., :width]


def _by_pair(rows: Tensor, size: int) -> Tensor:
    """Rows (2 * size - 1, d) as (size, size, d), the row of each pair's offset; queries before keys."""
    at = torch.arange(size, device=rows.device)
    return rows[at[:, None] - at[None, :] + size - 1]


def vit_depth_attention(attn: image_encoder.Attention, x: Tensor, depth: int) -> Tensor:
    """Run the weights of segment-anything's `Attention` along the slices (model.md §4.4).

    Args:
        attn: The module whose qkv and proj are used; its position bias is for the plane and is not used.
        x: (B * D, h, w, C), depth fastest, after the layer norm; whole maps, not windows.
        depth: D.

    Returns:
        (B * D, h, w, C).
    """
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).unbind(-3)
    return attn.proj(_along_depth(q, k, v, depth, attn.scale))


def tiny_depth_attention(attn: tiny_vit.Attention, x: Tensor, depth: int) -> Tensor:
    """Run the weights of timm's TinyViT `Attention`, with its norm, along the slices; see `vit_depth_attention`."""
    qkv = attn.qkv(attn.norm(x)).unflatten(-1, (attn.num_heads, -1))
    q, k, v = qkv.split([attn.key_dim, attn.key_dim, attn.val_dim], dim=-1)
    return attn.proj(_along_depth(q, k, v, depth, attn.scale))


def _along_depth(q: Tensor, k: Tensor, v: Tensor, depth: int, scale: float) -> Tensor:
    """Attention of every position to itself in all slices: q, k, v (B * D, h, w, heads, c) to (..., heads * c).

    Plain products for both kernels: D is small, so the matrices are smaller than the tokens, and there are more
    sequences than CUDA's fused kernels accept.
    """
    q, k, v = (t.unflatten(0, (-1, depth)).movedim(1, -2) for t in (q, k, v))
    y = ((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return y.movedim(-2, 1).flatten(0, 1).flatten(-2)


def tiny_attention(attn: tiny_vit.Attention, x: Tensor, *, kernel: Kernel) -> Tensor:
    """Run the weights of timm's TinyViT `Attention`, with its norm, on windows x (N, tokens, C).

    The bias table is gathered in every call, which is cheap. timm's own cache is not used: it survives the loading of
    other weights, and passes tensors of inference mode to training.

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
