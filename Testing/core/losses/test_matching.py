"""The assignment of queries to structures (model.md §9.1, §9.2; check 17 of §19)."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from MaskSAMCore.config.network_schema import LossConfig
from MaskSAMCore.losses.matching import (
    AUXILIARY,
    BOX_GIOU,
    BOX_L1,
    CLASSIFICATION,
    Assignment,
    match,
    pairwise_cost,
    slice_targets,
)
from MaskSAMCore.network.types import QueryOutputs

CFG = LossConfig()


def random_outputs(*, n: int = 4, k: int = 3, shape: tuple[int, int, int] = (3, 8, 12), seed: int = 0) -> QueryOutputs:
    draw = torch.Generator().manual_seed(seed)
    depth = shape[0]

    def boxes() -> Tensor:
        low, share = torch.rand(2, n, depth, 2, 2, generator=draw).unbind(-1)
        return torch.cat([low, low + (1 - low) * share], dim=-1)

    return QueryOutputs(
        masks=torch.randn(2, n, *shape, generator=draw) * 3,
        cls=torch.randn(2, n, depth, k + 1, generator=draw),
        aux_masks=torch.randn(2, n, *shape, generator=draw) * 3,
        aux_boxes=boxes(),
        fused_boxes=boxes(),
    )


def random_labels(*, k: int = 3, shape: tuple[int, int, int] = (3, 8, 12), seed: int = 1) -> Tensor:
    return torch.randint(k, (2, *shape), generator=torch.Generator().manual_seed(seed))


def permuted(outputs: QueryOutputs, order: list[int]) -> QueryOutputs:
    return replace(outputs, **{name: value[:, order] for name, value in vars(outputs).items() if value is not None})


def triples(a: Assignment) -> set[tuple[int, int, int]]:
    return set(zip(a.slices.tolist(), a.queries.tolist(), a.classes.tolist(), strict=True))


def test_targets_count_slices_with_depth_fastest() -> None:
    labels = torch.zeros(2, 3, 4, 8, dtype=torch.long)
    labels[1, 2, 1:3, 2:4] = 2
    targets = slice_targets(labels, 4)
    assert targets.masks.shape == (6, 4, 4, 8)
    assert targets.present.nonzero().tolist() == [[g, 0] for g in range(5)] + [[5, 0], [5, 2]]
    assert targets.masks[5, 2].sum() == 4
    assert torch.allclose(targets.boxes[5, 2], torch.tensor([0.25, 0.25, 0.5, 0.75]))
    assert torch.allclose(targets.boxes[0, 0], torch.tensor([0.0, 0, 1, 1]))


def test_costs_are_those_of_the_definition() -> None:
    outputs, labels = random_outputs(), random_labels()
    assert outputs.cls is not None
    assert outputs.aux_masks is not None
    assert outputs.fused_boxes is not None
    targets = slice_targets(labels, 3)
    cost = pairwise_cost(outputs, targets, CFG)
    b, d, n, c = 1, 2, 3, 1
    truth = (labels[b, d] == c)[::2, ::2].float()
    expected = -CLASSIFICATION * outputs.cls[b, n, d].softmax(-1)[c]
    for logits, bce, dice in (
        (outputs.masks, CFG.bce, CFG.dice),
        (outputs.aux_masks, AUXILIARY, AUXILIARY),
    ):
        x = logits[b, n, d, ::2, ::2]
        p = x.sigmoid()
        expected = expected + bce * F.binary_cross_entropy_with_logits(x, truth)
        expected = expected + dice * (1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1))
    mine, theirs = outputs.fused_boxes[b, n, d], targets.boxes[b * 3 + d, c]
    expected = expected + BOX_L1 * (mine - theirs).abs().sum()
    x0, y0, x1, y1 = mine.tolist()
    u0, v0, u1, v1 = theirs.tolist()
    inside = max(0.0, min(x1, u1) - max(x0, u0)) * max(0.0, min(y1, v1) - max(y0, v0))
    union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - inside
    hull = (max(x1, u1) - min(x0, u0)) * (max(y1, v1) - min(y0, v0))
    expected = expected - BOX_GIOU * (inside / union - (hull - union) / hull)
    assert cost[b * 3 + d, n, c].item() == pytest.approx(float(expected), abs=1e-4)


def test_the_assignment_is_the_cheapest_of_all() -> None:
    outputs, labels = random_outputs(), random_labels()
    cost = pairwise_cost(outputs, slice_targets(labels, 3), CFG)
    found = match(outputs, slice_targets(labels, 3), CFG)
    for g in range(6):
        best = min(
            sum(cost[g, q, c].item() for c, q in enumerate(queries)) for queries in itertools.permutations(range(4), 3)
        )
        mine = sum(cost[s, q, c].item() for s, q, c in triples(found) if s == g)
        assert mine == pytest.approx(best, abs=1e-5)


def test_permuted_queries_permute_the_assignment() -> None:
    outputs, labels = random_outputs(), random_labels()
    order = [2, 0, 3, 1]
    targets = slice_targets(labels, 3)
    straight, turned = match(outputs, targets, CFG), match(permuted(outputs, order), targets, CFG)
    assert {(s, order[q], c) for s, q, c in triples(turned)} == triples(straight)
    assert triples(turned) != triples(straight)


def test_a_perfect_prediction_is_matched_to_itself() -> None:
    labels = random_labels()
    targets = slice_targets(labels, 3)
    right = [3, 1, 0]
    logits = torch.full((6, 4, 8, 12), -9.0)
    cls = torch.zeros(6, 4, 4)
    for c, q in enumerate(right):
        logits[:, q] = targets.masks[:, c] * 18.0 - 9.0
        cls[:, q, c] = 9.0
    outputs = QueryOutputs(
        masks=logits.unflatten(0, (2, 3)).transpose(1, 2), cls=cls.unflatten(0, (2, 3)).transpose(1, 2)
    )
    found = match(outputs, targets, CFG)
    assert triples(found) == {(g, q, c) for g in range(6) for c, q in enumerate(right)}


def test_absent_classes_and_padding_get_no_query() -> None:
    labels = torch.zeros(2, 3, 8, 12, dtype=torch.long)
    labels[0, 1, 2:4, 2:4] = 2
    valid = torch.ones(2, 3, dtype=torch.bool)
    valid[1, 2] = False
    found = match(random_outputs(), slice_targets(labels, 3, valid), CFG, valid=valid)
    assert sorted((s, c) for s, _, c in triples(found)) == [(0, 0), (1, 0), (1, 2), (2, 0), (3, 0), (4, 0)]
    assert found.used.tolist() == [True] * 5 + [False]


def test_a_nan_is_dear_and_a_slice_of_nan_is_skipped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    outputs, labels = random_outputs(), random_labels()
    outputs.masks[0, 1, 0] = torch.nan
    outputs.masks[1, :, 2] = torch.nan
    with caplog.at_level(logging.WARNING):
        found = match(outputs, slice_targets(labels, 3), CFG)
    assert "1 of 6 slices" in caplog.text
    assert not any(s == 0 and q == 1 for s, q, _ in triples(found))
    assert {s for s, _, _ in triples(found)} == {0, 1, 2, 3, 4}
    assert found.used.tolist() == [True] * 5 + [False]


def test_a_slice_of_nan_stays_skipped_where_all_slices_are_valid() -> None:
    outputs = random_outputs()
    outputs.masks[1, :, 0] = torch.nan
    valid = torch.ones(2, 3, dtype=torch.bool)
    found = match(outputs, slice_targets(random_labels(), 3, valid), CFG, valid=valid)
    assert found.used.tolist() == [True] * 3 + [False] + [True] * 2


def test_nothing_valid_yields_an_empty_assignment() -> None:
    valid = torch.zeros(2, 3, dtype=torch.bool)
    found = match(random_outputs(), slice_targets(random_labels(), 3, valid), CFG, valid=valid)
    assert found.slices.numel() == 0
    assert not found.used.any()


def test_large_slices_draw_their_points_and_repeat_them_with_the_seed() -> None:
    shape = (1, 260, 256)
    outputs, labels = random_outputs(shape=shape), random_labels(shape=shape)
    targets = slice_targets(labels, 3)
    costs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        costs.append(pairwise_cost(outputs, targets, CFG))
    assert torch.equal(costs[0], costs[1])
    assert not torch.equal(costs[0], costs[2])
    x, y = outputs.masks[0, 0, 0], targets.masks[0, 1].float()
    masks = QueryOutputs(masks=outputs.masks, cls=None, aux_masks=None, aux_boxes=None, fused_boxes=None)
    expected = F.binary_cross_entropy_with_logits(x, y).item()
    assert pairwise_cost(masks, targets, LossConfig(bce=1, dice=0))[0, 0, 1].item() == pytest.approx(expected, rel=0.05)
