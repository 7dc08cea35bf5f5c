"""From masks to class scores: the semantic head, given prompts, sizes and the learned upsampler."""

from __future__ import annotations

import pytest
import torch

from MaskSAMCore.network.heads import MaskBlend, MaskUpsampler, argmax_head, resize_masks, semantic


def one_hot_queries(labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cls (B, classes, D, classes + 1) and masks (B, classes, D, H, W) that say `labels` with certainty."""
    batch, depth = labels.shape[:2]
    order = torch.randperm(classes)
    masks = torch.stack([torch.where(labels == c, 30.0, -30.0) for c in order], dim=1)
    cls = torch.full((batch, classes, depth, classes + 1), -30.0)
    for q, c in enumerate(order.tolist()):
        cls[:, q, :, c] = 30.0
    return cls, masks


def test_certain_queries_reproduce_the_label_map():
    """model.md §19 check 18."""
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 3, 6, 5))
    cls, masks = one_hot_queries(labels, 4)
    scores = semantic(cls, masks)
    assert scores.shape == (2, 4, 3, 6, 5)
    assert scores.dtype == torch.float32
    assert torch.equal(scores.argmax(1), labels)
    assert torch.equal(scores.round(), torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float())


def test_a_query_without_object_adds_nothing():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (1, 2, 4, 4))
    cls, masks = one_hot_queries(labels, 3)
    nothing = torch.full((1, 1, 2, 4), -200.0)
    nothing[..., -1] = 0
    extended = semantic(torch.cat([cls, nothing], 1), torch.cat([masks, torch.full((1, 1, 2, 4, 4), 50.0)], 1))
    assert torch.equal(extended, semantic(cls, masks))


def test_semantic_scores_are_the_sum_over_queries():
    torch.manual_seed(0)
    cls, masks = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randn(2, 5, 3, 6, 7, dtype=torch.float64)
    expected = torch.einsum("bqdk,bqdhw->bkdhw", cls.softmax(-1)[..., :-1], masks.sigmoid())
    torch.testing.assert_close(semantic(cls, masks), expected.float())


def test_semantic_scores_in_full_precision_with_gradients():
    torch.manual_seed(0)
    cls, masks = torch.randn(1, 6, 2, 5), torch.randn(1, 6, 2, 8, 8)
    exact = semantic(cls, masks)
    cls.requires_grad_(), masks.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = semantic(cls, masks)
    assert torch.equal(scores, exact)
    assert semantic(cls.half(), masks.half()).dtype == torch.float32
    scores.square().sum().backward()
    assert cls.grad.abs().min() > 0
    assert masks.grad.abs().min() > 0


def test_given_prompts_win_only_above_zero():
    masks = torch.tensor([[-1.0, 2.0, 40.0, 0.5], [-3.0, 3.0, 41.0, -2.0]]).reshape(1, 2, 1, 1, 4)
    scores = argmax_head(masks)
    assert scores.shape == (1, 3, 1, 1, 4)
    assert scores.argmax(1).flatten().tolist() == [0, 2, 2, 1]
    valid = torch.tensor([True, False]).reshape(1, 2, 1)
    absent = argmax_head(masks, valid)
    assert absent.argmax(1).flatten().tolist() == [0, 1, 1, 1]
    assert (absent[:, 2] == 0).all()
    for result in (scores, absent):
        assert result.min() >= 0
        torch.testing.assert_close(result.sum(1), torch.ones(1, 1, 1, 4))


def test_resize_keeps_what_needs_no_resizing_and_mixes_nothing():
    masks = torch.randn(2, 3, 4, 5, 6)
    assert resize_masks(masks, (5, 6)) is masks
    large = resize_masks(masks, (10, 18))
    assert large.shape == (2, 3, 4, 10, 18)
    alone = torch.nn.functional.interpolate(masks[1, 2, 3][None, None], size=(10, 18), mode="bilinear")
    torch.testing.assert_close(large[1, 2, 3], alone[0, 0])
    binary = resize_masks((masks > 0).float(), (15, 12), mode="nearest")
    assert set(binary.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("queries", "expected"), [(24, 116_056), (8, 116_056 - 16 * (27 * 64 + 27 * 64 + 1))])
def test_upsampler_has_the_parameters_of_the_supplement(queries, expected):
    """model.md §16.2; at N = 8 sixteen queries less in the first and the last convolution."""
    assert sum(p.numel() for p in MaskUpsampler(queries).parameters()) == expected


def test_upsampler_quadruples_the_plane_only():
    torch.manual_seed(0)
    upsampler = MaskUpsampler(3, width=4)
    masks = torch.randn(2, 3, 2, 4, 5)
    assert upsampler(masks).shape == (2, 3, 2, 16, 20)
    one_slice = upsampler(masks[:, :, :1])
    assert one_slice.shape == (2, 3, 1, 16, 20)
    assert one_slice.isfinite().all()


def test_blend_starts_at_the_generators_mask():
    blend = MaskBlend()
    aux, sam = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 3, 4, 4)
    torch.testing.assert_close(blend(aux, sam), aux + 0.1 * sam)
    blend(aux, sam).sum().backward()
    torch.testing.assert_close(blend.aux.grad, aux.sum())
    torch.testing.assert_close(blend.sam.grad, sam.sum())
    assert sum(p.numel() for p in blend.parameters()) == 2
