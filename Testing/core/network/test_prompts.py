"""Prompts in SAM's embedding space: equal to SAM's own prompt encoder, and harmless when not valid."""

from __future__ import annotations

import pytest
import torch

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.errors import PromptError
from MaskSAMCore.network.prompts import PromptTokenizer
from MaskSAMCore.network.types import PromptBatch

B, Q, D = 2, 2, 3
GRIDS = [(64, 64), (10, 14)]


def tokenizer() -> PromptTokenizer:
    torch.manual_seed(0)
    return PromptTokenizer(ModelConfig())


def pixels(grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole pixels (B, Q, D, 2, 2), x before y, of the encoder's input, and its (width, height)."""
    height, width = grid[0] * 16, grid[1] * 16
    size = torch.tensor([width, height])
    return (torch.rand(B, Q, D, 2, 2) * size).floor().double(), size.double()


def boxes_of(corners: torch.Tensor) -> torch.Tensor:
    return torch.cat([corners.amin(-2), corners.amax(-2)], -1)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["points", "box", "points+box", "points+box+mask"])
def test_tokens_equal_sams_prompt_encoder(grid, kind):
    own = tokenizer()
    sam = own.sam
    at, size = pixels(grid)
    labels = torch.randint(0, 2, (B, Q, D, 2))
    box = boxes_of(at)
    mask = torch.randn(B, Q, D, 4 * grid[0], 4 * grid[1])
    batch, expected = PromptBatch(), {"points": None, "boxes": None, "masks": None}
    if "points" in kind:
        batch.points, batch.labels = ((at + 0.5) / size).float(), labels
        expected["points"] = (at.float().flatten(0, 2), labels.flatten(0, 2))
    if "box" in kind:
        batch.boxes = ((box + torch.tensor([0, 0, 1, 1])) / torch.cat([size, size])).float()
        expected["boxes"] = box.float().flatten(0, 2)
    if "mask" in kind:
        batch.masks, expected["masks"] = mask, mask.flatten(0, 2)[:, None]
    tokens = own(batch, grid)
    sparse, dense = sam(**expected)
    assert tokens.queries == Q
    assert tokens.sparse.shape == sparse.shape == (B * Q * D, {"points": 3, "box": 2}.get(kind, 4), 256)
    # A fraction of 224 pixels is not exact in binary, and SAM's highest frequencies are steep.
    torch.testing.assert_close(tokens.sparse, sparse, atol=0 if grid == (64, 64) else 1e-4, rtol=0)
    if "mask" in kind:
        assert tokens.dense.shape == (B * Q * D, 256, *grid)
        torch.testing.assert_close(tokens.dense, dense, atol=1e-6, rtol=0)
    else:
        assert tokens.dense.shape == (1, 256, 1, 1)
        assert torch.equal(tokens.dense[0, :, 0, 0], dense[0, :, 0, 0])


def test_padding_points_inside_a_prompt_are_sams_padding():
    own = tokenizer()
    points = torch.rand(1, 1, 1, 3, 2)
    tokens = own(PromptBatch(points=points, labels=torch.tensor([[[[1, 0, -1]]]])), (64, 64)).sparse
    none = own.sam.not_a_point_embed.weight[0]
    assert torch.equal(tokens[0, 2], none)
    assert torch.equal(tokens[0, 3], none)
    assert not torch.equal(tokens[0, 1], none)


@pytest.mark.parametrize("grid", [(64, 64), (10, 14), (32, 20)])
def test_dense_positions(grid):
    own = tokenizer()
    whole = own.sam.get_dense_pe()
    assert torch.equal(own.dense_pe(grid), whole[:, :, : grid[0], : grid[1]])


def test_a_prompt_in_a_crop_is_the_same_place_on_the_canvas():
    own = tokenizer()
    small = own(PromptBatch(boxes=torch.tensor([0.25, 0.5, 0.75, 1.0]).reshape(1, 1, 1, 4)), (16, 32)).sparse
    large = own(PromptBatch(boxes=torch.tensor([0.125, 0.125, 0.375, 0.25]).reshape(1, 1, 1, 4)), (64, 64)).sparse
    assert torch.equal(small, large)


def test_prompts_that_are_not_valid_are_harmless():
    own, grid = tokenizer(), (4, 6)
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    valid[0, 1, 0] = False
    values = {
        "points": torch.rand(1, 2, 2, 1, 2),
        "boxes": torch.rand(1, 2, 2, 4),
        "masks": torch.randn(1, 2, 2, 16, 24),
        "class_tokens": torch.randn(1, 2, 2, 256),
    }
    for value in values.values():
        value[~valid] = float("nan")
        value.requires_grad_()
    tokens = own(PromptBatch(**values, labels=torch.ones(1, 2, 2, 1, dtype=torch.long), valid=valid), grid)
    bad = 2  # G = (b * Q + q) * D + z
    none = own.sam.not_a_point_embed.weight[0]
    assert all(torch.equal(token, none) for token in tokens.sparse[bad])
    assert torch.equal(tokens.dense[bad], own.sam.no_mask_embed.weight.reshape(256, 1, 1).expand(256, *grid))
    assert torch.equal(tokens.cls[bad], torch.zeros(256))
    for part in (tokens.sparse, tokens.dense, tokens.cls):
        assert part.isfinite().all()
    (tokens.sparse.square().sum() + tokens.dense.square().sum() + tokens.cls.square().sum()).backward()
    for name, value in values.items():
        assert value.grad.isfinite().all(), name
        assert (value.grad[~valid] == 0).all(), name
        assert (value.grad[valid] != 0).any(), name
    full = own(PromptBatch(boxes=values["boxes"].nan_to_num(0.5)), grid)
    some = own(PromptBatch(boxes=values["boxes"], valid=valid), grid)
    assert torch.equal(full.sparse[valid.flatten()], some.sparse[valid.flatten()])


def test_half_precision_does_not_move_a_prompt():
    own = tokenizer()
    batch = PromptBatch(boxes=torch.rand(1, 1, 1, 4))
    exact = own(batch, (64, 64)).sparse
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(own(batch, (64, 64)).sparse, exact)


def test_refusals_name_the_reason():
    own = tokenizer()
    with pytest.raises(PromptError, match="no prompt"):
        own(PromptBatch(valid=torch.ones(1, 1, 1, dtype=torch.bool)), (4, 4))
    with pytest.raises(PromptError, match="without labels"):
        own(PromptBatch(points=torch.rand(1, 1, 1, 1, 2)), (4, 4))
    with pytest.raises(PromptError, match=r"\(16, 20\) instead of \(16, 16\)"):
        own(PromptBatch(masks=torch.rand(1, 1, 1, 16, 20)), (4, 4))


def test_the_prompt_encoder_is_frozen_and_sams_size():
    own = tokenizer()
    assert sum(p.numel() for p in own.parameters()) == 6220
    assert not any(p.requires_grad for p in own.parameters())
    assert {name.split(".")[0] for name in own.state_dict()} == {"sam"}
