"""Clicks, boxes and former masks as maps at the patch's own size, and the head that reads them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from MaskSAMCore.config import presets
from MaskSAMCore.network.build import build_model, is_for_prompts
from MaskSAMCore.network.click_head import LOGIT_SCALE, MAPS, SIGMAS, ClickHead, prompt_maps
from MaskSAMCore.network.prompt_broadcast import SlicePrompts, broadcast_prompts
from MaskSAMCore.network.types import PromptBatch

DEPTH, SIZE = 4, (12, 20)
SHAPE = (1, 1, DEPTH)


def said(**slices: SlicePrompts) -> PromptBatch:
    """What was said in some slices, `z2=...`, copied to the others."""
    return broadcast_prompts([[{int(name[1:]): each for name, each in slices.items()}]], DEPTH)


def click(y: int, x: int, label: int = 1) -> SlicePrompts:
    return SlicePrompts(points=(((x + 0.5) / SIZE[1], (y + 0.5) / SIZE[0]),), labels=(label,))


def test_a_click_is_drawn_where_it_is_and_fainter_in_other_slices() -> None:
    maps = prompt_maps(said(z1=click(3, 15)), SHAPE, SIZE)[0, 0]
    assert maps.shape == (MAPS, DEPTH, *SIZE)
    narrow, wide = maps[0], maps[2]
    assert narrow[1].argmax() == 3 * SIZE[1] + 15
    assert narrow[1].max() == pytest.approx(1.0)
    at = narrow[1, 3, 13]
    assert at == pytest.approx(float(torch.exp(torch.tensor(-4 / (2 * SIGMAS[0] ** 2)))), rel=1e-4)
    assert wide[1, 3, 13] > at
    assert [float(z.max()) for z in narrow] == pytest.approx([1 / 2, 1, 1 / 2, 1 / 3])
    assert not maps[[1, 3, 4, 5]].any()


def test_clicks_against_have_maps_of_their_own_and_padding_none() -> None:
    both = SlicePrompts(points=(*click(2, 2).points, *click(9, 17).points), labels=(1, 0))
    maps = prompt_maps(said(z0=both, z3=click(5, 5, 0)), SHAPE, SIZE)[0, 0]
    assert maps[0, 0].argmax() == 2 * SIZE[1] + 2
    assert maps[1, 0].argmax() == 9 * SIZE[1] + 17
    assert not maps[0, 3].any()
    assert maps[1, 3].argmax() == 5 * SIZE[1] + 5


def test_a_box_is_its_inside_and_a_mask_its_logits() -> None:
    box = SlicePrompts(box=(5 / 20, 3 / 12, 9 / 20, 7 / 12))
    maps = prompt_maps(said(z2=box), SHAPE, SIZE)[0, 0]
    inside = torch.zeros(SIZE)
    inside[3:7, 5:9] = 1
    torch.testing.assert_close(maps[4, 2], inside)
    torch.testing.assert_close(maps[4, 1], inside / 2)
    masks = torch.randn(1, 1, DEPTH, *SIZE)
    known = torch.tensor([[[True, False, True, True]]])
    former = prompt_maps(broadcast_prompts([[{}]], DEPTH, masks=masks, masks_known=known), SHAPE, SIZE)[0, 0, 5]
    assert not former[1].any()
    torch.testing.assert_close(former[0] * LOGIT_SCALE, masks[0, 0, 0])
    both = prompt_maps(said(z0=click(3, 3), z3=box), SHAPE, SIZE)[0, 0]
    assert both[4, 3].any()
    assert not both[4, 0].any()


@pytest.mark.parametrize("in_plane", [False, True])
def test_it_starts_at_zero_and_then_follows_the_clicks(in_plane: bool) -> None:
    torch.manual_seed(0)
    head = ClickHead(3, in_plane=in_plane)
    masks, fine = torch.randn(2, 3, DEPTH, 2, *SIZE), torch.randn(2, 3, DEPTH, *SIZE)
    words = [[{1: click(3, 4 + q)} for q in range(3)] for _ in range(2)]
    assert torch.equal(head(masks, fine, broadcast_prompts(words, DEPTH)), masks)
    nn.init.normal_(head.last.weight)
    with torch.no_grad():
        one = head(masks, fine, broadcast_prompts(words, DEPTH))
        assert one.shape == masks.shape
        assert not torch.allclose(one, masks)
        alone = head(masks[1:, 2:, :, 1:], fine[1:], broadcast_prompts([words[1][2:]], DEPTH))
        torch.testing.assert_close(alone[0, 0, :, 0], one[1, 2, :, 1], atol=1e-5, rtol=1e-4)
        words[0][0] = {1: click(9, 15)}
        other = head(masks, fine, broadcast_prompts(words, DEPTH))
        changed = (one - other).abs().amax(dim=(3, 4, 5))
        assert (changed[0, 0] > 0).all()
        assert not changed[0, 1:].any()
        assert not changed[1].any()


def test_the_network_has_one_and_it_serves_prompts_alone() -> None:
    network = build_model(presets.get("tiny").model)
    names = [name for name, _ in network.named_parameters() if name.startswith("clicks.")]
    assert names
    assert all(is_for_prompts(name) for name in names)
    nn.init.normal_(network.clicks.last.weight)
    with torch.no_grad():
        slab = network.slab(torch.randn(1, 1, 4, 16, 16))
        points = [
            network.prompted(slab, broadcast_prompts([[{1: SlicePrompts(points=((x, 0.5),), labels=(1,))}]], 4)).masks
            for x in (0.2, 0.8)
        ]
    assert not torch.allclose(*points)
