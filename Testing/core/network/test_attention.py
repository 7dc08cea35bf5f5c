"""Attention kernels, windows and relative positions (model.md §3.1, §3.2, §19 check 7)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.attention import (
    attend,
    from_windows,
    relative_rows,
    tiny_attention,
    to_windows,
    vit_attention,
)

GRIDS = [(4, 4), (3, 7), (9, 2)]


def vit(known: tuple[int, int] = (16, 16)) -> nn.Module:
    from segment_anything.modeling.image_encoder import Attention

    torch.manual_seed(0)
    attn = Attention(24, num_heads=3, use_rel_pos=True, input_size=known)
    for table in (attn.rel_pos_h, attn.rel_pos_w):
        nn.init.normal_(table)
    return attn


def tiny(window: int = 7) -> nn.Module:
    from timm.models.tiny_vit import Attention

    torch.manual_seed(0)
    attn = Attention(32, 8, num_heads=4, attn_ratio=1, resolution=(window, window))
    nn.init.normal_(attn.attention_biases)
    attn.eval()
    return attn


@pytest.mark.parametrize("grid", GRIDS)
def test_fast_equals_reference(grid):
    attn = vit()
    x = torch.randn(2, *grid, 24)
    fast = vit_attention(attn, x, kernel="fast")
    reference = vit_attention(attn, x, kernel="reference")
    assert (fast - reference).abs().max() < 1e-5


@pytest.mark.parametrize("grid", GRIDS)
def test_reference_is_segment_anything(grid):
    attn = vit(grid)
    x = torch.randn(2, *grid, 24)
    assert torch.equal(vit_attention(attn, x, kernel="reference"), attn(x))


def test_fast_equals_reference_in_padded_windows():
    attn = vit((4, 4))
    x = torch.randn(2, 6, 9, 24)
    both = [
        from_windows(vit_attention(attn, to_windows(x, 4), kernel=kernel), (6, 9)) for kernel in ("fast", "reference")
    ]
    assert (both[0] - both[1]).abs().max() < 1e-5


def test_gradients_of_both_kernels_agree():
    attn = vit()
    grads = []
    for kernel in ("fast", "reference"):
        x = torch.linspace(-1, 1, 2 * 3 * 5 * 24).view(2, 3, 5, 24).requires_grad_()
        vit_attention(attn, x, kernel=kernel).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_every_offset_keeps_its_row():
    offsets = torch.arange(-63.0, 64.0)[:, None]
    assert relative_rows(offsets, 20)[:, 0].tolist() == list(range(-19, 20))
    assert relative_rows(offsets, 64) is offsets


def test_a_grid_larger_than_the_table_is_refused():
    with pytest.raises(ModelError, match="65 tokens along an axis, the weights know 64"):
        relative_rows(torch.zeros(127, 4), 65)


@pytest.mark.parametrize("grid", [(8, 8), (7, 12), (3, 2)])
def test_windows_are_segment_anythings_and_come_back(grid):
    from segment_anything.modeling.image_encoder import window_partition

    x = torch.randn(2, *grid, 5)
    windows = to_windows(x, 4)
    assert torch.equal(windows, window_partition(x, 4)[0])
    assert torch.equal(from_windows(windows, grid), x)


def test_windows_of_a_strided_view():
    x = torch.randn(2, 5, 6, 9).permute(0, 2, 3, 1)
    assert torch.equal(from_windows(to_windows(x, 7), (6, 9)), x)


def test_tiny_reference_is_timm():
    attn = tiny()
    attn.fused_attn = False
    x = torch.randn(3, 49, 32)
    assert torch.equal(tiny_attention(attn, x, kernel="reference"), attn(x))
    assert (tiny_attention(attn, x, kernel="fast") - attn(x)).abs().max() < 1e-5


@pytest.mark.parametrize("kernel", ["fast", "reference"])
def test_tiny_bias_is_never_stale(kernel):
    attn = tiny()
    x = torch.randn(3, 49, 32)
    with torch.inference_mode():
        before = tiny_attention(attn, x, kernel=kernel).clone()
    with torch.no_grad():
        attn.attention_biases.add_(torch.randn(attn.attention_biases.shape))
    x.requires_grad_()
    after = tiny_attention(attn, x, kernel=kernel)
    after.sum().backward()
    assert not torch.allclose(before, after)
    assert x.grad is not None


@pytest.mark.parametrize("mask", ["none", "bias", "seen"])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_plain_products_are_the_fused_kernel(mask, scale):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.bfloat16) for n in (5, 7, 7))
    masks = {"none": None, "bias": torch.randn(1, 3, 5, 7), "seen": torch.rand(2, 1, 1, 7) > 0.4}
    bias = masks[mask] if mask != "bias" else masks[mask].bfloat16()
    fused = attend(q, k, v, mask=bias, scale=scale)
    plain = attend(q.requires_grad_(), k, v, mask=bias, scale=scale)
    assert "ScaledDot" not in type(plain.grad_fn).__name__
    torch.testing.assert_close(plain.float(), fused.float(), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize(("keys", "dtype"), [(2000, torch.bfloat16), (7, torch.float32)])
def test_the_fused_kernel_keeps_what_is_large_or_exact(keys, dtype):
    q, k = torch.randn(1, 1, 4, 8, dtype=dtype, requires_grad=True), torch.randn(1, 1, keys, 8, dtype=dtype)
    assert "ScaledDot" in type(attend(q, k, k).grad_fn).__name__
