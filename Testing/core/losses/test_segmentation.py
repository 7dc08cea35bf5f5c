"""Cross entropy + Dice of class logits, and deep supervision (model.md §9.4; check 15 of §19)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from MaskSAMCore.config.network_schema import LossConfig
from MaskSAMCore.losses.segmentation import SMOOTH, SegmentationLoss, stage_weights
from MaskSAMCore.network.types import QueryOutputs

K, SHAPE = 3, (2, 8, 12)
EVEN = LossConfig(kind="segmentation", bce=1.0, dice=1.0)


def labels() -> Tensor:
    return torch.randint(K, (2, *SHAPE), generator=torch.Generator().manual_seed(1))


def logits(seed: int = 0, size: tuple[int, int] = SHAPE[1:]) -> Tensor:
    return torch.randn(2, K, SHAPE[0], *size, generator=torch.Generator().manual_seed(seed))


def by_hand(x: Tensor, y: Tensor, *, first: int = 1) -> tuple[float, float]:
    p = x.softmax(1)
    cross = float(F.nll_loss(p.log(), y))
    found = []
    for b in range(len(y)):
        for c in range(first, K):
            mine, theirs = p[b, c], (y[b] == c).float()
            found.append(float(1 - (2 * (mine * theirs).sum() + SMOOTH) / (mine.sum() + theirs.sum() + SMOOTH)))
    return cross, sum(found) / len(found)


def alone(x: Tensor, y: Tensor, cfg: LossConfig = EVEN) -> float:
    return float(SegmentationLoss(cfg, K)(QueryOutputs(masks=x, cls=None), y)["loss"])


def test_stage_weights_halve_from_the_finest_on() -> None:
    assert stage_weights(5)[::-1] == pytest.approx([0.5161, 0.2581, 0.1290, 0.0645, 0.0323], abs=5e-5)
    assert stage_weights(1) == (1.0,)
    assert all(math.isclose(sum(stage_weights(n)), 1) for n in range(1, 7))


def test_dice_is_of_each_patch_and_without_the_background_unless_asked_for() -> None:
    x, y = logits(), labels()
    cross, dice = by_hand(x, y)
    assert alone(x, y) == pytest.approx(cross + dice, rel=1e-5)
    weighted = LossConfig(kind="segmentation", bce=0.3, dice=2.0)
    assert alone(x, y, weighted) == pytest.approx(0.3 * cross + 2 * dice, rel=1e-5)
    whole = LossConfig(kind="segmentation", bce=1.0, dice=1.0, background=True)
    assert alone(x, y, whole) == pytest.approx(sum(by_hand(x, y, first=0)), rel=1e-5)
    right = F.one_hot(y, K).permute(0, 4, 1, 2, 3).float() * 80 - 40
    assert alone(right, y) < 1e-5


def test_padding_does_not_count_and_without_anything_nothing_is_lost() -> None:
    y, valid = labels(), torch.ones(2, SHAPE[0], dtype=torch.bool)
    valid[1, 0] = False
    criterion = SegmentationLoss(EVEN, K)
    x, other = logits(), logits()
    other[1, :, 0] = torch.nan
    outputs = [QueryOutputs(masks=each, cls=None, stages=(each * 1, each * 2)) for each in (x, other)]
    first, second = (criterion(each, y, valid)["loss"] for each in outputs)
    assert torch.isfinite(first)
    assert torch.equal(first, second)
    one = QueryOutputs(masks=x[:1], cls=None)
    valid[1] = False
    torch.testing.assert_close(
        criterion(QueryOutputs(masks=x, cls=None), y, valid)["loss"], criterion(one, y[:1], valid[:1])["loss"]
    )
    assert criterion(outputs[0], y, torch.zeros_like(valid))["loss"] == 0


def test_stages_are_compared_with_the_nearest_labels_and_the_terms_are_told() -> None:
    y = labels()
    stages = (logits(1, (2, 3)), logits(2, (4, 6)), logits(3))
    criterion = SegmentationLoss(EVEN, K)
    wanted = 0.0
    for weight, stage, step in zip((1 / 7, 2 / 7, 4 / 7), stages, (4, 2, 1), strict=True):
        near = y[..., step // 2 :: step, step // 2 :: step]
        wanted += weight * sum(by_hand(stage, near))
    generator = criterion.generator(stages, y)
    assert float(generator["loss"]) == pytest.approx(wanted, rel=1e-5)
    masks = logits(4).requires_grad_()
    terms = criterion(QueryOutputs(masks=masks, cls=None, stages=stages), y)
    assert float(terms["generator"]) == pytest.approx(wanted, rel=1e-5)
    assert float(terms["segmentation"]) == pytest.approx(sum(by_hand(masks.detach(), y)), rel=1e-5)
    torch.testing.assert_close(terms["loss"], terms["generator"] + terms["segmentation"])
    assert terms["loss"].requires_grad
    assert not terms["segmentation"].requires_grad


def test_where_nothing_was_decoded_the_last_stage_counts_once() -> None:
    y, stages = labels(), (logits(1, (4, 6)), logits(3))
    criterion = SegmentationLoss(EVEN, K)
    terms = criterion(QueryOutputs(masks=stages[-1], cls=None, stages=stages), y)
    assert set(terms) == {"loss", "generator"}
    torch.testing.assert_close(terms["loss"], criterion.generator(stages, y)["loss"])
